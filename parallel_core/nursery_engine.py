"""The engine in trio: a batch is a nursery of slots and a memory channel of results.

The rules of a batch are in :mod:`parallel_core._batch`, shared with the asyncio side
(:mod:`parallel_core.bridge`). Here a slot is a trio task of the batch's nursery.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, Unpack, cast

import trio

from ._agenda_batch import new_core
from ._handle import ParallelBatch, collect, raise_crash
from ._plan import BatchPlan, Requests, ResultT, Source, completion_plan, map_plan, stream_plan
from ._slot_host import Ended, HostEvent, HostScope
from .control.options import Concurrency, Controls
from .errors import cancelled_unasked
from .trio_router import RouterHost, RouterHostName, in_trio
from .types import (
    ItemT,
    ParallelResult,
    RouterParallelResult,
    StreamChunk,
    StreamEnd,
    SupportsAcompletion,
    ValueT,
)

__all__ = [
    "ParallelBatch",
    "iter_parallel_acompletions",
    "iter_parallel_map",
    "iter_parallel_streams",
    "parallel_acompletions",
    "parallel_map",
]


class TrioSlotHost:
    """Slots are trio tasks."""

    def new_event(self) -> HostEvent:
        return trio.Event()

    def new_scope(self) -> HostScope:
        return trio.CancelScope()

    def current_time(self) -> float:
        return trio.current_time()

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()

    async def call(self, function: Callable[[], None]) -> None:
        function()

    def start(
        self,
        nursery: trio.Nursery,
        function: Callable[[], Coroutine[Any, Any, None]],
        ended: Ended,
    ) -> None:
        nursery.start_soon(self._run, function, ended)

    async def _run(
        self,
        function: Callable[[], Coroutine[Any, Any, None]],
        ended: Ended,
    ) -> None:
        try:
            await function()
        except BaseException as exception:
            cancelled = isinstance(exception, trio.Cancelled)
            ended(_without_cancelled(exception), cancelled=cancelled)
            if cancelled:
                raise
        else:
            ended(None, cancelled=False)

    def call_later(
        self, nursery: trio.Nursery, seconds: float, function: Callable[[], None]
    ) -> Callable[[], None]:
        scope = trio.CancelScope(shield=True)

        async def wait() -> None:
            with scope:
                await trio.sleep(seconds)
                function()

        nursery.start_soon(wait)
        return scope.cancel

    def interrupted(self, interrupt: KeyboardInterrupt) -> None:
        raise interrupt

    def tampering(self) -> None:
        return None  # a cancel scope belongs to the call that opened it; nothing is left behind

    def error_of(self, exception: BaseException, what: str, stopping: bool) -> Exception | None:
        # A call that fails while it is cancelled raises both in a group. The cancellation may be
        # dropped here: trio raises it again at the next checkpoint.
        error = _without_cancelled(exception)
        if error is None and trio.current_effective_deadline() > -math.inf:
            # Nobody has cancelled us: a Cancelled that was kept from somewhere else.
            return cancelled_unasked(what, exception)
        return error if isinstance(error, Exception) else None


def _without_cancelled(exception: BaseException) -> BaseException | None:
    if isinstance(exception, trio.Cancelled):
        return None
    if isinstance(exception, BaseExceptionGroup) and not isinstance(exception, Exception):
        group = cast("BaseExceptionGroup[BaseException]", exception)
        return group.split(trio.Cancelled)[1]
    return exception


def _only_member(exception: BaseException) -> BaseException:
    """An interrupt out of the groups that nurseries have put around it."""
    members: tuple[BaseException, ...] = getattr(exception, "exceptions", ())
    return _only_member(members[0]) if len(members) == 1 else exception


class TrioParallelBatch(ParallelBatch[ResultT]):
    """A batch in trio: ``async with`` it, then iterate."""

    def __init__(self, plan: BatchPlan[ResultT]) -> None:
        self._core = new_core(plan, TrioSlotHost())
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery
        self._finished = trio.Event()

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can be entered only once")
        self._begun = True
        self._nursery_manager = trio.open_nursery()
        self._nursery = nursery = await self._nursery_manager.__aenter__()
        # Something like KeyboardInterrupt in a call ends the caller's block too.
        self._core.on_crash = nursery.cancel_scope.cancel
        self._core.enter()
        nursery.start_soon(self._run)
        return self

    async def _run(self) -> None:
        try:
            await self._core.run()
        finally:
            self._finished.set()

    async def aclose(self) -> None:
        self._core.check_not_inside()
        self._core.stop()
        if self._nursery_manager is not None:
            await self._finished.wait()
        self._begun = self._closed = True

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._nursery_manager is not None
        core = self._core
        core.stop()
        # The nursery is told what the body was left by only where that is a cancellation which may
        # be its own: anything else would come out of it in a group.
        body = (exc_type, exc, traceback)
        cancelled_by_us = (
            self._nursery.cancel_scope.cancel_called
            and exc is not None
            and _without_cancelled(exc) is None
        )
        absorbed: bool | None = False
        leaving: BaseException | None = None
        try:
            absorbed = await self._nursery_manager.__aexit__(
                *(body if cancelled_by_us else (None, None, None))
            )
        except BaseException as exception:  # noqa: BLE001 - raised below, if nothing else is
            leaving = exception
        finally:
            self._closed = True
        try:
            interrupt = None if leaving is None else _without_cancelled(leaving)
            if interrupt is not None:
                raise _only_member(interrupt)
            raise_crash(core, exc or leaving)
            # Cancelled while waiting. What the body raised goes first; trio raises the cancellation
            # again at the next checkpoint.
            if leaving is not None and exc is None:
                raise leaving
        finally:
            del leaving, body
        return cancelled_by_us and absorbed

    def _before_waiting(self) -> None:
        self._core.check_thread()

    async def _begin(self) -> None:
        raise RuntimeError(
            "enter the batch before iterating: async with iter_parallel_…(…) as batch: "
            "async for result in batch: …"
        )


def iter_parallel_map(
    function: Callable[[ItemT], Awaitable[ValueT]],
    items: Source[ItemT],
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> ParallelBatch[ParallelResult[ItemT, ValueT]]:
    """Await ``function(item)`` for every item, at most ``concurrency`` at a time (trio).

    ::

        async with iter_parallel_map(fetch, urls, concurrency=64) as batch:
            async for result in batch:
                print(result.index, result.unwrap())

    Args:
        function: a trio-flavoured async callable of one item.
        items: any iterable or async iterable, also an endless one. Items are drawn one at a time,
            when a slot is free. A generator is closed when the batch ends.
        concurrency: calls in flight at most.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once and is raised by the iterator, after the
            results that were there before it.
        preserve_order: hand out results in input order instead of completion order.

    Returns:
        The batch: an async context manager giving an async iterator of results. While the consumer
        does not read, calls started minus results handed out never exceeds twice ``concurrency``
        (eight times in input order).

    Raises:
        TypeError: ``concurrency`` is no integer, ``items`` no iterable, ``function`` no callable.
        ValueError: ``concurrency`` is below 1.
    """
    return TrioParallelBatch(
        map_plan(
            function,
            items,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            controls=controls,
        )
    )


async def parallel_map(
    function: Callable[[ItemT], Awaitable[ValueT]],
    items: Source[ItemT],
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> list[ParallelResult[ItemT, ValueT]]:
    """The results of :func:`iter_parallel_map` as a list (trio).

    The arguments and errors are the same; a fail-fast batch raises its first error.
    """
    plan = map_plan(
        function,
        items,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=False,
        controls=controls,
    )
    return await collect(TrioParallelBatch(plan), preserve_order)


def iter_parallel_acompletions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> ParallelBatch[RouterParallelResult]:
    """Send every request through a Router, at most ``concurrency`` at a time (trio).

    Args:
        router: a ``litellm.Router`` (anything with an asyncio-flavoured ``acompletion`` method), or
            a trio-flavoured async callable ``(model=, messages=, **kwargs)``.
        requests: :class:`RouterParallelRequest` or mappings, from any iterable or async iterable.
        concurrency, return_exceptions, preserve_order: as in :func:`iter_parallel_map`.
        router_host: where a Router's asyncio code runs. ``"thread"``: on a plain asyncio loop in a
            helper thread that is kept for this trio run; ``"thread-uvloop"``: the same with uvloop;
            ``"trio-asyncio"``: on the loop of trio-asyncio that is open in this task; or what
            :func:`parallel_core.open_router_host` has given. None: the host that was opened for
            this Router, else the loop of trio-asyncio if one is open, else ``"thread"``.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests; nothing has been sent. A bad
            item of a lazy source becomes the result of its index, or the first error when
            fail-fast.
        TypeError: as in :func:`iter_parallel_map`; ``router`` is an asyncio function of litellm.
        ValueError: as in :func:`iter_parallel_map`; there is no such ``router_host``.
        RuntimeError: the host cannot be had here.
    """
    return TrioParallelBatch(
        completion_plan(
            in_trio(router, router_host),
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            controls=controls,
        )
    )


def iter_parallel_streams(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> ParallelBatch[StreamChunk | StreamEnd]:
    """Send every request as a stream, and merge the streams into one, at most ``concurrency`` at a
    time (trio).

    ::

        async with iter_parallel_streams(router, requests) as batch:
            async for event in batch:
                if isinstance(event, StreamChunk):
                    print(event.index, event.text)
                else:
                    print(event.result.response, event.result.usage)

    Args:
        router, requests, concurrency, router_host: as in :func:`iter_parallel_acompletions`.
            ``stream=True`` is added, and ``stream_options={"include_usage": True}``, unless the
            request has that option.
        return_exceptions: True: a stream that fails ends in a :class:`StreamEnd` with the
            exception. False (fail-fast): the first error closes all other streams and is raised.
        controls: as everywhere; those that are made for streams are ``on_chunk`` and
            ``stall_timeout``.

    Returns:
        The batch: an iterator of :class:`StreamChunk`, as soon as any stream has one, each stream's
        in its order, and of one :class:`StreamEnd` for each request. While the consumer does not
        read, twice ``concurrency`` chunks wait for it, and the streams wait: each in its turn, so
        that one with much to say holds up no other. That time counts for a request's ``timeout``,
        and not for ``stall_timeout``.

    Raises:
        TypeError, ValueError, InvalidRequestError: as in :func:`iter_parallel_acompletions`; also
            ``hedge``, whose two attempts would both give chunks.
    """
    return TrioParallelBatch(
        stream_plan(
            in_trio(router, router_host),
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            controls=controls,
        )
    )


async def parallel_acompletions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """The results of :func:`iter_parallel_acompletions` as a list (trio).

    The arguments and errors are the same; a fail-fast batch raises its first error.
    """
    plan = completion_plan(
        in_trio(router, router_host),
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=False,
        controls=controls,
    )
    return await collect(TrioParallelBatch(plan), preserve_order)
