"""Opening a journal: is it ours, what is finished, and what has a crash left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ._journal_files import (
    Disk,
    LockedFile,
    reason,
    refuse_irregular,
    sync_folder,
    temporary_name,
    write_atomically,
)
from ._journal_rescue import Rescue
from .errors import DifferentRunError, JournalError
from .run_statistics import RunPaths

ManifestFields: TypeAlias = Mapping[str, str | int | float | bool | None]

FORMAT_VERSION = 1
_DUPLICATES_NAMED = 10
_OUTPUT, _ERRORS = "output file", "error file"  # fields of a manifest that we add


class JournalOpening(msgspec.Struct, frozen=True):
    """What was found when a journal was opened.

    Attributes:
        resumed: whether there were results of this run, of which it goes on.
        succeeded: requests that have an answer.
        failed: requests that have failed, and are not tried again.
        torn_bytes: bytes of unfinished lines, as a crash leaves them, that were cut.
        dropped_failures: failed requests whose lines were dropped, so that they are tried again.
        rescued: results that an earlier run could not write to the output and now are there.
        duplicates: lines whose id was there before.
        duplicate_ids: the first few of these ids.
        backups: files that were moved aside, by the names that they have now.
    """

    resumed: bool = False
    succeeded: int = 0
    failed: int = 0
    torn_bytes: int = 0
    dropped_failures: int = 0
    rescued: int = 0
    duplicates: int = 0
    duplicate_ids: tuple[str, ...] = ()
    backups: tuple[Path, ...] = ()


class FinishedIds:
    """Ids, as digests of 128 bits in sets: 80 bytes each, however long they are.

    With a million ids, the chance that two of them have the same digest is one in 10^27.
    """

    __slots__ = ("failed", "succeeded")

    def __init__(self) -> None:
        self.succeeded: set[int] = set()
        self.failed: set[int] = set()

    def __contains__(self, custom_id: str) -> bool:
        digest = id_digest(custom_id)
        return digest in self.succeeded or digest in self.failed


def id_digest(custom_id: str) -> int:
    return int.from_bytes(
        blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    )


@dataclass
class OpenedJournal:
    """The files of a run, locked, and what is in them."""

    output: LockedFile
    errors: LockedFile | None
    ids: FinishedIds
    opening: JournalOpening
    rescue: Rescue

    @property
    def files(self) -> list[LockedFile]:
        return [self.output] if self.errors is None else [self.output, self.errors]


def open_journal(
    paths: RunPaths,
    manifest: ManifestFields,
    *,
    retry_failed: bool,
    force_new: bool,
    disk: Disk,
) -> OpenedJournal:
    """Raises JournalError: whatever the matter is; then nothing is changed, or all is as it was."""
    opening: _Opening | None = None
    try:
        for path in (paths.output, paths.errors):
            if path is not None:
                refuse_irregular(path)
        opening = _Opening(_without_links(paths), manifest, disk)
        return opening.run(retry_failed=retry_failed, force_new=force_new)
    except BaseException as error:
        if opening is not None:
            opening.undo()
        if isinstance(error, OSError):
            where: object = error.filename or paths.output
            raise JournalError(f"{where} cannot be used: {reason(error)}") from error
        raise


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


@dataclass
class _Scan:
    """What one file holds. ``holes`` are the spans of lines that a loss of power has spoiled."""

    path: Path
    end: int = 0  # of the last good line
    size: int = 0
    ends_with_newline: bool = True
    holes: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    @property
    def torn_bytes(self) -> int:
        return self.size - self.end + sum(end - start for start, end in self.holes)


class _Opening:
    def __init__(self, paths: RunPaths, manifest: ManifestFields, disk: Disk) -> None:
        self._paths = paths
        self._disk = disk
        self._fields: dict[str, Any] = {
            **manifest,
            _OUTPUT: paths.output.name,
            _ERRORS: None
            if paths.errors is None
            else os.path.relpath(paths.errors, paths.output.parent),
        }
        text = {"format_version": FORMAT_VERSION, "fields": self._fields}
        self._manifest = msgspec.json.format(msgspec.json.encode(text), indent=2) + b"\n"
        self._rescue = Rescue(paths.rescue, paths.output, self._manifest, disk)
        self._files: list[LockedFile] = []
        self._ids = FinishedIds()
        self._backups: list[Path] = []
        self._duplicates: list[str] = []
        self._duplicate_count = 0
        self._torn_bytes = 0

    def run(self, *, retry_failed: bool, force_new: bool) -> OpenedJournal:
        self._check_paths()
        if not force_new:
            self._refuse_vanished_output()
        self._lock()
        if force_new or self._is_new():
            self._begin_anew()
        scans = [self._scan(file) for file in self._files]
        for file, scan in zip(self._files, scans, strict=True):
            self._mend(file, scan)
        rescued = self._take_rescued()
        dropped = self._drop_failed() if retry_failed else 0
        output, *errors = self._files
        opening = JournalOpening(
            resumed=bool(self._ids.succeeded or self._ids.failed or dropped),
            succeeded=len(self._ids.succeeded),
            failed=len(self._ids.failed),
            torn_bytes=self._torn_bytes,
            dropped_failures=dropped,
            rescued=rescued,
            duplicates=self._duplicate_count,
            duplicate_ids=tuple(self._duplicates),
            backups=tuple(self._backups),
        )
        return OpenedJournal(
            output, errors[0] if errors else None, self._ids, opening, self._rescue
        )

    def undo(self) -> None:
        for file in self._files:
            file.undo()

    def _check_paths(self) -> None:
        paths = self._paths
        written = {"output": paths.output, "errors": paths.errors}
        written |= {"statistics": paths.statistics, "manifest": paths.manifest}
        written["rescue"] = paths.rescue
        names: dict[Path, str] = {}
        for name, path in written.items():
            if path is None:
                continue
            if path in names:
                raise JournalError(
                    f"{path} cannot be the file for {names[path]} and for {name}: give two names"
                )
            names[path] = name
        for path in (paths.output, paths.errors):
            if path is None:
                continue
            folder = path.parent
            if not folder.is_dir():
                raise JournalError(f"{path} cannot be made: there is no folder {folder}")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise JournalError(f"{path} cannot be written: the folder {folder} is read-only")

    def _refuse_vanished_output(self) -> None:
        """Our output is always there, if only empty: where it is not, somebody has removed it."""
        paths = self._paths
        if paths.output.exists() or not paths.manifest.exists():
            return
        if self._differences() or not (_has_calls(paths.statistics) or _size(paths.errors)):
            return
        raise JournalError(
            f"{paths.output} is gone, but {paths.manifest} says that a run has written to it: put "
            "it back to go on, or begin anew with force_new (--force-new)"
        )

    def _lock(self) -> None:
        for path in (self._paths.output, self._paths.errors):
            if path is not None:
                self._files.append(LockedFile(path, self._disk))
        if len(self._files) == 2 and os.path.sameopenfile(self._files[0].fd, self._files[1].fd):
            raise JournalError(f"{self._paths.errors} is the output file too: give two names")
        for file in self._files:  # left by a crash
            temporary_name(file.path).unlink(missing_ok=True)

    def _is_new(self) -> bool:
        paths = self._paths
        holding = [file.path for file in self._files if file.size]
        if _size(paths.rescue):
            holding.append(paths.rescue)
        if not holding:
            return not paths.manifest.exists() or bool(self._differences())
        if not paths.manifest.exists():
            # Also where all of it are result lines: they may be answers to other requests of the
            # same ids, for many a file numbers its lines.
            raise JournalError(
                f"{holding[0]} is not empty, and there is no {paths.manifest.name} that tells "
                "which run it is of: give another output file, or begin anew with force_new "
                "(--force-new), which moves it aside"
            )
        differences = self._differences()
        if differences:
            raise DifferentRunError(str(paths.output), differences)
        return False

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        path = self._paths.manifest
        try:
            content: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            version, then = content["format_version"], dict[str, Any](content["fields"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise JournalError(
                f"{path} is no manifest of a run: put the right one back, or begin anew with "
                "force_new (--force-new)"
            ) from error
        if version != FORMAT_VERSION:
            raise JournalError(
                f"{path} has the format {version!r}, and this version of parallel_core knows "
                f"{FORMAT_VERSION}: go on with the version that has begun the run"
            )
        now: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self._fields))
        return {
            name: (then.get(name), now.get(name))
            for name in {**now, **then}
            if then.get(name) != now.get(name)
        }

    def _begin_anew(self) -> None:
        self._move_aside()
        for file in self._files:
            sync_folder(file.path.parent)
        write_atomically(self._paths.manifest, self._manifest, self._disk)

    def _move_aside(self) -> None:
        paths = self._paths
        full = [path for path in (paths.statistics, paths.rescue, paths.manifest) if _size(path)]
        full += [file.path for file in self._files if file.size]
        rescues = [place for place in self._rescue.found() if place not in full]
        if not full and not rescues:
            return
        number = 1
        while any(_backup(path, number).exists() for path in (*full, paths.rescue)):
            number += 1
        for index, file in enumerate(self._files):
            if file.size:
                backup = _backup(file.path, number)
                file.path.rename(backup)
                self._backups.append(backup)
                # The old one stays locked until the new one is.
                self._files[index] = LockedFile(file.path, self._disk)
                file.close()
        # The manifest last: without it, whoever comes after a crash knows nothing of the rest.
        for path in (paths.statistics, paths.rescue, paths.manifest):
            if path in full:
                path.rename(_backup(path, number))
                self._backups.append(_backup(path, number))
        for place in rescues:
            backup = _backup(paths.rescue, number)
            if place != paths.rescue and not backup.exists():
                shutil.move(place, backup)
                self._backups.append(backup)

    def _scan(self, file: LockedFile) -> _Scan:
        scan = _Scan(file.path, size=file.size)
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
                    elif not self._keep_without_newline(scan, line, start):
                        suspicious = (number, start, offset, error)
                else:
                    self._count(result)
                    scan.end = offset
                    scan.ends_with_newline = line.endswith(b"\n")
        if suspicious is not None and not _may_be_torn(file, suspicious[1], suspicious[2]):
            raise _broken(file.path, suspicious[0], suspicious[3])
        return scan

    def _keep_without_newline(self, scan: _Scan, line: bytes, start: int) -> bool:
        """A line that is whole but for its end, with NULs in the place of what should follow."""
        whole = line.rstrip(b"\0")
        if whole == line:
            return False
        try:
            result = read_result_line(whole)
        except ValueError:
            return False
        self._count(result)
        scan.end = start + len(whole)
        scan.ends_with_newline = False
        return True

    def _count(self, result: ResultLine) -> None:
        digest = id_digest(result.custom_id)
        ids = self._ids
        if digest in ids.succeeded or digest in ids.failed:
            self._duplicate_count += 1
            if len(self._duplicates) < _DUPLICATES_NAMED:
                self._duplicates.append(result.custom_id)
            if result.ok and digest in ids.failed:  # an answer goes before a failure
                ids.failed.discard(digest)
                ids.succeeded.add(digest)
            return
        (ids.succeeded if result.ok else ids.failed).add(digest)

    def _mend(self, file: LockedFile, scan: _Scan) -> None:
        self._torn_bytes += scan.torn_bytes
        if scan.holes:
            file.replace(_without_holes(file.path, scan))
        else:
            file.cut(scan.end)
        if scan.end and not scan.ends_with_newline:
            file.write(b"\n")
            file.sync()
            file.commit()

    def _take_rescued(self) -> int:
        """Put what an earlier run could not write to where it belongs."""
        places = self._rescue.found()
        if not places:
            return 0
        try:
            rescued = sum(self._append_new_lines(place) for place in places)
            for file in self._files:
                file.sync()
        except OSError:
            for file in self._files:
                with contextlib.suppress(OSError):
                    file.cut()
            raise
        for file in self._files:
            file.commit()
        for place in places:
            place.unlink()
            sync_folder(place.parent)
        return rescued

    def _append_new_lines(self, place: Path) -> int:
        output, errors = self._files[0], self._files[-1]
        appended = 0
        with place.open("rb") as lines:
            for line in lines:
                try:
                    result = read_result_line(line)
                except ValueError:
                    continue  # torn
                if result.custom_id not in self._ids:
                    self._count(result)
                    (output if result.ok else errors).write(line.rstrip(b"\n") + b"\n")
                    appended += 1
        return appended

    def _drop_failed(self) -> int:
        dropped = len(self._ids.failed)
        if dropped:
            # A crash between the two is harmless: what is dropped is tried again.
            for file in self._files:
                file.replace(_answers(file.path))
            self._ids.failed.clear()
            self._duplicates.clear()
            self._duplicate_count = 0
        return dropped


def _answers(path: Path) -> Iterator[bytes]:
    """The lines of requests that have succeeded, one of each."""
    written: set[int] = set()
    with path.open("rb") as lines:
        for line in lines:
            if line.isspace():
                continue
            result = read_result_line(line)
            digest = id_digest(result.custom_id)
            if result.ok and digest not in written:
                written.add(digest)
                yield line


def _without_holes(path: Path, scan: _Scan) -> Iterator[bytes]:
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


def _has_calls(statistics: Path) -> bool:
    try:
        with statistics.open("rb") as lines:
            return any(b'"kind":"call"' in line for line in lines)
    except OSError:
        return False


def _size(path: Path | None) -> int:
    try:
        return 0 if path is None else path.stat().st_size
    except FileNotFoundError:
        return 0


def _backup(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _without_links(paths: RunPaths) -> RunPaths:
    """A file is replaced where it really is, not the link to it."""
    return RunPaths(
        output=_resolved(paths.output),
        errors=None if paths.errors is None else _resolved(paths.errors),
        statistics=paths.statistics.absolute(),
        manifest=_resolved(paths.manifest),
        rescue=paths.rescue.absolute(),
    )


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise JournalError(f"{path} cannot be used: {reason(error)}") from error
