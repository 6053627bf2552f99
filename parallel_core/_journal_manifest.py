"""The manifest of a run: what its answers depend on, in a small file beside the output."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from .errors import JournalError
from .run_statistics import RunPaths, older_names

ManifestFields: TypeAlias = Mapping[str, str | int | float | bool | None]

FORMAT_VERSION = 2
_FIRST_FORMAT = 1
# Fields of the first format that are none of the run.
_OUTPUT_OF_FIRST_FORMAT, _ERRORS_OF_FIRST_FORMAT = "output file", "error file"


class UnreadableManifestError(JournalError):
    """The file is no manifest, or one of a newer version of this package."""


class Manifest(msgspec.Struct, frozen=True):
    """What a run is.

    Attributes:
        fields: what its answers depend on.
        error_file: where its failures are, relative to the folder of the output.
        output_file: the name of its output. In the first format two outputs may share a manifest.
        version: of this package, when the run began; None for a run of the first format.
        changes: differences in spite of which the run was resumed: when, by which version, and for
            each field the value then and the value since.
        format_version: of the file.
        raw: the file as it is; empty if there is none.
    """

    fields: dict[str, Any]
    error_file: str | None
    output_file: str
    version: str | None
    changes: tuple[dict[str, Any], ...] = ()
    format_version: int = FORMAT_VERSION
    raw: bytes = b""

    @property
    def is_of_first_format(self) -> bool:
        """Return True if an older version of this package wrote it."""
        return self.format_version == _FIRST_FORMAT

    def encoded(self) -> bytes:
        """The content of the file."""
        content = {
            name: getattr(self, name)
            for name in self.__struct_fields__
            if name not in ("format_version", "raw")
        }
        content["format_version"] = FORMAT_VERSION
        return msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=2) + b"\n"

    def changed(
        self, fields: dict[str, Any], differences: Mapping[str, tuple[Any, Any]], version: str
    ) -> Manifest:
        """The manifest with other fields, and a note of what has changed."""
        change = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": version,
            "differences": {
                name: {"then": then, "now": now} for name, (then, now) in differences.items()
            },
        }
        return msgspec.structs.replace(self, fields=fields, changes=(*self.changes, change))


def find_manifest(paths: RunPaths) -> tuple[Path, Manifest] | None:
    """Read the manifest of a run, under its name or under that of older versions.

    Raises:
        UnreadableManifestError: it cannot be used.
        JournalError: it is the manifest of another output.
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
            return None  # it may be anything
        if manifest.output_file == paths.output.name:
            return older.manifest, manifest
    return None


def find_statistics(paths: RunPaths) -> Path:
    """Where the statistics of a run are. Those of an older version have another name until the run
    is resumed."""
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
        content = msgspec.json.decode(raw)
        number = content.get("format_version", _FIRST_FORMAT)
        if type(number) is int and number > FORMAT_VERSION:
            raise UnreadableManifestError(
                f"{path} has the format {number}, and this version of parallel_core knows formats "
                f"up to {FORMAT_VERSION}: resume with the version that began the run, or a newer "
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
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableManifestError(
            f"{path} is no manifest of a run: put the right one back, or start over with "
            "force_new (--force-new)"
        ) from error
