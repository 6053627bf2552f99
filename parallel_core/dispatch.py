"""The top-level functions: one name for trio, asyncio and synchronous code."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Any, Unpack

import sniffio
from anyio.from_thread import start_blocking_portal

from . import bridge, nursery_engine, trio_router
from ._call_loop import plain_loop_factory
from ._handle import ParallelBatch, collect
from ._litellm_loop import enter_loop, leave_this_loop
from ._plan import Requests, Source, completion_plan
from .control.options import Concurrency, Controls
from .control.stopping import Stopping
from .trio_router import RouterHost, RouterHostName
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
    batch: ParallelBatch[ParallelResult[ItemT, ValueT]] = _world().iter_parallel_map(
        function,
        items,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=preserve_order,
        **controls,
    )
    return batch


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
    results: list[ParallelResult[ItemT, ValueT]] = await _world().parallel_map(
        function,
        items,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=preserve_order,
        **controls,
    )
    return results


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
    world = _world()
    batch: ParallelBatch[RouterParallelResult] = world.iter_parallel_acompletions(
        router,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=preserve_order,
        **_host_option(world, router, router_host),
        **controls,
    )
    return batch


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
    world = _world()
    batch: ParallelBatch[StreamChunk | StreamEnd] = world.iter_parallel_streams(
        router,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        **_host_option(world, router, router_host),
        **controls,
    )
    return batch


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
    world = _world()
    results: list[RouterParallelResult] = await world.parallel_acompletions(
        router,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=preserve_order,
        **_host_option(world, router, router_host),
        **controls,
    )
    return results


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
    world = _world()
    _host_option(world, router, router_host)
    in_trio = world is nursery_engine
    plan = completion_plan(
        trio_router.in_trio(router, router_host) if in_trio else router,
        requests,
        concurrency=concurrency,
        return_exceptions=True,
        preserve_order=False,
        controls=controls,
        stopping=stopping,
    )
    plan = dataclasses.replace(plan, window=plan.concurrency)
    return nursery_engine.TrioParallelBatch(plan) if in_trio else bridge.AsyncioParallelBatch(plan)


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
    _host_option(bridge, router, None)  # none is taken
    plan = completion_plan(
        router,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=False,
        controls=controls,
    )

    batch = bridge.AsyncioParallelBatch(plan)

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


def _world() -> Any:
    """The module that implements the API for the library that is running."""
    try:
        library = sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        raise RuntimeError(
            "neither asyncio nor trio is running here; in synchronous code use "
            "parallel_core.parallel_completions"
        ) from None
    if library == "asyncio":
        return bridge
    if library != "trio":
        raise RuntimeError(f"parallel_core works in asyncio and trio, not in {library}")
    return nursery_engine


def _host_option(world: object, router: object, router_host: object) -> dict[str, object]:
    if world is nursery_engine:
        return {"router_host": router_host}
    if router_host is not None:
        raise ValueError(
            "router_host is for trio: in asyncio a Router's calls run on your own loop; leave it "
            "out"
        )
    if isinstance(router, RouterHost):
        raise TypeError("a RouterHost is for trio: in asyncio pass the Router itself")
    return {}
