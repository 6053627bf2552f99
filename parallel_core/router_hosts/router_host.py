"""An asyncio Router inside a trio application.

The calls of a Router are asyncio code and need an asyncio loop. In trio the loop runs in a helper
thread, or it is the trio-asyncio loop that the application has open. To the engine, a Router on its
host is an ordinary ``acompletion`` for trio, and so is each of its other async methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeAlias, TypeVar, cast, get_args

import trio

from parallel_core.config import RouterStandIn
from parallel_core.errors import RouterHostClosedError
from parallel_core.event_loops import running_library
from parallel_core.types import SupportsAcompletion

from . import trio_asyncio_loop
from .call_loop import END_OF_STREAM, CallLoop, HelperThread, shielded

P = ParamSpec("P")
T = TypeVar("T")

RouterHostName: TypeAlias = Literal["thread", "thread-uvloop", "trio-asyncio"]
"""Loop for a Router's asyncio code in a trio application: a plain asyncio loop in a helper thread,
a uvloop loop in a helper thread, or the trio-asyncio loop that is open in the task."""


class RouterHost(RouterStandIn):
    """A Router that trio code can call; :func:`open_router_host` yields it.

    Pass it to :func:`parallel_core.parallel_acompletions` in place of a Router. It also has the
    other async methods of the Router (``aembedding``, …), which behave like :meth:`acompletion`.

    Attributes:
        router: the Router.
        name: name of the loop on which its calls run.
    """

    def __init__(self, router: SupportsAcompletion, name: RouterHostName, loop: CallLoop) -> None:
        self.router = router
        self.name: RouterHostName = name
        self._loop = loop

    async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
        """Await ``router.acompletion(…)`` from trio.

        A cancellation cancels the asyncio task of the call and waits for its end. With
        ``stream=True`` the result is a :class:`RouterStream`.

        Raises:
            CallCancelledError: the call was cancelled, but not by trio.
            RouterHostClosedError: the host is closed, or was closed during the call.
            Exception: any exception that the Router raises.
        """
        return await self._call("acompletion", *args, **kwargs)

    async def _call(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        response = await self._loop.run(self._call_on_loop, operation, *args, **kwargs)
        return RouterStream(response, self._loop) if _is_stream(response) else response

    async def _call_on_loop(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
        response = await getattr(self.router, operation)(*args, **kwargs)
        if _is_stream(response):
            self._loop.keep_stream(response)
        return response

    async def run(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await any asyncio ``function(…)`` on the loop of the Router's calls.

        Example: ``await host.run(router.aembedding, model="small", input=["text"])``. The
        exceptions are those of :meth:`acompletion`.
        """
        return await self._loop.run(function, *args, **kwargs)

    def with_router(self, router: SupportsAcompletion) -> RouterHost:
        """Return a host for another Router on the same loop.

        Raises:
            TypeError: ``router`` is not a Router.
            RuntimeError: the host belongs to another trio run.
        """
        _check_router(router)
        self._loop.check_run()
        return RouterHost(router, self.name, self._loop)

    def __repr__(self) -> str:
        state = "closed" if self._loop.closed else "open"
        return f"<RouterHost {self.name} {state}>"


def _is_stream(response: Any) -> bool:
    return hasattr(response, "__anext__")


class RouterStream:
    """A streamed answer, read in trio: an async iterator of chunks, and a context manager.

    ::

        async with await host.acompletion(model=…, messages=…, stream=True) as stream:
            async for chunk in stream:
                …

    Leaving the block closes the stream and its connection. The end of the stream, an error, a
    cancellation while a chunk is awaited, and the end of its host close it, too.

    Attributes:
        response: the stream that the Router returned. Read its attributes only: its methods are
            asyncio code.
    """

    def __init__(self, response: AsyncIterator[Any], loop: CallLoop) -> None:
        self.response = response
        self._loop = loop
        self._closed = False
        self._reading: trio.CancelScope | None = None
        self._idle = trio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """Return the next chunk.

        Raises:
            StopAsyncIteration: the stream has ended, or was closed.
            trio.BusyResourceError: another task is waiting for a chunk.
            trio.ClosedResourceError: another task closed the stream during the wait.
            RouterHostClosedError: the host was closed during the wait.
            Exception: any exception that the stream raises.
        """
        if self._closed:
            raise StopAsyncIteration
        if self._reading is not None:
            raise trio.BusyResourceError("another task is reading this stream")
        chunk = END_OF_STREAM
        reading = self._reading = trio.CancelScope()
        try:
            with reading:
                chunk = await self._loop.run(self._loop.next_chunk, self.response)
        except BaseException:
            self._stop_reading()
            await self.aclose()
            raise
        self._stop_reading()
        if reading.cancelled_caught:
            raise trio.ClosedResourceError("another task has closed this stream")
        if chunk is END_OF_STREAM:
            await self.aclose()
            raise StopAsyncIteration
        return chunk

    def _stop_reading(self) -> None:
        self._reading = None
        self._idle.set()

    async def aclose(self) -> None:
        """Close the stream and its connection. Idempotent; a cancellation does not interrupt it."""
        if self._closed:
            return
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
            self._idle = trio.Event()
            await shielded(self._idle.wait)
        with contextlib.suppress(RouterHostClosedError):  # then the host has closed the stream
            await self._loop.run_uncancellable(self._loop.close_stream, self.response)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # The stream was dropped without being closed, perhaps in another thread.
        loop = getattr(self, "_loop", None)
        if loop is not None and not self._closed:
            loop.abandon_stream(self.response)


