"""The paths of the files of a run, all beside its output file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

_ENDING = ".jsonl"
_STATISTICS, _MANIFEST, _RESCUE = ".statistics.jsonl", ".manifest.json", ".rescue.jsonl"
_REQUESTS = ".requests"


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files of a run, all beside its output file.

    Attributes:
        output: the answers; the failures too if ``errors`` is None.
        errors: the failures; None if they are in ``output``.
        statistics: one line per call: latency, tokens, cost.
        manifest: the description of the run, so that another run is not mixed into its output.
        requests: digests of the requests, by which a later run finds those that have changed.
        rescue: results that were paid for and could not be written to ``output``.
    """

    output: Path
    errors: Path | None
    statistics: Path
    manifest: Path
    requests: Path
    rescue: Path

    @classmethod
    def of(cls, output: Path | str, errors: Path | str | None = None) -> RunPaths:
        """Return the files of a run: ``out.jsonl``, ``out.jsonl.statistics.jsonl``, …

        Their names contain the whole name of the output, so two outputs never share a file.

        Raises:
            ValueError: the path has no name, such as ``.``.
        """
        path = Path(output)
        if not path.name:
            raise ValueError(f"{path} is a folder: give the name of a file")
        return cls(
            output=path,
            errors=None if errors is None else Path(errors),
            statistics=path.with_name(f"{path.name}{_STATISTICS}"),
            manifest=path.with_name(f"{path.name}{_MANIFEST}"),
            requests=path.with_name(f"{path.name}{_REQUESTS}"),
            rescue=path.with_name(f"{path.name}{_RESCUE}"),
        )

    @property
    def files(self) -> list[Path]:
        """Return all of these paths, and the names that earlier versions used."""
        older = older_names(self)
        paths = [self] if older is None else [self, older]
        beside = [path for p in paths for path in (p.statistics, p.manifest, p.rescue)]
        results = [self.output, *([] if self.errors is None else [self.errors])]
        return [*results, self.requests, *beside]


def older_names(paths: RunPaths) -> RunPaths | None:
    """Return the names that earlier versions gave to the same files: ``out.statistics.jsonl``, …

    Earlier versions dropped the ending ``.jsonl``, so ``out`` and ``out.jsonl`` shared these files.
    None if the names are the same.
    """
    name = paths.manifest.name.removesuffix(_MANIFEST)
    stem = name.removesuffix(_ENDING)
    if stem == name:
        return None
    return dataclasses.replace(
        paths,
        statistics=paths.statistics.with_name(f"{stem}{_STATISTICS}"),
        manifest=paths.manifest.with_name(f"{stem}{_MANIFEST}"),
        rescue=paths.rescue.with_name(f"{stem}{_RESCUE}"),
    )
