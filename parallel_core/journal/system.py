"""What Windows has in another form, or not at all."""

from __future__ import annotations

import os
import sys

# Windows renames and removes no file that is open.
MOVES_OPEN_FILES = sys.platform != "win32"


def open_flags(*names: str) -> int:
    """Combine flags of :func:`os.open` by name; what the system does not have is left out."""
    flags = 0
    for name in (*names, "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"):
        flags |= getattr(os, name, 0)
    return flags


def read_at(fd: int, size: int, offset: int) -> bytes:
    """``os.pread``, for a file of one thread that is only appended to."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def is_ours(status: os.stat_result) -> bool:
    """Return True if a file belongs to this user, or the system does not say whose it is."""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def process_is_alive(process: int) -> bool:
    """Return True if there is a process of this number."""
    if sys.platform == "win32":  # os.kill would end it
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
        pass  # it is another user's
    return True
