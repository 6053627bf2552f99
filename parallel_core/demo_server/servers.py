"""The demo server in a thread, or in a process of its own."""

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

_STOP_TIMEOUT: Final = 5.0  # seconds that a process has to stop before it is killed


class DemoServerThread:
    """A demo server in a thread of its own, for as long as its ``with`` block lasts.

    Every method may be called from any thread; those that wait block the thread that calls them.

    Args:
        settings: how it behaves; the default settings if ``None``.
        port: the TCP port to listen on. 0: any free one.
    """

    def __init__(self, settings: DemoServerSettings | None = None, *, port: int = 0) -> None:
        self._server = DemoServer(settings, port=port)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started = concurrent.futures.Future[None]()
        self._stop_requested = asyncio.Event()  # of the thread's loop

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("a DemoServerThread can be started only once")
        # A plain loop, whatever the policy in force would make: it has to be the same everywhere.
        self._loop = asyncio.SelectorEventLoop()
        # A daemon, so that an interpreter that exits in the middle of the block does not wait.
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
        """The address that clients need, ``http://127.0.0.1:<port>/v1``."""
        return self._server.url

    def stats(self) -> DemoServerStats:
        """What has been counted up to now."""

        async def read() -> DemoServerStats:
            return self._server.stats

        return self._call(read) if self._is_running() else self._server.stats

    def requests(self) -> list[RecordedRequest]:
        """As :attr:`DemoServer.requests`."""

        async def read() -> list[RecordedRequest]:
            return self._server.requests

        return self._call(read) if self._is_running() else self._server.requests

    def reset_stats(self) -> None:
        """As :meth:`DemoServer.reset_stats`."""

        async def reset() -> None:
            self._server.reset_stats()

        self._call(reset)

    def set_capacity(self, capacity: int | None) -> None:
        """As :meth:`DemoServer.set_capacity`."""

        async def change() -> None:
            self._server.set_capacity(capacity)

        self._call(change)

    def set_trouble(self, trouble: Iterable[Trouble]) -> None:
        """As :meth:`DemoServer.set_trouble`."""
        troubles = tuple(trouble)

        async def change() -> None:
            self._server.set_trouble(troubles)

        self._call(change)

    def go_away(self, seconds: float | None = None) -> None:
        """As :meth:`DemoServer.go_away`."""
        self._call(lambda: self._server.go_away(seconds))

    def come_back(self) -> None:
        """As :meth:`DemoServer.come_back`."""
        self._call(self._server.come_back)

    def hold(self) -> None:
        """As :meth:`DemoServer.hold`."""

        async def close() -> None:
            self._server.hold()

        self._call(close)

    def release(self) -> None:
        """As :meth:`DemoServer.release`."""

        async def open_again() -> None:
            self._server.release()

        self._call(open_again)

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
        """Wait until at least ``count`` requests are finished, those that it refuses included.

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
            raise RuntimeError("the demo server does not run")
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
        if self._thread.ident is None:  # it could not be started
            self._loop.close()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server did not start
            self._loop.call_soon_threadsafe(self._stop_requested.set)
        self._thread.join()


class DemoServerProcess:
    """A demo server in another process, as :func:`demo_server_process` gives it.

    While it is away, every method raises ``OSError``: it is asked over HTTP.

    Attributes:
        url: the address that clients need, ``http://127.0.0.1:<port>/v1``.
        pid: the id of the process.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    def stats(self) -> DemoServerStats:
        """What has been counted up to now."""
        return self._ask("stats", "GET")

    def requests(self) -> list[RecordedRequest]:
        """As :attr:`DemoServer.requests`, but an ``OSError`` where none are kept."""
        return RecordedRequest.all_from_json(self._answer("requests", "GET"))

    def reset_stats(self) -> None:
        """As :meth:`DemoServer.reset_stats`."""
        self._ask("stats/reset", "POST")

    def set_capacity(self, capacity: int | None) -> None:
        """As :meth:`DemoServer.set_capacity`."""
        self._ask("capacity", "POST", json.dumps({"capacity": capacity}).encode())

    def set_trouble(self, trouble: Iterable[Trouble]) -> None:
        """As :meth:`DemoServer.set_trouble`, but a bad model is an ``OSError``."""
        body = {"trouble": [one.to_json() for one in trouble]}
        self._ask("trouble", "POST", json.dumps(body).encode())

    def go_away(self, seconds: float) -> None:
        """As :meth:`DemoServer.go_away`, for ``seconds`` above 0."""
        Trouble("away", seconds=seconds)
        self._ask("away", "POST", json.dumps({"seconds": seconds}).encode())

    def hold(self) -> None:
        """As :meth:`DemoServer.hold`."""
        self._ask("hold", "POST")

    def release(self) -> None:
        """As :meth:`DemoServer.release`."""
        self._ask("release", "POST")

    def _ask(self, path: str, method: str, body: bytes | None = None) -> DemoServerStats:
        return DemoServerStats.from_json(self._answer(path, method, body))

    def _answer(self, path: str, method: str, body: bytes | None = None) -> Any:
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
    """Run a demo server in a process of its own, for as long as the ``with`` block lasts.

    It ends with this process, however that ends, but not by Ctrl-C: the signals of a terminal do
    not reach it, since requests that are in flight then are to get their answers.

    Args:
        settings: how it behaves; the default settings if ``None``.
        port: the TCP port to listen on. 0: any free one.
    """
    options = [
        "--until-stdin-closes",
        f"--port={port}",
        *(settings or DemoServerSettings()).to_arguments(),
    ]
    # Where this process found the package is where that one has to look for it.
    search_path = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).resolve().parents[2])]
    process = subprocess.Popen(
        [sys.executable, "-m", "parallel_core.demo_server", *options],
        # Nothing is written into it: it closes when this process is gone, even by SIGKILL.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
        text=True,
        # A terminal sends its signals to the processes of one session, or one console.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
    with process:  # closes its pipe, and waits for it
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
