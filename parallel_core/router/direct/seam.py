"""The two places of litellm where a direct batch stands: its attempts, and what they send.

Both generations of the Router look up ``litellm.acompletion`` when they make an attempt. While a
direct call is in flight, a function of ours stands there, and another in ``AsyncClient.send`` of
httpx, through which litellm sends. Both pass on every call that no direct batch has marked. The
mark is a context variable, so that other tasks and threads are never concerned.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple, Protocol, TypeAlias

import httpx

from .lines import BodyLines

Attempt: TypeAlias = Callable[..., Awaitable[Any]]


class Lane(Protocol):
    """Makes the attempts of marked calls."""

    async def attempt(self, original: Attempt, arguments: dict[str, Any]) -> Any:
        """Make one attempt with the arguments that ``original``, litellm's own function, got."""
        ...


class Sent(NamedTuple):
    """A request as litellm sends it."""

    client: httpx.AsyncClient
    request: httpx.Request
    options: Mapping[str, Any]


def cookie_of(client: httpx.AsyncClient, url: httpx.URL) -> str | None:
    """Return the header with the cookies that a client has for an address."""
    request = httpx.Request("POST", url)
    client.cookies.set_cookie_header(request)
    cookie: str | None = request.headers.get("cookie")
    return cookie


class _RecordedError(BaseException):
    """Ends an attempt whose request was recorded, past litellm's handlers of exceptions."""

    def __init__(self, sent: Sent) -> None:
        self.sent = sent


