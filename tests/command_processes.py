"""Processes of the command ``parallel-core``, many a second.

Importing litellm takes seconds. So one process does it, and forks for each command.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PATIENCE = 60.0  # seconds for what must come


class CommandProcess:
    """A running command. Its output is collected as it comes.

    On a terminal all of it is in ``stderr``, as it would be seen there.
    """

    def __init__(self, pid: int, exit_code: socket.socket, outputs: Mapping[str, int]) -> None:
        self.pid = pid
        self._exit_code = exit_code
        self._changed = threading.Condition()
        self._texts = {"stdout": b"", "stderr": b""}
        self._open = 0
        for name, fd in outputs.items():
            self.collect(name, fd)

    def collect(self, name: str, fd: int) -> None:
        """Read its output from here, and close this at the end."""
        self._open += 1
        threading.Thread(target=self._collect, args=(name, fd), daemon=True).start()

    def _collect(self, name: str, fd: int) -> None:
        with contextlib.suppress(OSError):  # how the end of a terminal looks
            while block := os.read(fd, 65536):
                with self._changed:
                    self._texts[name] += block
                    self._changed.notify_all()
        os.close(fd)
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    @property
    def stdout(self) -> str:
        return self._texts["stdout"].decode()

    @property
    def stderr(self) -> str:
        return self._texts["stderr"].decode()

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    def wait_for(self, text: str) -> None:
        """Wait until it has said this."""
        with self._changed:
            if not self._changed.wait_for(lambda: text in self.output or not self._open, PATIENCE):
                raise TimeoutError(f"{text!r} is not in {self.output}")
        assert text in self.output

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, negative where a signal has ended it; all of its output is there then."""
        with self._exit_code:
            code = int(self._exit_code.recv(16))
        with self._changed:
            assert self._changed.wait_for(lambda: not self._open, PATIENCE)
        return code


class Commands:
    """Starts commands. A context manager."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())], pass_fds=[other.fileno()]
            )

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(PATIENCE)

    def start(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        standard_input: bytes = b"",
        environment: Mapping[str, str] | None = None,
        terminal: int | None = None,
    ) -> CommandProcess:
        """Run ``parallel-core`` with these arguments.

        Args:
            arguments: of the command.
            folder: in which it runs.
            standard_input: what it reads.
            environment: variables beside those of this process.
            terminal: a file descriptor of a terminal, for all three streams.
        """
        reads: list[int] = []
        if terminal is None:
            given, feed = os.pipe()
            os.write(feed, standard_input)  # it fits into the pipe
            os.close(feed)
            pipes = [os.pipe(), os.pipe()]
            reads = [read for read, _ in pipes]
            streams = [given, *(write for _, write in pipes)]
        else:
            streams = [terminal]
        ours, theirs = socket.socketpair()
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": {**os.environ, **(environment or {})},
            "terminal": terminal is not None,
        }
        socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs.fileno(), *streams])
        pid = int(ours.recv(16))
        theirs.close()
        if terminal is None:
            for fd in streams:
                os.close(fd)
        return CommandProcess(pid, ours, dict(zip(("stdout", "stderr"), reads, strict=False)))


# --- the process that forks ---


def _serve(requests: socket.socket) -> None:
    import parallel_core.cli  # noqa: F401

    asyncio.run(_first_call())
    gc.freeze()  # a fork would copy what a collection touches
    for message, fds in _received(requests):
        exit_code = socket.socket(fileno=fds[0])
        pid = os.fork()
        if pid == 0:
            requests.close()
            _run(json.loads(message), fds[1:])
        for fd in fds[1:]:
            os.close(fd)
        exit_code.send(b"%-8d" % pid)
        threading.Thread(target=_tell_end, args=(pid, exit_code)).start()


async def _first_call() -> None:
    """Have all imported that a call needs, which takes seconds."""
    from litellm.router import Router

    deployment = {"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "none"}}
    router: Any = Router(model_list=[deployment], num_retries=0)
    with contextlib.suppress(Exception):  # nobody listens there
        await router.acompletion(
            model="m",
            messages=[{"role": "user", "content": "m"}],
            api_base="http://127.0.0.1:9/v1",
        )
    router.discard()


def _received(requests: socket.socket) -> Iterator[tuple[bytes, list[int]]]:
    while True:
        message, fds, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            return
        yield message, fds


def _tell_end(pid: int, exit_code: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    with exit_code, contextlib.suppress(OSError):
        exit_code.send(b"%-8d" % os.waitstatus_to_exitcode(status))


def _run(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """The command, in a process of its own."""
    code: object = 70
    try:
        os.setsid()
        for number in range(3):
            os.dup2(streams[number % len(streams)], number)
        if request["terminal"]:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        for fd in streams:
            os.close(fd)
        # Who runs the tests in the background, or with nohup, has some of these ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        is_terminal = bool(request["terminal"])
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", buffering=1 if is_terminal else -1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(str(request["folder"]))
        sys.argv = ["parallel-core", *request["arguments"]]
        from parallel_core.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        # Without what happens at the end of an interpreter: that takes as long as a run.
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
