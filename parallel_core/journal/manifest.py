"""The manifest of a run: what its answers depend on, in a small file beside the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from parallel_core.errors import JournalError

from .files import Disk, write_atomically
from .run_paths import RunPaths, older_names

ManifestFields: TypeAlias = Mapping[str, str | int | float | bool | None]

FORMAT_VERSION = 2
_FIRST_FORMAT = 1
# Fields of the first format that do not describe the run.
_OUTPUT_OF_FIRST_FORMAT, _ERRORS_OF_FIRST_FORMAT = "output file", "error file"


class UnreadableManifestError(JournalError):
    """The file is not a manifest, or a newer version of this package wrote it."""


class Manifest(msgspec.Struct, frozen=True):
    """The description of a run.

    Attributes:
        fields: what its answers depend on.
        error_file: path of its error file, relative to the folder of the output.
        output_file: name of its output. In the first format two outputs may share a manifest.
        version: version of this package that started the run; for a run of the first format, the
            version that resumed it, or None before that.
        changes: differences in spite of which the run was resumed: the time, the version, and for
            each field the value before and after.
        has_results: True if a result was written, or is about to be.
        has_failures: True if a failure was written to the error file.
        format_version: format of the file.
        raw: the bytes of the file; empty if there is none.
    """

    fields: dict[str, Any]
    error_file: str | None
    output_file: str
    version: str | None
    changes: tuple[dict[str, Any], ...] = ()
    has_results: bool = False
    has_failures: bool = False
    format_version: int = FORMAT_VERSION
    raw: bytes = b""

    @property
    def is_of_first_format(self) -> bool:
        """Return True if an older version of this package wrote it."""
        return self.format_version == _FIRST_FORMAT

    def encoded(self) -> bytes:
        """Return the content of the file."""
        content = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if name not in ("format_version", "raw")
        }
        content["format_version"] = FORMAT_VERSION
        document = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        try:
            return document.encode() + b"\n"
        except UnicodeEncodeError:  # a file name that is not UTF-8
            return json.dumps(content, indent=2, sort_keys=True).encode() + b"\n"

    def changed(
        self,
        fields: dict[str, Any],
        differences: Mapping[str, tuple[Any, Any]],
        version: str | None,
    ) -> Manifest:
        """Return the manifest with new fields and a note of the changes."""
        change = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": version,
            "differences": {
                name: {"then": then, "now": now} for name, (then, now) in differences.items()
            },
        }
        return msgspec.structs.replace(self, fields=fields, changes=(*self.changes, change))


class OpenManifest:
    """The manifest of an open run, and the content of its file.

    Args:
        path: path of the file.
        manifest: the manifest that the file should contain.
        disk: the object that writes.
        on_disk: the current content of the file. If it differs, the file is written before the
            first result.
    """

    def __init__(self, path: Path, manifest: Manifest, disk: Disk, on_disk: bytes = b"") -> None:
        self.path = path
        self._manifest = manifest
        self._disk = disk
        self._on_disk = on_disk

    @classmethod
    def written(cls, path: Path, manifest: Manifest, disk: Disk) -> OpenManifest:
        """Write a new manifest, and open it. Raises OSError."""
        opened = cls(path, manifest, disk)
        opened.write()
        return opened

    def write(self) -> None:
        """Write the manifest to disk if it has changed. Raises OSError."""
        content = self._manifest.encoded()
        if content != self._on_disk:
            write_atomically(self.path, [content], self._disk)
            self._on_disk = content

    def expect_results(self, *, failures: bool) -> None:
        """Note that results, and failures in the error file, are about to be written.

        If a file vanishes later, the note shows that results are missing. Raises OSError.
        """
        known = self._manifest
        failures = failures or known.has_failures
        if self._on_disk and known.has_results and known.has_failures == failures:
            return
        self._manifest = msgspec.structs.replace(known, has_results=True, has_failures=failures)
        self.write()

    def forget_failures(self) -> None:
        """Note that the error file has no failures any more. Raises OSError."""
        if self._manifest.has_failures:
            self._manifest = msgspec.structs.replace(self._manifest, has_failures=False)
            self.write()


def find_manifest(paths: RunPaths) -> tuple[Path, Manifest] | None:
    """Read the manifest of a run, under its current name or the name of older versions.

    Raises:
        UnreadableManifestError: the manifest cannot be used.
        JournalError: the manifest belongs to another output.
    """
    if paths.manifest.exists():
        manifest = _read(paths.manifest)
        if manifest.is_of_first_format and manifest.output_file != paths.output.name:
            raise JournalError(
                f"{paths.manifest} belongs to {manifest.output_file}: an older version of "
                f"parallel_core gave it the name that {paths.output.name} needs. Give another "
                f"output file, or resume {manifest.output_file} first, which renames it"
            )
        return paths.manifest, manifest
    older = older_names(paths)
    if older is not None and older.manifest.exists():
        try:
            manifest = _read(older.manifest)
        except UnreadableManifestError:
            return None  # the file may be unrelated
        if manifest.output_file == paths.output.name:
            return older.manifest, manifest
    return None


def find_statistics(paths: RunPaths) -> Path:
    """Return the path of a run's statistics.

    Statistics of an older version have another name until the run is resumed.
    """
    older = older_names(paths)
    if older is None or paths.statistics.exists() or not older.statistics.exists():
        return paths.statistics
    try:
        found = find_manifest(paths)
    except JournalError:
        return paths.statistics
    is_ours = not older.manifest.exists() if found is None else found[0] == older.manifest
    return older.statistics if is_ours else paths.statistics


def _read(path: Path) -> Manifest:
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        number = content.get("format_version", _FIRST_FORMAT)
        if type(number) is int and number > FORMAT_VERSION:
            raise UnreadableManifestError(
                f"{path} has the format {number}, and this version of parallel_core knows formats "
                f"up to {FORMAT_VERSION}: resume with the version that started the run, or a newer "
                "one"
            )
        if number == FORMAT_VERSION:
            return msgspec.structs.replace(msgspec.convert(content, Manifest), raw=raw)
        fields = dict[str, Any](content["fields"])
        output = fields.pop(_OUTPUT_OF_FIRST_FORMAT)
        errors = fields.pop(_ERRORS_OF_FIRST_FORMAT, None)
        if number != _FIRST_FORMAT or not isinstance(output, str):
            raise ValueError
        return Manifest(
            fields,
            errors if isinstance(errors, str) else None,
            output,
            None,
            format_version=_FIRST_FORMAT,
            raw=raw,
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UnreadableManifestError(
            f"{path} is not the manifest of a run: put the right one back, or start over with "
            "force_new (--force-new)"
        ) from error
