"""The functions that users call, defined once for trio, asyncio and synchronous code.

A function finds out which library is running: in asyncio it makes a batch of
:mod:`parallel_core.bridge`, in trio one of :mod:`parallel_core.nursery_engine`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Any, Final, TypeVar, Unpack

from anyio.from_thread import start_blocking_portal

from .batch_plans import Requests, Source, completion_plan, map_plan, stream_plan
from .bridge import AsyncioParallelBatch
from .control import BatchOptions, Concurrency, Controls, checked_flag
from .engine import BatchPlan, ParallelBatch, ResultT, attach_results, collect
from .event_loops import running_library
from .nursery_engine import TrioParallelBatch
from .router_hosts import (
    RouterHost,
    RouterHostName,
    enter_loop,
    leave_this_loop,
    plain_loop_factory,
    router_for_trio,
)
from .types import (
    ItemT,
    ParallelResult,
    RouterParallelResult,
    StreamChunk,
    StreamEnd,
    SupportsAcompletion,
    ValueT,
)


class StreamArguments(Controls, total=False):
    """The options of :func:`iter_parallel_streams`."""

    concurrency: Concurrency
    return_exceptions: bool
    router_host: RouterHost | RouterHostName | None


class BatchArguments(StreamArguments, total=False):
    """The options of :func:`parallel_acompletions` and :func:`iter_parallel_acompletions`."""

    preserve_order: bool


FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_ONLY_FOR_REQUESTS = ("attempt_timeout", "direct", "on_chunk", "stall_timeout")


def _with_controls(*without: str) -> Callable[[FunctionT], FunctionT]:
    """Write the controls, which all functions take, into the signature and the docstring of one.

    Args:
        without: controls that the function refuses.
    """

    def decorate(function: FunctionT) -> FunctionT:
        signature = inspect.signature(function)
        own = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        controls = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=_DEFAULTS.get(name),
                annotation=getattr(annotation, "__forward_arg__", annotation),
            )
            for name, annotation in Controls.__annotations__.items()
            if name not in without
        ]
        vars(function)["__signature__"] = signature.replace(parameters=[*own, *controls])
        if function.__doc__ and Controls.__doc__:
            # Clean: Python 3.13 takes the indentation out of docstrings, older ones do not.
            texts = inspect.cleandoc(Controls.__doc__).partition("Attributes:\n")[2]
            entries = re.split(r"\n(?=\w+: )", textwrap.dedent(texts))
            kept = [entry for entry in entries if entry.partition(":")[0] not in without]
            function.__doc__ = inspect.cleandoc(function.__doc__).replace(
                "    {controls}", textwrap.indent("\n".join(kept), "    ")
            )
        return function

    return decorate


# Controls whose default is not None. The default of `retry` depends on what the batch calls.
_DEFAULTS: Final[dict[str, object]] = {"progress": False, "retry": ..., "direct": False}


@_with_controls(*_ONLY_FOR_REQUESTS)
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
    return _batch_of(
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


@_with_controls(*_ONLY_FOR_REQUESTS)
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
    return await collect(_batch_of(plan), checked_flag("preserve_order", preserve_order))


@_with_controls()
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
    return _batch_of(
        completion_plan(
            _call_for_this_library(router, router_host),
            requests,
            BatchOptions(
                concurrency=concurrency,
                return_exceptions=return_exceptions,
                preserve_order=preserve_order,
                controls=controls,
            ),
        )
    )


@_with_controls()
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
        _call_for_this_library(router, router_host),
        requests,
        BatchOptions(
            concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
        ),
    )
    return await collect(_batch_of(plan), checked_flag("preserve_order", preserve_order))


@_with_controls("hedge")
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
    return _batch_of(
        stream_plan(
            _call_for_this_library(router, router_host),
            requests,
            BatchOptions(
                concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
            ),
        )
    )


@_with_controls()
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
        _router_in_asyncio(router, None),
        requests,
        BatchOptions(
            concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
        ),
    )

    batch = AsyncioParallelBatch(plan)
    in_order = checked_flag("preserve_order", preserve_order)
    results: list[RouterParallelResult] = []

    async def run() -> list[RouterParallelResult]:
        enter_loop(asyncio.get_running_loop())
        try:
            return await collect(batch, in_order, results)
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
    except KeyboardInterrupt as exception:  # Ctrl-C while this thread waited
        attach_results(exception, results, preserve_order)
        raise
    # A call has raised it, in the helper thread, where it has ended the loop.
    attach_results(interrupt, results, preserve_order)
    raise interrupt


def stoppable_completions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    options: BatchOptions,
    router_host: RouterHost | RouterHostName | None,
) -> ParallelBatch[RouterParallelResult]:
    """Return a batch for a run of a file.

    What is in flight and what has not been handed out are together no more than the concurrency:
    that much a crash may lose.
    """
    plan = completion_plan(_call_for_this_library(router, router_host), requests, options)
    return _batch_of(dataclasses.replace(plan, window=plan.concurrency))


def _is_for_trio() -> bool:
    """Return True if trio is running here, and False for asyncio.

    Raises:
        RuntimeError: neither is running.
    """
    library = running_library()
    if library is None:
        raise RuntimeError(
            "neither asyncio nor trio is running here: use asyncio.run or trio.run, or, for a "
            "Router in synchronous code, parallel_core.parallel_completions"
        )
    if library not in ("asyncio", "trio"):
        raise RuntimeError(f"parallel_core works in asyncio and trio, not in {library}")
    return library == "trio"


def _batch_of(plan: BatchPlan[ResultT]) -> ParallelBatch[ResultT]:
    return TrioParallelBatch(plan) if _is_for_trio() else AsyncioParallelBatch(plan)


def _call_for_this_library(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    router_host: RouterHost | RouterHostName | None,
) -> SupportsAcompletion | Callable[..., Awaitable[Any]]:
    """Return what makes the calls in the library that is running here."""
    here = router_for_trio if _is_for_trio() else _router_in_asyncio
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
