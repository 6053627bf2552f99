"""Bytes of an input: each reading returns the same bytes, or fails.

Standard input, pipes and files with an address are copied, since they cannot be read twice, or not
as they were. What is compared with the first reading are the bytes of the file as it is, compressed
or not. A table is read here and there, so it has been read as a whole before.
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
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Final, cast

from parallel_core.errors import InputFileError

from .block_streams import BLOCK, Blocks, SharedFile
from .contents import is_table
from .remote_sources import ending_of, is_address, name_of, not_read, open_address
from .unpacking import ENDINGS, Unpacked, compression_of

_STANDARD_INPUT: Final = "-"
_BUFFER: Final = 1 << 16  # bytes
_ARCHIVE: Final = b"PK\x03\x04"
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")


class InputBytes:
    """The bytes of an input file. Each reading starts at its beginning.

    Args:
        path: path or address of the file; ``"-"`` is standard input.
        standard_input: stream to read for ``"-"``; ``sys.stdin`` if None.

    Attributes:
        name: name of the file for messages.
        ending: ending of the name of the file without compression, in lower case: ``.csv``.
        beginning: first bytes of the contents, unpacked. Known while the file is read.
    """

    def __init__(self, path: Path | str, standard_input: BinaryIO | None) -> None:
        self._address = path if isinstance(path, str) and is_address(path) else None
        self._path = Path(path)
        self._is_standard_input = str(path) == _STANDARD_INPUT
        self.ending = _ending_of(self._path if self._address is None else ending_of(self._address))
        self.beginning = b""
        # A name may have newlines, and bytes that are not UTF-8; messages must be text.
        name = str(path) if self._address is None else name_of(self._address)
        name = name.encode("utf-8", "replace").decode().replace("\n", "\\n")
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
            InputFileError: it cannot be read, is no text or table, or was changed meanwhile.
        """
        digests: list[bytes] = []

        def note(file: int, number: int, block: memoryview) -> None:
            if block:
                digests.append(_digest_of(block))

        with self._opened(note) as (stream, blocks, file):
            before = _state_of(file)
            is_read_in_order = not is_table(self.beginning)
            if is_read_in_order:
                yield stream
            while not blocks.closed and blocks.read(BLOCK):
                pass  # read to the end for the digests: a reader may stop early
            if _state_of(file) != before:
                raise _changed()
        self._digests, self._size = digests, before[2]
        if not is_read_in_order:
            with self.reading() as stream:
                yield stream

    @contextlib.contextmanager
    def reading(self) -> Generator[BinaryIO]:
        """Open the file again. The stream returns only what was there at the first reading.

        The stream of a table can be positioned.

        Raises:
            InputFileError: the file was changed after the first reading.
        """

        def compare(file: int, number: int, block: memoryview) -> None:
            known = self._digests[number] if number < len(self._digests) else b""
            found = _digest_of(block) if block else b""
            if found != known or os.fstat(file).st_size != self._size:
                raise _changed()

        with self._opened(compare) as (stream, _, _):
            yield stream

    def digest(self) -> str:
        """Return the SHA-256 digest of the file, which had a first reading."""
        digest = hashlib.sha256()
        with self.reading() as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def close(self) -> None:
        """Delete the copy of standard input, if there is one."""
        if self._copy is not None:
            self._copy.close()

    @contextlib.contextmanager
    def _opened(
        self, on_block: Callable[[int, int, memoryview], object]
    ) -> Generator[tuple[BinaryIO, BinaryIO, int]]:
        """Return a stream of the contents, one of the file as it is, and the file descriptor.

        ``on_block`` gets the descriptor, the number of each block of the file and the block.
        """
        with self.naming():
            raw, number = self._raw()
            blocks = Blocks(raw, functools.partial(on_block, number))
            with raw, io.BufferedReader(blocks, _BUFFER) as packed:
                stream = _contents_of(packed)
                self.beginning = stream.peek(_BUFFER)
                _refuse_unreadable(self.beginning)
                yield stream, packed, number

    def _raw(self) -> tuple[io.RawIOBase, int]:
        """Return a stream that can be positioned, and its file descriptor."""
        if self._copy is None:
            try:
                if self._address is not None:
                    self._copy = _copy_of(self._address)
                elif self._is_standard_input:
                    self._copy = _copied(self._standard_input or _standard_input())
                else:
                    raw = self._path.open("rb", buffering=0)
                    if stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
                        return raw, raw.fileno()
                    with raw:  # a pipe cannot be read twice
                        self._copy = _copied(raw)
            except OSError as error:
                reason = error.strerror or type(error).__qualname__
                raise InputFileError(f"cannot be read: {reason}") from None
        return SharedFile(self._copy, self._copy_lock), self._copy.fileno()


def _ending_of(path: PurePath) -> str:
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in ENDINGS else ending


def _contents_of(packed: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    """Return a stream of the contents of a file, which may be compressed."""
    compression = compression_of(packed.peek(_BUFFER))
    if compression is None:
        return packed
    unpacked = io.BufferedReader(Unpacked(packed, compression), _BUFFER)
    beginning = unpacked.peek(_BUFFER)
    if compression_of(beginning) is not None:
        raise InputFileError("the file is compressed twice: unpack it once")
    if is_table(beginning):
        raise InputFileError("the file is a compressed Parquet or Arrow file: unpack it first")
    return unpacked


def _refuse_unreadable(beginning: bytes) -> None:
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


def _standard_input() -> BinaryIO:
    stdin: Any = sys.stdin
    if stdin is None or stdin.closed:  # None if the process was started without one
        raise InputFileError(f"{_STANDARD_INPUT}: standard input is closed: name a file instead")
    return cast("BinaryIO", stdin.buffer)


def _copied(source: Any) -> BinaryIO:
    """Copy a stream to a temporary file that no other program can open. Closing it deletes it."""
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115 - kept open
    try:
        shutil.copyfileobj(source, copy, BLOCK)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy


def _copy_of(address: str) -> BinaryIO:
    with open_address(address) as source:
        try:
            return _copied(source)
        except Exception as error:  # noqa: BLE001 - the file systems have errors of many packages
            raise not_read(error, address) from None


def _state_of(number: int) -> tuple[int, ...]:
    status = os.fstat(number)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _digest_of(block: memoryview) -> bytes:
    return hashlib.blake2b(block, digest_size=16).digest()
