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

from .backups import move_aside, move_statistics_aside
from .earlier_run import EarlierRun, ReadOlder, has_failures_elsewhere
from .files import Disk, LockedFile, refuse_irregular, temporary_name
from .manifest import Manifest, ManifestFields, OpenManifest
from .path_checks import check_paths, without_links
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
        files: the output, and the error file if there is one.
        with_failures: the files that contain failures.
        ids: the finished requests.
        opening: what was found.
        rescue: places for results that cannot be written to the files.
        manifest: the manifest; ``expect_results`` must be called before results are written.
    """

    files: list[LockedFile]
    with_failures: list[LockedFile]
    ids: FinishedIds
    opening: JournalOpening
    rescue: Rescue
    manifest: OpenManifest


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
    files: list[LockedFile] = []
    try:
        for path in (paths.output, paths.errors):
            if path is not None:
                refuse_irregular(path)
        real = without_links(paths)
        check_paths(real)
        now = _manifest_of(real, manifest)
        earlier = EarlierRun(real, now, read_older, force_new=force_new)
        if not force_new:
            retries = bool(retry_failed)
            earlier.refuse_vanished_files(retry_failed=retries, allow_changed=allow_changed)
        _lock(real, files, disk)
        # Look again: a run may have ended just before this one got the lock.
        earlier = EarlierRun(real, now, read_older, force_new=force_new)
        earlier.rename_older_files(disk)
        rescue = Rescue(real.rescue, real.output, earlier.keys(), disk)
        backups: list[Path] = []
        changes: dict[str, tuple[Any, Any]] = {}
        if force_new:
            backups = move_aside(real, files, rescue)
            open_manifest = OpenManifest.written(real.manifest, now, disk)
        elif earlier.is_new(files, allow_changed=allow_changed):
            backups = move_statistics_aside(real.statistics)
            open_manifest = OpenManifest.written(real.manifest, now, disk)
        else:
            open_manifest = earlier.manifest_to_resume(files, disk)
            changes = earlier.differences
        opened = _read(files, rescue, open_manifest, retry_failed, disk)
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
    disk: Disk,
) -> OpenedJournal:
    """Find the finished requests, and repair what a crash left."""
    ids = FinishedIds()
    # Read every file before changing one.
    scans = [scan_file(file, ids) for file in files]
    for file, scan in zip(files, scans, strict=True):
        repair(file, scan)
    rescued = take_rescued(rescue, files, ids, disk)
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
    ids.retry_failed(retry_failed)
    opening = JournalOpening(
        resumed=bool(ids.succeeded or ids.failed or ids.retried),
        succeeded=len(ids.succeeded),
        failed=len(ids.failed),
        torn_bytes=sum(scan.torn_bytes for scan in scans),
        retried=len(ids.retried),
        rescued=rescued,
        duplicates=ids.duplicates,
        duplicate_ids=tuple(ids.duplicate_ids),
    )
    return OpenedJournal(files, with_failures, ids, opening, rescue, manifest)
