"""Bytes of an input: each reading returns the same bytes, or fails.

Standard input and pipes are copied, since they cannot be read twice.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeAlias, cast

from parallel_core.errors import InputFileError

OnBlock: TypeAlias = Callable[[int, memoryview], object]

_STANDARD_INPUT: Final = "-"
_BLOCK: Final = 1 << 20  # bytes
_BUFFER: Final = 1 << 16  # bytes
# First bytes of compressed files, and the command that unpacks them.
_PACKED: Final = {
    b"\x1f\x8b": "gzip -dc",
    b"\x28\xb5\x2f\xfd": "zstd -dc",
    b"BZh": "bzip2 -dc",
    b"\xfd7zXZ": "xz -dc",
}
_ARCHIVE: Final = b"PK\x03\x04"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")


class InputBytes:
    """The bytes of an input file. Each reading starts at its beginning.

    Args:
        path: path of the file; ``"-"`` is standard input.
        standard_input: stream to read for ``"-"``; ``sys.stdin`` if None.

    Attributes:
        name: name of the file for messages.
    """

    def __init__(self, path: Path | str, standard_input: BinaryIO | None) -> None:
        self._path = Path(path)
        self._is_standard_input = str(path) == _STANDARD_INPUT
        # A name may have newlines, and bytes that are not UTF-8; messages must be text.
        name = str(path).encode("utf-8", "replace").decode().replace("\n", "\\n")
        self.name = "standard input" if self._is_standard_input else name
        self._standard_input = standard_input
        self._digests: list[bytes] = []  # of the blocks of the first reading
        self._size = 0  # bytes of the first reading
        self._copy: BinaryIO | None = None
        self._copy_lock = threading.Lock()

    @contextlib.contextmanager
    def naming(self) -> Generator[None]:
        """Put the name of the file before the text of each InputFileError."""
        try:
            yield
        except InputFileError as error:
            raise InputFileError(f"{self.name}: {error}") from None

    @contextlib.contextmanager
    def first_reading(self) -> Generator[BinaryIO]:
        """Open the file. It must not change until the block is left.

        Raises:
            InputFileError: it cannot be read, is compressed, or was changed meanwhile.
        """
        digests: list[bytes] = []

        def note(file: int, number: int, block: memoryview) -> None:
            if block:
                digests.append(_digest_of(block))

        with self._opened(note) as (stream, file):
            before = _state_of(file)
            yield stream
            while not stream.closed and stream.read(_BLOCK):
                pass  # read to the end for the digests: a reader may stop early
            if _state_of(file) != before:
                raise _changed()
        self._digests, self._size = digests, before[2]

    @contextlib.contextmanager
    def reading(self) -> Generator[BinaryIO]:
        """Open the file again. The stream returns only bytes of the first reading.

        Raises:
            InputFileError: the file was changed after the first reading.
        """

        def compare(file: int, number: int, block: memoryview) -> None:
            known = self._digests[number] if number < len(self._digests) else b""
            found = _digest_of(block) if block else b""
            if found != known or os.fstat(file).st_size != self._size:
                raise _changed()

        with self._opened(compare) as (stream, _):
            yield stream

    def digest(self) -> str:
        """Return the SHA-256 digest of the file, which had a first reading."""
        digest = hashlib.sha256()
        with self.reading() as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def close(self) -> None:
        """Delete the copy of standard input, if there is one."""
        if self._copy is not None:
            self._copy.close()

    @contextlib.contextmanager
    def _opened(
        self, on_block: Callable[[int, int, memoryview], object]
    ) -> Generator[tuple[BinaryIO, int]]:
        """Return a stream and the file descriptor.

        ``on_block`` gets the descriptor, the number of each block and the block.
        """
        try:
            raw, number = self._raw()
        except OSError as error:
            reason = error.strerror or type(error).__qualname__
            raise InputFileError(f"{self.name}: cannot be read: {reason}") from None
        blocks = _Blocks(raw, functools.partial(on_block, number))
        with self.naming(), raw, io.BufferedReader(blocks, _BUFFER) as stream:
            _refuse_packed(stream.peek(8)[:8])
            yield stream, number

    def _raw(self) -> tuple[io.RawIOBase, int]:
        if self._copy is None:
            if self._is_standard_input:
                self._copy = _copied(self._standard_input or _standard_input())
            else:
                raw = self._path.open("rb", buffering=0)
                if stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                    return raw, raw.fileno()
                with raw:  # a pipe cannot be read twice
                    self._copy = _copied(raw)
        return _View(self._copy, self._copy_lock), self._copy.fileno()


def _refuse_packed(beginning: bytes) -> None:
    for mark, command in _PACKED.items():
        if beginning.startswith(mark):
            raise InputFileError(
                f"the file is compressed: unpack it first, for instance with {command} FILE | "
                "parallel-core run -"
            )
    if beginning.startswith(_ARCHIVE):
        raise InputFileError(
            "the file is an archive or a spreadsheet: unpack it, or save it as CSV"
        )
    if beginning.startswith(_UTF16_MARKS):
        raise InputFileError(
            "the file is UTF-16: convert it to UTF-8, for instance with iconv -f UTF-16 -t UTF-8"
        )


def _changed() -> InputFileError:
    return InputFileError(
        "the file has been changed since it was checked, and nothing more of it is sent: do not "
        "change it during a run. With its old contents, the same command resumes the run; with "
        "new contents it sends what is new (see changed, --changed, for changed requests)"
    )


class _Blocks(io.RawIOBase):
    """Reads a stream in blocks of equal size, and passes each to a function before returning it.

    The function gets the number of the block and the block; at the end of the stream the block is
    empty.
    """

    def __init__(self, raw: io.RawIOBase, on_block: OnBlock) -> None:
        self._raw = raw
        self._on_block = on_block
        self._number = 0
        self._buffer = bytearray(_BLOCK)
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
        while size < _BLOCK and (count := self._raw.readinto(whole[size:])):
            size += count
        self._on_block(self._number, whole[:size])
        self._number += 1
        return whole[:size]


class _View(io.RawIOBase):
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


def _standard_input() -> BinaryIO:
    stdin: Any = sys.stdin
    if stdin is None or stdin.closed:  # None if the process was started without one
        raise InputFileError(f"{_STANDARD_INPUT}: standard input is closed: name a file instead")
    return cast("BinaryIO", stdin.buffer)


def _copied(source: Any) -> BinaryIO:
    """Copy a stream to a temporary file that no other program can open. Closing it deletes it."""
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - kept open
    shutil.copyfileobj(source, copy, _BLOCK)
    copy.flush()
    return copy


def _state_of(number: int) -> tuple[int, ...]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _digest_of(block: memoryview) -> bytes:
    return hashlib.blake2b(block, digest_size=16).digest()