@asynccontextmanager
# An interrupt between the start of the host and the block would leave it behind.
@trio.lowlevel.enable_ki_protection
async def _open_router_host(
    router: SupportsAcompletion, router_host: RouterHostName | None
) -> AsyncGenerator[RouterHost, None]:
    _require_trio("open_router_host")
    _check_router(router)
    name = _checked_name(router_host)
    loop = _new_loop(name)
    host = RouterHost(router, name, loop)
    hosts = _opened_hosts()
    hosts.append(host)
    try:
        yield host
    finally:
        hosts.remove(host)
        await loop.close()


def open_router_host(
    router: SupportsAcompletion, router_host: RouterHostName | None = None
) -> AbstractAsyncContextManager[RouterHost]:
    """Give a Router its own asyncio loop in a trio application for the duration of a block.

    ::

        async with parallel_core.open_router_host(router) as host:
            results = await parallel_core.parallel_acompletions(router, requests)
            response = await host.acompletion(model="gpt", messages=messages)

    Batches of this Router that begin inside the block, in any task of the trio run, use the host.
    Leaving the block cancels the calls that still run on it, waits for them, and closes its
    streams, litellm's HTTP clients and the helper thread. Without this function, the first batch
    starts a helper thread, which all batches share and which ends with the trio run.

    Args:
        router: a ``litellm.Router`` (anything with an asyncio ``acompletion``).
        router_host: ``"thread"``, a plain asyncio loop in a new helper thread; ``"thread-uvloop"``,
            a uvloop loop in a new helper thread; ``"trio-asyncio"``, the trio-asyncio loop that is
            open in this task; the code that opened that loop closes its clients
            (:func:`open_trio_asyncio`). None: ``"trio-asyncio"`` if such a loop is open, else
            ``"thread"``.

    Raises:
        TypeError: ``router`` has no ``acompletion``.
        ValueError: ``router_host`` is unknown.
        RuntimeError: the host is not available here, or this is not trio.

    All are raised on entering.
    """
    return _open_router_host(router, router_host)


@asynccontextmanager
async def open_trio_asyncio() -> AsyncGenerator[asyncio.AbstractEventLoop, None]:
    """Open a trio-asyncio loop on which Router calls work (trio).

    It is ``trio_asyncio.open_loop()`` with a default executor that accepts litellm's functions, and
    it closes litellm's clients at the end. Inside the block, a Router's calls run on this loop.
    This function imports trio_asyncio, which changes asyncio for the whole process.

    Raises:
        RuntimeError: this is not trio, or trio-asyncio does not work on this Python (3.14).
        ImportError: trio-asyncio is not installed.
    """
    _require_trio("open_trio_asyncio")
    async with trio_asyncio_loop.open_prepared_loop() as loop:
        try:
            yield loop
        finally:
            shared = _shared_loops().pop(loop, None)
            if shared is not None:
                await shared.close()


def router_for_trio(router: object, router_host: RouterHost | RouterHostName | None) -> Any:
    """Return what a batch in trio calls: a Router on its host, or anything else unchanged.

    Raises:
        TypeError: ``router`` is an asyncio function of litellm.
        ValueError: ``router_host`` is unknown, or was given with a bare callable.
        RuntimeError: the host is not available here.
    """
    if isinstance(router, RouterHost):
        router.with_router(router.router)  # raises RuntimeError in another trio run
        if router_host not in (None, router):
            raise ValueError("router_host: the router is a RouterHost already; omit router_host")
        return router
    if hasattr(router, "acompletion"):
        return _host_for(cast("SupportsAcompletion", router), router_host)
    if router_host is not None:
        raise ValueError(
            "router_host is for a Router, and a bare callable is called in trio: omit router_host, "
            "or pass the Router"
        )
    if _is_of_litellm(router):
        raise TypeError(
            f"{getattr(router, '__qualname__', router)} is asyncio code and cannot run in trio: "
            "pass the Router itself"
        )
    return router


