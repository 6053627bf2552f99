"""The lock of a run: only one process at a time appends to a file.

``take_lock`` picks the mechanism of the system. All locking is in this module. Callers use
``RunLock.cover`` for a file that is about to replace the locked one, and ``RunLock.release`` at
the end.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from parallel_core.errors import JournalError, JournalInUseError

from .system import open_flags, process_is_alive
from .system_errors import reason

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("parallel_core")

# Errors of flock on file systems without locks: NFS without a lock daemon, some FUSE mounts.
_NOT_SUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_HOST, _PROCESS, _STARTED = "host", "process", "started"  # members of a lock file


class RunLock(Protocol):
    """A lock that is held."""

    def cover(self, fd: int) -> None:
        """Lock this open file too: it is about to replace the locked one."""
        ...

    def release(self) -> None:
        """Release the lock. Call it after the locked file was closed."""
        ...


def take_lock(fd: int, path: Path) -> RunLock:
    """Lock an open file for this process, or fail at once.

    Args:
        fd: the open file.
        path: its path.

    Raises:
        JournalInUseError: another run has locked the file.
        JournalError: the file cannot be locked.
    """
    if sys.platform == "win32":
        return _MsvcrtLock(path)
    try:
        return _Flock(fd, path)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise JournalError(
                f"{path} cannot be locked ({reason(error)}): choose a folder on a local disk"
            ) from error
        why = reason(error)
    lock = _LockFile(path)
    logger.warning(
        "%s is on a file system without locks (%s): the file %s is used as the lock instead",
        path,
        why,
        lock.path.name,
    )
    return lock


class _Flock:
    """``flock`` on the file itself. The system releases it when the process ends."""

    def __init__(self, fd: int, path: Path) -> None:
        self._path = path
        self.cover(fd)

    def cover(self, fd: int) -> None:
        assert sys.platform != "win32"
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalInUseError(str(self._path), _holder_of_flock(fd)) from None

    def release(self) -> None:
        """Do nothing: closing the file already released the lock."""


class _MsvcrtLock:
    """``msvcrt.locking`` on a file beside the locked one: a locked file cannot be read on Windows.

    The system releases it when the process ends.
    """

    def __init__(self, path: Path) -> None:
        msvcrt: Any = importlib.import_module("msvcrt")  # exists only on Windows
        self._file = path.with_name(f"{path.name}.lock")
        try:
            self._fd = os.open(self._file, open_flags("O_RDWR", "O_CREAT"), 0o644)
        except OSError as error:
            raise JournalError(
                f"{self._file} cannot be opened ({reason(error)}): choose another folder"
            ) from error
        try:
            msvcrt.locking(self._fd, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            os.close(self._fd)
            if error.errno in (errno.EACCES, errno.EDEADLK):
                raise JournalInUseError(str(path), None) from None
            raise JournalError(
                f"{path} cannot be locked ({reason(error)}): choose a folder on a local disk"
            ) from error

    def cover(self, fd: int) -> None:
        """Do nothing: the lock is on the path, not on an open file."""

    def release(self) -> None:
        os.close(self._fd)
        with contextlib.suppress(OSError):  # another run has it open already
            self._file.unlink()


class _LockFile:
    """A file beside the locked one that names the host and the process of its run.

    It stays behind when the process is killed. The next run on the same host sees that the process
    is gone and takes over the lock. A run on another host cannot see that, so a person must check.
    """

    _held: ClassVar[set[Path]] = set()  # lock files of this process

    def __init__(self, path: Path) -> None:
        self._file = path
        self.path = path.with_name(f"{path.name}.lock")
        while not self._create():
            self._take_over(self._holder())
        self._held.add(self.path)

    def cover(self, fd: int) -> None:
        """Do nothing: the lock is on the path, not on an open file."""

    def release(self) -> None:
        self._held.discard(self.path)
        self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        content = {_HOST: socket.gethostname(), _PROCESS: os.getpid()}
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(fd, json.dumps({**content, _STARTED: _start_of(os.getpid())}).encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        return True

    def _holder(self) -> dict[str, Any] | None:
        """Read the lock file; return None if it is gone."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            holder: Any = json.loads(text)
        except ValueError:
            holder = None
        if not isinstance(holder, dict):
            raise JournalError(
                f"{self._file} is locked by {self.path}, which does not say by whom: if no run "
                "writes to it, remove that lock file and start again"
            )
        return cast("dict[str, Any]", holder)

    def _take_over(self, holder: dict[str, Any] | None) -> None:
        """Remove the lock of a dead process.

        Raises:
            JournalInUseError: the process is alive.
            JournalError: the process is on another host.
        """
        if holder is None:
            return
        host, process = holder.get(_HOST), holder.get(_PROCESS)
        if host != socket.gethostname() or not isinstance(process, int):
            raise JournalError(
                f"{self._file} is locked by process {process} on the host {host}: wait until that "
                f"run has ended; if it is dead, remove {self.path} and start again"
            )
        if self.path in self._held or _is_alive(process, holder.get(_STARTED)):
            raise JournalInUseError(str(self._file), process)
        # Rename it first: another process may have taken over the lock since it was read.
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if _members(aside) != holder and not self.path.exists():
            aside.rename(self.path)
            return
        aside.unlink()


def _members(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _is_alive(process: int, started: object) -> bool:
    """Return True if the process runs; False if only its number was reused, as in containers."""
    if process == os.getpid():
        return False  # a lock of this process would be in `_LockFile._held`
    if not process_is_alive(process):
        return False
    now = _start_of(process)
    return started is None or now is None or now == started


def _start_of(process: int) -> str | None:
    """Return the start time of a process on Linux, else None.

    The text distinguishes it from other processes with the same number.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name in parentheses may have spaces; the start time is the 20th field after it.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot} {fields[19]}"


def _holder_of_flock(fd: int) -> int | None:
    file = os.fstat(fd)
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()  # 1: FLOCK ADVISORY WRITE 4711 fd:01:1234 0 EOF
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == device:
            holder = int(fields[4])
            return holder if holder > 0 else None  # 0 or less: a process in another container
    return None
