"""Opening a journal: is it ours, what is finished, and what has a crash left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ._journal_files import (
    Disk,
    LockedFile,
    refuse_irregular,
    temporary_name,
    write_atomically,
)
from ._journal_rescue import Rescue
from ._journal_scan import FinishedIds, answers, mend, read_result_line, scan_file
from ._system_errors import reason
from .errors import DifferentRunError, JournalError
from .run_statistics import RunPaths

ManifestFields: TypeAlias = Mapping[str, str | int | float | bool | None]

FORMAT_VERSION = 1
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
        self._manifest = (
            msgspec.json.format(msgspec.json.encode(text, order="sorted"), indent=2) + b"\n"
        )
        self._rescue = Rescue(paths.rescue, paths.output, self._manifest, disk)
        self._files: list[LockedFile] = []
        self._ids = FinishedIds()
        self._backups: list[Path] = []

    def run(self, *, retry_failed: bool, force_new: bool) -> OpenedJournal:
        self._check_paths()
        if not force_new:
            self._refuse_vanished_output()
        self._lock()
        if force_new:
            self._move_aside()
            self._begin_anew()
        elif self._is_new():
            self._move_statistics_aside()
            self._begin_anew()
        # All of them are read before one is changed.
        scans = [scan_file(file, self._ids) for file in self._files]
        for file, scan in zip(self._files, scans, strict=True):
            mend(file, scan)
        rescued = self._take_rescued()
        dropped = self._drop_failed() if retry_failed else 0
        output, *errors = self._files
        opening = JournalOpening(
            resumed=bool(self._ids.succeeded or self._ids.failed or dropped),
            succeeded=len(self._ids.succeeded),
            failed=len(self._ids.failed),
            torn_bytes=sum(scan.torn_bytes for scan in scans),
            dropped_failures=dropped,
            rescued=rescued,
            duplicates=self._ids.duplicates,
            duplicate_ids=tuple(self._ids.duplicate_ids),
            backups=tuple(self._backups),
        )
        error_file = errors[0] if errors else None
        return OpenedJournal(output, error_file, self._ids, opening, self._rescue)

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
            if path != paths.output and _are_same(path, paths.output):
                raise JournalError(f"{path} is the output file too: give two names")
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
        for file in self._files:  # left by a crash
            temporary_name(file.path).unlink(missing_ok=True)

    def _is_new(self) -> bool:
        paths = self._paths
        holding = [file.path for file in self._files if file.size]
        holding += [path for path in (paths.rescue, self._error_file_of_before()) if _size(path)]
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

    def _error_file_of_before(self) -> Path:
        """A run that has only failed so far may be known by nothing else."""
        paths = self._paths
        name = self._fields_of_before().get(_ERRORS) if paths.manifest.exists() else None
        return paths.output.parent / (name if isinstance(name, str) else paths.output.name)

    def _differences(self) -> dict[str, tuple[Any, Any]]:
        then = self._fields_of_before()
        now: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self._fields))
        return {
            name: (then.get(name), now.get(name))
            for name in {**now, **then}
            if then.get(name) != now.get(name)
        }

    def _fields_of_before(self) -> dict[str, Any]:
        path = self._paths.manifest
        try:
            content: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
            version, fields = content["format_version"], dict[str, Any](content["fields"])
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
        return fields

    def _begin_anew(self) -> None:
        for file in self._files:
            self._disk.sync_folder(file.path.parent)
        write_atomically(self._paths.manifest, self._manifest, self._disk)

    def _move_statistics_aside(self) -> None:
        """Of calls without a result they are, and of another run."""
        statistics = self._paths.statistics
        if statistics.is_file() and _size(statistics):
            number = 1
            while _backup(statistics, number).exists():
                number += 1
            statistics.rename(_backup(statistics, number))
            self._backups.append(_backup(statistics, number))

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
                    file.drop_uncommitted()
            raise
        for file in self._files:
            file.commit()
        for place in places:
            place.unlink()
            self._disk.sync_folder(place.parent)
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
                    self._ids.count(result)
                    (output if result.ok else errors).write(line.rstrip(b"\n") + b"\n")
                    appended += 1
        return appended

    def _drop_failed(self) -> int:
        dropped = len(self._ids.failed)
        if dropped or self._ids.duplicates:
            # A crash between the two is harmless: what is dropped is tried again.
            for file in self._files:
                file.replace(answers(file.path, each_once=self._ids.duplicates > 0))
            self._ids.failed.clear()
            self._ids.forget_duplicates()
        return dropped


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


def _are_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except FileNotFoundError:
        return False
