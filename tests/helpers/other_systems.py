"""Windows and macOS, as far as a process on Linux can simulate them.

The process loses the names that the other system lacks, and imports the package again. It must not
be the process of the tests.
"""

from __future__ import annotations

import errno
import importlib
import os
import resource
import signal
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

POSIX_MODULES = ("fcntl", "grp", "pwd", "pty", "resource", "termios", "tty")

POSIX_NAMES = {
    os: (
        *("fchmod", "fchown", "chown", "fork", "forkpty", "fdatasync", "getuid", "geteuid"),
        *("getgid", "getegid", "getpgid", "killpg", "openpty", "pread", "preadv", "pwrite"),
        *("register_at_fork", "setsid", "statvfs", "sync", "uname", "WNOHANG", "set_blocking"),
    ),
    signal: (
        *("SIGHUP", "SIGKILL", "SIGQUIT", "SIGTSTP", "SIGCONT", "SIGWINCH", "SIGUSR1", "SIGUSR2"),
        *("SIGALRM", "SIGCHLD", "pthread_sigmask", "pause", "sigwait", "setitimer"),
    ),
}

FLAGS_OF_WINDOWS = (
    *("O_RDONLY", "O_WRONLY", "O_RDWR", "O_APPEND", "O_CREAT", "O_EXCL", "O_TRUNC"),
)

LINUX_NAMES = (
    *("fdatasync", "posix_fadvise", "posix_fallocate", "pidfd_open", "pipe2", "sched_getaffinity"),
    *("sched_setaffinity", "memfd_create", "eventfd", "splice", "copy_file_range", "O_TMPFILE"),
    *("O_PATH", "O_DIRECT", "O_NOATIME", "setresuid", "getresuid"),
)


def without(module: types.ModuleType, names: Sequence[str]) -> None:
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def with_these(module: types.ModuleType, **names: Any) -> None:
    for name, value in names.items():
        setattr(module, name, value)


def import_the_package() -> None:
    """Import every module of the package again."""
    import pkgutil

    for name in list(sys.modules):
        if name.partition(".")[0] == "parallel_core":
            del sys.modules[name]

    import parallel_core

    for module in pkgutil.walk_packages(parallel_core.__path__, "parallel_core."):
        importlib.import_module(module.name)


def import_libraries() -> None:
    """Import libraries before the package: they must see the real system."""
    for name in (
        *("anyio", "anyio.from_thread", "anyio._backends._asyncio", "anyio._backends._trio"),
        *("aiohttp.web", "msgspec", "rich.progress", "rich.live", "trio", "typer"),
        *("typer.testing", "yaml", "tempfile", "shutil", "subprocess", "zoneinfo"),
    ):
        importlib.import_module(name)


class _System(types.ModuleType):
    """The module ``sys`` on another platform."""

    def __init__(self, platform: str) -> None:
        super().__init__("sys")
        self.platform = platform

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def import_the_package_on(platform: str) -> None:
    """Import the package with another ``sys.platform``; trio keeps the real one."""
    real = sys.platform
    with_these(sys, platform=platform)
    import_the_package()
    with_these(sys, platform=real)
    system = _System(platform)
    for name, module in list(sys.modules.items()):
        if name.startswith("parallel_core") and hasattr(module, "sys"):
            with_these(module, sys=system)


# --- Windows ---


def become_windows() -> None:
    """Take away what Windows lacks, and import the package."""
    import_libraries()
    _no_signals_in_loops()
    flags = [name for name in vars(os) if name.startswith("O_") and name not in FLAGS_OF_WINDOWS]
    without(os, flags)
    for module, names in POSIX_NAMES.items():
        without(module, names)
    for name in POSIX_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    locks = _Locks()
    msvcrt = types.ModuleType("msvcrt")
    with_these(msvcrt, LK_NBLCK=2, locking=locks.lock)
    sys.modules["msvcrt"] = msvcrt
    with_these(os, kill=_no_signals, open=_opens_no_folder(os.open), close=locks.closing(os.close))
    for name in ("rename", "replace", "unlink", "remove"):
        with_these(os, **{name: _unless_open(getattr(os, name))})
    import_the_package_on("win32")


def _no_signals_in_loops() -> None:
    import asyncio

    class ProactorEventLoop(asyncio.SelectorEventLoop):
        pass

    def add_signal_handler(*_: object) -> None:
        raise NotImplementedError

    setattr(ProactorEventLoop, "add_signal_handler", add_signal_handler)  # noqa: B010
    with_these(asyncio, ProactorEventLoop=ProactorEventLoop)


def _no_signals(process: int, number: int) -> None:
    raise AssertionError("os.kill ends a process on Windows, whatever the number is")


def _is_open(path: Any) -> bool:
    try:
        there = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return False
    for fd in range(3, 256):
        try:
            here = os.fstat(fd)
        except OSError:
            continue
        if os.path.samestat(there, here):
            return True
    return False


def _unless_open(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*paths: Any, **options: Any) -> Any:
        for path in paths:
            if _is_open(path):
                raise PermissionError(errno.EACCES, "it is open", str(path))
        return function(*paths, **options)

    return checked


def _opens_no_folder(function: Callable[..., int]) -> Callable[..., int]:
    def opened(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "it is a folder", str(path))
        return function(path, flags, *rest, **options)

    return opened


class _Locks:
    """``msvcrt.locking``: a lock is of the descriptor with which it was taken."""

    def __init__(self) -> None:
        self._locked: dict[int, os.stat_result] = {}

    def lock(self, fd: int, mode: int, size: int) -> None:
        assert (mode, size) == (2, 1)
        file = os.fstat(fd)
        if any(os.path.samestat(file, other) for other in self._locked.values()):
            raise PermissionError(errno.EACCES, "Permission denied")
        self._locked[fd] = file

    def closing(self, function: Callable[[int], None]) -> Callable[[int], None]:
        def close(fd: int) -> None:
            self._locked.pop(fd, None)
            function(fd)

        return close


# --- macOS ---


class Macos:
    """Calls that the package has made to the system.

    Attributes:
        full_syncs: how often a file went to the disk itself.
        limits: the soft limits of open files that were asked for.
    """

    def __init__(self) -> None:
        self.full_syncs = 0
        self.limits: list[int] = []


def become_macos() -> Macos:
    """Take away what macOS lacks (``/proc`` above all), and import the package."""
    import fcntl

    import_libraries()
    macos = Macos()
    without(os, LINUX_NAMES)
    control = fcntl.fcntl

    def full_sync(fd: int, command: int, argument: Any = 0) -> Any:
        if command != 51:
            return control(fd, command, argument)
        macos.full_syncs += 1
        os.fsync(fd)
        return 0

    with_these(fcntl, F_FULLFSYNC=51, fcntl=full_sync)

    def setrlimit(_: int, limits: tuple[int, int]) -> None:
        macos.limits.append(limits[0])
        if limits[0] == resource.RLIM_INFINITY:
            raise ValueError("current limit exceeds maximum limit")

    def getrlimit(_: int) -> tuple[int, int]:
        return 256, resource.RLIM_INFINITY

    with_these(resource, getrlimit=getrlimit, setrlimit=setrlimit)
    sys.addaudithook(_no_proc)
    import_the_package_on("darwin")
    return macos


def _no_proc(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith("/proc"):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(arguments[0]))
