"""Wrappers for system calls that differ on Windows."""

from __future__ import annotations

import os
import sys

# Windows cannot rename or remove an open file.
MOVES_OPEN_FILES = sys.platform != "win32"


def open_flags(*names: str) -> int:
    """Combine flags of :func:`os.open` by name, without those that the system lacks."""
    flags = 0
    for name in (*names, "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"):
        flags |= getattr(os, name, 0)
    return flags


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Read like ``os.pread``.

    Where that is missing, this moves the position of the file: only one thread may use it, and it
    must be open for appending.
    """
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def is_ours(status: os.stat_result) -> bool:
    """Return True if this user owns the file, or if the system does not report the owner."""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def process_is_alive(process: int) -> bool:
    """Return True if there is a process with this id."""
    if sys.platform == "win32":  # os.kill would end the process
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, process)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return False
        code = ctypes.c_ulong()
        known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return not known or code.value == 259  # STILL_ACTIVE
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # the process belongs to another user
    return True
