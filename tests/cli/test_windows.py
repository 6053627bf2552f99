"""What the package does on Windows, as far as another system can show it.

A new process loses the names that Python has on POSIX systems alone before it imports the package.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

WINDOWS = """
import asyncio, errno, importlib, json, os, pkgutil, signal, sys, types
from pathlib import Path

# 1. Libraries look at the system when they are imported: they stay what they are.
import anyio, anyio.from_thread, anyio._backends._asyncio, anyio._backends._trio
import aiohttp.web, msgspec, rich.progress, rich.live, tempfile, trio, typer, typer.testing, yaml
import shutil, subprocess, zoneinfo

class ProactorEventLoop(asyncio.SelectorEventLoop):
    def add_signal_handler(self, *_):
        raise NotImplementedError

asyncio.ProactorEventLoop = ProactorEventLoop

# 2. What Windows does not have.
for name in (
    *(name for name in vars(os).copy() if name.startswith("O_") and name not in (
        "O_RDONLY", "O_WRONLY", "O_RDWR", "O_APPEND", "O_CREAT", "O_EXCL", "O_TRUNC")),
    *("fchmod", "fchown", "chown", "fork", "forkpty", "fdatasync", "getuid", "geteuid", "getgid",
      "getegid", "getpgid", "killpg", "openpty", "pread", "preadv", "pwrite", "register_at_fork",
      "setsid", "statvfs", "sync", "uname", "WNOHANG", "set_blocking"),
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGQUIT", "SIGTSTP", "SIGCONT", "SIGWINCH", "SIGUSR1", "SIGUSR2",
             "SIGALRM", "SIGCHLD", "pthread_sigmask", "pause", "sigwait", "setitimer"):
    if hasattr(signal, name):
        delattr(signal, name)
for name in ("fcntl", "grp", "pwd", "pty", "resource", "termios", "tty"):
    sys.modules[name] = None
sys.platform = "win32"

# 3. What it does in its own way.
def no_signals(process, number):
    raise AssertionError("os.kill ends a process on Windows, whatever the number is")

def is_open(path):
    try:
        there = os.stat(path)
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

def unless_open(function):
    def checked(*paths, **options):
        for path in paths:
            if is_open(path):
                raise PermissionError(errno.EACCES, "it is open", str(path))
        return function(*paths, **options)
    return checked

def open_no_folder(path, flags, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "it is a folder", str(path))
    return open_file(path, flags, *rest, **options)

locked = {}  # files, by the descriptor with which they were locked

def locking(fd, mode, size):
    assert mode == msvcrt.LK_NBLCK and size == 1
    file = os.fstat(fd)
    if any(os.path.samestat(file, other) for other in locked.values()):
        raise PermissionError(errno.EACCES, "Permission denied")
    locked[fd] = file

def close(fd):
    locked.pop(fd, None)
    close_file(fd)

msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, locking
sys.modules["msvcrt"] = msvcrt
os.kill, open_file, os.open = no_signals, os.open, open_no_folder
close_file, os.close = os.close, close
for name in ("rename", "replace", "unlink", "remove"):
    setattr(os, name, unless_open(getattr(os, name)))

# 4. Every module can be imported.
import parallel_core
for module in pkgutil.walk_packages(parallel_core.__path__, "parallel_core."):
    importlib.import_module(module.name)

# 5. Trio, too, looks at the system while it runs: from here on only the package sees another one.
class Windows:
    platform = "win32"

    def __getattr__(self, name):
        return getattr(system, name)

system, windows = sys, Windows()
sys.platform = "linux"
for name, module in list(sys.modules.items()):
    if name.startswith("parallel_core") and hasattr(module, "sys"):
        module.sys = windows

async def provider(*, model, messages, **_):
    await anyio.sleep(0)
    if messages[0]["content"] in failing:
        raise ValueError("no")
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}}]}

failing = {"3"}
folder = Path(sys.argv[1])
source, output = folder / "in.jsonl", folder / "out.jsonl"
with source.open("w") as lines:
    for n in range(20):
        body = {"model": "m", "messages": [{"role": "user", "content": str(n)}]}
        print(json.dumps({"custom_id": f"id-{n}", "body": body}), file=lines)

def run(**options):
    async def main():
        return await parallel_core.run_file(provider, source, output, **options)
    with asyncio.Runner(loop_factory=asyncio.ProactorEventLoop) as runner:
        return runner.run(main())

def answered():
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return [line["custom_id"] for line in lines if line["error"] is None]
"""


def run_in_windows(folder: Path, code: str) -> None:
    program = WINDOWS + textwrap.dedent(code)
    command = [sys.executable, "-c", program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_a_run(tmp_path: Path) -> None:
    run_in_windows(
        tmp_path,
        """
        from parallel_core import JournalInUseError
        from parallel_core._journal_files import Disk, LockedFile, write_atomically
        from parallel_core._journal_rescue import Rescue
        from parallel_core._system import is_ours

        summary = run()
        assert (summary.succeeded, summary.failed) == (19, 1), summary
        failing.clear()
        summary = run(retry_failed=True, order="input")
        assert summary.ok, summary
        assert answered() == [f"id-{n}" for n in range(20)], answered()

        summary = run(force_new=True)
        assert (summary.earlier_succeeded, summary.succeeded) == (0, 20), summary
        assert sorted(answered()) == sorted(f"id-{n}" for n in range(20))

        # Another run has the file. An end of it leaves no lock behind.
        file = LockedFile(output, Disk())
        try:
            run()
        except JournalInUseError as error:
            assert error.process is None
        else:
            raise AssertionError("two runs have one file")
        before = output.read_bytes()
        file.replace([before, b"{}\\n"])
        file.write(b"[]\\n")
        file.commit()
        assert b"".join(file.blocks()) == output.read_bytes() == before + b"{}\\n[]\\n"
        file.cut(len(before))
        file.close()
        assert run().earlier_succeeded == 20

        new = LockedFile(folder / "new.jsonl", Disk())
        new.undo()
        write_atomically(folder / "small", b"1", Disk())
        assert is_ours((folder / "small").stat())
        names = {path.name for path in folder.iterdir()}
        assert not [name for name in names if name.endswith((".lock", ".new"))], names
        assert "new.jsonl" not in names
        """,
    )
