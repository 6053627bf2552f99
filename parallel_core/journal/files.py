"""The files of a journal: lock, append, replace atomically, and sync."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from parallel_core.errors import JournalError

from .lock import RunLock, take_lock
from .system import MOVES_OPEN_FILES, open_flags, read_at

if sys.platform != "win32":
    import fcntl

BLOCK = 1 << 20  # bytes read or written at once when a file is copied
_APPENDING = open_flags("O_RDWR", "O_APPEND", "O_CREAT")
# Errors of F_FULLFSYNC on a file system that does not support it.
_NO_FULL_SYNC = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
_PERMISSIONS = 0o666  # minus the umask, the default for new files


class Disk:
    """Write and sync calls of the operating system. Tests replace it to inject faults."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Sync a file, so that its contents survive a loss of power."""
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync on macOS only reaches the disk's cache
            except OSError as error:
                if error.errno not in _NO_FULL_SYNC:
                    raise
                os.fsync(fd)  # a network file system or a USB stick
        elif hasattr(os, "fdatasync"):
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Sync a folder, so that its file names survive a loss of power, where this is possible."""
        if sys.platform == "win32":
            return  # Windows syncs names itself and cannot open a folder
        with contextlib.suppress(OSError):  # some network file systems cannot and need not do it
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def write_all(self, fd: int, data: bytes) -> None:
        """Write all bytes, with as many writes as that takes."""
        rest = memoryview(data)
        while rest:
            written = self.write(fd, rest)
            if written <= 0:
                raise OSError(errno.EIO, "the system wrote nothing and gave no reason")
            rest = rest[written:]


class FileChangedError(OSError):
    """The file was removed, replaced, or written to by another program."""

    def __str__(self) -> str:
        return str(self.args[0])


class LockedFile:
    """A regular file that only one run appends to.

    A run that has taken the lock checks that the path still leads to the locked file: the holder
    before it may have replaced the file, and the lock is then on a stale one.

    Attributes:
        path: the path without symbolic links.
        fd: the open file; changes when the file is replaced.
        size: number of bytes known to be on disk; everything after them can be cut.
        created: True if the file did not exist before.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self._disk = disk
        self.created = False
        self.fd = -1
        self._lock: RunLock
        self._open()
        self.size = os.fstat(self.fd).st_size

    def _open(self) -> None:
        while True:
            refuse_irregular(self.path)
            self.created = not self.path.exists()
            # O_NONBLOCK: the path may have become a FIFO since the check, and must not block.
            fd = os.open(self.path, _APPENDING | open_flags("O_NONBLOCK"), _PERMISSIONS)
            try:
                lock = take_lock(fd, self.path)
            except BaseException:
                os.close(fd)
                raise
            if self._leads_to(fd):
                self.fd, self._lock = fd, lock
                return
            os.close(fd)
            lock.release()

    def _leads_to(self, fd: int) -> bool:
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(fd))

    def check(self) -> None:
        """Raise FileChangedError if this is no longer the file that was opened."""
        now = os.fstat(self.fd)
        if now.st_nlink == 0:
            raise FileChangedError("it has been removed")
        if not self._leads_to(self.fd):
            raise FileChangedError("it has been moved or replaced")
        if now.st_size != self.size:
            raise FileChangedError("something else has written to it")

    @property
    def removed(self) -> bool:
        """True if the file has no name in any folder."""
        return os.fstat(self.fd).st_nlink == 0

    def write(self, data: bytes) -> None:
        """Append data. ``size`` does not count it until ``commit``."""
        self._disk.write_all(self.fd, data)

    def sync(self) -> None:
        """Sync the file to disk."""
        self._disk.sync(self.fd)

    def commit(self) -> None:
        """Count everything in the file as being on disk."""
        self.size = os.fstat(self.fd).st_size

    def cut(self, size: int) -> None:
        """Truncate the file to a size, and sync it."""
        self.size = size
        if self.drop_uncommitted():
            self._disk.sync(self.fd)

    def drop_uncommitted(self) -> bool:
        """Cut what is not committed, without a sync. Return True if there was something to cut."""
        if os.fstat(self.fd).st_size == self.size:
            return False
        os.ftruncate(self.fd, self.size)
        return True

    def blocks(self) -> Iterator[bytes]:
        """Read the committed bytes in blocks. This also works after the file was removed."""
        offset = 0
        while offset < self.size:
            block = read_at(self.fd, min(BLOCK, self.size - offset), offset)
            if not block:
                return
            offset += len(block)
            yield block

    def replace(self, blocks: Iterable[bytes]) -> None:
        """Replace the file atomically. After a crash, either the old or the new one is there."""
        temporary = temporary_name(self.path)
        fd = os.open(temporary, _APPENDING | open_flags("O_TRUNC", "O_NOFOLLOW"), _PERMISSIONS)
        try:
            self._lock.cover(fd)  # before the file has its final name
            if hasattr(os, "fchmod"):
                os.fchmod(fd, stat.S_IMODE(os.fstat(self.fd).st_mode))
            for block in in_large_blocks(blocks):
                self._disk.write_all(fd, block)
            self._disk.sync(fd)
            if MOVES_OPEN_FILES:
                temporary.replace(self.path)
        except BaseException:
            os.close(fd)
            temporary.unlink(missing_ok=True)
            raise
        if not MOVES_OPEN_FILES:
            os.close(fd)
            fd = self._move_closed(temporary, self.path)
        self._take(fd)
        self._disk.sync_folder(self.path.parent)

    def move_aside(self, backup: Path) -> None:
        """Rename the file and start an empty one. The old one stays locked until the new one is
        locked."""
        self.created = True
        if not MOVES_OPEN_FILES:
            self._take(self._move_closed(self.path, backup))
            return
        self.path.rename(backup)
        fd = os.open(self.path, _APPENDING, _PERMISSIONS)
        try:
            self._lock.cover(fd)
        except BaseException:
            os.close(fd)
            raise
        self._take(fd)

    def _take(self, fd: int) -> None:
        old, self.fd = self.fd, fd
        os.close(old)
        self.commit()

    def _move_closed(self, source: Path, target: Path) -> int:
        """Close the file, rename ``source``, and open the file at the path. Return a duplicate of
        the new descriptor."""
        os.close(self.fd)
        try:
            source.replace(target)
        finally:
            self.fd = os.open(self.path, _APPENDING, _PERMISSIONS)
        return os.dup(self.fd)

    def bring_back(self) -> None:
        """Write the committed bytes to the path again, after the file was removed from there."""
        fd = os.open(self.path, _APPENDING | os.O_EXCL, _PERMISSIONS)
        try:
            for block in self.blocks():
                self._disk.write_all(fd, block)
            self._disk.sync(fd)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        self._disk.sync_folder(self.path.parent)

    def close(self, *, remove: bool = False) -> None:
        """Close the file and release the lock; remove the file on request."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        if remove and MOVES_OPEN_FILES:
            self.path.unlink(missing_ok=True)
        os.close(fd)
        if remove and not MOVES_OPEN_FILES:
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def undo(self) -> None:
        """Close the file. Remove it if this run created it and it is empty."""
        self.close(remove=self.fd >= 0 and self.created and os.fstat(self.fd).st_size == 0)


def refuse_irregular(path: Path) -> None:
    """Raise JournalError if the path exists and is not a regular file."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise JournalError(f"{path} is {kind}: give the name of a file")


