"""Files of an earlier run that are moved aside, to ``out.jsonl.1``."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .files import BLOCK, Disk, LockedFile, write_atomically
from .rescue import Rescue
from .result_lines import id_of_line
from .run_paths import RunPaths
from .scan import id_digest


def move_statistics_aside(statistics: Path) -> list[Path]:
    """Move old statistics aside: they belong to another run, and its calls have no result.

    Returns the new names.
    """
    if not statistics.is_file() or not size_of(statistics):
        return []
    return [statistics.rename(_backup(statistics, _free_number([statistics])))]


def move_aside(paths: RunPaths, files: Sequence[LockedFile], rescue: Rescue) -> list[Path]:
    """Move all files of an earlier run aside; return their new names."""
    backups: list[Path] = []
    beside = (paths.statistics, paths.requests, paths.rescue, paths.manifest)
    full = [path for path in beside if size_of(path)]
    full += [file.path for file in files if file.size]
    rescues = [place for place in rescue.found() if place not in full]
    if not full and not rescues:
        return backups
    number = _free_number((*full, paths.rescue))
    for file in files:
        if file.size:
            backup = _backup(file.path, number)
            file.move_aside(backup)
            backups.append(backup)
    # Move the manifest last: without it, the next run after a crash does not know the others.
    for path in beside:
        if path in full:
            path.rename(_backup(path, number))
            backups.append(_backup(path, number))
    for place in rescues:
        backup = _backup(paths.rescue, number)
        if place != paths.rescue and not backup.exists():
            shutil.move(place, backup)
            backups.append(backup)
    return backups


def move_results_aside(
    files: Sequence[LockedFile], digests: Collection[int], disk: Disk
) -> list[Path]:
    """Move the results of some requests out of the files; return the new files with them.

    The results of a file are on disk in their new place before they leave the old one. A crash in
    between leaves them in both.

    Args:
        files: the files.
        digests: digests of the ids of the requests.
        disk: the object that writes.

    Raises:
        OSError: a file cannot be written. Each file is either unchanged or without these results.
    """
    backups: list[Path] = []
    if not digests:
        return backups
    number = _free_number([file.path for file in files])
    for file in files:
        places = array("Q")
        moved = _moved_lines(file.path, digests, places)
        first = next(moved, None)
        if first is None:
            continue
        backup = _backup(file.path, number)
        permissions = stat.S_IMODE(os.fstat(file.fd).st_mode)
        lines = itertools.chain([first], moved)
        write_atomically(backup, lines, disk, permissions=permissions)
        file.replace(_between(file.path, places))
        backups.append(backup)
    return backups


def _moved_lines(path: Path, digests: Collection[int], places: array[int]) -> Iterator[bytes]:
    """Yield the results of these requests. Append the offsets of start and end to ``places``."""
    with path.open("rb", buffering=1 << 18) as lines:
        end = 0
        for line in lines:
            start, end = end, end + len(line)
            custom_id = id_of_line(line)
            if custom_id is not None and id_digest(custom_id) in digests:
                places.extend((start, end))
                yield line


def _between(path: Path, places: Sequence[int]) -> Iterator[bytes]:
    """Yield the contents of a file without the parts whose start and end are in ``places``."""
    with path.open("rb") as file:
        at = 0
        for start, end in zip(places[::2], places[1::2], strict=True):
            yield from _blocks(file, at, start)
            at = end
        yield from _blocks(file, at, size_of(path))


def _blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (block := file.read(min(BLOCK, end - start))):
        start += len(block)
        yield block


def _free_number(paths: Iterable[Path]) -> int:
    """Return the first number with which none of these files has a backup."""
    names = list(paths)
    numbers = itertools.count(1)
    return next(n for n in numbers if not any(_backup(path, n).exists() for path in names))


def move_files_aside(paths: Sequence[Path]) -> list[Path]:
    """Rename those of these files that exist, all with the same number; return their new names."""
    there = [path for path in paths if path.exists()]
    number = _free_number(there)
    return [path.rename(_backup(path, number)) for path in there]


def size_of(path: Path | None) -> int:
    """Return the size of a file; 0 if there is none."""
    try:
        return 0 if path is None else path.stat().st_size
    except FileNotFoundError:
        return 0


def _backup(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
