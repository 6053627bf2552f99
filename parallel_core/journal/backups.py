"""Files of an earlier run that are moved aside, to ``out.jsonl.1``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from .files import LockedFile
from .rescue import Rescue
from .run_paths import RunPaths


def move_statistics_aside(statistics: Path) -> list[Path]:
    """Move old statistics aside: they belong to another run, and its calls have no result.

    Returns the new names.
    """
    if not statistics.is_file() or not size_of(statistics):
        return []
    number = 1
    while _backup(statistics, number).exists():
        number += 1
    return [statistics.rename(_backup(statistics, number))]


def move_aside(paths: RunPaths, files: Sequence[LockedFile], rescue: Rescue) -> list[Path]:
    """Move all files of an earlier run aside; return their new names."""
    backups: list[Path] = []
    full = [path for path in (paths.statistics, paths.rescue, paths.manifest) if size_of(path)]
    full += [file.path for file in files if file.size]
    rescues = [place for place in rescue.found() if place not in full]
    if not full and not rescues:
        return backups
    number = 1
    while any(_backup(path, number).exists() for path in (*full, paths.rescue)):
        number += 1
    for file in files:
        if file.size:
            backup = _backup(file.path, number)
            file.move_aside(backup)
            backups.append(backup)
    # Move the manifest last: without it, the next run after a crash does not know the others.
    for path in (paths.statistics, paths.rescue, paths.manifest):
        if path in full:
            path.rename(_backup(path, number))
            backups.append(_backup(path, number))
    for place in rescues:
        backup = _backup(paths.rescue, number)
        if place != paths.rescue and not backup.exists():
            shutil.move(place, backup)
            backups.append(backup)
    return backups


def move_files_aside(paths: Sequence[Path]) -> list[Path]:
    """Rename those of these files that exist, all with the same number; return their new names."""
    there = [path for path in paths if path.exists()]
    number = 1
    while any(_backup(path, number).exists() for path in there):
        number += 1
    return [path.rename(_backup(path, number)) for path in there]


def size_of(path: Path | None) -> int:
    """Return the size of a file; 0 if there is none."""
    try:
        return 0 if path is None else path.stat().st_size
    except FileNotFoundError:
        return 0


def _backup(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
