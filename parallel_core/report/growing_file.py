"""A file that another process appends to, read piece by piece."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_TAIL = 64  # bytes at the end of the last line, to see whether the file was rewritten


class GrowingFile:
    """Reads the lines that were appended to a file since the last time.

    It keeps no file open between two readings, so the file can be replaced or removed.

    Attributes:
        path: the file.
        lines: number of lines that were read.
        is_torn: True if the last line is incomplete, and was not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self.is_torn = False
        self._place = 0
        self._tail = b""
        self._identity: tuple[int, int] | None = None

    @property
    def place(self) -> int:
        """Number of bytes that were read."""
        return self._place

    def size(self) -> int:
        """Return the size of the file in bytes; 0 if it does not exist."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def was_rewritten(self) -> bool:
        """Return True if what was read is no longer the beginning of the file.

        Raises:
            OSError: the file cannot be read.
        """
        if self._identity is None:
            return False
        try:
            with self.path.open("rb") as file:
                if self._identity != _identity(file.fileno()):
                    return True
                file.seek(self._place - len(self._tail))
                return file.read(len(self._tail)) != self._tail
        except FileNotFoundError:
            return True

    def read(self, until: int | None = None, *, whole_lines: bool = True) -> Iterator[bytes]:
        """Yield the lines that were not read yet, with their newlines.

        Args:
            until: size of the part of the file to read, in bytes; None is the whole file. A line
                that begins in this part is read to its end.
            whole_lines: False also yields a last line without a newline.

        Raises:
            OSError: the file cannot be read.
        """
        with self.path.open("rb") as file:
            self._identity = _identity(file.fileno())
            file.seek(self._place)
            self.is_torn = False
            for line in file:
                if until is not None and self._place >= until:
                    break
                if not line.endswith(b"\n") and whole_lines:
                    self.is_torn = True
                    break
                self._place += len(line)
                self._tail = line[-_TAIL:]
                self.lines += 1
                yield line


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
