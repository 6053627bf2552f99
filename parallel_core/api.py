"""The functions that users call, defined once for trio, asyncio and synchronous code."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Any, Unpack

import sniffio
from anyio.from_thread import start_blocking_portal

from ._call_loop import plain_loop_factory
from ._litellm_loop import enter_loop, leave_this_loop
from ._plan import Requests, Source, completion_plan, map_plan, stream_plan
from .bridge import AsyncioParallelBatch
from .control.options import Concurrency, Controls
from .control.stopping import Stopping
from .engine.handle import ParallelBatch, collect
from .engine.plan import BatchPlan, ResultT
from .nursery_engine import TrioParallelBatch
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


def iter_parallel_map(
    function: Callable[[ItemT], Awaitable[ValueT]],
    items: Source[ItemT],
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> ParallelBatch[ParallelResult[ItemT, ValueT]]:
    """Await ``function(item)`` for every item, at most ``concurrency`` at a time.

    Called in asyncio it is :func:`parallel_core.bridge.iter_parallel_map`, called in trio
    :func:`parallel_core.nursery_engine.iter_parallel_map`; the arguments are described there.

    ::

        async with iter_parallel_map(fetch, urls, concurrency=64) as batch:
            async for result in batch:
                print(result.index, result.unwrap())

    Raises:
        RuntimeError: called where neither asyncio nor trio is running.
    """
    return _batch_of(
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
    """The results of :func:`iter_parallel_map` as a list, in asyncio and in trio."""
    plan = map_plan(
        function,
        items,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=False,
        controls=controls,
    )
    return await collect(_batch_of(plan), preserve_order)


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
    """Send every request, at most ``concurrency`` at a time; results come as they finish.

    Called in asyncio it is :func:`parallel_core.bridge.iter_parallel_acompletions`, called in trio
    :func:`parallel_core.nursery_engine.iter_parallel_acompletions`; the arguments are described
    there. ``router_host`` is for trio; in asyncio a Router's calls run on the caller's own loop.

    ::

        async with iter_parallel_acompletions(router, requests, concurrency=64) as batch:
            async for result in batch:
                print(result.index, result.ok)

    Raises:
        RuntimeError: called where neither asyncio nor trio is running.
        TypeError, ValueError: called in asyncio with a host for a Router.
    """
    return _batch_of(
        completion_plan(
            _router_here(router, router_host),
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
    """Send every request as a stream, at most ``concurrency`` at a time, and merge the streams.

    Called in asyncio it is :func:`parallel_core.bridge.iter_parallel_streams`, called in trio
    :func:`parallel_core.nursery_engine.iter_parallel_streams`; the arguments are described there.

    ::

        async with iter_parallel_streams(router, requests) as batch:
            async for event in batch:
                if isinstance(event, StreamChunk):
                    print(event.index, event.text)

    Raises:
        RuntimeError: called where neither asyncio nor trio is running.
        TypeError, ValueError: called in asyncio with a host for a Router.
    """
    return _batch_of(
        stream_plan(
            _router_here(router, router_host),
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
    """The results of :func:`iter_parallel_acompletions` as a list, in asyncio and in trio."""
    plan = completion_plan(
        _router_here(router, router_host),
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=False,
        controls=controls,
    )
    return await collect(_batch_of(plan), preserve_order)


def stoppable_completions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency,
    router_host: RouterHost | RouterHostName | None,
    controls: Controls,
    stopping: Stopping,
) -> ParallelBatch[RouterParallelResult]:
    """:func:`iter_parallel_acompletions` that can be ended before its time, for runs of files.

    What is in flight and what has not been handed out are together no more than the concurrency:
    that much a crash may lose.
    """
    plan = completion_plan(
        _router_here(router, router_host),
        requests,
        concurrency=concurrency,
        return_exceptions=True,
        preserve_order=False,
        controls=controls,
        stopping=stopping,
    )
    return _batch_of(dataclasses.replace(plan, window=plan.concurrency))


def parallel_completions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """The synchronous form of :func:`parallel_acompletions`.

    Usable from plain code, and from a thread with a running loop (a notebook): the batch runs on an
    asyncio loop of its own in a helper thread, and the calling thread waits for it. Ctrl-C in the
    calling thread cancels every call and waits for it. A bare callable is asyncio-flavoured.

    A lazy source is drawn in the helper thread: one that is bound to its thread (a cursor of
    sqlite3, say) has to be made a list first.

    Arguments, results and errors are those of
    :func:`parallel_core.bridge.parallel_acompletions`.
    """
    plan = completion_plan(
        _router_in_asyncio(router, None),
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=False,
        controls=controls,
    )

    batch = AsyncioParallelBatch(plan)

    async def run() -> list[RouterParallelResult]:
        enter_loop(asyncio.get_running_loop())
        try:
            return await collect(batch, preserve_order)
        finally:
            await leave_this_loop()

    # A plain loop, whatever is installed as the process's default: on a loop of trio-asyncio,
    # which its import makes the default, Router calls fail.
    try:
        with start_blocking_portal("asyncio", {"loop_factory": plain_loop_factory()}) as portal:
            return portal.call(run)
    except CancelledError:
        interrupt = batch.interrupt
        if interrupt is None:
            raise
    # A call has raised it, in the helper thread, where it has ended the loop.
    raise interrupt


def _library() -> str:
    """Return the name of the library that is running here: asyncio or trio."""
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        raise RuntimeError(
            "neither asyncio nor trio is running here; in synchronous code use "
            "parallel_core.parallel_completions"
        ) from None
    if library not in ("asyncio", "trio"):
        raise RuntimeError(f"parallel_core works in asyncio and trio, not in {library}")
    return library


def _batch_of(plan: BatchPlan[ResultT]) -> ParallelBatch[ResultT]:
    return TrioParallelBatch(plan) if _library() == "trio" else AsyncioParallelBatch(plan)


def _router_here(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    router_host: RouterHost | RouterHostName | None,
) -> SupportsAcompletion | Callable[..., Awaitable[Any]]:
    """Return what makes the calls in the library that is running here."""
    here = in_trio if _library() == "trio" else _router_in_asyncio
    return here(router, router_host)


def _router_in_asyncio(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    router_host: RouterHost | RouterHostName | None,
) -> SupportsAcompletion | Callable[..., Awaitable[Any]]:
    if router_host is not None:
        raise ValueError(
            "router_host is for trio: in asyncio a Router's calls run on your own loop; leave it "
            "out"
        )
    if isinstance(router, RouterHost):
        raise TypeError("a RouterHost is for trio: in asyncio pass the Router itself")
    return router
