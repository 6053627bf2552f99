"""Compressed inputs, recognised by their first bytes, and read with little memory."""

from __future__ import annotations

import importlib
import io
import sys
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, Final, NamedTuple, Protocol

from parallel_core.errors import InputFileError

ENDINGS: Final = frozenset((".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz"))
"""Endings of the names of compressed files, in lower case."""

_FED: Final = 1 << 16  # bytes of a compressed file that are unpacked at once
# The package zstandard has no limit for what comes out, and 4 bytes may stand for 128 KiB: so
# these become at most 16 MiB.
_FED_WITHOUT_LIMIT: Final = 1 << 9
_UNPACKED: Final = 1 << 18  # bytes that the others return at once
_WITH_HEADER: Final = 31  # zlib: the format of gzip, with its checksum
_NOTHING: Final = memoryview(b"")


class _Decompressor(Protocol):
    """Unpacks one member of a compressed file."""

    @property
    def eof(self) -> bool:
        """True after the end of the member."""
        ...

    @property
    def needs_input(self) -> bool:
        """False if more comes out without further bytes."""
        ...

    @property
    def unused_data(self) -> bytes:
        """Bytes that follow the end of the member."""
        ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Unpack some bytes."""
        ...


class Compression(NamedTuple):
    """A way to compress files.

    Attributes:
        name: its name for messages.
        make: makes a decompressor.
        fed: bytes that are handed to it at once.
    """

    name: str
    make: Callable[[], _Decompressor]
    fed: int = _FED


class _Gzip:
    """The decompressor of zlib, with the attributes that those of the other modules have."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_WITH_HEADER)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Zstandard:
    """The decompressor of the package zstandard, in the same way. ``max_length`` is ignored."""

    needs_input = True

    def __init__(self, package: Any) -> None:
        self._inner = package.ZstdDecompressor().decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._inner.decompress(data))


def compression_of(beginning: bytes) -> Compression | None:
    """Return how a file is compressed, by its first bytes; None if it is not.

    Raises:
        InputFileError: a package is needed to unpack it; the message names it.
    """
    if beginning.startswith(b"\x1f\x8b"):
        return Compression("gzip", _Gzip)
    if beginning.startswith((b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18")):  # or a skippable frame
        return _zstd()
    if beginning.startswith(b"BZh"):
        return Compression("bzip2", _module("bz2", "bzip2").BZ2Decompressor)
    if beginning.startswith(b"\xfd7zXZ"):
        return Compression("xz", _module("lzma", "xz").LZMADecompressor)
    return None


def _zstd() -> Compression:
    if sys.version_info >= (3, 14):
        return Compression("zstd", _module("compression.zstd", "zstd").ZstdDecompressor)
    package = _module("zstandard", "zstd", "pip install 'parallel_core[zstd]'")
    return Compression("zstd", lambda: _Zstandard(package), _FED_WITHOUT_LIMIT)


def _module(name: str, compression: str, install: str = "a Python that was built with it") -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputFileError(
            f"the file is compressed with {compression}, which needs: {install} (or unpack it: "
            f"{compression} -dc FILE | parallel-core run -)"
        ) from None


class Unpacked(io.RawIOBase):
    """Reads the contents of a compressed stream.

    Args:
        packed: the stream, at its beginning. It is not closed with this one.
        compression: how it is compressed.

    Raises:
        InputFileError: the stream is broken or truncated (when it is read).
    """

    def __init__(self, packed: BinaryIO, compression: Compression) -> None:
        self._packed = packed
        self._compression = compression
        self._member: _Decompressor | None = compression.make()
        self._waiting = b""  # bytes of the next member
        self._left = _NOTHING  # of what was unpacked

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left and self._member is not None:
            self._left = memoryview(self._unpack(self._member))
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:] or _NOTHING  # an empty rest would keep all of it
        return count

    def _unpack(self, member: _Decompressor) -> bytes:
        """Return the next bytes, which may be none."""
        data, fed = b"", member.needs_input
        if fed:
            data, self._waiting = self._waiting or self._packed.read(self._compression.fed), b""
        try:
            unpacked = member.decompress(data, _UNPACKED)
        except Exception as error:  # noqa: BLE001 - each module has errors of its own
            raise self._broken(str(error)) from None
        if member.eof:
            self._member = self._next_member(member.unused_data)
        elif fed and not data and not unpacked:
            raise self._broken("it ends too early")
        return unpacked

    def _next_member(self, data: bytes) -> _Decompressor | None:
        """Return a decompressor for what follows a member; None at the end of the file."""
        while not (data := data.lstrip(b"\0")):  # zeros may fill up a file
            data = self._packed.read(self._compression.fed)
            if not data:
                return None
        self._waiting = data
        return self._compression.make()

    def _broken(self, reason: str) -> InputFileError:
        return InputFileError(
            f"the file is compressed with {self._compression.name}, and broken: {reason}; check "
            f"it, for instance with {self._compression.name} -t, and copy or make it again"
        )
