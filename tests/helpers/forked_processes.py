"""Fast processes for the command ``parallel-core`` and for Python scripts.

Importing litellm takes seconds. So one process imports it, and forks for each command or script. A
fork begins like a fresh process that has imported these modules: it has no event loop, no call and
no thread. A test of the order of imports needs a process of its own.
"""

from __future__ import annotations

import builtins
import contextlib
import faulthandler
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

PATIENCE = 100.0  # seconds for what must come, on a machine that has much else to do
# Less than pytest's faulthandler_timeout, which would end all tests.
MOST = 90.0
START = 110.0  # the first process waits for the imports, too


class ForkedProcess:
    """A running command or script. Its output is collected as it comes.

    On a terminal all of it is in ``stderr``, as it would be seen there.
    """

    def __init__(
        self,
        pid: int,
        exit_code: socket.socket,
        outputs: Mapping[str, int],
        standard_input: int | None = None,
    ) -> None:
        self.pid = pid
        self._standard_input = standard_input
        self._ended = False
        self._exit_code = exit_code
        self._changed = threading.Condition()
        self._texts = {"stdout": b"", "stderr": b""}
        self._open = 0
        for name, fd in outputs.items():
            self.collect(name, fd)

    def collect(self, name: str, fd: int) -> None:
        """Read the output from this file descriptor, and close it at the end."""
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
        """Wait until the process has printed a text."""
        with self._changed:
            if not self._changed.wait_for(lambda: text in self.output or not self._open, PATIENCE):
                raise TimeoutError(f"{text!r} is not in {self.output}")
        assert text in self.output

    def write(self, text: str) -> None:
        """Write to the standard input, which was left open for this, and close it."""
        assert self._standard_input is not None
        os.write(self._standard_input, text.encode())
        self._close_input()

    def _close_input(self) -> None:
        if self._standard_input is not None:
            os.close(self._standard_input)
            self._standard_input = None

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        """Return whether the process ends in time. ``wait`` must still be called."""
        return bool(select.select([self._exit_code], [], [], seconds)[0])

    def kill(self) -> None:
        """Kill the process and print its output, unless ``wait`` was called."""
        if not self._ended:
            self.send_signal(signal.SIGKILL)
            self.wait()
            print(self.output)

    def wait(self, timeout: float = MOST) -> int:
        """Wait for the end and all output; return the exit code, negative after a signal.

        Raises:
            TimeoutError: the process did not end in time and was killed. The message has the
                stacks of its threads.
        """
        with self._exit_code:
            self._ended = True
            self._exit_code.settimeout(timeout)
            try:
                code = int(self._exit_code.recv(16))
            except TimeoutError:
                self.send_signal(signal.SIGABRT)  # it prints its stacks and ends
                with self._changed:
                    self._changed.wait_for(lambda: not self._open, 5.0)
                with contextlib.suppress(ProcessLookupError):
                    self.send_signal(signal.SIGKILL)
                raise TimeoutError(f"the process hangs\n{self.output}") from None
            finally:
                self._close_input()
        with self._changed:
            assert self._changed.wait_for(lambda: not self._open, PATIENCE)
        return code


class ForkedProcesses:
    """Starts commands and scripts. A context manager.

    Args:
        warnings: filters as for ``python -W``.
        dev_mode: whether to use development mode, as ``python -X dev`` does.
        modules: what to import before the forks, instead of the command and litellm.
    """

    def __init__(
        self, *, warnings: Sequence[str] = (), dev_mode: bool = False, modules: Sequence[str] = ()
    ) -> None:
        options = [word for one in warnings for word in ("-W", one)]
        if dev_mode:
            options += ["-X", "dev"]
        self._socket, other = socket.socketpair()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, *options, __file__, str(other.fileno()), *modules],
                pass_fds=[other.fileno()],
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait(PATIENCE)

    def start(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        script: Path | None = None,
        standard_input: bytes | None = b"",
        environment: Mapping[str, str] | None = None,
        terminal: int | None = None,
        output: int | None = None,
    ) -> ForkedProcess:
        """Run ``parallel-core``, or a Python script, with these arguments.

        Args:
            arguments: of the command.
            folder: in which it runs.
            script: what runs instead of the command.
            standard_input: what it reads; None leaves it open for ``write``.
            environment: variables beside those of this process.
            terminal: a file descriptor of a terminal, for all three streams.
            output: a file descriptor for what it writes, which then is not collected.
        """
        reads: list[int] = []
        feed: int | None = None
        if terminal is None:
            given, feed = os.pipe()
            if standard_input is not None:
                os.write(feed, standard_input)  # it fits into the pipe
                os.close(feed)
                feed = None
            if output is None:
                pipes = [os.pipe(), os.pipe()]
                reads = [read for read, _ in pipes]
                streams = [given, *(write for _, write in pipes)]
            else:
                streams = [given, os.dup(output), os.dup(output)]
        else:
            streams = [terminal]
        ours, theirs = socket.socketpair()
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "script": None if script is None else str(script),
            "environment": {**os.environ, **(environment or {})},
            "terminal": terminal is not None,
        }
        socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs.fileno(), *streams])
        ours.settimeout(START)
        pid = int(ours.recv(16))
        theirs.close()
        if terminal is None:
            for fd in streams:
                os.close(fd)
        return ForkedProcess(pid, ours, dict(zip(("stdout", "stderr"), reads, strict=False)), feed)


# --- the process that forks ---


