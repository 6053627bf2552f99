"""Disks under a journal: quick ones, and such as fail."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from parallel_core.journal.files import Disk


def name_of(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name.removesuffix(" (deleted)")


class UnsyncedDisk(Disk):
    """Quick, for many small runs."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass


class FaultyDisk(Disk):
    """Fails when it is told to, on files whose name ends in a certain way."""

    def __init__(self) -> None:
        self.fault: int | None = None
        self.at = "write"
        self.files: tuple[str, ...] = ("out.jsonl", "failed.jsonl")
        self.room = 0  # bytes that a failing write still writes
        self.hold: threading.Event | None = None
        self.syncing = threading.Event()
        self.syncs: list[str] = []

    def _fails(self, fd: int, what: str) -> bool:
        name = name_of(fd)
        return self.fault is not None and what == self.at and name.endswith(self.files)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        if not self._fails(fd, "write"):
            return super().write(fd, data[:7])  # short writes are allowed at all times
        if self.room:
            room, self.room = self.room, 0
            return super().write(fd, data[:room])
        assert self.fault is not None
        raise OSError(self.fault, os.strerror(self.fault))

    def sync(self, fd: int) -> None:
        self.syncs.append(name_of(fd))
        self.syncing.set()
        if self.hold is not None:
            assert self.hold.wait(100)
        if self._fails(fd, "sync"):
            assert self.fault is not None
            raise OSError(self.fault, os.strerror(self.fault))
        super().sync(fd)
