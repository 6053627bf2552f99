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
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, Self, TypeVar

import typer
from aiohttp import web

from ._demo_answering import Flight, error_response, send_answer
from ._demo_settings import DemoServerSettings as DemoServerSettings
from ._demo_settings import parse_models, plan_request
from ._demo_stats import DemoModelStats as DemoModelStats
from ._demo_stats import DemoServerStats as DemoServerStats
from ._demo_stats import Ledger
from ._demo_wire import Answer, BadRequestError, ChatRequest, models_body

T = TypeVar("T")

_HOST: Final = "127.0.0.1"
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
            site = web.TCPSite(self._runner, _HOST, self._port, backlog=_BACKLOG)
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
        return f"http://{_HOST}:{self._port}/v1"

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


def command(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1; 0: any free one.")
    ] = 0,
    seed: Annotated[
        int, typer.Option(help="Where the drawing of latencies and faults starts.")
    ] = DemoServerSettings.seed,
    latency_median: Annotated[
        float, typer.Option(help="Median of the log-normal latency, in seconds.")
    ] = DemoServerSettings.latency_median,
    latency_sigma: Annotated[
        float, typer.Option(help="Standard deviation of the latency's logarithm.")
    ] = DemoServerSettings.latency_sigma,
    time_to_first_token: Annotated[
        float, typer.Option(help="Median time to a stream's first token, in seconds.")
    ] = DemoServerSettings.time_to_first_token,
    chunk_gap: Annotated[
        float, typer.Option(help="Time between a stream's tokens, in seconds.")
    ] = DemoServerSettings.chunk_gap,
    rate_limited: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) answered 429.")
    ] = DemoServerSettings.rate_limited,
    server_error: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) answered 500.")
    ] = DemoServerSettings.server_error,
    hang: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) never answered.")
    ] = DemoServerSettings.hang,
    reset: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) whose connection is reset.")
    ] = DemoServerSettings.reset,
    truncated: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) whose answer is cut off.")
    ] = DemoServerSettings.truncated,
    invalid_json: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) whose answer is no JSON.")
    ] = DemoServerSettings.invalid_json,
    retry_after: Annotated[
        float, typer.Option(help="What a 429 tells the client to wait, in seconds.")
    ] = DemoServerSettings.retry_after,
    capacity: Annotated[
        int | None, typer.Option(help="Requests in flight above which it answers 429.")
    ] = DemoServerSettings.capacity,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FACTOR]",
            help="A model, and what its latency is multiplied by; repeat for more models.",
        ),
    ] = None,
    until_stdin_closes: Annotated[
        bool,
        typer.Option(
            "--until-stdin-closes",
            help="Stop when standard input ends: a pipe from a process ends with that process.",
        ),
    ] = False,
) -> None:
    """Serve synthetic answers over OpenAI's chat completions API, on this machine only.

    No model is behind it. The first line of output is a JSON object with the address ("url").
    """
    try:
        settings = DemoServerSettings(
            seed=seed,
            latency_median=latency_median,
            latency_sigma=latency_sigma,
            time_to_first_token=time_to_first_token,
            chunk_gap=chunk_gap,
            rate_limited=rate_limited,
            server_error=server_error,
            hang=hang,
            reset=reset,
            truncated=truncated,
            invalid_json=invalid_json,
            retry_after=retry_after,
            capacity=capacity,
            models=parse_models(model) if model else DemoServerSettings().models,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with contextlib.suppress(KeyboardInterrupt):  # where asyncio cannot handle signals: Windows
        asyncio.run(_serve_until_told(settings, port, until_stdin_closes))


async def _serve_until_told(
    settings: DemoServerSettings, port: int, until_stdin_closes: bool
) -> None:
    stop_requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop_requested.set)
    async with contextlib.AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(DemoServer(settings, port=port))
        except OSError as error:
            typer.echo(f"Cannot listen on {_HOST}:{port}: {error.strerror}", err=True)
            raise typer.Exit(1) from None
        address = {"url": server.url, "pid": os.getpid(), "answers": "synthetic"}
        try:
            typer.echo(json.dumps(address))
        except BrokenPipeError:
            with contextlib.suppress(BrokenPipeError):
                typer.echo("Nobody reads the address: standard output is closed.", err=True)
            raise  # typer ends the process with exit code 1
        if until_stdin_closes:
            # Not a thread of the loop's own: the process would wait for it at its end.
            threading.Thread(
                target=_wait_for_end_of_stdin, args=(loop, stop_requested), daemon=True
            ).start()
        await stop_requested.wait()


def _wait_for_end_of_stdin(loop: asyncio.AbstractEventLoop, then: asyncio.Event) -> None:
    # Past the buffer of sys.stdin, whose lock an ending interpreter would want to have.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended already
        loop.call_soon_threadsafe(then.set)


def _main() -> None:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app(prog_name="python -m parallel_core.demo_server")


if __name__ == "__main__":
    _main()
