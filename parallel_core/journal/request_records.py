"""Records of what was asked: a digest of the id and a digest of the contents for each request.

The records of a run lie beside its output. With them, the next run finds the requests that have
changed since.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from parallel_core.errors import JournalError

from .files import Disk, write_atomically

KEY_BYTES = 16  # with a million ids, the chance that two have the same key is one in 10^27
_CONTENT_BYTES = 8  # a changed request has its old digest with a chance of one in 10^19
_RECORD_BYTES = KEY_BYTES + _CONTENT_BYTES
_BUCKETS = 64
_KEYS_PER_BUCKET = 256 // _BUCKETS  # by their first byte
_COUNT_BYTES = 4
_CONTENT_MASK = (1 << 8 * _CONTENT_BYTES) - 1
_FORMAT_VERSION = 1
_LONGEST_HEADER = 10_000


def id_key(custom_id: str) -> bytes:
    """Return the 128-bit digest of an id."""
    return blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


class RequestRecords:
    """A record of 24 bytes for each request of an input, in file order.

    Attributes:
        buckets: the records, by the first bits of their keys. So two sets of records are compared
            in 64 small parts, and neither has to be sorted.
    """

    __slots__ = ("buckets",)

    def __init__(self) -> None:
        self.buckets = [bytearray() for _ in range(_BUCKETS)]

    def add(self, key: bytes, content: int) -> None:
        """Add a request: the key of its id, and a digest of what it asks."""
        self.buckets[key[0] // _KEYS_PER_BUCKET] += key + (content & _CONTENT_MASK).to_bytes(
            _CONTENT_BYTES, "big"
        )


class ComparedBucket(NamedTuple):
    """Keys of requests, by the difference between two buckets with the same number.

    Attributes:
        common: number of requests that are in both.
        changed: requests that are in both and ask for something else.
        added: requests that are in the new bucket alone.
        gone: requests that are in the old bucket alone.
    """

    common: int
    changed: list[bytes]
    added: list[bytes]
    gone: list[bytes]


def compare_buckets(old: bytes, new: bytes | bytearray) -> ComparedBucket:
    """Compare the requests of two buckets with the same number."""
    if old == new:
        return ComparedBucket(len(old) // _RECORD_BYTES, [], [], [])
    before, now = set(_records(old)), set(_records(new))
    gone = {record[:KEY_BYTES] for record in before - now}
    changed: list[bytes] = []
    added: list[bytes] = []
    for record in now - before:
        key = record[:KEY_BYTES]
        (changed if key in gone else added).append(key)
    gone.difference_update(changed)
    return ComparedBucket(len(now) - len(added), changed, added, list(gone))


def merge_buckets(
    old: bytes, new: bytes | bytearray, has_result: Callable[[bytes], bool]
) -> bytes | bytearray:
    """Return the records of both buckets that describe what the results of a run answer.

    A request that has a result keeps its old record, even if it is gone. A request without a result
    has the new record.
    """
    if old == new:
        return new
    before = set(_records(old))
    lasting = [
        record for record in before.difference(_records(new)) if has_result(record[:KEY_BYTES])
    ]
    current = (
        record for record in _records(new) if record in before or not has_result(record[:KEY_BYTES])
    )
    return b"".join((*current, *lasting))


def _records(bucket: bytes | bytearray) -> list[bytes]:
    whole = bytes(bucket)
    return [whole[at : at + _RECORD_BYTES] for at in range(0, len(whole), _RECORD_BYTES)]


class _Header(msgspec.Struct):
    format_version: int
    input: str
    kept: int


_decode_header = msgspec.json.Decoder(_Header).decode


class RecordsFile:
    """The file of records beside an output, ``out.jsonl.requests``.

    Its first line is a JSON object. For each bucket, the number of its records (4 bytes) and the
    records follow.

    Attributes:
        input: fingerprint of the input that the records belong to.
        kept: number of results that were kept although their request had changed.
    """

    def __init__(self, path: Path, header: _Header) -> None:
        self._path = path
        self.input = header.input
        self.kept = header.kept

    @classmethod
    def find(cls, path: Path) -> RecordsFile | None:
        """Return the file at a path; None if there is none.

        Raises:
            JournalError: it is another kind of file.
            OSError: it cannot be read.
        """
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            return None
        with stream:
            return cls(path, _read_header(stream, path))

    def buckets(self) -> Iterator[bytes]:
        """Read the buckets, one after the other.

        Raises:
            JournalError: a part of the file is missing.
            OSError: it cannot be read.
        """
        with self._path.open("rb") as stream:
            _read_header(stream, self._path)
            for _ in range(_BUCKETS):
                count = stream.read(_COUNT_BYTES)
                size = int.from_bytes(count, "big") * _RECORD_BYTES
                bucket = stream.read(size)
                if len(count) < _COUNT_BYTES or len(bucket) < size:
                    raise _unreadable(self._path)
                yield bucket

    @staticmethod
    def write(
        path: Path, fingerprint: str, kept: int, buckets: Iterable[bytes | bytearray], disk: Disk
    ) -> None:
        """Write the file atomically, and sync it.

        Args:
            path: path of the file.
            fingerprint: fingerprint of the input.
            kept: as the attribute.
            buckets: the records, bucket by bucket.
            disk: the object that writes.

        Raises:
            OSError: it cannot be written, and is as it was before.
        """
        write_atomically(path, _blocks(fingerprint, kept, buckets), disk)


class JoinedRecords:
    """The records of several runs over the same input, for one output with results of all.

    A request that has changed may be recorded differently by two runs: one has kept its old answer.
    The joined records have, for each request, the record of the run whose result is in the output.

    Args:
        files: the records of the runs, by path.

    Raises:
        JournalError: a part of a file is missing.
        OSError: a file cannot be read.
    """

    def __init__(self, files: Mapping[Path, RecordsFile]) -> None:
        self._files = files
        self._source: dict[int, Path | None] = {}  # only of keys with different records
        for parts in self._buckets():
            by_key: dict[bytes, bytes] = {}
            if all(part == parts[0] for part in parts):
                continue
            for record in itertools.chain.from_iterable(map(_records, parts)):
                key = record[:KEY_BYTES]
                if by_key.setdefault(key, record) != record:
                    self._source[int.from_bytes(key, "big")] = None

    def note(self, digest: int, path: Path) -> None:
        """Note which run a result of the output is from.

        Args:
            digest: the digest of the request's id.
            path: path of the records of that run.
        """
        if digest in self._source:
            self._source[digest] = path

    def blocks(self) -> Iterator[bytes]:
        """Yield the contents of the joined file."""
        files = self._files.values()
        inputs = {file.input for file in files}
        # A run that was cut off while it opened has the records of an earlier input: without a
        # fingerprint, the next run compares every request.
        fingerprint = inputs.pop() if len(inputs) == 1 else ""
        kept = sum(file.kept for file in files)
        return _blocks(fingerprint, kept, map(self._joined, self._buckets()))

    def _buckets(self) -> Iterator[tuple[bytes, ...]]:
        return zip(*(file.buckets() for file in self._files.values()), strict=True)

    def _joined(self, parts: tuple[bytes, ...]) -> bytes:
        by_key: dict[bytes, bytes] = {}
        for path, part in zip(self._files, parts, strict=True):
            for record in _records(part):
                key = record[:KEY_BYTES]
                if self._source.get(int.from_bytes(key, "big")) == path:
                    by_key[key] = record
                else:
                    by_key.setdefault(key, record)
        return b"".join(by_key.values())


def _blocks(fingerprint: str, kept: int, buckets: Iterable[bytes | bytearray]) -> Iterator[bytes]:
    yield msgspec.json.encode(_Header(_FORMAT_VERSION, fingerprint, kept)) + b"\n"
    for bucket in buckets:
        yield (len(bucket) // _RECORD_BYTES).to_bytes(_COUNT_BYTES, "big")
        yield bytes(bucket)


def _read_header(stream: BinaryIO, path: Path) -> _Header:
    try:
        header = _decode_header(stream.readline(_LONGEST_HEADER))
    except ValueError:  # msgspec's errors are ValueErrors
        raise _unreadable(path) from None
    if header.format_version != _FORMAT_VERSION:
        raise JournalError(
            f"{path} has the format {header.format_version}, and this version of parallel_core "
            f"knows only format {_FORMAT_VERSION}: resume with the version that started the run, "
            "or a newer one"
        )
    return header


def _unreadable(path: Path) -> JournalError:
    return JournalError(
        f"{path} is not the record of what a run has asked, or a part of it is missing: put the "
        "right one back, or remove it. Without it, a run resumes only while its input is the same"
    )
