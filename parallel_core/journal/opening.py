"""Opening of a journal: check that it belongs to this run, find finished requests, repair it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from parallel_core.errors import DifferentRunError, JournalError
from parallel_core.failures import FailureKind

from .files import Disk, LockedFile, refuse_irregular, temporary_name
from .manifest import (
    Manifest,
    ManifestFields,
    OpenManifest,
    UnreadableManifestError,
    find_manifest,
    find_statistics,
)
from .rescue import Rescue
from .result_lines import BadLineError, read_result_line
from .run_statistics import RunPaths, older_names
from .scan import FinishedIds, drop_superseded, repair, scan_file
from .system_errors import reason

ReadOlder: TypeAlias = Callable[[ManifestFields], ManifestFields]
"""Converts the fields of a manifest of the first format to the current form."""


class JournalOpening(msgspec.Struct, frozen=True):
    """The state of a journal when it was opened.

    Attributes:
        resumed: True if there were results of this run, and the run resumes.
        succeeded: number of requests that have an answer.
        failed: number of requests that failed and are not sent again.
        torn_bytes: number of bytes that were cut: unfinished lines, as a crash leaves them.
        retried: number of failed requests that are sent again. Each keeps its failure until there
            is a newer result.
        rescued: number of results that an earlier run could not write to the output, and that were
            now moved there.
        duplicates: number of answers to requests that already had one. They stay in the file.
        duplicate_ids: the first few of these ids.
        backups: files that were moved aside, by their new names.
        changes: differences in spite of which the run is resumed: field name to the value before
            and the value now.
    """

    resumed: bool = False
    succeeded: int = 0
    failed: int = 0
    torn_bytes: int = 0
    retried: int = 0
    rescued: int = 0
    duplicates: int = 0
    duplicate_ids: tuple[str, ...] = ()
    backups: tuple[Path, ...] = ()
    changes: dict[str, tuple[Any, Any]] = msgspec.field(default_factory=dict[str, tuple[Any, Any]])


@dataclass
class OpenedJournal:
    """The locked files of a run, and their contents.

    Attributes:
        with_failures: the files that contain failures.
        manifest: the manifest; ``expect_results`` must be called before results are written.
    """

    output: LockedFile
    errors: LockedFile | None
    with_failures: list[LockedFile]
    ids: FinishedIds
    opening: JournalOpening
    rescue: Rescue
    manifest: OpenManifest

    @property
    def files(self) -> list[LockedFile]:
        return [self.output] if self.errors is None else [self.output, self.errors]


def open_journal(
    paths: RunPaths,
    manifest: ManifestFields,
    *,
    retry_failed: Collection[FailureKind],
    force_new: bool,
    allow_changed: bool,
    read_older: ReadOlder | None,
    disk: Disk,
) -> OpenedJournal:
    """Open and lock the files of a run.

    Raises:
        JournalError: the files cannot be used. Nothing was changed, or all changes were undone.
    """
    opening: _Opening | None = None
    try:
        for path in (paths.output, paths.errors):
            if path is not None:
                refuse_irregular(path)
        opening = _Opening(_without_links(paths), manifest, read_older, disk)
        return opening.run(
            retry_failed=retry_failed, force_new=force_new, allow_changed=allow_changed
        )
    except BaseException as error:
        if opening is not None:
            opening.undo()
        if isinstance(error, OSError):
            where: object = error.filename or paths.output
            raise JournalError(f"{where} cannot be used: {reason(error)}") from error
        raise


class _Opening:
    def __init__(
        self,
        paths: RunPaths,
        manifest: ManifestFields,
        read_older: ReadOlder | None,
        disk: Disk,
    ) -> None:
        self._paths = paths
        self._disk = disk
        self._read_older = read_older
        self._now = Manifest(
            fields=msgspec.json.decode(msgspec.json.encode(dict(manifest))),
            error_file=None
            if paths.errors is None
            else os.path.relpath(paths.errors, paths.output.parent),
            output_file=paths.output.name,
            version=_version(),
        )
        self._before: Manifest | None = None
        self._differences: dict[str, tuple[Any, Any]] = {}
        self._files: list[LockedFile] = []
        self._ids = FinishedIds()
        self._backups: list[Path] = []

    def run(
        self, *, retry_failed: Collection[FailureKind], force_new: bool, allow_changed: bool
    ) -> OpenedJournal:
        self._check_paths()
        self._look_for_manifest(force_new=force_new)
        if not force_new:
            retries = bool(retry_failed)
            self._refuse_vanished_files(retry_failed=retries, allow_changed=allow_changed)
        self._lock()
        # Look again: a run may have ended just before this one got the lock.
        self._look_for_manifest(force_new=force_new)
        self._rename_older_files()
        rescue = Rescue(self._paths.rescue, self._paths.output, self._runs(), self._disk)
        changes: dict[str, tuple[Any, Any]] = {}
        if force_new:
            self._move_aside(rescue)
            manifest = self._new_manifest()
        elif self._is_new(allow_changed=allow_changed):
            self._move_statistics_aside()
            manifest = self._new_manifest()
        else:
            manifest = self._earlier_manifest()
            changes = self._differences
        # Read every file before changing one.
        scans = [scan_file(file, self._ids) for file in self._files]
        for file, scan in zip(self._files, scans, strict=True):
            repair(file, scan)
        rescued = self._take_rescued(rescue)
        if rescued:
            manifest.expect_results(failures=self._has_failures_elsewhere())
        with_failures = [
            file
            for file, scan in zip(self._files, scans, strict=True)
            if scan.failures or (rescued and file is self._files[-1])
        ]
        if self._ids.superseded:
            # A run that retried failures was cut off before it dropped the superseded ones.
            drop_superseded(with_failures, self._ids.superseded)
            self._ids.superseded.clear()
        self._ids.retry_failed(retry_failed)
        ids = self._ids
        opening = JournalOpening(
            resumed=bool(ids.succeeded or ids.failed or ids.retried),
            succeeded=len(ids.succeeded),
            failed=len(ids.failed),
            torn_bytes=sum(scan.torn_bytes for scan in scans),
            retried=len(ids.retried),
            rescued=rescued,
            duplicates=ids.duplicates,
            duplicate_ids=tuple(ids.duplicate_ids),
            backups=tuple(self._backups),
            changes=changes,
        )
        output, *errors = self._files
        return OpenedJournal(
            output,
            errors[0] if errors else None,
            with_failures,
            ids,
            opening,
            rescue,
            manifest,
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
            if path != paths.output and _are_same(path, paths.output):
                raise JournalError(
                    f"{path} is both the output file and the error file: give two names"
                )
            if not os.access(folder, os.W_OK | os.X_OK):
                raise JournalError(f"{path} cannot be written: the folder {folder} is read-only")

    def _look_for_manifest(self, *, force_new: bool) -> None:
        """Read the earlier manifest, and compare it with the current one."""
        try:
            found = find_manifest(self._paths)
        except UnreadableManifestError:
            if not force_new:
                raise
            found = None
        self._before = before = None if found is None else found[1]
        then: Mapping[str, Any] = {} if before is None else before.fields
        now = self._now.fields
        if before is not None and before.is_of_first_format and self._read_older is not None:
            then = self._read_older(then)
        self._differences = {
            name: (then.get(name), now.get(name))
            for name in {**now, **then}
            if then.get(name) != now.get(name)
        }

    def _refuse_vanished_files(self, *, retry_failed: bool, allow_changed: bool) -> None:
        """Raise JournalError if an output or error file with results was removed.

        A run always creates its files, even if they stay empty.
        """
        paths, before = self._paths, self._before
        if before is None or (self._differences and not allow_changed):
            return
        errors = self._earlier_error_file()
        if before.has_failures and not retry_failed and not errors.exists():
            raise JournalError(
                f"{errors} is gone, but the manifest of {paths.output} says that failures are in "
                "it: put it back to resume, give retry_failed (--retry-failed) to send those "
                "again, or start over with force_new (--force-new)"
            )
        if paths.output.exists():
            return
        if before.has_results or _has_calls(find_statistics(paths)) or _size(errors):
            raise JournalError(
                f"{paths.output} is gone, but its manifest says that a run has written to it: put "
                "it back to resume, or start over with force_new (--force-new)"
            )

    def _lock(self) -> None:
        for path in (self._paths.output, self._paths.errors):
            if path is not None:
                self._files.append(LockedFile(path, self._disk))
        for file in self._files:  # remove what a crash left
            temporary_name(file.path).unlink(missing_ok=True)
        # Sync even if nothing was created now: the run that created it may have been killed first.
        for folder in {file.path.parent for file in self._files}:
            self._disk.sync_folder(folder)

    def _rename_older_files(self) -> None:
        """Rename the files of a run of an older version to the current names."""
        paths = self._paths
        older = older_names(paths)
        if older is None or self._before is None or paths.manifest.exists():
            return
        # Rename the manifest last: while it has its old name, a crash makes the next run redo this.
        for old, new in (
            (older.statistics, paths.statistics),
            (older.rescue, paths.rescue),
            (older.manifest, paths.manifest),
        ):
            if old.exists() and not new.exists():
                old.rename(new)
        self._disk.sync_folder(paths.manifest.parent)

    def _runs(self) -> list[bytes]:
        """Return the keys that name a rescue file in the temporary folder: one for the current
        run, and one for the run as the manifest describes it."""
        runs = [self._now.fields]
        if self._before is not None:
            if self._before.is_of_first_format:
                return [_canonical(self._now.fields), self._before.raw]
            runs.append(self._before.fields)
        return list(dict.fromkeys(map(_canonical, runs)))

    def _is_new(self, *, allow_changed: bool) -> bool:
        paths = self._paths
        earlier_errors = self._earlier_error_file()
        holding = [file.path for file in self._files if file.size]
        holding += [path for path in (paths.rescue, earlier_errors) if _size(path)]
        if not holding:
            return self._before is None or bool(self._differences)
        if self._before is None:
            # Refuse valid result lines too: they may answer other requests with the same ids,
            # because many files number their lines.
            if allow_changed:
                return False
            raise JournalError(
                f"{holding[0]} is not empty, and there is no {paths.manifest.name} that says "
                "which run it belongs to: give another output file, or start over with force_new "
                "(--force-new), which moves it aside. If the answers are those of this input, "
                "allow_changed (--allow-changed) resumes it"
            )
        if earlier_errors in holding and earlier_errors not in (paths.output, paths.errors):
            raise JournalError(
                f"the failures of {paths.output} are in {earlier_errors}: give it as the error "
                "file again (--error-file), or start over with force_new (--force-new)"
            )
        if self._differences and not allow_changed:
            raise DifferentRunError(str(paths.output), self._differences)
        return False

    def _earlier_error_file(self) -> Path:
        """Return the error file of the earlier manifest, or the output if it has none.

        If the run has only failures so far, this file is the only sign of it.
        """
        name = None if self._before is None else self._before.error_file
        output = self._paths.output
        return output if name is None else Path(os.path.normpath(output.parent / name))

    def _new_manifest(self) -> OpenManifest:
        manifest = OpenManifest(self._paths.manifest, self._now, self._disk)
        manifest.write()
        return manifest

    def _earlier_manifest(self) -> OpenManifest:
        """Open the earlier manifest, updated to the current run.

        Differences are written together with the first result.
        """
        now, path = self._now, self._paths.manifest
        before = self._before or msgspec.structs.replace(now, fields={})
        manifest = msgspec.structs.replace(
            before,
            error_file=now.error_file,
            output_file=now.output_file,
            version=before.version or now.version,
            has_results=before.has_results or any(file.size for file in self._files),
            has_failures=self._has_failures_elsewhere(),
        )
        if self._differences:
            changed = manifest.changed(now.fields, self._differences, _version())
            return OpenManifest(path, changed, self._disk)
        current = msgspec.structs.replace(manifest, fields=now.fields)
        opened = OpenManifest(path, current, self._disk, before.raw)
        opened.write()
        return opened

    def _has_failures_elsewhere(self) -> bool:
        return len(self._files) > 1 and self._files[1].size > 0

    def _move_statistics_aside(self) -> None:
        """Move old statistics aside: they belong to another run, and its calls have no result."""
        statistics = self._paths.statistics
        if statistics.is_file() and _size(statistics):
            number = 1
            while _backup(statistics, number).exists():
                number += 1
            statistics.rename(_backup(statistics, number))
            self._backups.append(_backup(statistics, number))

    def _move_aside(self, rescue: Rescue) -> None:
        paths = self._paths
        full = [path for path in (paths.statistics, paths.rescue, paths.manifest) if _size(path)]
        full += [file.path for file in self._files if file.size]
        rescues = [place for place in rescue.found() if place not in full]
        if not full and not rescues:
            return
        number = 1
        while any(_backup(path, number).exists() for path in (*full, paths.rescue)):
            number += 1
        for file in self._files:
            if file.size:
                backup = _backup(file.path, number)
                file.move_aside(backup)
                self._backups.append(backup)
        # Move the manifest last: without it, the next run after a crash does not know the others.
        for path in (paths.statistics, paths.rescue, paths.manifest):
            if path in full:
                path.rename(_backup(path, number))
                self._backups.append(_backup(path, number))
        for place in rescues:
            backup = _backup(paths.rescue, number)
            if place != paths.rescue and not backup.exists():
                shutil.move(place, backup)
                self._backups.append(backup)

    def _take_rescued(self, rescue: Rescue) -> int:
        """Move rescued results of an earlier run to the output and error files; return how many."""
        places = rescue.found()
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
                except BadLineError:
                    continue  # a torn line
                # An answer is new even if the request has a failure: the request was retried.
                known = self._ids.has_answer if result.ok else self._ids.__contains__
                if not known(result.custom_id):
                    self._ids.count(result)
                    (output if result.ok else errors).write(line.rstrip(b"\n") + b"\n")
                    appended += 1
        return appended


def _version() -> str:
    return importlib.metadata.version("parallel_core")


def _canonical(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode(fields, order="sorted")


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
    """Resolve symbolic links, so that the file itself is replaced and not the link to it."""
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
