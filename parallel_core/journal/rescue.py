"""Fallback places for results that were paid for but cannot be written to the output file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .files import Disk, LockedFile, in_large_blocks
from .result_lines import BadLineError, read_result_line
from .scan import FinishedIds
from .system import is_ours, open_flags

STANDARD_ERROR = "the standard error stream"
_FLAGS = open_flags("O_WRONLY", "O_APPEND", "O_CREAT", "O_NOFOLLOW", "O_NONBLOCK")


class Rescue:
    """Writes lines to the first place that accepts them.

    Attributes:
        places: the rescue file, and a file in the system's temporary folder.
        older_places: places that an earlier version, or the run before a change, used.
        used: places that lines were written to.
        lost: True if some lines could not be written anywhere.
    """

    def __init__(self, rescue: Path, output: Path, runs: Sequence[bytes], disk: Disk) -> None:
        """Find the places. ``runs`` are keys of the run, the current one and earlier ones."""
        first, *others = (_in_temporary_folder(output, run) for run in runs)
        self.places = (rescue, first)
        self.older_places = others
        self.used: list[str] = []
        self.lost = False
        self._disk = disk

    @property
    def by_hand(self) -> bool:
        """True if some lines are in a place where a later run cannot find them."""
        return self.lost or STANDARD_ERROR in self.used

    def found(self) -> list[Path]:
        """Return the places where an earlier run left lines."""
        return [place for place in (*self.places, *self.older_places) if _is_own_file(place)]

    def write(self, blocks: Iterable[bytes]) -> None:
        """Write whole lines. A block that fails in one place goes to the next."""
        for block in in_large_blocks(blocks):
            if block:
                self._write_block(block)

    def _write_block(self, block: bytes) -> None:
        for place in self.places:
            try:
                self._append(place, block)
            except OSError:
                continue
            self._note(str(place))
            return
        try:
            # The last resort. Write to descriptor 2: `sys.stderr` may have been replaced.
            Disk().write_all(2, block)
        except OSError:
            self.lost = True
        else:
            self._note(STANDARD_ERROR)

    def _note(self, place: str) -> None:
        if place not in self.used:
            self.used.append(place)

    def _append(self, place: Path, block: bytes) -> None:
        fd = os.open(place, _FLAGS, 0o600)
        try:
            if not _is_own(os.fstat(fd)):
                raise PermissionError(f"{place} is not a regular file of this user")
            size = os.fstat(fd).st_size
            try:
                self._disk.write_all(fd, block)
                self._disk.sync(fd)
                self._disk.sync_folder(place.parent)  # the file may be new
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, size)
                    if size == 0:
                        place.unlink()
                raise
        finally:
            os.close(fd)

    def __str__(self) -> str:
        return " and ".join(self.used)


def take_rescued(rescue: Rescue, files: Sequence[LockedFile], ids: FinishedIds, disk: Disk) -> int:
    """Move rescued results of an earlier run to the output and error files; return how many.

    ``ids`` has the results that are in the files, and notes those that are moved.
    """
    places = rescue.found()
    if not places:
        return 0
    try:
        rescued = sum(_append_new_lines(place, files, ids) for place in places)
        for file in files:
            file.sync()
    except OSError:
        for file in files:
            with contextlib.suppress(OSError):
                file.drop_uncommitted()
        raise
    for file in files:
        file.commit()
    for place in places:
        place.unlink()
        disk.sync_folder(place.parent)
    return rescued


def _append_new_lines(place: Path, files: Sequence[LockedFile], ids: FinishedIds) -> int:
    output, errors = files[0], files[-1]
    appended = 0
    with place.open("rb") as lines:
        for line in lines:
            try:
                result = read_result_line(line)
            except BadLineError:
                continue  # a torn line
            # An answer is new even if the request has a failure: the request was retried.
            known = ids.has_answer if result.ok else ids.__contains__
            if not known(result.custom_id):
                ids.count(result)
                (output if result.ok else errors).write(line.rstrip(b"\n") + b"\n")
                appended += 1
    return appended


def _in_temporary_folder(output: Path, run: bytes) -> Path:
    # The name is the same for the same run, and different for every other run.
    name = hashlib.sha256(os.fsencode(output) + b"\0" + run).hexdigest()[:24]
    return Path(tempfile.gettempdir()) / f"parallel-core-{name}.rescue.jsonl"


def _is_own_file(path: Path) -> bool:
    try:
        return _is_own(path.lstat())
    except OSError:
        return False


def _is_own(status: os.stat_result) -> bool:
    """Return True for a regular file of this user.

    In a temporary folder, another user may have created a file of that name.
    """
    return stat.S_ISREG(status.st_mode) and is_ours(status)
