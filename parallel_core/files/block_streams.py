"""Streams that read a file in blocks of equal size, and report each block before it is used."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, Final, TypeAlias

OnBlock: TypeAlias = Callable[[int, memoryview], object]

BLOCK: Final = 1 << 20  # bytes


class Blocks(io.RawIOBase):
    """Reads a seekable stream in blocks, and passes each to a function before returning its bytes.

    The function gets the number of the block and the block. At the end of the stream the block is
    empty.

    Args:
        raw: the stream, at its beginning.
        on_block: the function.
    """

    def __init__(self, raw: io.RawIOBase, on_block: OnBlock) -> None:
        self._raw = raw
        self._on_block = on_block
        self._buffer = bytearray(BLOCK)
        self._block = memoryview(self._buffer)[:0]
        self._number = -1  # of the block in the buffer
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            self._number = -1  # the other stream is not where the next block begins
            offset += self._raw.seek(0, io.SEEK_END)
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        number, start = divmod(self._position, BLOCK)
        if number != self._number:
            self._load(number)
        elif start == len(self._block):  # the end, after a block that is not full
            self._on_block(number + 1, self._block[:0])
        count = max(0, min(len(buffer), len(self._block) - start))
        buffer[:count] = self._block[start : start + count]
        self._position += count
        return count

    def _load(self, number: int) -> None:
        whole = memoryview(self._buffer)
        if self._number < 0 or number != self._number + 1:
            self._raw.seek(number * BLOCK)
        size = 0
        while size < BLOCK and (count := self._raw.readinto(whole[size:])):
            size += count
        self._number = -1  # if the function raises, the block must not be used
        self._on_block(number, whole[:size])
        self._block, self._number = whole[:size], number


class SharedFile(io.RawIOBase):
    """Reads a shared file from its beginning, with a separate position."""

    def __init__(self, file: BinaryIO, lock: threading.Lock) -> None:
        self._file = file
        self._lock = lock
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            with self._lock:
                offset += self._file.seek(0, io.SEEK_END)
        elif whence == io.SEEK_CUR:
            offset += self._position
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        with self._lock:
            self._file.seek(self._position)
            block = self._file.read(len(buffer))
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)
