"""Join the outputs of several runs, such as shards of one input, into one output.

Each request keeps one line: its first answer or, without one, its last failure. Ids are kept as
digests, so a million of them take about 100 MiB. Parts are read twice.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from parallel_core.errors import JournalError, JournalInUseError

from .backups import move_files_aside, size_of
from .files import Disk, in_large_blocks, refuse_irregular, temporary_name, write_atomically
from .lock import take_lock
from .manifest import Manifest, find_manifest, find_statistics
from .path_checks import check_paths, without_links
from .request_records import JoinedRecords, RecordsFile
from .result_lines import BadLineError, FoundLine, read_result_lines
from .run_paths import RunPaths
from .scan import FinishedIds, id_digest
from .system_errors import reason

# A quote within a JSON text is escaped, so only the members match.
_OF_ONE_RUN = (b'"kind":"limit"', b'"kind":"begin"', b'"kind":"end"')


class MergeSummary(msgspec.Struct, frozen=True):
    """What a merge has written.

    Attributes:
        paths: the files that were written.
        answers: number of requests with an answer.
        failures: number of requests with a failure.
        superseded: number of failures that were left out, because of an answer or a later failure.
        duplicates: number of answers that were left out, because the request had one already.
        duplicate_ids: the first few ids of these.
        resumable: True if the whole input resumes the output: there is a manifest.
        backups: earlier files of the output, by the names under which they were moved aside.
        notes: what else the user should know, as sentences.
    """

    paths: RunPaths
    answers: int
    failures: int
    superseded: int
    duplicates: int
    duplicate_ids: tuple[str, ...]
    resumable: bool
    backups: tuple[Path, ...]
    notes: tuple[str, ...]


def merge_outputs(
    parts: Sequence[Path | str],
    output: Path | str,
    *,
    error_file: Path | str | None = None,
    force: bool = False,
) -> MergeSummary:
    """Join result files of this package, of OpenAI or of vLLM.

    The error file that the manifest of a part names is read with the part. Statistics are joined,
    too. If the manifests of all parts describe the same run, the output gets it.

    Args:
        parts: the files. The order decides which of two answers is the first.
        output: the file to write. It has its name only when it is complete.
        error_file: file for the failures; None writes them to the output.
        force: move earlier files of the output aside. Without it they are refused.

    Raises:
        JournalError: a part is invalid, in use or incomplete, or the output exists or cannot be
            written. The message names the file, and the line if one is invalid.
    """
    try:
        paths = without_links(RunPaths.of(output, error_file))
    except ValueError as error:
        raise JournalError(str(error)) from None
    check_paths(paths)
    with contextlib.ExitStack() as opened:
        try:
            merge = _Merge(parts, paths, opened)
            if not force:
                _refuse_existing(paths)
            return merge.run(force=force)
        except OSError as error:
            where = error.filename or paths.output
            raise JournalError(f"{where} cannot be used: {reason(error)}") from error


class _Part:
    """A file to join, open and locked."""

    def __init__(self, path: Path, opened: contextlib.ExitStack) -> None:
        refuse_irregular(path)
        self.path = path
        self.records: Path | None = None  # of the run whose results these are
        self._file: BinaryIO = path.open("rb", buffering=1 << 18)
        self._end = 0  # only what the first reading has seen is joined
        try:
            opened.callback(take_lock(self._file.fileno(), path).release)
        except JournalInUseError:
            self._file.close()
            raise
        except (JournalError, OSError):
            pass  # a read-only place cannot be locked, and no run writes there
        opened.enter_context(self._file)  # closed before the lock is released

    def scan(self, ids: FinishedIds) -> Iterator[str]:
        """Count the results, and yield notes about lines that a crash has damaged."""
        holes = 0
        for found in self._lines():
            if found.result is not None:
                ids.count(found.result)
            elif found.what == "torn":
                yield f"the last line of {self.path} is incomplete and was left out"
            holes += found.what == "hole"
            self._end = found.end
        if holes:
            yield f"{holes} damaged lines of {self.path} were left out"

    def results(self) -> Iterator[FoundLine]:
        """Read the results again."""
        self._file.seek(0)
        for found in self._lines():
            if found.end > self._end:
                return
            if found.result is not None:
                yield found

    def _lines(self) -> Iterator[FoundLine]:
        try:
            yield from read_result_lines(self._file)
        except BadLineError as error:
            raise JournalError(
                f"{self.path}, line {error.number} {error.why}. Nothing was written"
            ) from None


class _Merge:
    """The parts of a merge, and what is known about them."""

    def __init__(
        self, parts: Sequence[Path | str], paths: RunPaths, opened: contextlib.ExitStack
    ) -> None:
        self._paths = paths
        self._disk = Disk()
        self._notes: list[str] = []
        self._manifests: list[Manifest | None] = []
        self._statistics: list[Path] = []
        self._records: list[Path] = []
        named = [Path(part) for part in parts]
        self._refuse_equal(named)
        owners = {path: part for part in named if (path := self._error_file_of(part)) is not None}
        runs = [part for part in named if not _is_among(part, owners)]
        for part in runs:
            self._look_beside(part)
        further = [path for path in owners if not _is_among(path, named)]
        self._parts = [_Part(path, opened) for path in (*named, *further)]
        for results in self._parts:
            path = results.path
            owner = next((owners[one] for one in owners if one.samefile(path)), path)
            results.records = RunPaths.of(owner).requests
        self._opened = opened
        self._ids = FinishedIds()
        self._keeps_unknown = False  # True if nothing can say which answers are of old requests
        self._joined_records = self._join_records()

    def _refuse_equal(self, named: Sequence[Path]) -> None:
        for number, part in enumerate(named):
            part.stat()  # a file that is missing is named before anything is written
            refuse_irregular(part)
            if _is_among(part, named[:number]):
                raise JournalError(f"{part} is given twice: give each part once")
            if _is_among(part, self._paths.files):
                raise JournalError(f"{part} is a part and cannot be the output: give another name")

    def _error_file_of(self, part: Path) -> Path | None:
        """Return the error file of a part, if its manifest names one that is there."""
        manifest = _manifest_of(part)
        if manifest is None or manifest.error_file is None:
            return None
        path = Path(os.path.normpath(part.parent / manifest.error_file))
        if path.exists():
            return path
        if manifest.has_failures:
            self._notes.append(
                f"the failures of {part} are in {path}, which is not there: a run sends these "
                "requests again"
            )
        return None

    def _look_beside(self, part: Path) -> None:
        """Note what belongs to a part."""
        paths = RunPaths.of(part)
        if size_of(paths.rescue):
            raise JournalError(
                f"{paths.rescue} has results that are not in {part} yet: resume that run first"
            )
        self._manifests.append(_manifest_of(part))
        self._records.append(paths.requests)
        statistics = find_statistics(paths)
        if statistics.exists():
            self._statistics.append(statistics)

    def run(self, *, force: bool) -> MergeSummary:
        """Write the files."""
        paths, ids = self._paths, self._ids
        for part in self._parts:
            self._notes += part.scan(ids)
        answers, failures = len(ids.succeeded), len(ids.failed)
        superseded = sum(ids.superseded.values())
        written = {paths.output: self._write(paths.output, self._lines(errors=False))}
        if paths.errors is not None:
            written[paths.errors] = self._write(paths.errors, self._lines(errors=True))
        if self._statistics:
            lines = self._statistics_lines()
            written[paths.statistics] = self._write(paths.statistics, lines)
        manifest = self._manifest(has_results=bool(answers or failures), has_failures=failures > 0)
        if manifest is not None and self._joined_records is not None:
            written[paths.requests] = self._write(paths.requests, self._joined_records.blocks())
        backups = self._move_aside() if force else ()
        if not force:
            _refuse_existing(paths)
        for path, temporary in written.items():
            temporary.replace(path)
        self._disk.sync_folder(paths.output.parent)
        # The manifest comes last: without it, a run refuses the output.
        if manifest is not None:
            write_atomically(paths.manifest, [manifest.encoded()], self._disk)
        return MergeSummary(
            paths=paths,
            answers=answers,
            failures=failures,
            superseded=superseded,
            duplicates=ids.duplicates,
            duplicate_ids=tuple(ids.duplicate_ids),
            resumable=manifest is not None,
            backups=backups,
            notes=tuple(self._notes),
        )

    def _lines(self, *, errors: bool) -> Iterator[bytes]:
        """Yield the lines to keep: of the error file, or of the output."""
        with_failures = errors or self._paths.errors is None
        unwritten = self._ids.succeeded
        left = dict(self._ids.superseded)
        for part in self._parts:
            for line, _, _, result in part.results():
                assert result is not None
                digest = id_digest(result.custom_id)
                if result.ok:
                    if errors or digest not in unwritten:
                        continue
                    unwritten.discard(digest)
                else:
                    number = left.get(digest, 0)
                    if number:
                        left[digest] = number - 1
                        continue
                    if not with_failures:
                        continue
                if self._joined_records is not None and part.records is not None:
                    self._joined_records.note(digest, part.records)
                yield line.rstrip(b"\0\r\n") + b"\n"

    def _statistics_lines(self) -> Iterator[bytes]:
        """Yield the statistics of all parts.

        Limits of several runs at once have no sum, and their beginnings and ends no order.
        """
        left_out = _OF_ONE_RUN if len(self._statistics) > 1 else ()
        for path in self._statistics:
            with path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n") and not any(kind in line for kind in left_out):
                        yield line

    def _join_records(self) -> JoinedRecords | None:
        """Return the records of the requests, unless a part has none."""
        found = {path: RecordsFile.find(path) for path in self._records}
        present = {path: records for path, records in found.items() if records is not None}
        if len(present) == len(found):
            return JoinedRecords(present) if present else None
        self._keeps_unknown = any(records.kept for records in present.values())
        return None

    def _write(self, path: Path, lines: Iterator[bytes]) -> Path:
        """Write a temporary file beside a path. It is removed if the merge fails."""
        temporary = temporary_name(path)
        self._opened.callback(temporary.unlink, missing_ok=True)
        with temporary.open("wb", buffering=0) as file:
            for block in in_large_blocks(lines):
                self._disk.write_all(file.fileno(), block)
            self._disk.sync(file.fileno())
        return temporary

    def _move_aside(self) -> tuple[Path, ...]:
        paths = self._paths
        for path in (paths.output, paths.errors):
            if path is not None and path.exists():
                with contextlib.ExitStack() as opened:
                    _Part(path, opened)  # refuses a file that a run has locked
        return tuple(move_files_aside([path for path in _own(paths) if path is not None]))

    def _manifest(self, *, has_results: bool, has_failures: bool) -> Manifest | None:
        """Return the manifest of the output if all parts are of the same run."""
        paths = self._paths
        known = [manifest for manifest in self._manifests if manifest is not None]
        if not known or len(known) < len(self._manifests):
            self._notes.append("not every part has a manifest")
            return None
        if self._keeps_unknown:
            self._notes.append(
                "not every part has a record of its requests, and answers of changed requests "
                "were kept"
            )
            return None
        first = known[0]
        names = dict.fromkeys(name for manifest in known for name in manifest.fields)
        different = [
            name
            for name in names
            if any(manifest.fields.get(name) != first.fields.get(name) for manifest in known)
        ]
        if different:
            self._notes.append(f"the manifests of the parts differ in: {', '.join(different)}")
            return None
        errors = paths.errors
        return Manifest(
            fields=first.fields,
            error_file=None if errors is None else os.path.relpath(errors, paths.output.parent),
            output_file=paths.output.name,
            version=importlib.metadata.version("parallel_core"),
            changes=tuple(change for manifest in known for change in manifest.changes),
            has_results=has_results,
            has_failures=has_failures and errors is not None,
        )


def _manifest_of(part: Path) -> Manifest | None:
    """Return the manifest of a part; None if there is none that can be compared."""
    try:
        found = find_manifest(RunPaths.of(part))
    except JournalError:
        return None
    return None if found is None or found[1].is_of_first_format else found[1]


def _is_among(path: Path, others: Iterable[Path]) -> bool:
    return any(other.exists() and path.samefile(other) for other in others)


def _own(paths: RunPaths) -> tuple[Path | None, ...]:
    """Return the files that a merge writes, or that would be mistaken for its own."""
    beside = (paths.statistics, paths.requests, paths.rescue, paths.manifest)
    return (paths.output, paths.errors, *beside)


def _refuse_existing(paths: RunPaths) -> None:
    for path in _own(paths):
        if path is not None and path.exists():
            raise JournalError(
                f"{path} exists: give another output, or --force, which moves the files of that "
                "run aside"
            )
