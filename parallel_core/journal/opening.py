"""Opening of a journal: check that it belongs to this run, find finished requests, repair it."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from parallel_core.errors import JournalError
from parallel_core.failures import FailureKind

from .backups import move_aside, move_results_aside, move_statistics_aside
from .earlier_run import EarlierRun, ReadOlder, has_failures_elsewhere
from .files import Disk, LockedFile, refuse_irregular, temporary_name
from .input_changes import AskedRequests, ChangedInput, InputChange, OnChanged
from .manifest import Manifest, ManifestFields, OpenManifest
from .path_checks import check_paths, without_links
from .request_records import RecordsFile
from .rescue import Rescue, take_rescued
from .run_paths import RunPaths
from .scan import FinishedIds, drop_superseded, repair, scan_file
from .system_errors import reason


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
        input_change: changes of the input since the earlier results; None if there are none, or if
            nothing says what was asked.
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
    input_change: InputChange | None = None


@dataclass
class OpenedJournal:
    """The locked files of a run, and their contents.

    Attributes:
        files: the output, and the error file if there is one.
        with_failures: the files that contain failures.
        ids: the finished requests.
        opening: what was found.
        rescue: places for results that cannot be written to the files.
        manifest: the manifest; ``expect_results`` must be called before results are written.
        changed_input: the requests of the input, compared with the earlier ones; None if they are
            unknown. :meth:`begin` must be called before results are written.
    """

    files: list[LockedFile]
    with_failures: list[LockedFile]
    ids: FinishedIds
    opening: JournalOpening
    rescue: Rescue
    manifest: OpenManifest
    changed_input: ChangedInput | None

    def begin(self, disk: Disk) -> list[Path]:
        """Write what the run has changed; return the files with the results that were moved aside.

        The order matters: after a crash at any point, each result in the files still answers what
        the records say, or the current request if that has no record.

        Raises:
            OSError: something cannot be written. The next opening finds the same changes.
        """
        if self.changed_input is None:
            return []
        backups = move_results_aside(self.files, self.ids.aside, disk)
        self.changed_input.write_records(self.ids, disk)
        self.manifest.write()
        self.ids.aside.clear()
        self.changed_input = None
        return backups


def open_journal(
    paths: RunPaths,
    manifest: ManifestFields,
    *,
    retry_failed: Collection[FailureKind],
    force_new: bool,
    allow_changed: bool,
    requests: AskedRequests | None,
    on_changed: OnChanged,
    read_older: ReadOlder | None,
    disk: Disk,
) -> OpenedJournal:
    """Open and lock the files of a run.

    Raises:
        JournalError: the files cannot be used. Nothing was changed, or all changes were undone.
    """
    files: list[LockedFile] = []
    try:
        real = _checked(paths)
        now = _manifest_of(real, manifest)
        earlier, _ = _find_earlier(real, now, read_older, requests, force_new=force_new)
        if not force_new:
            retries = bool(retry_failed)
            earlier.refuse_vanished_files(retry_failed=retries, allow_changed=allow_changed)
        _lock(real, files, disk)
        # Look again: a run may have ended just before this one got the lock.
        earlier, records = _find_earlier(real, now, read_older, requests, force_new=force_new)
        earlier.rename_older_files(disk)
        rescue = Rescue(real.rescue, real.output, earlier.keys(), disk)
        backups: list[Path] = []
        changes: dict[str, tuple[Any, Any]] = {}
        note = _note_on(real, requests, earlier)
        is_new = force_new or earlier.is_new(files, allow_changed=allow_changed, note=note)
        if force_new:
            backups = move_aside(real, files, rescue)
        elif is_new:
            backups = move_statistics_aside(real.statistics)
        if is_new:
            open_manifest = OpenManifest.written(real.manifest, now, disk)
        else:
            open_manifest = earlier.manifest_to_resume(files, disk)
            changes = earlier.refusals
        changed_input = None
        if requests is not None:
            changed_input = ChangedInput(
                real,
                requests,
                None if is_new else records,
                on_changed=on_changed,
                retry_failed=retry_failed,
                allow_another=allow_changed,
            )
        opened = _read(files, rescue, open_manifest, retry_failed, changed_input, disk)
    except BaseException as error:
        for file in files:
            file.undo()
        if isinstance(error, OSError):
            where: object = error.filename or paths.output
            raise JournalError(f"{where} cannot be used: {reason(error)}") from error
        raise
    opened.opening = msgspec.structs.replace(
        opened.opening, backups=tuple(backups), changes=changes
    )
    return opened


def _checked(paths: RunPaths) -> RunPaths:
    """Check the paths, and return them without symbolic links."""
    for path in (paths.output, paths.errors):
        if path is not None:
            refuse_irregular(path)
    real = without_links(paths)
    check_paths(real)
    return real


def _find_earlier(
    paths: RunPaths,
    now: Manifest,
    read_older: ReadOlder | None,
    requests: AskedRequests | None,
    *,
    force_new: bool,
) -> tuple[EarlierRun, RecordsFile | None]:
    """Return the earlier run, and the records of its requests."""
    compares = requests is not None and not force_new
    records = RecordsFile.find(paths.requests) if compares else None
    has_records = records is not None
    return EarlierRun(paths, now, read_older, force_new=force_new, has_records=has_records), records


def _note_on(paths: RunPaths, requests: AskedRequests | None, earlier: EarlierRun) -> str:
    """Return why the changes of the input are unknown, for the message that refuses them."""
    if requests is None or "input" not in earlier.refusals:
        return ""
    missing = (
        f"There is no {paths.requests.name}, since an earlier version of parallel_core began the "
        "run or the file was removed: so nothing says which requests have changed"
    )
    return f"{missing}. {requests.note}" if requests.note else missing


def _manifest_of(paths: RunPaths, fields: ManifestFields) -> Manifest:
    errors = paths.errors
    return Manifest(
        fields=msgspec.json.decode(msgspec.json.encode(dict(fields))),
        error_file=None if errors is None else os.path.relpath(errors, paths.output.parent),
        output_file=paths.output.name,
        version=importlib.metadata.version("parallel_core"),
    )


def _lock(paths: RunPaths, files: list[LockedFile], disk: Disk) -> None:
    """Open and lock the output and the error file, and add each to ``files`` once it is locked."""
    for path in (paths.output, paths.errors):
        if path is not None:
            files.append(LockedFile(path, disk))  # noqa: PERF401 - the next one may fail
    for file in files:  # remove what a crash left
        temporary_name(file.path).unlink(missing_ok=True)
    # Sync even if nothing was created now: the run that created it may have been killed first.
    for folder in {file.path.parent for file in files}:
        disk.sync_folder(folder)


def _read(
    files: list[LockedFile],
    rescue: Rescue,
    manifest: OpenManifest,
    retry_failed: Collection[FailureKind],
    changed_input: ChangedInput | None,
    disk: Disk,
) -> OpenedJournal:
    """Find the finished requests, and repair what a crash left."""
    ids = FinishedIds()
    # Read every file before changing one.
    scans = [scan_file(file, ids) for file in files]
    if changed_input is not None:
        changed_input.find(ids)
    for file, scan in zip(files, scans, strict=True):
        repair(file, scan)
    rescued = take_rescued(rescue, files, ids, disk)
    if rescued and changed_input is not None:
        changed_input.find(ids)
    if rescued:
        manifest.expect_results(failures=has_failures_elsewhere(files))
    with_failures = [
        file
        for file, scan in zip(files, scans, strict=True)
        if scan.failures or (rescued and file is files[-1])
    ]
    if ids.superseded:
        # A run that retried failures was cut off before it dropped the superseded ones.
        drop_superseded(with_failures, ids.superseded)
        ids.superseded.clear()
    change = None if changed_input is None else changed_input.change(ids, files)
    ids.retry_failed(retry_failed)
    opening = JournalOpening(
        resumed=bool(ids.succeeded or ids.failed or ids.retried or ids.aside),
        succeeded=len(ids.succeeded),
        failed=len(ids.failed),
        torn_bytes=sum(scan.torn_bytes for scan in scans),
        retried=len(ids.retried),
        rescued=rescued,
        duplicates=ids.duplicates,
        duplicate_ids=tuple(ids.duplicate_ids),
        input_change=change,
    )
    return OpenedJournal(files, with_failures, ids, opening, rescue, manifest, changed_input)
