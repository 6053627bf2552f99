"""Scan of a journal's files: find finished requests and lines that a crash damaged."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from parallel_core.errors import JournalError
from parallel_core.failures import FailureKind

from .files import LockedFile
from .request_records import id_key
from .result_lines import BadLineError, ResultLine, read_result_lines

_DUPLICATES_NAMED = 10


class FinishedIds:
    """Ids of finished requests, kept as 128-bit digests: 80 bytes each, whatever their length.

    With a million ids, the chance that two of them have the same digest is one in 10^27.

    Attributes:
        succeeded: digests of requests that have an answer.
        failed: digests of requests that failed, with the kind of their last failure.
        retried: digests of requests that failed and will be sent again. Their failures stay in the
            file until there is a newer result.
        superseded: by digest, the number of failures that a later result supersedes; these are
            always the first ones. An answer supersedes every failure.
        duplicates: number of answers to requests that already had one.
        duplicate_ids: the first few of these ids.
        aside: digests of requests whose results answer an earlier version of them, and are to be
            moved out of the files. They are in none of the others.
    """

    __slots__ = (
        "aside",
        "duplicate_ids",
        "duplicates",
        "failed",
        "retried",
        "succeeded",
        "superseded",
    )

    def __init__(self) -> None:
        self.succeeded: set[int] = set()
        self.failed: dict[int, FailureKind] = {}
        self.retried: set[int] = set()
        self.superseded: dict[int, int] = {}
        self.aside: set[int] = set()
        self.duplicates = 0
        self.duplicate_ids: list[str] = []

    def __contains__(self, custom_id: str) -> bool:
        digest = id_digest(custom_id)
        return digest in self.succeeded or digest in self.failed

    def has_answer(self, custom_id: str) -> bool:
        """Return True if the request has an answer."""
        return id_digest(custom_id) in self.succeeded

    def has_result(self, digest: int) -> bool:
        """Return True if the request has an answer or a failure, also one that is sent again."""
        return digest in self.succeeded or digest in self.failed or digest in self.retried

    def set_aside(self, digest: int) -> None:
        """Stop counting the results of a request: they answer an earlier version of it."""
        self.succeeded.discard(digest)
        self.failed.pop(digest, None)
        self.aside.add(digest)

    def count(self, result: ResultLine) -> None:
        """Note the result of a request."""
        digest = id_digest(result.custom_id)
        if digest in self.succeeded:
            if result.ok:
                self.duplicates += 1
                if len(self.duplicate_ids) < _DUPLICATES_NAMED:
                    self.duplicate_ids.append(result.custom_id)
            else:
                self._supersede(digest)
        else:
            if digest in self.failed:
                self._supersede(digest)
            if result.ok:
                self.failed.pop(digest, None)
                self.succeeded.add(digest)
            else:
                self.failed[digest] = result.failure.kind

    def retry_failed(self, kinds: Collection[FailureKind]) -> None:
        """Stop counting failures of these kinds as finished."""
        self.retried = {digest for digest, kind in self.failed.items() if kind in kinds}
        for digest in self.retried:
            del self.failed[digest]

    def failure_kind(self, custom_id: str) -> FailureKind | None:
        """Return the kind of a request's failure; None if it did not fail or is sent again."""
        return self.failed.get(id_digest(custom_id))

    def note_retry(self, custom_id: str) -> None:
        """Note a new result of a request: it supersedes the failure in the file, if any."""
        digest = id_digest(custom_id)
        if digest in self.retried:
            self.retried.discard(digest)
            self._supersede(digest)

    def _supersede(self, digest: int) -> None:
        self.superseded[digest] = self.superseded.get(digest, 0) + 1


def id_digest(custom_id: str) -> int:
    """Return the 128-bit digest of an id."""
    return int.from_bytes(id_key(custom_id))


@dataclass
class Scan:
    """The result of scanning one file.

    Attributes:
        size: size of the file, in bytes.
        end: offset of the end of its last good line.
        ends_with_newline: True if that line ends with a newline.
        holes: start and end offsets of lines that a loss of power damaged.
        failures: number of lines of failed requests.
    """

    size: int
    end: int = 0
    ends_with_newline: bool = True
    holes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    failures: int = 0

    @property
    def torn_bytes(self) -> int:
        """Number of bytes that do not belong to a whole line."""
        return self.size - self.end + sum(end - start for start, end in self.holes)


def scan_file(file: LockedFile, ids: FinishedIds) -> Scan:
    """Read a file and count its ids. This changes nothing.

    Raises:
        JournalError: a line is invalid, and a crash cannot have caused that.
        OSError: the file cannot be read.
    """
    scan = Scan(file.size)
    with file.path.open("rb", buffering=1 << 18) as lines:
        try:
            for line, end, what, result in read_result_lines(lines):
                if what == "torn":
                    break
                if what == "hole":
                    scan.holes.append((end - len(line), end))
                elif result is not None:
                    ids.count(result)
                    scan.failures += not result.ok
                    scan.ends_with_newline = line.endswith(b"\n")
                scan.end = end
        except BadLineError as error:
            raise JournalError(
                f"{file.path}, line {error.number} {error.why}. No crash leaves such a line: fix "
                "or remove it. Nothing was changed"
            ) from None
    return scan


def repair(file: LockedFile, scan: Scan) -> None:
    """Cut what a crash damaged. Raises OSError."""
    if scan.holes:
        file.replace(_without_holes(file.path, scan))
    else:
        file.cut(scan.end)
    if scan.end and not scan.ends_with_newline:
        file.write(b"\n")
        file.sync()
        file.commit()


def drop_superseded(files: Sequence[LockedFile], superseded: Mapping[int, int]) -> None:
    """Rewrite files without the failures that a later result supersedes.

    Args:
        files: the files, in the order in which they were scanned.
        superseded: as in ``FinishedIds``.

    Raises:
        OSError: a file cannot be written. Each file is either unchanged or fully rewritten.
    """
    left = dict(superseded)
    for file in files:
        file.replace(_without_superseded(file.path, left))


def _without_superseded(path: Path, left: dict[int, int]) -> Iterator[bytes]:
    with path.open("rb") as lines:
        for found in read_result_lines(lines):
            result = found.result
            if result is None:
                continue
            if not result.ok:
                digest = id_digest(result.custom_id)
                number = left.get(digest, 0)
                if number:
                    left[digest] = number - 1
                    continue
            yield found.line


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