def temporary_name(path: Path) -> Path:
    """Return the path of the temporary file beside a file.

    It is always the same, so a crash leaves at most one temporary file.
    """
    return path.with_name(f".{path.name}.new")


def write_atomically(
    path: Path, blocks: Iterable[bytes], disk: Disk, *, permissions: int | None = None
) -> None:
    """Write a file atomically.

    ``permissions`` are those of the file; None uses the default of the system.
    """
    temporary = temporary_name(path)
    flags = open_flags("O_WRONLY", "O_CREAT", "O_TRUNC", "O_NOFOLLOW")
    fd = os.open(temporary, flags, _PERMISSIONS if permissions is None else permissions)
    try:
        try:
            for block in in_large_blocks(blocks):
                disk.write_all(fd, block)
            disk.sync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    disk.sync_folder(path.parent)


def open_at_a_new_line(path: Path) -> int:
    """Open a file to append lines. If its last line is torn, end that line first."""
    fd = os.open(path, _APPENDING, _PERMISSIONS)
    try:
        size = os.fstat(fd).st_size
        if size and read_at(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")
    except BaseException:
        os.close(fd)
        raise
    return fd


def in_large_blocks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces into blocks of at least ``BLOCK`` bytes; only the last one may be smaller."""
    waiting: list[bytes] = []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += len(piece)
        if size >= BLOCK:
            yield b"".join(waiting)
            waiting.clear()
            size = 0
    yield b"".join(waiting)
