"""The demo server in a thread or in another process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from .app import DemoServer as DemoServer
from .recording import RecordedRequest as RecordedRequest
from .settings import DemoServerSettings as DemoServerSettings
from .stats import DemoModelStats as DemoModelStats
from .stats import DemoServerStats as DemoServerStats
from .trouble import TROUBLE_KINDS as TROUBLE_KINDS
from .trouble import Trouble as Trouble
from .trouble import TroubleKind as TroubleKind

T = TypeVar("T")

_STOP_TIMEOUT: Final = 5.0  # seconds for a process to stop before it is killed


class DemoServerThread:
    """A demo server in its own thread, for the time of its ``with`` block.

    Every method may be called from any thread. Methods that wait block the calling thread.

    Args:
        settings: settings of the server; ``None``: the defaults.
        port: the TCP port to listen on; 0: any free port.
    """

    def __init__(self, settings: DemoServerSettings | None = None, *, port: int = 0) -> None:
        self._server = DemoServer(settings, port=port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started = concurrent.futures.Future[None]()
        self._stop_requested = asyncio.Event()  # used in the thread's loop

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("a DemoServerThread can be started only once")
        # Ignore the event loop policy: the loop has to be the same everywhere.
        self._loop = asyncio.SelectorEventLoop()
        # The thread is a daemon, so that an interpreter that exits inside the block does not wait.
        self._thread = threading.Thread(target=self._run, name="demo-server", daemon=True)
        try:
            self._thread.start()
            self._started.result()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def url(self) -> str:
        """Address for clients, ``http://127.0.0.1:<port>/v1``."""
        return self._server.url

    def stats(self) -> DemoServerStats:
        """Return the current counts."""

        async def read() -> DemoServerStats:
            return self._server.stats

        return self._call(read) if self._is_running() else self._server.stats

    def requests(self) -> list[RecordedRequest]:
        """Return :attr:`DemoServer.requests`."""

        async def read() -> list[RecordedRequest]:
            return self._server.requests

        return self._call(read) if self._is_running() else self._server.requests

    def reset_stats(self) -> None:
        """Call :meth:`DemoServer.reset_stats`."""

        async def reset() -> None:
            self._server.reset_stats()

        self._call(reset)

    def set_capacity(self, capacity: int | None) -> None:
        """Call :meth:`DemoServer.set_capacity`."""

        async def change() -> None:
            self._server.set_capacity(capacity)

        self._call(change)

    def set_trouble(self, trouble: Iterable[Trouble]) -> None:
        """Call :meth:`DemoServer.set_trouble`."""
        troubles = tuple(trouble)

        async def change() -> None:
            self._server.set_trouble(troubles)

        self._call(change)

    def go_away(self, seconds: float | None = None) -> None:
        """Call :meth:`DemoServer.go_away`."""
        self._call(lambda: self._server.go_away(seconds))

    def come_back(self) -> None:
        """Call :meth:`DemoServer.come_back`."""
        self._call(self._server.come_back)

    def hold(self) -> None:
        """Call :meth:`DemoServer.hold`."""

        async def hold() -> None:
            self._server.hold()

        self._call(hold)

    def release(self) -> None:
        """Call :meth:`DemoServer.release`."""

        async def release() -> None:
            self._server.release()

        self._call(release)

    def wait_idle(self, timeout: float | None = None) -> None:
        """Wait until no request is in flight.

        Raises ``TimeoutError`` after ``timeout`` seconds; ``None``: never.
        """
        self._call(self._server.wait_idle, timeout)

    def wait_in_flight(self, count: int, timeout: float | None = None) -> None:
        """Wait until at least ``count`` requests are in flight.

        Raises ``TimeoutError`` after ``timeout`` seconds; ``None``: never.
        """
        self._call(lambda: self._server.wait_in_flight(count), timeout)

    def wait_finished(self, count: int, timeout: float | None = None) -> None:
        """Wait until at least ``count`` requests are finished, including refused ones.

        Raises ``TimeoutError`` after ``timeout`` seconds; ``None``: never.
        """
        self._call(lambda: self._server.wait_finished(count), timeout)

    def _is_running(self) -> bool:
        return self._loop is not None and not self._loop.is_closed()

    def _call(self, function: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
        async def call() -> T:
            async with asyncio.timeout(timeout):
                return await function()

        if self._loop is None or self._loop.is_closed():
            raise RuntimeError("the demo server is not running")
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _run(self) -> None:
        assert self._loop is not None
        loop = self._loop
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            async with self._server:
                self._started.set_result(None)
                await self._stop_requested.wait()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    def _stop(self) -> None:
        assert self._loop is not None
        assert self._thread is not None
        if self._thread.ident is None:  # the thread could not be started
            self._loop.close()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server did not start
            self._loop.call_soon_threadsafe(self._stop_requested.set)
        self._thread.join()


class DemoServerProcess:
    """A demo server in another process, made by :func:`demo_server_process`.

    The methods use HTTP. While the server is away, every method raises ``OSError``.

    Attributes:
        url: address for clients, ``http://127.0.0.1:<port>/v1``.
        pid: the id of the process.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    def stats(self) -> DemoServerStats:
        """Return the current counts."""
        return self._ask("stats", "GET")

    def requests(self) -> list[RecordedRequest]:
        """Return :attr:`DemoServer.requests`. Raises ``OSError`` if none are kept."""
        return RecordedRequest.all_from_json(self._ask_json("requests", "GET"))

    def reset_stats(self) -> None:
        """Call :meth:`DemoServer.reset_stats`."""
        self._ask("stats/reset", "POST")

    def set_capacity(self, capacity: int | None) -> None:
        """Call :meth:`DemoServer.set_capacity`."""
        self._ask("capacity", "POST", json.dumps({"capacity": capacity}).encode())

    def set_trouble(self, trouble: Iterable[Trouble]) -> None:
        """Call :meth:`DemoServer.set_trouble`. An unknown model raises ``OSError``."""
        body = {"trouble": [one.to_json() for one in trouble]}
        self._ask("trouble", "POST", json.dumps(body).encode())

    def go_away(self, seconds: float) -> None:
        """Call :meth:`DemoServer.go_away`, for ``seconds`` above 0."""
        Trouble("away", seconds=seconds)
        self._ask("away", "POST", json.dumps({"seconds": seconds}).encode())

    def hold(self) -> None:
        """Call :meth:`DemoServer.hold`."""
        self._ask("hold", "POST")

    def release(self) -> None:
        """Call :meth:`DemoServer.release`."""
        self._ask("release", "POST")

    def _ask(self, path: str, method: str, body: bytes | None = None) -> DemoServerStats:
        return DemoServerStats.from_json(self._ask_json(path, method, body))

    def _ask_json(self, path: str, method: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url.removesuffix('v1')}{path}", data=body, method=method
        )
        # The environment may name a proxy, which cannot reach this host's loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            return json.load(response)


@contextlib.contextmanager
def demo_server_process(
    settings: DemoServerSettings | None = None, *, port: int = 0
) -> Generator[DemoServerProcess, None, None]:
    """Run a demo server in another process, for the time of the ``with`` block.

    It ends when this process ends, in whatever way. Ctrl-C does not end it: the signals of a
    terminal do not reach it, so that requests in flight still get their answers.

    Args:
        settings: settings of the server; ``None``: the defaults.
        port: the TCP port to listen on; 0: any free port.
    """
    options = [
        "--until-stdin-closes",
        f"--port={port}",
        *(settings or DemoServerSettings()).to_arguments(),
    ]
    # The other process has to find the package at the same place.
    search_path = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).resolve().parents[2])]
    process = subprocess.Popen(
        [sys.executable, "-m", "parallel_core.demo_server", *options],
        # Nothing is written to this pipe. It closes when this process ends, even by SIGKILL.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
        text=True,
        # A terminal sends its signals to all processes of a session, or of a console.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    with process:  # at its end, this closes the pipe and waits for the process
        try:
            assert process.stdout is not None
            first_line = process.stdout.readline()
            if not first_line:
                raise RuntimeError(f"the demo server did not start: exit code {process.wait()}")
            yield DemoServerProcess(json.loads(first_line)["url"], process.pid)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
