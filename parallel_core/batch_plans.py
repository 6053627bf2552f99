"""Check the arguments of a batch and make its plan, for trio and asyncio alike."""

from __future__ import annotations

import dataclasses
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sized,
)
from typing import Any, TypeAlias, cast

from .config import check_operation, unwrap_router
from .control import (
    AdaptiveConcurrency,
    BatchMeter,
    BatchOptions,
    Budget,
    CallTraits,
    Composition,
    Controls,
    ItemMeter,
    RouterMeter,
    check_controls,
    checked_callback,
    checked_concurrency,
    compose,
    most_calls,
    needs_tokens,
    warn_of_connections,
)
from .engine import BatchPlan, DrawOrder, ResultT
from .router import (
    CHUNKS_PER_SLOT,
    DirectCounts,
    RequestChecks,
    Streams,
    WorkerOptions,
    calls_run_in_workers,
    check_all,
    check_callable,
    check_models,
    completion_result,
    direct_lane,
    is_checked_as_a_whole,
    model_groups,
    parallel_limits,
    preparation,
    refuse_streams,
    request_call,
    require_choices,
    router_traits,
    stream_end,
)
from .types import (
    CHAT,
    ItemT,
    ParallelResult,
    RouterParallelRequest,
    RouterParallelResult,
    StreamChunk,
    StreamEnd,
    SupportsAcompletion,
    ValueT,
)

Source: TypeAlias = Iterable[ItemT] | AsyncIterable[ItemT]
Requests: TypeAlias = Source[RouterParallelRequest | Mapping[str, Any]]


def map_plan(
    function: Callable[[ItemT], Awaitable[ValueT]], items: Source[ItemT], options: BatchOptions
) -> BatchPlan[ParallelResult[ItemT, ValueT]]:
    """Check the arguments of a ``parallel_map`` and return its plan."""
    if not callable(function):
        raise TypeError(f"expected an async callable, not {type(function).__qualname__}")
    limit = checked_concurrency(options.concurrency)
    check_controls(options.controls)
    source = _checked_source(items, "items")
    _check_for_items(options.controls)

    def call(index: int, item: ItemT) -> Awaitable[ValueT]:
        return function(item)

    meter = options.controls.get("meter")
    traits = CallTraits(total=_length(source), meter=None if meter is None else ItemMeter(meter))
    result_type: Callable[..., ParallelResult[ItemT, ValueT]] = ParallelResult
    return _plan(compose(call, limit, options, traits), source, result_type, options)


def completion_plan(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    options: BatchOptions,
) -> BatchPlan[RouterParallelResult]:
    """Check the arguments of a ``parallel_acompletions`` and return its plan."""
    return _router_plan(router, requests, completion_result, options)


def operation_plan(
    router: object, requests: Requests, operation: str, options: BatchOptions
) -> BatchPlan[RouterParallelResult]:
    """Check the arguments of a ``parallel_calls`` and return its plan."""
    if operation != CHAT:
        check_operation(router, operation)
        _check_for_operation(options.controls, operation)
    return _router_plan(router, requests, completion_result, options, operation=operation)


def stream_plan(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    options: BatchOptions,
) -> BatchPlan[StreamChunk | StreamEnd]:
    """Check the arguments of an ``iter_parallel_streams`` and return its plan."""
    if options.controls.get("hedge") is not None:
        raise ValueError(
            "hedge cannot be used with iter_parallel_streams: both attempts would deliver chunks"
        )
    return _router_plan(router, requests, stream_end, options, streaming=True)


def _router_plan(
    router: object,
    requests: Requests,
    result_type: Callable[..., ResultT],
    options: BatchOptions,
    *,
    operation: str = CHAT,
    streaming: bool = False,
) -> BatchPlan[ResultT]:
    controls = options.controls
    limit = checked_concurrency(options.concurrency)
    check_controls(controls)
    in_workers = calls_run_in_workers(router)
    if in_workers and (streaming or controls.get("on_chunk") is not None):
        raise ValueError(
            f"{'iter_parallel_streams' if streaming else 'on_chunk'}: workers read the streams of "
            "their calls and send whole answers; use a Router of this process instead"
        )
    # The attempts of a hedged call share one timeout, so a single worker cannot apply it.
    timed_by_workers = in_workers and controls.get("hedge") is None
    direct = controls.get("direct", False)
    worker_options = None
    counts = DirectCounts() if in_workers else None
    if in_workers:
        stall_timeout, timeout = controls.get("stall_timeout"), controls.get("timeout")
        worker_options = WorkerOptions(stall_timeout, timeout, timed_by_workers, direct, counts)
    is_adaptive = isinstance(limit, AdaptiveConcurrency)
    retry = controls.get("retry", hasattr(router, "acompletion") or is_adaptive or None)
    lane = None if in_workers else direct_lane(router, direct)
    if operation == CHAT:
        check_callable(router)
    call = request_call(
        router,
        lane=lane,
        retried_by_us=retry is not None,
        attempt_timeout=controls.get("attempt_timeout"),
        worker_options=worker_options,
    )
    checks = RequestChecks(router, operation, streaming=streaming)
    check_all(requests, checks.problem_of)
    source = _checked_source(requests, "requests")
    check_models(controls.get("rate_limit"), router)
    meter = _meter(router, controls)
    _check_budget(controls.get("budget"), meter, requests, checks)
    limits: Mapping[str, int] = {}
    if isinstance(limit, AdaptiveConcurrency):
        limits = parallel_limits(router)
        limit = _within_parallel_limits(limit, router, limits)
    if not in_workers:
        warn_of_connections(most_calls(limit))
    streams = _streams(controls, meter, streaming, in_workers)
    answered = streams.wrap(refuse_streams(call))
    if hasattr(unwrap_router(router), "acompletion"):  # workers may call a function
        answered = require_choices(answered, meter)
    traits = CallTraits(
        total=_length(source),
        meter=meter,
        of_requests=True,
        timed_by_workers=timed_by_workers,
        parallel_limits=limits,
        router=router_traits(router),
    )
    plan = _plan(compose(answered, limit, options, traits), source, result_type, options)
    return dataclasses.replace(
        plan,
        call=streams.wrap_controls(plan.call),
        prepare=checks.as_request,
        attachments=[*plan.attachments, streams],
        waiting_chunks=CHUNKS_PER_SLOT * plan.concurrency if streaming else 0,
        before=None if in_workers else preparation(router),
        direct_counts=lane if counts is None else counts,
    )