class _Exchange:
    """Stands in for the network in one attempt: records its request, or answers it once."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self._answer = answer
        self._used = False

    def end(self) -> None:
        """Pass on what tasks that the attempt has left behind send from now on."""
        self._used = True

    def exchange(self, sent: Sent) -> httpx.Response | None:
        """Answer a request. None: it goes to the network, since the answer was used already."""
        if self._used:
            return None
        self._used = True
        if self._answer is None:
            # The client's cookies are those of the moment: each call gets its own.
            request = sent.request
            if request.headers.get("cookie", "") == cookie_of(sent.client, request.url):
                del request.headers["cookie"]
            raise _RecordedError(sent)
        return self._answer(sent.request)

    def received(self, response: httpx.Response) -> httpx.Response:
        """Take note of an answer that came from the network."""
        return response


class _Cutting(_Exchange):
    """Lets an attempt use the network, and cuts the body of its event stream into lines."""

    lines: BodyLines | None = None

    def exchange(self, sent: Sent) -> httpx.Response | None:
        return None

    def received(self, response: httpx.Response) -> httpx.Response:
        headers = response.headers
        is_plain = (
            "event-stream" in headers.get("content-type", "")
            and "content-encoding" not in headers
            # The lane reads UTF-8, as JSON is; some readers of litellm read what the header names.
            and (response.charset_encoding or "utf-8").lower() in ("utf-8", "utf8")
        )
        self.lines = None
        if not self._used and is_plain:
            body = response.stream
            if not response.is_stream_consumed and isinstance(body, httpx.AsyncByteStream):
                response.stream = self.lines = BodyLines(body)
        return response


_lane: ContextVar[Lane | None] = ContextVar("parallel_core_direct_lane", default=None)
_exchange: ContextVar[_Exchange | None] = ContextVar("parallel_core_direct_exchange", default=None)

_lock = threading.Lock()
_users = 0
_originals: dict[str, Any] = {}


@contextmanager
def marked(lane: Lane) -> Generator[None, None, None]:
    """Let a lane make the attempts of the Router calls in this context."""
    _install()
    token = _lane.set(lane)
    try:
        yield
    finally:
        _lane.reset(token)
        _remove()


def unmarked(
    call: Callable[[int, Any], Awaitable[Any]],
) -> Callable[[int, Any], Awaitable[Any]]:
    """Let no lane make the attempts of a call, whatever context it is made in."""
    if _lane.get() is None:
        return call

    async def plain(index: int, request: Any) -> Any:
        token = _lane.set(None)
        try:
            return await call(index, request)
        finally:
            _lane.reset(token)

    return plain


async def record(original: Attempt, arguments: dict[str, Any]) -> Sent | Any:
    """Return the request that litellm would send, without sending it.

    Whatever else litellm does is the outcome of the attempt: what it returns or raises before it
    sends anything.
    """
    try:
        return await _attempt_with(_Exchange(), original, arguments)
    except _RecordedError as recorded:
        return recorded.sent


async def replay(
    original: Attempt,
    arguments: dict[str, Any],
    answer: Callable[[httpx.Request], httpx.Response],
) -> Any:
    """Let litellm make an attempt whose first request gets an answer that is there already.

    ``answer`` returns it or raises what the network raised. Further requests, which litellm makes
    after some errors, go to the network.
    """
    return await _attempt_with(_Exchange(answer), original, arguments)


async def stream(original: Attempt, arguments: dict[str, Any]) -> tuple[Any, BodyLines | None]:
    """Let litellm begin a stream. Return it, and the body that it reads if that is known."""
    exchange = _Cutting()
    return await _attempt_with(exchange, original, arguments), exchange.lines


async def _attempt_with(exchange: _Exchange, original: Attempt, arguments: dict[str, Any]) -> Any:
    lane, token = _lane.set(None), _exchange.set(exchange)
    try:
        return await original(**arguments)
    finally:
        exchange.end()
        _exchange.reset(token)
        _lane.reset(lane)


def replaced() -> str:
    """Return which of the two functions other code has replaced; empty if neither.

    A replacement may read what litellm sends, or change it, so litellm has to send.
    """
    litellm = sys.modules["litellm"]
    for name, function, own, home in (
        ("litellm.acompletion", litellm.acompletion, "acompletion", litellm),
        ("httpx.AsyncClient.send", httpx.AsyncClient.send, "send", httpx),
    ):
        # Ours stands above the original.
        found: Any = _originals.get(own) if function is _originals.get(f"own_{own}") else function
        folder = _folder_of(home.__file__ or "")
        if found.__class__ is not FunctionType or not found.__code__.co_filename.startswith(folder):
            return f"{name} is replaced"
    return ""


@functools.cache  # asked for each attempt
def _folder_of(file: str) -> str:
    return str(Path(file).parent)


def _install() -> None:
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        litellm = sys.modules["litellm"]
        attempt, send = litellm.acompletion, httpx.AsyncClient.send

        @functools.wraps(attempt)
        async def acompletion(*args: Any, **kwargs: Any) -> Any:
            lane = _lane.get()
            if lane is None or args:
                return await attempt(*args, **kwargs)
            return await lane.attempt(attempt, kwargs)

        @functools.wraps(send)
        async def exchanging(
            self: httpx.AsyncClient, request: httpx.Request, **options: Any
        ) -> httpx.Response:
            exchange = _exchange.get()
            if exchange is None:
                return await send(self, request, **options)
            answer = exchange.exchange(Sent(self, request, options))
            if answer is not None:
                return answer
            return exchange.received(await send(self, request, **options))

        _originals.update(
            acompletion=attempt, send=send, own_acompletion=acompletion, own_send=exchanging
        )
        litellm.acompletion = acompletion  # type: ignore[attr-defined]
        httpx.AsyncClient.send = exchanging  # type: ignore[method-assign]


def _remove() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        litellm = sys.modules["litellm"]
        # What somebody else has put there since stays: ours passes everything on underneath.
        if litellm.acompletion is _originals["own_acompletion"]:
            litellm.acompletion = _originals["acompletion"]  # type: ignore[attr-defined]
        if httpx.AsyncClient.send is _originals["own_send"]:
            httpx.AsyncClient.send = _originals["send"]  # type: ignore[method-assign]
        _originals.clear()
