"""The demo server in an asyncio loop: its paths and their handlers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Final, Self

from aiohttp import web

from .answer import Answer
from .endpoints import ENDPOINTS, Endpoint, EndpointAnswer
from .listener import HOST, Listener
from .recording import RecordedRequest, Recording, digest
from .refusals import error_response, refusal_response
from .request import BadRequestError, ChatRequest, parse_body, unknown_model
from .sending import Flight, send_answer
from .settings import DemoServerSettings, plan_request
from .stats import DemoServerStats, Ledger
from .trouble import ODD_ANSWERS, REFUSALS, Trouble, TroubleSchedule

_MAX_BODY_BYTES: Final = 64 * 1024 * 1024


class DemoServer:
    """A demo server in the running asyncio loop, for the time of its ``async with`` block.

    Leaving the block cuts off requests in flight.

    Args:
        settings: settings of the server; ``None``: the defaults.
        port: the TCP port to listen on; 0: any free port.
    """

    def __init__(self, settings: DemoServerSettings | None = None, *, port: int = 0) -> None:
        self.settings = settings or DemoServerSettings()
        self._port = port
        self._capacity = self.settings.capacity
        self._ledger = Ledger(self.settings.models)
        self._recording = Recording(self.settings.keep_requests)
        self._numbers = Counter[str]()
        self._trouble = self._schedule(self.settings)
        self._flights = set[Flight]()
        self._runner: web.AppRunner | None = None
        self._listener: Listener | None = None
        self._stopping = False
        self._gate = asyncio.Event()
        self._gate.set()

    async def __aenter__(self) -> Self:
        if self._runner is not None:
            raise RuntimeError("a DemoServer can be started only once")
        app = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[_errors_as_json])
        app.router.add_post("/v1/chat/completions", self._handle_chat)
        for endpoint in ENDPOINTS:
            handler = functools.partial(self._handle_chat, endpoint=endpoint)
            app.router.add_post(f"/v1/{endpoint.path}", handler)
        app.router.add_get("/v1/models", self._handle_models)
        app.router.add_get("/v1/models/{model:.+}", self._handle_model)
        app.router.add_get("/requests", self._handle_requests)
        app.router.add_get("/stats", self._handle_stats)
        app.router.add_post("/stats/reset", self._handle_reset)
        app.router.add_post("/capacity", self._handle_capacity)
        app.router.add_post("/trouble", self._handle_trouble)
        app.router.add_post("/away", self._handle_away)
        app.router.add_post("/hold", self._handle_hold)
        app.router.add_post("/release", self._handle_release)
        app.on_shutdown.append(self._hang_up)
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a client's disconnect cancels the handler, and is counted
            access_log=None,
            # aiohttp would log data that it cannot parse, which may be a part of a prompt.
            logger=logging.Logger("demo-server", logging.CRITICAL + 1),
            shutdown_timeout=0.2,
        )
        self._listener = Listener(self._runner, self._port, lambda: self._cut_off("away"))
        try:
            await self._runner.setup()
            await self._listener.listen()
        except BaseException:
            await self._runner.cleanup()
            raise
        self._port = self._listener.port
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        assert self._listener is not None
        self._stopping = True
        try:
            await self._listener.close()
        finally:
            await self._runner.cleanup()
            self._ledger.fail_waiters("the demo server has stopped")

    @property
    def url(self) -> str:
        """Address for clients, ``http://127.0.0.1:<port>/v1``."""
        return f"http://{HOST}:{self._port}/v1"

    @property
    def stats(self) -> DemoServerStats:
        """Current counts."""
        server = None if self._runner is None else self._runner.server
        connections = [] if server is None else server.connections
        return self._ledger.snapshot(sum(connection.connected for connection in connections))

    @property
    def requests(self) -> list[RecordedRequest]:
        """Kept requests, in the order of their arrival; see ``keep_requests``.

        Raises ``RuntimeError`` if the settings keep none.
        """
        if not self._recording.is_on:
            raise RuntimeError("no requests are kept: set keep_requests in the settings")
        return self._recording.requests()

    def reset_stats(self) -> None:
        """Set the counts to 0, and number each model's requests from 1 again.

        Requests in flight are still counted, as accepted ones. Kept requests are forgotten.
        """
        self._recording.clear()
        self._ledger.reset()
        self._numbers.clear()
        self._trouble.restart()

    def set_capacity(self, capacity: int | None) -> None:
        """Answer 429 above this number of requests in flight, from now on; ``None``: never.

        Raises ``ValueError`` if it is not an integer of at least 1.
        """
        self._capacity = replace(self.settings, capacity=capacity).capacity

    def set_trouble(self, trouble: Iterable[Trouble]) -> None:
        """Replace the trouble from now on, and count from here. An empty list ends all trouble.

        An absence that has begun continues. Raises ``ValueError`` like the settings.
        """
        self._trouble = self._schedule(replace(self.settings, trouble=tuple(trouble)))

    async def go_away(self, seconds: float | None = None) -> None:
        """Cut off everything in flight, and refuse connections. Return when they are refused.

        Args:
            seconds: seconds until the server is back. ``None``: until :meth:`come_back`.

        Raises:
            ValueError: the seconds are not a finite number above 0.
        """
        if seconds is not None:
            Trouble("away", seconds=seconds)
        assert self._listener is not None, "the server is not started"
        await self._listener.leave(seconds)

    async def come_back(self) -> None:
        """Accept connections again, at the same address. Do nothing if the server is not away.

        Raises ``OSError`` if another program has taken the port.
        """
        assert self._listener is not None, "the server is not started"
        await self._listener.come_back()

    def hold(self) -> None:
        """Make requests with ``"held": true`` wait until :meth:`release`.

        A request whose latency has already begun is not held.
        """
        self._gate.clear()

    def release(self) -> None:
        """Answer the held requests, and hold no more."""
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
        """Wait until at least ``count`` requests are finished, including refused ones.

        Raises ``RuntimeError`` if the server stops before that.
        """
        if self._stopping and self._ledger.finished < count:
            raise RuntimeError("the demo server has stopped")
        await self._ledger.wait_until(lambda counts: counts.finished >= count)

    async def _hang_up(self, _: web.Application) -> None:
        """Close every connection now: a handler may wait for ever, or its client may be stuck."""
        self._cut_off("shutdown")
        await asyncio.sleep(0)  # let the handlers be cancelled

    def _cut_off(self, fault: str) -> None:
        for flight in self._flights:
            flight.end("finished", fault)
        assert self._runner is not None
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    @staticmethod
    def _schedule(settings: DemoServerSettings) -> TroubleSchedule:
        return TroubleSchedule(tuple(settings.trouble), settings.seed, time.monotonic)

    async def _handle_models(self, _: web.Request) -> web.Response:
        models = [_model_entry(model) for model in self.settings.models]
        return web.json_response({"object": "list", "data": models})

    async def _handle_model(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in self.settings.models:
            return _refusal(unknown_model(model, self.settings.models))
        return web.json_response(_model_entry(model))

    async def _handle_requests(self, _: web.Request) -> web.Response:
        if not self._recording.is_on:
            return error_response(
                "No requests are kept: start the server with --keep-requests NUMBER.",
                status=404,
                code="not_recording",
            )
        return web.json_response({"requests": [one.to_json() for one in self.requests]})

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

    async def _handle_trouble(self, request: web.Request) -> web.Response:
        try:
            self.set_trouble(Trouble.all_from_json(json.loads(await request.read())))
        except ValueError as error:
            return error_response(f"{error}.", status=400, code="bad_trouble")
        return web.json_response(self.stats.to_json())

    async def _handle_away(self, request: web.Request) -> web.StreamResponse:
        assert self._listener is not None
        try:
            seconds = json.loads(await request.read())["seconds"]
            Trouble("away", seconds=seconds)
        except (ValueError, TypeError, KeyError):
            return error_response(
                'The body must be {"seconds": a number above 0}.', status=400, code="bad_away"
            )
        response = web.json_response(self.stats.to_json())

        async def answer() -> None:
            with contextlib.suppress(ConnectionError):  # the client has gone
                await response.prepare(request)
                await response.write_eof()

        await self._listener.leave(seconds, answer)
        return response

    async def _handle_hold(self, _: web.Request) -> web.Response:
        self.hold()
        return web.json_response(self.stats.to_json())

    async def _handle_release(self, _: web.Request) -> web.Response:
        self.release()
        return web.json_response(self.stats.to_json())

    async def _handle_chat(
        self, request: web.Request, *, endpoint: Endpoint | None = None
    ) -> web.StreamResponse:
        try:
            try:
                body = await request.read()
            except web.HTTPRequestEntityTooLarge:
                raise BadRequestError("The body is too large.", status=413) from None
            kept = self._recording.add(request.method, request.path_qs, request.headers, body)
            parsed = parse_body(body)
            read = ChatRequest.from_body if endpoint is None else endpoint.read
            chat = read(parsed, self.settings.models)
            key = _key_of(request)
            self._numbers[chat.model] += 1
            number = self._numbers[chat.model]
            trouble = None
            if chat.override.fault is None:
                trouble = self._trouble.next_for(chat.model, key)
            plan = plan_request(self.settings, chat.model, number, chat.override, trouble)
            if endpoint is None:
                answer: Answer | EndpointAnswer = Answer.to(chat, plan)
            else:
                answer = endpoint.answer(parsed, chat, plan)
                answer.whole()  # raises BadRequestError for a parameter that only it has
        except BadRequestError as error:
            self._ledger.rejected += 1
            return _refusal(error)
        known_as = None if key is None else digest(key)
        capacity = self._capacity
        if capacity is not None and self._ledger.in_flight >= capacity:
            self._ledger.refuse(chat.model, known_as, "over_capacity")
            return refusal_response("over_capacity", chat.model, self.settings.retry_after)
        if plan.fault in REFUSALS:
            self._ledger.refuse(chat.model, known_as, plan.fault)
            return refusal_response(plan.fault, chat.model, plan.retry_after)
        if kept is not None and plan.fault in (None, *ODD_ANSWERS):
            kept.set(answer.whole())
        flight = Flight(self._ledger, chat.model, known_as)
        self._flights.add(flight)
        try:
            if trouble is not None and trouble.kind == "away":
                assert self._listener is not None
                await self._listener.leave(trouble.seconds)
                await asyncio.get_running_loop().create_future()  # this request is cut off, too
            return await send_answer(request, answer, plan, flight, self._gate)
        except (asyncio.CancelledError, ConnectionError):
            flight.end("disconnected")  # no effect if the server has cut it off
            raise
        finally:
            flight.end("finished")  # no effect if it has ended; nothing stays in flight
            self._flights.discard(flight)


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Convert aiohttp's own errors to OpenAI's form: unknown path, wrong method."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return error_response(f"Invalid URL ({request.method} {request.path})", status=404)
    except web.HTTPMethodNotAllowed as error:
        response = error_response(
            f"Not allowed to {request.method} on {request.path}. "
            "(HINT: Perhaps you meant to use a different HTTP method?)",
            status=405,
            code="method_not_supported",
        )
        response.headers["Allow"] = error.headers["Allow"]
        return response


def _refusal(error: BadRequestError) -> web.Response:
    return error_response(error.message, status=error.status, code=error.code, param=error.param)


def _key_of(request: web.Request) -> str | None:
    """Return the API key from the headers that clients of OpenAI, Azure or Anthropic send."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("api-key") or request.headers.get("x-api-key") or None


def _model_entry(model: str) -> dict[str, object]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "parallel-core-demo"}
