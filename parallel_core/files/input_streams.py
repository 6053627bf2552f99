"""Streams of an input: in blocks that are digested, from standard input, or copied."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias, cast

from parallel_core.errors import InputFileError

STANDARD_INPUT = "-"
BLOCK = 1 << 20  # bytes
OnBlock: TypeAlias = Callable[[int, memoryview], object]


class Blocks(io.RawIOBase):
    """Reads a stream in blocks of equal size, and passes each to a function before returning it.

    The function gets the number of the block and the block; at the end of the stream the block is
    empty.
    """

    def __init__(self, raw: io.RawIOBase, on_block: OnBlock) -> None:
        self._raw = raw
        self._on_block = on_block
        self._number = 0
        self._buffer = bytearray(BLOCK)
        self._left = memoryview(self._buffer)[:0]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            self._left = self._next_block()
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _next_block(self) -> memoryview:
        whole = memoryview(self._buffer)
        size = 0
        while size < BLOCK and (count := self._raw.readinto(whole[size:])):
            size += count
        self._on_block(self._number, whole[:size])
        self._number += 1
        return whole[:size]


class View(io.RawIOBase):
    """Reads a shared file from its beginning, with a separate position."""

    def __init__(self, file: BinaryIO, lock: threading.Lock) -> None:
        self._file = file
        self._lock = lock
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._lock:
            self._file.seek(self._position)
            block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)


def standard_input() -> BinaryIO:
    stdin: Any = sys.stdin
    if stdin is None or stdin.closed:  # None if the process was started without one
        raise InputFileError(f"{STANDARD_INPUT}: standard input is closed: name a file instead")
    return cast("BinaryIO", stdin.buffer)


def copied(source: Any) -> BinaryIO:
    """Copy a stream to a temporary file that no other program can open. Closing it deletes it."""
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - kept open
    shutil.copyfileobj(source, copy, BLOCK)
    copy.flush()
    return copy


def state_of(number: int) -> tuple[int, ...]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def digest_of_block(block: memoryview) -> bytes:
    return hashlib.blake2b(block, digest_size=16).digest()
