"""What is in the files of a journal: which requests are finished, and what a crash has spoiled."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from ._journal_files import LockedFile
from .errors import JournalError

_DUPLICATES_NAMED = 10


class ResultLine(msgspec.Struct):
    """What the journal has to know of a line of the output: of OpenAI's Batch API or vLLM's."""

    class Response(msgspec.Struct):
        status_code: int = 200

    custom_id: str
    response: Response | None = None
    error: Any = None

    @property
    def ok(self) -> bool:
        response = self.response
        return self.error is None and response is not None and 200 <= response.status_code < 300


_decode: Callable[[bytes], ResultLine] = msgspec.json.Decoder(ResultLine).decode


def read_result_line(line: bytes) -> ResultLine:
    """Raises ValueError: this is no result line."""
    try:
        result = _decode(line)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from error
    if result.response is None and result.error is None:
        raise ValueError("it has neither a response nor an error")
    return result


class FinishedIds:
    """Ids, as digests of 128 bits in sets: 80 bytes each, however long they are.

    With a million ids, the chance that two of them have the same digest is one in 10^27.

    Attributes:
        succeeded: digests of requests that have an answer.
        failed: digests of the others.
        duplicates: lines whose id was there before.
        duplicate_ids: the first few of these ids.
    """

    __slots__ = ("duplicate_ids", "duplicates", "failed", "succeeded")

    def __init__(self) -> None:
        self.succeeded: set[int] = set()
        self.failed: set[int] = set()
        self.forget_duplicates()

    def __contains__(self, custom_id: str) -> bool:
        digest = id_digest(custom_id)
        return digest in self.succeeded or digest in self.failed

    def count(self, result: ResultLine) -> None:
        """Note that a request is finished."""
        digest = id_digest(result.custom_id)
        if digest not in self.succeeded and digest not in self.failed:
            (self.succeeded if result.ok else self.failed).add(digest)
            return
        self.duplicates += 1
        if len(self.duplicate_ids) < _DUPLICATES_NAMED:
            self.duplicate_ids.append(result.custom_id)
        if result.ok and digest in self.failed:  # an answer goes before a failure
            self.failed.discard(digest)
            self.succeeded.add(digest)

    def forget_duplicates(self) -> None:
        self.duplicates = 0
        self.duplicate_ids: list[str] = []


def id_digest(custom_id: str) -> int:
    return int.from_bytes(
        blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    )


@dataclass
class Scan:
    """What one file holds.

    Attributes:
        size: of the file, in bytes.
        end: of its last good line.
        ends_with_newline: whether that line does.
        holes: spans of lines that a loss of power has spoiled.
    """

    size: int
    end: int = 0
    ends_with_newline: bool = True
    holes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    @property
    def torn_bytes(self) -> int:
        """What is no whole line."""
        return self.size - self.end + sum(end - start for start, end in self.holes)


def scan_file(file: LockedFile, ids: FinishedIds) -> Scan:
    """Read a file and count its ids. Nothing is changed.

    Raises:
        JournalError: a line is broken that no crash has broken.
        OSError: the file cannot be read.
    """
    scan = Scan(file.size)
    suspicious: tuple[int, int, int, ValueError] | None = None
    offset = 0
    with file.path.open("rb", buffering=1 << 18) as lines:
        for number, line in enumerate(lines, 1):
            start, offset = offset, offset + len(line)
            if suspicious is not None:
                raise _broken(file.path, suspicious[0], suspicious[3])
            try:
                result = read_result_line(line)
            except ValueError as error:
                if line.isspace() and line.endswith(b"\n"):
                    scan.end = offset
                elif b"\0" in line and line.endswith(b"\n"):
                    # JSON has none: a block that never reached the disk before power was lost.
                    scan.holes.append((start, offset))
                    scan.end = offset
                elif not _keep_without_newline(scan, line, start, ids):
                    suspicious = (number, start, offset, error)
            else:
                ids.count(result)
                scan.end = offset
                scan.ends_with_newline = line.endswith(b"\n")
    if suspicious is not None and not _may_be_torn(file, suspicious[1], suspicious[2]):
        raise _broken(file.path, suspicious[0], suspicious[3])
    return scan


def _keep_without_newline(scan: Scan, line: bytes, start: int, ids: FinishedIds) -> bool:
    """A line that is whole but for its end, with NULs in the place of what should follow."""
    whole = line.rstrip(b"\0")
    if whole == line:
        return False
    try:
        result = read_result_line(whole)
    except ValueError:
        return False
    ids.count(result)
    scan.end = start + len(whole)
    scan.ends_with_newline = False
    return True


def mend(file: LockedFile, scan: Scan) -> None:
    """Cut what a crash has spoiled. Raises OSError."""
    if scan.holes:
        file.replace(_without_holes(file.path, scan))
    else:
        file.cut(scan.end)
    if scan.end and not scan.ends_with_newline:
        file.write(b"\n")
        file.sync()
        file.commit()


def answers(path: Path, *, each_once: bool) -> Iterator[bytes]:
    """The lines of requests that have succeeded; with ``each_once``, the first of each."""
    seen: set[int] = set()
    with path.open("rb") as lines:
        for line in lines:
            if line.isspace():
                continue
            result = read_result_line(line)
            if not result.ok:
                continue
            if each_once:
                digest = id_digest(result.custom_id)
                if digest in seen:
                    continue
                seen.add(digest)
            yield line


def _without_holes(path: Path, scan: Scan) -> Iterator[bytes]:
    holes = {start for start, _ in scan.holes}
    offset = 0
    with path.open("rb") as lines:
        for line in lines:
            if offset >= scan.end:
                return
            if offset not in holes:
                yield line[: scan.end - offset]
            offset += len(line)


def _may_be_torn(file: LockedFile, start: int, end: int) -> bool:
    """Whether the last line is the work of a crash: then it is no JSON, or of NULs."""
    line = os.pread(file.fd, end - start, start)
    try:
        msgspec.json.decode(line)
    except (msgspec.DecodeError, ValueError):
        return True
    return False


def _broken(path: Path, number: int, error: ValueError) -> JournalError:
    return JournalError(
        f"{path}, line {number} is no result line ({error}): no crash leaves such a line. Mend or "
        "remove it; nothing has been changed"
    )
