"""The functions that users call, defined once for trio, asyncio and synchronous code.

:mod:`parallel_core.operations` has those for other operations of a Router than chat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any, Unpack

from .batch_plans import Requests, Source, completion_plan, map_plan, stream_plan
from .control import BatchOptions, Concurrency, Controls, checked_flag
from .engine import ParallelBatch, collect
from .entry import (
    ONLY_FOR_REQUESTS,
    batch_of,
    call_for_this_library,
    router_in_asyncio,
    run_in_thread,
    with_controls,
)
from .router_hosts import RouterHost, RouterHostName
from .types import (
    ItemT,
    ParallelResult,
    RouterParallelResult,
    StreamChunk,
    StreamEnd,
    SupportsAcompletion,
    ValueT,
)


@with_controls(*ONLY_FOR_REQUESTS)
def iter_parallel_map(
    function: Callable[[ItemT], Awaitable[ValueT]],
    items: Source[ItemT],
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> ParallelBatch[ParallelResult[ItemT, ValueT]]:
    """Await ``function(item)`` for every item, and hand out each result as soon as it is there.

    ::

        async with iter_parallel_map(fetch, urls, concurrency=64) as batch:
            async for result in batch:
                print(result.index, result.unwrap())

    In asyncio, ``async for result in iter_parallel_map(…)`` works without the block; leaving that
    loop early cancels the calls on the next passes of the event loop.

    Args:
        function: an async callable of one item, of the library that is running. Each call is a task
            of its own, in a copy of the caller's context.
        items: any iterable or async iterable, also an endless one. An item is drawn when a slot is
            free for it. A generator is closed when the batch ends.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many are best.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once and is raised by the iterator, after the
            results that were there before it.
        preserve_order: hand out results in input order instead of completion order.
        {controls}

    Returns:
        The batch: an async context manager and an async iterator of :class:`ParallelResult`. While
        the consumer does not read, calls begun minus results handed out never exceed twice
        ``concurrency`` (eight times in input order). Nothing begins before it is entered.

    Raises:
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: a value is out of its range, or two options contradict each other.
        RuntimeError: called where neither asyncio nor trio is running.
    """
    return batch_of(
        map_plan(
            function,
            items,
            BatchOptions(
                concurrency=concurrency,
                return_exceptions=return_exceptions,
                preserve_order=preserve_order,
                controls=controls,
            ),
        )
    )


@with_controls(*ONLY_FOR_REQUESTS)
async def parallel_map(
    function: Callable[[ItemT], Awaitable[ValueT]],
    items: Source[ItemT],
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = True,
    **controls: Unpack[Controls],
) -> list[ParallelResult[ItemT, ValueT]]:
    """Await ``function(item)`` for every item, and return all results, in the order of the items.

    ::

        for url, result in zip(urls, await parallel_map(fetch, urls, concurrency=64)):
            print(url, result.unwrap())

    Args:
        function: an async callable of one item, of the library that is running. Each call is a task
            of its own, in a copy of the caller's context.
        items: any iterable or async iterable. An item is drawn when a slot is free for it. A
            generator is closed when the batch ends.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many are best.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once, and is raised.
        preserve_order: False: results in the order in which the calls ended.
        {controls}

    Returns:
        A :class:`ParallelResult` for each item.

    Raises:
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: a value is out of its range, or two options contradict each other.
        RuntimeError: called where neither asyncio nor trio is running.
        Exception: what ends the batch: the first error of a fail-fast batch, or what the source
            raised. The exception, also a cancellation, has the finished results in its attribute
            ``results``, unless its class defines that name: see :func:`results_of`.
    """
    plan = map_plan(
        function,
        items,
        BatchOptions(
            concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
        ),
    )
    return await collect(batch_of(plan), checked_flag("preserve_order", preserve_order))


@with_controls()
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
    """Send every request through a Router, and hand out each result as soon as it is there.

    ::

        async with iter_parallel_acompletions(router, requests, concurrency=64) as batch:
            async for result in batch:
                print(result.index, result.ok)

    In asyncio, ``async for result in iter_parallel_acompletions(…)`` works without the block;
    leaving that loop early cancels the calls on the next passes of the event loop.

    Args:
        router: a ``litellm.Router`` (anything with an asyncio ``acompletion`` method), or an async
            callable ``(model=, messages=, **kwargs)`` of the library that is running.
        requests: :class:`RouterParallelRequest` or mappings ``{"model", "messages", …}``, from any
            iterable or async iterable, also an endless one.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many the provider takes.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once and is raised by the iterator, after the
            results that were there before it.
        preserve_order: hand out results in input order instead of completion order.
        router_host: trio only: where a Router's asyncio code runs. ``"thread"``: on a plain asyncio
            loop in a helper thread that is kept for this trio run; ``"thread-uvloop"``: the same
            with uvloop; ``"trio-asyncio"``: on the loop of trio-asyncio that is open in this task;
            or what :func:`open_router_host` has returned. None: the host that was opened for this
            Router, else the loop of trio-asyncio if one is open, else ``"thread"``.
        {controls}

    Returns:
        The batch: an async context manager and an async iterator of :class:`RouterParallelResult`.
        While the consumer does not read, calls begun minus results handed out never exceed twice
        ``concurrency`` (eight times in input order). Nothing begins before it is entered.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests; nothing has been sent. A bad
            item of a lazy source becomes the result of its index, or the first error if fail-fast.
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: a value is out of its range, or two options contradict each other.
        RuntimeError: called where neither asyncio nor trio is running, or there is no such host.
    """
    return batch_of(
        completion_plan(
            call_for_this_library(router, router_host),
            requests,
            BatchOptions(
                concurrency=concurrency,
                return_exceptions=return_exceptions,
                preserve_order=preserve_order,
                controls=controls,
            ),
        )
    )


@with_controls()
async def parallel_acompletions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = True,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """Send every request through a Router, and return all results, in the order of the requests.

    ::

        results = await parallel_acompletions(router, requests, concurrency=64)
        for request, result in zip(requests, results):
            print(request, result.response if result.ok else result.exception)

    Args:
        router: a ``litellm.Router`` (anything with an asyncio ``acompletion`` method), or an async
            callable ``(model=, messages=, **kwargs)`` of the library that is running.
        requests: :class:`RouterParallelRequest` or mappings ``{"model", "messages", …}``, from any
            iterable or async iterable.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many the provider takes.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once, and is raised.
        preserve_order: False: results in the order in which the calls ended.
        router_host: trio only: where a Router's asyncio code runs. ``"thread"``: on a plain asyncio
            loop in a helper thread that is kept for this trio run; ``"thread-uvloop"``: the same
            with uvloop; ``"trio-asyncio"``: on the loop of trio-asyncio that is open in this task;
            or what :func:`open_router_host` has returned. None: the host that was opened for this
            Router, else the loop of trio-asyncio if one is open, else ``"thread"``.
        {controls}

    Returns:
        A :class:`RouterParallelResult` for each request.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests; nothing has been sent. A bad
            item of a lazy source becomes the result of its index, or the first error if fail-fast.
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: a value is out of its range, or two options contradict each other.
        RuntimeError: called where neither asyncio nor trio is running, or there is no such host.
        Exception: what ends the batch: the first error of a fail-fast batch, or what the source
            raised. The exception, also a cancellation, has the finished results in its attribute
            ``results``, unless its class defines that name: see :func:`results_of`.
    """
    plan = completion_plan(
        call_for_this_library(router, router_host),
        requests,
        BatchOptions(
            concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
        ),
    )
    return await collect(batch_of(plan), checked_flag("preserve_order", preserve_order))


@with_controls("hedge")
def iter_parallel_streams(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> ParallelBatch[StreamChunk | StreamEnd]:
    """Send every request as a stream, and merge the streams into one.

    ::

        async with iter_parallel_streams(router, requests) as batch:
            async for event in batch:
                if isinstance(event, StreamChunk):
                    print(event.index, event.text)
                else:
                    print(event.result.response, event.result.usage)

    Args:
        router: a ``litellm.Router`` (anything with an asyncio ``acompletion`` method), or an async
            callable ``(model=, messages=, **kwargs)`` of the library that is running, which returns
            an async iterator of chunks.
        requests: :class:`RouterParallelRequest` or mappings ``{"model", "messages", …}``, from any
            iterable or async iterable, also an endless one. ``stream=True`` is added, and
            ``stream_options={"include_usage": True}``, unless the request has that option.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many the provider takes.
        return_exceptions: True: a stream that fails ends in a :class:`StreamEnd` with the
            exception. False (fail-fast): the first error closes all other streams and is raised.
        router_host: trio only: where a Router's asyncio code runs. ``"thread"``: on a plain asyncio
            loop in a helper thread that is kept for this trio run; ``"thread-uvloop"``: the same
            with uvloop; ``"trio-asyncio"``: on the loop of trio-asyncio that is open in this task;
            or what :func:`open_router_host` has returned. None: the host that was opened for this
            Router, else the loop of trio-asyncio if one is open, else ``"thread"``.
        {controls}

    Returns:
        The batch: an async context manager and an async iterator of :class:`StreamChunk`, as soon
        as any stream has one, each stream's in its order, and of one :class:`StreamEnd` for each
        request. While the consumer does not read, twice ``concurrency`` chunks wait for it, and the
        streams wait: each in its turn, so that a long one does not delay the others. That time
        counts for a request's ``timeout``, and not for ``stall_timeout``.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests; nothing has been sent.
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: a value is out of its range, or two options contradict each other; ``hedge`` is
            given, whose two attempts would both give chunks.
        RuntimeError: called where neither asyncio nor trio is running, or there is no such host.
    """
    return batch_of(
        stream_plan(
            call_for_this_library(router, router_host),
            requests,
            BatchOptions(
                concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
            ),
        )
    )


@with_controls()
def parallel_completions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = True,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """Send every request through a Router, and return all results: the synchronous form.

    ::

        results = parallel_completions(router, requests, concurrency=64)

    Usable from plain code, and from a thread with a running loop (a notebook): the batch runs on an
    asyncio loop of its own in a helper thread, and the calling thread waits for it. Ctrl-C in the
    calling thread cancels every call and waits for it.

    Args:
        router: a ``litellm.Router`` (anything with an asyncio ``acompletion`` method), or an
            asyncio callable ``(model=, messages=, **kwargs)``.
        requests: :class:`RouterParallelRequest` or mappings ``{"model", "messages", …}``, from any
            iterable or async iterable. A lazy source is drawn in the helper thread: one that is
            bound to its thread (a cursor of sqlite3, say) has to be made a list first.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many the provider takes.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once, and is raised.
        preserve_order: False: results in the order in which the calls ended.
        {controls}

    Returns:
        A :class:`RouterParallelResult` for each request.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests; nothing has been sent. A bad
            item of a lazy source becomes the result of its index, or the first error if fail-fast.
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: a value is out of its range, or two options contradict each other.
        Exception: what ends the batch: the first error of a fail-fast batch, or what the source
            raised. The exception, also a KeyboardInterrupt, has the finished results in its
            attribute ``results``, unless its class defines that name: see :func:`results_of`.
    """
    plan = completion_plan(
        router_in_asyncio(router, None),
        requests,
        BatchOptions(
            concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
        ),
    )
    return run_in_thread(plan, preserve_order)


def stoppable_calls(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    options: BatchOptions,
    router_host: RouterHost | RouterHostName | None,
) -> ParallelBatch[RouterParallelResult]:
    """Return a batch for a run of a file.

    What is in flight and what has not been handed out are together no more than the concurrency:
    that much a crash may lose.
    """
    plan = completion_plan(call_for_this_library(router, router_host), requests, options)
    return batch_of(dataclasses.replace(plan, window=plan.concurrency))
