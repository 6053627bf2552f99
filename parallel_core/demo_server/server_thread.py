"""The demo server in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Self, TypeVar

from .app import DemoServer
from .recording import RecordedRequest
from .settings import DemoServerSettings
from .stats import DemoServerStats
from .trouble import Trouble

T = TypeVar("T")


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
