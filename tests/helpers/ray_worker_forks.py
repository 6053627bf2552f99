"""Fast workers for Ray: forks of a process that has imported litellm.

A worker is a fresh Python that imports litellm with what a first call needs
(2 to 4 s). Tests start some two hundred. A fork begins with these modules, and with nothing else of
another process: no loop, no thread, no connection.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import pytest

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))

from helpers.forked_processes import import_what_a_run_needs

PATIENCE = 60.0  # seconds for what must come


@contextlib.contextmanager
def forking_process(folder: str) -> Generator[Path]:
    """The process that forks, for as long as a block lasts. Gives its socket.

    Args:
        folder: for the socket; its path must be short.
    """
    path = Path(folder, "forks")
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(128)
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(listening.fileno())],
            pass_fds=[listening.fileno()],
            stdin=subprocess.PIPE,
        )
    try:
        yield path
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE)


@contextlib.contextmanager
def workers_are_forked(forks: Path) -> Generator[None]:
    """Let a Ray that is started in this block get forks as its workers."""
    from ray._private import parameter

    real: Any = parameter.RayParams
    script = str(Path(__file__).with_name("fork_ray_worker.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORKS_OF_RAY_WORKERS", str(forks))
        patch.setattr(parameter, "RayParams", functools.partial(real, setup_worker_path=script))
        yield


# --- the process that forks ---


def _serve(listening: socket.socket) -> None:
    # Ray itself is not imported: its library reads a worker's job from the environment then.
    import numpy as np  # noqa: F401

    import_what_a_run_needs()
    gc.freeze()  # a fork would copy what a collection touches
    events = select.poll()
    events.register(0, select.POLLIN | select.POLLHUP)
    events.register(listening, select.POLLIN)
    running: dict[int, tuple[int, socket.socket]] = {}
    asking: dict[int, int] = {}
    while True:
        for fd, _ in events.poll():
            if fd == 0:  # its user has ended it, or has ended
                for pid, _ in running.values():
                    os.kill(pid, signal.SIGKILL)
                return
            if fd == listening.fileno():
                connection, _ = listening.accept()
                ended, pid = _fork(connection, listening)
                running[ended] = pid, connection
                asking[connection.fileno()] = ended
                events.register(ended, select.POLLIN)
                events.register(connection, select.POLLIN)
            elif fd in running:
                pid, connection = running.pop(fd)
                _, status = os.waitpid(pid, 0)
                with contextlib.suppress(OSError):
                    connection.send(b"%d" % os.waitstatus_to_exitcode(status))
                events.unregister(connection)
                events.unregister(fd)
                del asking[connection.fileno()]
                connection.close()
                os.close(fd)
            elif fd in asking:  # Ray has killed what it has started itself
                events.modify(fd, 0)
                os.kill(running[asking[fd]][0], signal.SIGKILL)


def _fork(connection: socket.socket, listening: socket.socket) -> tuple[int, int]:
    message, fds, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    pid = os.fork()
    if pid == 0:
        listening.close()
        connection.close()
        _run(json.loads(message), fds)
    for fd in fds:
        os.close(fd)
    return os.pidfd_open(pid), pid


def _run(request: dict[str, Any], streams: list[int]) -> NoReturn:
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    # These options set up a worker's environment, which a fork has already.
    for_setup = ("--language=", "--serialized-runtime-env-context=")
    sys.argv = [one for one in request["arguments"] if not one.startswith(for_setup)]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as given:
        _serve(given)
