"""The run that wrote to an output before, compared with the current one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from parallel_core.errors import DifferentRunError, JournalError

from .backups import size_of
from .files import Disk, LockedFile
from .manifest import (
    Manifest,
    ManifestFields,
    OpenManifest,
    UnreadableManifestError,
    find_manifest,
    find_statistics,
)
from .run_paths import RunPaths, older_names

ReadOlder: TypeAlias = Callable[[ManifestFields], ManifestFields]
"""Converts the fields of a manifest of the first format to the current form."""


class EarlierRun:
    """The run whose manifest is beside the output, if any.

    Args:
        paths: the files of the current run.
        now: manifest of the current run.
        read_older: converts a manifest of the first format; None compares it as it is.
        force_new: True to ignore a manifest that cannot be read.
        has_records: True if records tell which requests of the input have changed, so that the
            input may differ.

    Attributes:
        before: manifest of the earlier run; None if there is none.
        differences: fields of the manifests that differ: the value before and the value now.
        refusals: those of them that ``allow_changed`` must allow.
    """

    def __init__(
        self,
        paths: RunPaths,
        now: Manifest,
        read_older: ReadOlder | None,
        *,
        force_new: bool,
        has_records: bool,
    ) -> None:
        self._paths = paths
        self._now = now
        try:
            found = find_manifest(paths)
        except UnreadableManifestError:
            if not force_new:
                raise
            found = None
        self.before = before = None if found is None else found[1]
        then: Mapping[str, Any] = {} if before is None else before.fields
        if before is not None and before.is_of_first_format and read_older is not None:
            then = read_older(then)
        self.differences: dict[str, tuple[Any, Any]] = {
            name: (then.get(name), now.fields.get(name))
            for name in {**now.fields, **then}
            if then.get(name) != now.fields.get(name)
        }
        self.refusals = {
            name: values
            for name, values in self.differences.items()
            if name != "input" or not has_records
        }

    def refuse_vanished_files(self, *, retry_failed: bool, allow_changed: bool) -> None:
        """Raise JournalError if an output or error file with results was removed.

        A run always creates its files, even if they stay empty.
        """
        paths, before = self._paths, self.before
        if before is None or (self.refusals and not allow_changed):
            return
        errors = self._error_file()
        if before.has_failures and not retry_failed and not errors.exists():
            raise JournalError(
                f"{errors} is gone, but the manifest of {paths.output} says that failures are in "
                "it: put it back to resume, give retry_failed (--retry-failed) to send those "
                "again, or start over with force_new (--force-new)"
            )
        if paths.output.exists():
            return
        if before.has_results or _has_calls(find_statistics(paths)) or size_of(errors):
            raise JournalError(
                f"{paths.output} is gone, but its manifest says that a run has written to it: put "
                "it back to resume, or start over with force_new (--force-new)"
            )

    def rename_older_files(self, disk: Disk) -> None:
        """Rename the files of a run of an older version to the current names."""
        paths = self._paths
        older = older_names(paths)
        if older is None or self.before is None or paths.manifest.exists():
            return
        # Rename the manifest last: while it has its old name, a crash makes the next run redo this.
        for old, new in (
            (older.statistics, paths.statistics),
            (older.rescue, paths.rescue),
            (older.manifest, paths.manifest),
        ):
            if old.exists() and not new.exists():
                old.rename(new)
        disk.sync_folder(paths.manifest.parent)

    def keys(self) -> list[bytes]:
        """Return the keys that name a rescue file in the temporary folder: one for the current
        run, and one for the run as the manifest describes it."""
        runs = [self._now.fields]
        if self.before is not None:
            if self.before.is_of_first_format:
                return [_canonical(self._now.fields), self.before.raw]
            runs.append(self.before.fields)
        return list(dict.fromkeys(map(_canonical, runs)))

    def is_new(self, files: Sequence[LockedFile], *, allow_changed: bool, note: str = "") -> bool:
        """Return True if there is nothing to resume. ``note`` is added to a DifferentRunError.

        Raises:
            DifferentRunError: the output belongs to a run with another manifest.
            JournalError: it is unknown which run the files belong to.
        """
        paths = self._paths
        earlier_errors = self._error_file()
        holding = [file.path for file in files if file.size]
        holding += [path for path in (paths.rescue, earlier_errors) if size_of(path)]
        if not holding:
            return self.before is None or bool(self.differences)
        if self.before is None:
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
        if self.refusals and not allow_changed:
            raise DifferentRunError(str(paths.output), self.refusals, note)
        return False

    def manifest_to_resume(self, files: Sequence[LockedFile], disk: Disk) -> OpenManifest:
        """Open the earlier manifest, updated to the current run.

        Differences are written together with the first result.
        """
        now, path = self._now, self._paths.manifest
        before = self.before or msgspec.structs.replace(now, fields={})
        manifest = msgspec.structs.replace(
            before,
            error_file=now.error_file,
            output_file=now.output_file,
            version=before.version or now.version,
            has_results=before.has_results or any(file.size for file in files),
            has_failures=has_failures_elsewhere(files),
        )
        if self.differences:
            changed = manifest.changed(now.fields, self.differences, now.version)
            return OpenManifest(path, changed, disk)
        current = msgspec.structs.replace(manifest, fields=now.fields)
        opened = OpenManifest(path, current, disk, before.raw)
        opened.write()
        return opened

    def _error_file(self) -> Path:
        """Return the error file of the earlier manifest, or the output if it has none.

        If the run has only failures so far, this file is the only sign of it.
        """
        name = None if self.before is None else self.before.error_file
        output = self._paths.output
        return output if name is None else Path(os.path.normpath(output.parent / name))


def has_failures_elsewhere(files: Sequence[LockedFile]) -> bool:
    """Return True if there is an error file, and it has failures."""
    return len(files) > 1 and files[1].size > 0


def _canonical(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode(fields, order="sorted")


def _has_calls(statistics: Path) -> bool:
    try:
        with statistics.open("rb") as lines:
            return any(b'"kind":"call"' in line for line in lines)
    except OSError:
        return False
