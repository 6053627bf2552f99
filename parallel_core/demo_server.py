"""A server that speaks OpenAI's chat completions API and answers with made-up text.

**Its answers are synthetic**: there is no model behind it, and nothing it says has to do with the
question, but for one: a prompt that asks for ``positive or negative`` is answered by counting
words of praise and of blame. It is there to try out and to test clients, with latencies and faults
as they happen with real providers, but the same ones on every run: what happens to the n-th request
of a model depends only on the seed, on the model and on n (requests are numbered as they arrive in
full).

It listens on 127.0.0.1 only, checks no API key, and logs nothing. Its paths are

- ``POST /v1/chat/completions``: an answer, or with ``"stream": true`` a stream of server-sent
  events. A field ``"demo"`` in the body decides for this request what is otherwise drawn:
  ``{"latency": 0.1, "chunk_gap": 0.0, "fault": "hang", "reply": "text"}``, each of them optional;
  with ``"tool_arguments": "text"`` it is a call of the tool ``"demo"``, and with
  ``"usage": false`` it does not tell its usage; with ``"held": true`` it waits while the server
  holds;
  ``latency`` (to the answer, or to the first token of a stream) and ``chunk_gap`` are in seconds,
  ``fault`` is one of ``rate_limited``, ``server_error``, ``hang``, ``reset``, ``truncated``,
  ``invalid_json`` and ``none``. With litellm: ``acompletion(…, extra_body={"demo": {…}})``.
- ``GET /v1/models``: the models' names.
- ``GET /stats``: the counts that :class:`DemoServerStats` describes, as JSON.
- ``POST /stats/reset``: counts from nothing again, and starts the numbers n again, so that the
  next requests see the same latencies and faults as the first ones did.
- ``POST /capacity``: ``{"capacity": 16}`` or ``{"capacity": null}`` changes the capacity of the
  settings from now on; requests in flight go on.
- ``POST /hold`` and ``POST /release``: from the one to the other, the requests with
  ``"held": true`` wait, be they in flight already or not; whatever has to happen to them happens
  when they are released. So tests are ordered by what has happened, and not by latencies.

``python -m parallel_core.demo_server --port 0`` runs it until SIGINT or SIGTERM. The first line of
its output is a JSON object with its address: ``{"url": "http://127.0.0.1:…/v1", …}``. In Python
there are :class:`DemoServer` (in the running asyncio loop), :class:`DemoServerThread` (for trio,
and for code without a loop) and :func:`demo_server_process`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Final, Self, TypeVar

from aiohttp import web

from ._demo_answering import Flight, error_response, send_answer
from ._demo_settings import DemoServerSettings as DemoServerSettings
from ._demo_settings import plan_request
from ._demo_stats import DemoModelStats as DemoModelStats
from ._demo_stats import DemoServerStats as DemoServerStats
from ._demo_stats import Ledger
from ._demo_wire import Answer, BadRequestError, ChatRequest, models_body

T = TypeVar("T")

HOST: Final = "127.0.0.1"
_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
_BACKLOG: Final = 4096  # thousands of connections may come at once
_STOP_TIMEOUT: Final = 5.0  # seconds that a process has to stop before it is killed


class DemoServer:
    """A demo server in the running asyncio loop, for as long as its ``async with`` block lasts.

    Leaving the block cuts off what is in flight.

    Args:
        settings: how it behaves; the default settings if ``None``.
        port: the TCP port to listen on. 0: any free one.
    """

    def __init__(self, settings: DemoServerSettings | None = None, *, port: int = 0) -> None:
        self.settings = settings or DemoServerSettings()
        self._port = port
        self._capacity = self.settings.capacity
        self._ledger = Ledger(self.settings.models)
        self._numbers = Counter[str]()
        self._runner: web.AppRunner | None = None
        self._stopping = False
        self._gate = asyncio.Event()
        self._gate.set()

    async def __aenter__(self) -> Self:
        if self._runner is not None:
            raise RuntimeError("a DemoServer can be started only once")
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self._handle_chat)
        app.router.add_get("/v1/models", self._handle_models)
        app.router.add_get("/stats", self._handle_stats)
        app.router.add_post("/stats/reset", self._handle_reset)
        app.router.add_post("/capacity", self._handle_capacity)
        app.router.add_post("/hold", self._handle_hold)
        app.router.add_post("/release", self._handle_release)
        app.on_shutdown.append(self._hang_up)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a client's disconnect cancels the handler, and is counted
            access_log=None,
            # aiohttp would log what it cannot parse, which may be a part of a prompt.
            logger=logging.Logger("demo-server", logging.CRITICAL + 1),
            shutdown_timeout=0.2,
        )
        try:
            await self._runner.setup()
            site = web.TCPSite(self._runner, HOST, self._port, backlog=_BACKLOG)
            await site.start()
        except BaseException:
            await self._runner.cleanup()
            raise
        self._port = site.port
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        self._stopping = True
        try:
            # asyncio loses a connection that it has accepted but not yet set up when the server
            # closes: its socket stays open until it is garbage. That takes some passes of the loop.
            for _pass in range(3):
                await asyncio.sleep(0)
        finally:
            await self._runner.cleanup()
        self._ledger.fail_waiters("the demo server has stopped")

    @property
    def url(self) -> str:
        """The address that clients need, ``http://127.0.0.1:<port>/v1``."""
        return f"http://{HOST}:{self._port}/v1"

    @property
    def stats(self) -> DemoServerStats:
        """What has been counted up to now."""
        server = None if self._runner is None else self._runner.server
        connections = [] if server is None else server.connections
        return self._ledger.snapshot(sum(connection.connected for connection in connections))

    def reset_stats(self) -> None:
        """Count from nothing again, and number each model's requests from 1 again.

        Requests in flight stay counted, as accepted ones.
        """
        self._ledger.reset()
        self._numbers.clear()

    def set_capacity(self, capacity: int | None) -> None:
        """Answer 429 above another number of requests in flight from now on; ``None``: never.

        Raises ``ValueError`` where it is no integer of at least 1.
        """
        self._capacity = replace(self.settings, capacity=capacity).capacity

    def hold(self) -> None:
        """Let the requests wait that say ``"held": true``, until :meth:`release`.

        A request that waits for its latency already is not held any more.
        """
        self._gate.clear()

    def release(self) -> None:
        """Answer what is held, and hold nothing from now on."""
        self._gate.set()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._ledger.wait_until(lambda counts: counts.in_flight == 0)

    async def wait_in_flight(self, count: int) -> None:
        """Wait until at least ``count`` requests are in flight.

        Raises ``RuntimeError`` if the server stops before that.
        """
        if self._stopping and self._ledger.in_flight < count:
            raise RuntimeError("the demo server has stopped")
        await self._ledger.wait_until(lambda counts: counts.in_flight >= count)

    async def wait_finished(self, count: int) -> None:
        """Wait until at least ``count`` requests are finished, those that it refuses included.

        Raises ``RuntimeError`` if the server stops before that.
        """
        if self._stopping and self._ledger.finished < count:
            raise RuntimeError("the demo server has stopped")
        await self._ledger.wait_until(lambda counts: counts.finished >= count)

    async def _hang_up(self, _: web.Application) -> None:
        """Close every connection now: a handler may be waiting for ever, or its client be stuck."""
        assert self._runner is not None
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)  # the handlers are cancelled

    async def _handle_models(self, _: web.Request) -> web.Response:
        return web.json_response(models_body(self.settings.models))

    async def _handle_stats(self, _: web.Request) -> web.Response:
        return web.json_response(self.stats.to_json())

    async def _handle_reset(self, _: web.Request) -> web.Response:
        self.reset_stats()
        return web.json_response(self.stats.to_json())

    async def _handle_capacity(self, request: web.Request) -> web.Response:
        try:
            self.set_capacity(json.loads(await request.read())["capacity"])
        except (ValueError, TypeError, KeyError):
            return error_response(
                'The body must be {"capacity": a number of at least 1, or null}.',
                status=400,
                code="bad_capacity",
            )
        return web.json_response(self.stats.to_json())

    async def _handle_hold(self, _: web.Request) -> web.Response:
        self.hold()
        return web.json_response(self.stats.to_json())

    async def _handle_release(self, _: web.Request) -> web.Response:
        self.release()
        return web.json_response(self.stats.to_json())

    async def _handle_chat(self, request: web.Request) -> web.StreamResponse:
        try:
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                raise BadRequestError("The body is too large.", status=413) from None
            chat = ChatRequest.from_body(body, self.settings.models)
        except BadRequestError as error:
            self._ledger.rejected += 1
            return error_response(error.message, status=error.status, code=error.code)
        self._numbers[chat.model] += 1
        plan = plan_request(self.settings, chat.model, self._numbers[chat.model], chat.override)
        capacity = self._capacity
        if capacity is not None and self._ledger.in_flight >= capacity:
            return self._refuse(chat.model, "over_capacity")
        if plan.fault == "rate_limited":
            return self._refuse(chat.model, plan.fault)
        flight = Flight(self._ledger, chat.model)
        try:
            return await send_answer(request, Answer.to(chat, plan), plan, flight, self._gate)
        except (asyncio.CancelledError, ConnectionError):
            if self._stopping:
                flight.end("finished", "shutdown")
            else:
                flight.end("disconnected")
            raise
        finally:
            flight.end("finished")  # whatever happens, nothing stays in flight

    def _refuse(self, model: str, fault: str) -> web.Response:
        """Answer 429 at once."""
        self._ledger.refuse(model, fault)
        response = error_response(f"Too many requests ({fault}).", status=429, code=fault)
        # To the millisecond, and never with an exponent.
        seconds = f"{self.settings.retry_after:.3f}".rstrip("0").rstrip(".")
        response.headers["Retry-After"] = seconds
        return response


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

    def reset_stats(self) -> None:
        """As :meth:`DemoServer.reset_stats`."""
        self._ask("stats/reset", "POST")

    def set_capacity(self, capacity: int | None) -> None:
        """As :meth:`DemoServer.set_capacity`."""
        self._ask("capacity", "POST", json.dumps({"capacity": capacity}).encode())

    def hold(self) -> None:
        """As :meth:`DemoServer.hold`."""
        self._ask("hold", "POST")

    def release(self) -> None:
        """As :meth:`DemoServer.release`."""
        self._ask("release", "POST")

    def _ask(self, path: str, method: str, body: bytes | None = None) -> DemoServerStats:
        request = urllib.request.Request(
            f"{self.url.removesuffix('v1')}{path}", data=body, method=method
        )
        # The environment may name a proxy, which cannot reach this host's loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            return DemoServerStats.from_json(json.load(response))


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
    search_path = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).resolve().parents[1])]
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


if __name__ == "__main__":
    from ._demo_server_command import main

    main()