def _meter(router: object, controls: Controls) -> BatchMeter:
    own, budget = controls.get("meter"), controls.get("budget")
    if own is not None:
        return ItemMeter(own)
    if budget is None:
        return RouterMeter(unwrap_router(router))
    return RouterMeter(unwrap_router(router), budget.prices, budget.assume_output_tokens)


def _check_budget(
    budget: Budget | None,
    meter: BatchMeter,
    requests: Requests,
    checks: RequestChecks,
) -> None:
    """Refuse requests with an unknown worst case, if all of them are known in advance."""
    if budget is not None and is_checked_as_a_whole(requests):
        given = cast("Iterable[object]", requests)
        budget.check(meter, [checks.as_request(index, item) for index, item in enumerate(given)])


def _streams(controls: Controls, meter: BatchMeter, streaming: bool, in_workers: bool) -> Streams:
    on_chunk = controls.get("on_chunk")
    return Streams(
        meter,
        all_of_them=streaming,
        emit=streaming,
        on_chunk=None if on_chunk is None else checked_callback("on_chunk", on_chunk),
        stall_timeout=None if in_workers else controls.get("stall_timeout"),
        read_by_workers=in_workers,
    )


def _plan(
    composed: Composition,
    source: Source[Any],
    result_type: Callable[..., ResultT],
    options: BatchOptions,
) -> BatchPlan[ResultT]:
    return BatchPlan(
        call=composed.call,
        source=source,
        result_type=result_type,
        concurrency=composed.concurrency,
        limit=composed.initial_limit,
        return_exceptions=options.return_exceptions,
        preserve_order=options.preserve_order,
        order=DrawOrder() if composed.order is None else composed.order,
        attachments=composed.attachments,
        tally=composed.tally,
        usage=composed.usage,
        limit_changes=composed.limit_changes,
        failed_deployments=composed.failed_deployments,
    )


def _length(source: object) -> int | None:
    """Return the length of a source if it is known in advance, else None."""
    if isinstance(source, AsyncIterable) or not isinstance(source, Sized):
        return None
    try:
        return len(source)
    except Exception:  # noqa: BLE001 - a progress bar around a generator may raise
        return None


def _check_for_items(controls: Controls) -> None:
    """Refuse controls that apply only to requests."""
    rate_limit = controls.get("rate_limit")
    if isinstance(rate_limit, Mapping):
        raise ValueError(  # noqa: TRY004 - the type is right for requests
            "rate_limit by model is for requests; items of parallel_map take one RateLimit"
        )
    for name in ("on_chunk", "stall_timeout"):
        if controls.get(name) is not None:
            raise ValueError(f"{name} is for streamed answers: items of parallel_map have none")
    if controls.get("direct"):
        raise ValueError("direct is for a Router: parallel_map calls a function")
    if controls.get("attempt_timeout") is not None:
        raise ValueError("attempt_timeout is for a Router; give parallel_map a timeout")
    if controls.get("fair_by") == "model":
        raise ValueError(
            "fair_by='model' is for requests; give a function of the item that returns its key"
        )
    if controls.get("meter") is None and (
        controls.get("budget") is not None or needs_tokens(rate_limit)
    ):
        raise ValueError(
            "budget and tokens_per_minute need to know what calls use: pass meter= to parallel_map"
        )


def _check_for_operation(controls: Controls, operation: str) -> None:
    """Refuse controls that apply only to chat."""
    for name in ("on_chunk", "stall_timeout"):
        if controls.get(name) is not None:
            raise ValueError(f"{name} is for streamed answers of chat: {operation} has none here")
    if controls.get("direct"):
        raise ValueError(f"direct is for chat: litellm makes the calls of {operation}")


def _within_parallel_limits(
    settings: AdaptiveConcurrency, router: object, limits: Mapping[str, int]
) -> AdaptiveConcurrency:
    """Lower the limits to the number of calls that all deployments of a Router take together."""
    if not limits or model_groups(router) - limits.keys():
        return settings
    maximum = min(settings.maximum, sum(limits.values()))
    return dataclasses.replace(
        settings,
        maximum=maximum,
        initial=min(settings.first_limit, maximum),
        minimum=min(settings.minimum, maximum),
    )


def _checked_source(source: Source[ItemT], name: str) -> Source[ItemT]:
    if not isinstance(cast("object", source), Iterable | AsyncIterable) and not hasattr(
        source,
        "__getitem__",  # enough for iter()
    ):
        raise TypeError(
            f"{name} must be an iterable or an async iterable, not {type(source).__qualname__}"
        )
    return source
