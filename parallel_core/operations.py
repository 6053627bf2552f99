"""The functions for operations of a Router other than chat: embeddings, responses, reranking, …

They are the functions of :mod:`parallel_core.api` with the name of the Router's method.
"""

from __future__ import annotations

from typing import Final, Unpack

from .batch_plans import Requests, operation_plan
from .control import BatchOptions, Concurrency, Controls, checked_flag
from .engine import ParallelBatch, collect
from .entry import (
    batch_of,
    call_for_this_library,
    router_in_asyncio,
    run_in_thread,
    with_controls,
)
from .router_hosts import RouterHost, RouterHostName
from .types import RouterParallelResult

_ONLY_FOR_CHAT: Final = ("direct", "on_chunk", "stall_timeout")


@with_controls(*_ONLY_FOR_CHAT)
def iter_parallel_calls(
    router: object,
    requests: Requests,
    *,
    operation: str = "aembedding",
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> ParallelBatch[RouterParallelResult]:
    """Call a method of a Router for every request, and hand out each result at once.

    ::

        requests = ({"model": "small", "input": [text]} for text in texts)
        async with iter_parallel_calls(router, requests, operation="aembedding") as batch:
            async for result in batch:
                print(result.index, result.response if result.ok else result.exception)

    A result is that of a chat: ``response`` is what the method returned, and ``request`` has its
    arguments (``result.request.arguments``). Whether an answer is good is the caller's to judge;
    an embedding, which has no choices, is no failure.

    Args:
        router: a ``litellm.Router``, or any object with such a method. An object without
            ``acompletion`` is no Router: its method gets the arguments of a request only, in trio
            it is trio code, and by default nothing is sent again.
        requests: mappings of the method's arguments, with ``model``, from any iterable or async
            iterable, also an endless one; or :class:`RouterParallelRequest` with these arguments
            in ``kwargs``. ``timeout`` is the limit in seconds for the whole call.
        operation: name of the method, for instance ``"aembedding"``, ``"aresponses"``,
            ``"atext_completion"``, ``"amoderation"``, ``"arerank"``, ``"aimage_generation"`` or
            ``"atranscription"``: any async method that the Router has. With ``"acompletion"`` the
            function is :func:`parallel_acompletions`.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many the provider takes.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once and is raised by the iterator, after the
            results that were there before it.
        preserve_order: hand out results in input order instead of completion order.
        router_host: trio only: where a Router's asyncio code runs, as in
            :func:`parallel_acompletions`.
        {controls}

    Returns:
        The batch, as :func:`iter_parallel_acompletions` returns it.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests: one is no mapping, has no
            model, names a model that the Router does not have, or asks for a stream. Nothing has
            been sent. A bad item of a lazy source becomes the result of its index, or the first
            error if fail-fast.
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: the Router has no such operation (the message names those it has), a value
            is out of its range, or two options contradict each other.
        RuntimeError: called where neither asyncio nor trio is running, or there is no such host.
    """
    return batch_of(
        operation_plan(
            call_for_this_library(router, router_host),
            requests,
            operation,
            BatchOptions(
                concurrency=concurrency,
                return_exceptions=return_exceptions,
                preserve_order=preserve_order,
                controls=controls,
            ),
        )
    )


@with_controls(*_ONLY_FOR_CHAT)
async def parallel_calls(
    router: object,
    requests: Requests,
    *,
    operation: str = "aembedding",
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = True,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """Call a method of a Router for every request, and return all results, in their order.

    ::

        requests = [{"model": "small", "input": [text]} for text in texts]
        for result in await parallel_calls(router, requests, operation="aembedding"):
            print(result.unwrap().data[0]["embedding"])

    A result is that of a chat: ``response`` is what the method returned, and ``request`` has its
    arguments (``result.request.arguments``). Whether an answer is good is the caller's to judge;
    an embedding, which has no choices, is no failure.

    Args:
        router: a ``litellm.Router``, or any object with such a method. An object without
            ``acompletion`` is no Router: its method gets the arguments of a request only, in trio
            it is trio code, and by default nothing is sent again.
        requests: mappings of the method's arguments, with ``model``, from any iterable or async
            iterable; or :class:`RouterParallelRequest` with these arguments in ``kwargs``.
            ``timeout`` is the limit in seconds for the whole call.
        operation: name of the method, for instance ``"aembedding"``, ``"aresponses"``,
            ``"atext_completion"``, ``"amoderation"``, ``"arerank"``, ``"aimage_generation"`` or
            ``"atranscription"``: any async method that the Router has. With ``"acompletion"`` the
            function is :func:`parallel_acompletions`.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many the provider takes.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once, and is raised.
        preserve_order: False: results in the order in which the calls ended.
        router_host: trio only: where a Router's asyncio code runs, as in
            :func:`parallel_acompletions`.
        {controls}

    Returns:
        A :class:`RouterParallelResult` for each request.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests: one is no mapping, has no
            model, names a model that the Router does not have, or asks for a stream. Nothing has
            been sent. A bad item of a lazy source becomes the result of its index, or the first
            error if fail-fast.
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: the Router has no such operation (the message names those it has), a value
            is out of its range, or two options contradict each other.
        RuntimeError: called where neither asyncio nor trio is running, or there is no such host.
        Exception: what ends the batch: the first error of a fail-fast batch, or what the source
            raised. The exception, also a cancellation, has the finished results in its attribute
            ``results``, unless its class defines that name: see :func:`results_of`.
    """
    plan = operation_plan(
        call_for_this_library(router, router_host),
        requests,
        operation,
        BatchOptions(
            concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
        ),
    )
    return await collect(batch_of(plan), checked_flag("preserve_order", preserve_order))


@with_controls(*_ONLY_FOR_CHAT)
def parallel_calls_sync(
    router: object,
    requests: Requests,
    *,
    operation: str = "aembedding",
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = True,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """Call a method of a Router for every request, and return all results: the synchronous form.

    ::

        results = parallel_calls_sync(router, requests, operation="arerank")

    It runs where :func:`parallel_completions` does, and in the same way: on an asyncio loop of its
    own in a helper thread.

    Args:
        router: a ``litellm.Router``, or any object with such a method. An object without
            ``acompletion`` is no Router: its method gets the arguments of a request only, and
            by default nothing is sent again.
        requests: mappings of the method's arguments, with ``model``, from any iterable or async
            iterable; or :class:`RouterParallelRequest` with these arguments in ``kwargs``.
            ``timeout`` is the limit in seconds for the whole call. A lazy source is drawn in the
            helper thread.
        operation: name of the method, for instance ``"aembedding"``, ``"aresponses"``,
            ``"atext_completion"``, ``"amoderation"``, ``"arerank"``, ``"aimage_generation"`` or
            ``"atranscription"``: any async method that the Router has. With ``"acompletion"`` the
            function is :func:`parallel_acompletions`.
        concurrency: calls in flight at most (an integer from 1), ``"auto"``, or an
            :class:`AdaptiveConcurrency`, which find out how many the provider takes.
        return_exceptions: True: an exception of a call becomes its result. False (fail-fast): the
            first error cancels all other calls at once, and is raised.
        preserve_order: False: results in the order in which the calls ended.
        {controls}

    Returns:
        A :class:`RouterParallelResult` for each request.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests: one is no mapping, has no
            model, names a model that the Router does not have, or asks for a stream. Nothing has
            been sent. A bad item of a lazy source becomes the result of its index, or the first
            error if fail-fast.
        TypeError: an argument has the wrong type, or there is no such option.
        ValueError: the Router has no such operation (the message names those it has), a value
            is out of its range, or two options contradict each other.
        Exception: what ends the batch: the first error of a fail-fast batch, or what the source
            raised. The exception, also a KeyboardInterrupt, has the finished results in its
            attribute ``results``, unless its class defines that name: see :func:`results_of`.
    """
    plan = operation_plan(
        router_in_asyncio(router, None),
        requests,
        operation,
        BatchOptions(
            concurrency=concurrency, return_exceptions=return_exceptions, controls=controls
        ),
    )
    return run_in_thread(plan, preserve_order)