def _serve(requests: socket.socket, modules: Sequence[str]) -> None:
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # scripts import helpers
    for name in modules or ["parallel_core.cli"]:
        importlib.import_module(name)
    if not modules:
        import_what_a_run_needs()
    gc.freeze()  # a fork would copy what a collection touches
    running: set[int] = set()
    for message, fds in _received(requests):
        exit_code = socket.socket(fileno=fds[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads: those here wait, and hold no lock
            pid = os.fork()
        if pid == 0:
            requests.close()
            exit_code.close()
            _run(json.loads(message), fds[1:])
        running.add(pid)
        for fd in fds[1:]:
            os.close(fd)
        exit_code.send(b"%-8d" % pid)
        threading.Thread(target=_tell_end, args=(pid, exit_code, running)).start()
    for pid in tuple(running):  # of a test that has failed
        os.kill(pid, signal.SIGKILL)


def import_what_a_run_needs() -> None:
    """Import what a first run imports, and build the models of pydantic that it builds.

    They take half of its time. The run is made in another process: here it would leave a client, a
    task and a thread.
    """
    importlib.import_module("litellm.router")  # once, and not in both
    modules, models = set(sys.modules), _models()
    incomplete = {name for name, model in models.items() if not model.__pydantic_complete__}
    names_read, names_written = os.pipe()
    pid = os.fork()
    if pid == 0:
        _first_run()
        built = [name for name in incomplete if models[name].__pydantic_complete__]
        names = [name for name in sys.modules if name not in modules]
        os.write(names_written, json.dumps([names, built]).encode())
        os._exit(0)
    os.close(names_written)
    with os.fdopen(names_read) as written:
        names, built = json.load(written)
    os.waitpid(pid, 0)
    for name in names:
        with contextlib.suppress(ImportError):  # made by others, and not by an import
            importlib.import_module(name)
    for name in built:
        models[name].model_rebuild()


def _models() -> dict[str, Any]:
    """Return all models of pydantic by a name."""
    from pydantic import BaseModel

    found = dict[str, Any]()
    subclasses: list[Any] = [BaseModel]
    while subclasses:
        for model in subclasses.pop().__subclasses__():
            found[f"{model.__module__}:{model.__qualname__}"] = model
            subclasses.append(model)
    return found


def _first_run() -> None:
    """Run a file with one request."""
    from parallel_core.cli import main
    from parallel_core.demo_server import DemoServerSettings, DemoServerThread

    nothing = os.open(os.devnull, os.O_WRONLY)
    for output in 1, 2:
        os.dup2(nothing, output)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        DemoServerThread(DemoServerSettings(latency_median=0.0)) as server,
    ):
        deployment = {"model": "openai/fast", "api_base": server.url, "api_key": "none"}
        models = [{"model_name": "fast", "litellm_params": deployment}]
        Path("config.yaml").write_text(json.dumps({"model_list": models}))
        request = {"model": "fast", "messages": [{"role": "user", "content": "m"}]}
        Path("in.jsonl").write_text(json.dumps({"custom_id": "1", "body": request}))
        sys.argv = ["parallel-core", "run", "in.jsonl", "-o", "out.jsonl", "--config=config.yaml"]
        with contextlib.suppress(SystemExit):
            main()


def _received(requests: socket.socket) -> Iterator[tuple[bytes, list[int]]]:
    while True:
        message, fds, _, _ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            return
        yield message, fds


def _tell_end(pid: int, exit_code: socket.socket, running: set[int]) -> None:
    _, status = os.waitpid(pid, 0)
    running.discard(pid)
    with exit_code, contextlib.suppress(OSError):
        exit_code.send(b"%-8d" % os.waitstatus_to_exitcode(status))


def _run(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Run the command or the script in the forked process."""
    os.setsid()
    for number in range(3):
        os.dup2(streams[number % len(streams)], number)
    if request["terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for fd in streams:
        os.close(fd)
    # A shell's `&` and nohup start the tests with some of these ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    is_terminal = bool(request["terminal"])
    sys.stdin = os.fdopen(0, closefd=False)
    # As Python does it when it starts.
    encoding = request["environment"].get("PYTHONIOENCODING")
    buffering = 1 if is_terminal else -1
    sys.stdout = os.fdopen(1, "w", buffering=buffering, encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(
        2, "w", buffering=1, encoding=encoding, closefd=False, errors="backslashreplace"
    )
    faulthandler.enable(2)
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # it is found by the variables of this process
    os.chdir(str(request["folder"]))
    _filter_warnings()
    if request["script"] is None:
        _run_command(request["arguments"])
    _run_script(request["script"], request["arguments"])


def _filter_warnings() -> None:
    """Apply ``PYTHONWARNINGS`` (``ACTION::CATEGORY,...``): a fork does not read it by itself."""
    for option in filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")):
        action, _, category = option.partition("::")
        of_python: Any = getattr(builtins, category or "Warning")
        warnings.simplefilter(action, of_python)  # type: ignore[arg-type]


def _run_command(arguments: list[str]) -> NoReturn:
    code: object = 70
    try:
        sys.argv = ["parallel-core", *arguments]
        from parallel_core.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
        # The end of an interpreter would take as long as the whole run: it is skipped.
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _run_script(script: str, arguments: list[str]) -> NoReturn:
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # for scripts that import helpers
    # The interpreter ends as usual: that is where forgotten objects are reported.
    runpy.run_path(script, run_name="__main__")
    gc.collect()
    sys.exit()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as requests_of_tests:
        _serve(requests_of_tests, sys.argv[2:])
