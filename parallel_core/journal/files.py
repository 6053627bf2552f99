"""The files of a journal: locked, appended to, replaced as a whole, and synced."""

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

BLOCK = 1 << 20  # bytes that are read or written at once where files are copied
_APPENDING = open_flags("O_RDWR", "O_APPEND", "O_CREAT")
# What F_FULLFSYNC says where a file system does not have it.
_NO_FULL_SYNC = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
_PERMISSIONS = 0o666  # less the umask, as for every file that a user has a program write


class Disk:
    """What the system does with bytes. A place where tests put faults."""

    def write(self, fd: int, data: bytes | memoryview) -> int:
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Return when the contents of the file survive a loss of power."""
        if sys.platform == "darwin":
            try:
                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # fsync stops at the cache of the disk there
            except OSError as error:
                if error.errno not in _NO_FULL_SYNC:
                    raise
                os.fsync(fd)  # a file system of a network or of a stick
        elif hasattr(os, "fdatasync"):
            os.fdatasync(fd)
        else:
            os.fsync(fd)

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in a folder survive a loss of power, as far as its system can."""
        if sys.platform == "win32":
            return  # it syncs the names itself, and opens no folder
        with contextlib.suppress(OSError):  # some network file systems cannot, and need not
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def write_all(self, fd: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            written = self.write(fd, rest)
            if written <= 0:
                raise OSError(errno.EIO, "the system writes nothing and gives no reason")
            rest = rest[written:]


class FileChangedError(OSError):
    """A file is not what it was: removed, replaced, or written to by somebody else."""

    def __str__(self) -> str:
        return str(self.args[0])


class LockedFile:
    """A regular file that one run alone appends to.

    Whoever gets the lock looks whether the path still leads to the locked file. So the file may be
    replaced under the lock, by another one that is locked already.

    Attributes:
        path: without symbolic links.
        fd: the open file; changes when the file is replaced.
        size: bytes that are known to be on disk; everything behind them can be cut.
        created: whether the file was not there before.
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
            # What became a FIFO just now must not block.
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
        """Raises FileChangedError: this is no longer the file that was opened."""
        now = os.fstat(self.fd)
        if now.st_nlink == 0:
            raise FileChangedError("it has been removed")
        if not self._leads_to(self.fd):
            raise FileChangedError("it has been moved or replaced")
        if now.st_size != self.size:
            raise FileChangedError("something else has written to it")

    @property
    def removed(self) -> bool:
        return os.fstat(self.fd).st_nlink == 0

    def write(self, data: bytes) -> None:
        """Append; not counted in ``size`` before ``commit``."""
        self._disk.write_all(self.fd, data)

    def sync(self) -> None:
        self._disk.sync(self.fd)

    def commit(self) -> None:
        self.size = os.fstat(self.fd).st_size

    def cut(self, size: int) -> None:
        """Shorten the file."""
        self.size = size
        if self.drop_uncommitted():
            self._disk.sync(self.fd)

    def drop_uncommitted(self) -> bool:
        """Cut what is not committed, if only for now; whether there was something."""
        if os.fstat(self.fd).st_size == self.size:
            return False
        os.ftruncate(self.fd, self.size)
        return True

    def blocks(self) -> Iterator[bytes]:
        """What is committed, also where the file is no longer in any folder."""
        offset = 0
        while offset < self.size:
            block = read_at(self.fd, min(BLOCK, self.size - offset), offset)
            if not block:
                return
            offset += len(block)
            yield block

    def replace(self, blocks: Iterable[bytes]) -> None:
        """Replace the file as a whole. After a crash there is the old one or the new one."""
        temporary = temporary_name(self.path)
        fd = os.open(temporary, _APPENDING | open_flags("O_TRUNC", "O_NOFOLLOW"), _PERMISSIONS)
        try:
            self._lock.cover(fd)  # before anybody can find it
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
        """Rename the file and start an empty one. The old one stays locked until the new one is."""
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
        """Rename with the file closed meanwhile. Returns what is at its path then, opened."""
        os.close(self.fd)
        try:
            source.replace(target)
        finally:
            self.fd = os.open(self.path, _APPENDING, _PERMISSIONS)
        return os.dup(self.fd)

    def bring_back(self) -> None:
        """Write what is committed to the path again, from which the file was removed."""
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
        """Close the file, and remove it if it was not there before and is empty."""
        self.close(remove=self.fd >= 0 and self.created and os.fstat(self.fd).st_size == 0)


def refuse_irregular(path: Path) -> None:
    """Raises JournalError: there is something at the path that cannot be appended to and cut."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise JournalError(f"{path} is {kind}: give the name of a file")


def temporary_name(path: Path) -> Path:
    """Beside the file; always the same, so that a crash leaves one of them at most."""
    return path.with_name(f".{path.name}.new")


def write_atomically(path: Path, data: bytes, disk: Disk) -> None:
    """Write a small file as a whole."""
    temporary = temporary_name(path)
    flags = open_flags("O_WRONLY", "O_CREAT", "O_TRUNC", "O_NOFOLLOW")
    fd = os.open(temporary, flags, _PERMISSIONS)
    try:
        try:
            disk.write_all(fd, data)
            disk.sync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    disk.sync_folder(path.parent)


def open_at_a_new_line(path: Path) -> int:
    """Open a file to append lines to it, also behind a torn one."""
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