def _require_trio(what: str) -> None:
    library = running_library() or "no async library"
    if library != "trio":
        raise RuntimeError(
            f"{what} is for trio, and {library} is running here: in asyncio call the Router itself"
        )


def _check_router(router: object) -> None:
    if isinstance(router, RouterHost):
        raise TypeError("this is a RouterHost already: pass the Router that it was opened for")
    if not hasattr(router, "acompletion"):
        raise TypeError(
            "expected a litellm.Router (anything with an acompletion coroutine method), not "
            f"{type(router).__qualname__}"
        )


def _is_of_litellm(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    owner: Any = getattr(function, "__self__", None)
    modules = [getattr(function, "__module__", None)]
    # `__class__`, not type(): for a ParallelRouter it is the class of the Router that it holds.
    modules += [base.__module__ for base in owner.__class__.__mro__]
    return any((module or "").partition(".")[0] == "litellm" for module in modules)


def _host_for(
    router: SupportsAcompletion, router_host: RouterHost | RouterHostName | None
) -> RouterHost:
    _require_trio("a Router in the nursery engine")
    if isinstance(router_host, RouterHost):
        return router_host.with_router(router)
    name = _checked_name(router_host)
    for host in reversed(_opened_hosts()):
        if host.router is router and router_host in (None, host.name):
            return host
    loops = _shared_loops()
    key = _trio_asyncio_loop() if name == "trio-asyncio" else name
    loop = loops.get(key)
    if loop is None or loop.closed:
        for other in [other for other in loops if loops[other].closed]:
            del loops[other]
        loop = loops[key] = _new_shared_loop(name)
    return RouterHost(router, name, loop)


# KeyboardInterrupt must not occur between the start of the thread and the task that ends it.
@trio.lowlevel.enable_ki_protection
def _new_shared_loop(name: RouterHostName) -> CallLoop:
    loops: list[CallLoop] = []
    try:
        trio.lowlevel.spawn_system_task(_end_with_the_run, loops, name="parallel_core router host")
    except RuntimeError as error:
        raise RuntimeError("this trio run is ending: a Router can make no more calls") from error
    loop = _new_loop(name)
    loops.append(loop)
    return loop


async def _end_with_the_run(loops: list[CallLoop]) -> None:
    for loop in loops:  # empty if the loop could not be started
        try:
            await loop.ended.wait()
        finally:
            await loop.close()


def _checked_name(router_host: RouterHostName | None) -> RouterHostName:
    if router_host is None:
        return "thread" if trio_asyncio_loop.loop_open_here() is None else "trio-asyncio"
    names: tuple[RouterHostName, ...] = get_args(RouterHostName)
    if router_host not in names:
        raise ValueError(
            f"router_host must be one of {', '.join(map(repr, names))}, a RouterHost or None, not "
            f"{router_host!r}"
        )
    return router_host


def _new_loop(name: RouterHostName) -> CallLoop:
    if name == "trio-asyncio":
        return trio_asyncio_loop.TrioAsyncioLoop(_trio_asyncio_loop())
    use_uvloop = name == "thread-uvloop"
    if use_uvloop and importlib.util.find_spec("uvloop") is None:
        raise RuntimeError(
            "router_host='thread-uvloop' needs uvloop: pip install 'parallel_core[uvloop]', or use "
            "'thread'"
        )
    return HelperThread(use_uvloop=use_uvloop)


def _trio_asyncio_loop() -> Any:
    trio_asyncio_loop.refuse_where_it_cannot_work()
    loop = trio_asyncio_loop.loop_open_here()
    if loop is None:
        raise RuntimeError(
            "router_host='trio-asyncio', but no loop of trio-asyncio is open in this task: open "
            "one with `async with parallel_core.open_trio_asyncio()`, or use 'thread'"
        )
    return loop


# --- loops and hosts of the current trio run ---

_shared: trio.lowlevel.RunVar[dict[Any, CallLoop]] = trio.lowlevel.RunVar("parallel_core_loops")
_opened: trio.lowlevel.RunVar[list[RouterHost]] = trio.lowlevel.RunVar("parallel_core_hosts")


def _shared_loops() -> dict[Any, CallLoop]:
    """Return the loops that batches share, by host name or trio-asyncio loop. The run ends them."""
    try:
        return _shared.get()
    except LookupError:
        loops: dict[Any, CallLoop] = {}
        _shared.set(loops)
        return loops


def _opened_hosts() -> list[RouterHost]:
    """Return the hosts that :func:`open_router_host` opened, the latest last."""
    try:
        return _opened.get()
    except LookupError:
        hosts: list[RouterHost] = []
        _opened.set(hosts)
        return hosts
