"""Checks of the paths of a run, before its files are opened."""

from __future__ import annotations

import os
from pathlib import Path

from parallel_core.errors import JournalError

from .run_paths import RunPaths
from .system_errors import reason


def check_paths(paths: RunPaths) -> None:
    """Check that the files of a run can be written.

    Raises:
        JournalError: they cannot, or one file has two purposes.
    """
    written = {"output": paths.output, "errors": paths.errors}
    written |= {"statistics": paths.statistics, "manifest": paths.manifest}
    written |= {"requests": paths.requests, "rescue": paths.rescue}
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
            raise JournalError(f"{path} is both the output file and the error file: give two names")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise JournalError(f"{path} cannot be written: the folder {folder} is read-only")


def without_links(paths: RunPaths) -> RunPaths:
    """Resolve symbolic links, so that the file itself is replaced and not the link to it."""
    return RunPaths(
        output=_resolved(paths.output),
        errors=None if paths.errors is None else _resolved(paths.errors),
        statistics=paths.statistics.absolute(),
        manifest=_resolved(paths.manifest),
        requests=_resolved(paths.requests),
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
