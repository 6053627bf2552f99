"""Combine the controls of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from parallel_core.types import RouterParallelRequest, Usage

from .adaptive import Adaptation
from .adaptive_limit import AdaptiveConcurrency, LimitChange
from .admission import Admission
from .call import Call
from .fairness import FairQueue, FirstInFirstOut, fair_key
from .hedge import Hedging
from .metering import BatchMeter
from .options import BatchOptions, Controls
from .progress import Waiting
from .protocols import Attachment
from .rate_limit import RateLimit
from .retry import Retry, Retrying, RouterTraits
from .timeout import Timeouts, TotalTimeout
from .watching import ProgressWatch, UsageTally

# Requests drawn ahead for fairness: a multiple of the concurrency, and a minimum.
_LOOK_AHEAD = 16
_LEAST_LOOK_AHEAD = 1024
# Requests that may be held back while their model is held, as a multiple of the concurrency.
_HELD = 16


@dataclass
class Composition:
    """A call with its controls, and what the controls need from the engine."""

    call: Call
    concurrency: int
    initial_limit: int
    order: FairQueue | FirstInFirstOut | None = None
    attachments: list[Attachment] = field(default_factory=list[Attachment])
    tally: UsageTally | None = None
    usage: Callable[[], Usage] = Usage
    limit_changes: Callable[[], list[LimitChange]] = list
    failed_deployments: Callable[[], dict[str, str]] = dict

    def add(self, control: Attachment, wrap: Callable[[Call], Call]) -> None:
        """Wrap the call so far in a control that the engine begins and ends."""
        self.call = wrap(self.call)
        self.attachments.append(control)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTraits:
    """Facts about the calls of a batch, besides its options.

    Attributes:
        total: number of calls; None if unknown.
        meter: reports the usage of calls; None if nothing can.
        of_requests: the items are requests, with a model and possibly a timeout.
        timed_by_workers: the workers that make the calls apply the timeouts.
        parallel_limits: calls in flight, by model, above which the Router itself rejects.
        router: facts about the Router or callable that makes the calls.
    """

    total: int | None = None
    meter: BatchMeter | None = None
    of_requests: bool = False
    timed_by_workers: bool = False
    parallel_limits: Mapping[str, int] = field(default_factory=dict[str, int])
    router: RouterTraits = field(default_factory=RouterTraits)


def compose(
    call: Call, concurrency: int | AdaptiveConcurrency, options: BatchOptions, traits: CallTraits
) -> Composition:
    """Wrap a call in its controls, in the required order.

    From the outside: the total timeout; the attempts; budget and rate limit, for which a call
    waits; then, around what is really sent, the timeout, the hedge, the watch of adaptive
    concurrency, and the limit of a deployment that rejects calls instead of queueing them.
    """
    controls, stopping = options.controls, options.stop_control
    most = concurrency.maximum if isinstance(concurrency, AdaptiveConcurrency) else concurrency
    composition = Composition(call, most, most)
    if traits.meter is not None:
        composition.tally = tally = UsageTally(traits.meter)
        composition.usage = tally.usage
    composition.order = queue = _fair_queue(controls, most)
    retrying = _retrying(composition, concurrency, queue, controls, traits)
    progress = _progress(controls, traits, retrying)
    adaptation = None
    if isinstance(concurrency, AdaptiveConcurrency):
        adaptation = _adaptation(composition, concurrency, queue, controls, retrying)

    # 1. What is really sent.
    if progress is not None:
        composition.call = progress.watch(composition.call)
    if stopping is not None:
        composition.call = stopping.watch(composition.call)
    if traits.parallel_limits:
        composition.call = _limit_calls_per_model(composition.call, traits.parallel_limits)
    if adaptation is not None:
        composition.add(adaptation, adaptation.watch)
        if progress is not None:
            progress.delays.append(adaptation.delays)
    _wrap_sent_call(composition, controls, traits, progress)
    if adaptation is not None:
        composition.call = adaptation.watch_timeouts(composition.call)

    # 2. The attempts of a request, and the batch.
    if retrying is not None:
        composition.add(retrying, retrying.wrap)
    seconds = controls.get("total_timeout")
    if seconds is not None:
        fail_fast = not options.return_exceptions
        total_timeout = TotalTimeout(seconds, fail_fast=fail_fast, total=traits.total)
        composition.add(total_timeout, total_timeout.wrap)
    if stopping is not None:
        composition.add(stopping, stopping.wrap)
    if progress is not None:
        composition.attachments.append(progress)
    return composition


def _fair_queue(controls: Controls, most: int) -> FairQueue | None:
    fair_by = controls.get("fair_by")
    if fair_by is None:
        return None
    look_ahead = max(_LEAST_LOOK_AHEAD, _LOOK_AHEAD * most)
    return FairQueue(fair_key(fair_by), controls.get("concurrency_per_key"), look_ahead)


def _retrying(
    composition: Composition,
    concurrency: int | AdaptiveConcurrency,
    queue: FairQueue | None,
    controls: Controls,
    traits: CallTraits,
) -> Retrying | None:
    """Return the retries of the batch. Without fairness, they need an order that holds models."""
    is_adaptive = isinstance(concurrency, AdaptiveConcurrency)
    is_retried = traits.router.is_router or is_adaptive
    retry = controls.get("retry", Retry() if is_retried else None)
    if retry is None:
        return None
    by_model: FairQueue | FirstInFirstOut | None = queue
    if queue is None:
        composition.order = by_model = FirstInFirstOut(_HELD * composition.concurrency)
    elif controls.get("fair_by") != "model":
        by_model = None
    retrying = Retrying(
        retry,
        concurrency=composition.concurrency,
        model_of=_model_of,
        timeout_of=_timeout_of(controls.get("timeout")),
        # The adaptive limits of keys hold requests back in the queue themselves.
        order=None if is_adaptive and queue is not None else by_model,
        adaptive=is_adaptive,
        dooms=traits.of_requests,
        router=traits.router,
    )
    composition.failed_deployments = retrying.failed_deployments
    return retrying


def _progress(
    controls: Controls, traits: CallTraits, retrying: Retrying | None
) -> ProgressWatch | None:
    bar, callback = controls.get("progress", False), controls.get("on_progress")
    if not bar and callback is None:
        return None
    progress = ProgressWatch(
        bar=bar,
        callback=callback,
        total=traits.total,
        waiting=_no_waiting if retrying is None else retrying.waiting,
        budget=controls.get("budget"),
    )
    if retrying is not None:
        progress.delays.append(retrying.delays)
    return progress


def _adaptation(
    composition: Composition,
    settings: AdaptiveConcurrency,
    queue: FairQueue | None,
    controls: Controls,
    retrying: Retrying | None,
) -> Adaptation:
    """Return one adaptive limit for the batch, or one for each key of fairness."""
    failed_attempts = _never_failed if retrying is None else retrying.failed_attempts
    # Providers count per model. What the keys of a function share is unknown.
    apart = queue is not None and controls.get("fair_by") == "model"
    adaptation = Adaptation(
        settings,
        queue,
        apart=apart,
        failed_attempts=failed_attempts,
        longest_wait=math.inf if retrying is None else retrying.max_wait,
    )
    if queue is not None:
        queue.allowed = adaptation.allowed
    if retrying is not None:
        retrying.held_until = adaptation.held_until
        retrying.end_hold = adaptation.end_hold
    composition.initial_limit = adaptation.first_limit
    composition.limit_changes = lambda: adaptation.changes
    return adaptation


def _wrap_sent_call(
    composition: Composition,
    controls: Controls,
    traits: CallTraits,
    progress: ProgressWatch | None,
) -> None:
    call, meter = composition.call, traits.meter
    budget, rate_limit = controls.get("budget"), controls.get("rate_limit")
    admission = None
    if budget is not None or rate_limit is not None:
        admission = Admission(budget=budget, rate_limit=rate_limit, meter=meter, model_of=_model_of)
        if progress is not None:
            progress.delays.append(admission.delays)
    hedge = controls.get("hedge")
    if hedge is not None:
        hedging = Hedging(hedge, None if admission is None else admission.try_extra)
        composition.attachments.append(hedging)
        call = hedging.wrap(call)
    has_timeouts = traits.of_requests or controls.get("timeout") is not None
    if has_timeouts and not traits.timed_by_workers:
        timeouts = Timeouts(controls.get("timeout"))
        composition.attachments.append(timeouts)
        call = timeouts.wrap(call)
    composition.call = call if admission is None else admission.wrap(call)


def _model_of(item: Any) -> str | None:
    return item.model if isinstance(item, RouterParallelRequest) else None


def _never_failed(index: int) -> int:
    return 0


def _no_waiting(now: float) -> tuple[Waiting, ...]:
    return ()


def _timeout_of(seconds: float | None) -> Callable[[Any], float | None]:
    def timeout_of(item: Any) -> float | None:
        own = item.timeout if isinstance(item, RouterParallelRequest) else None
        return seconds if own is None else own

    return timeout_of


def _limit_calls_per_model(call: Call, limits: Mapping[str, int]) -> Call:
    """Make calls wait for a deployment that rejects calls above a limit."""
    limiters: dict[str, anyio.CapacityLimiter] = {}

    async def limited(index: int, item: Any) -> Any:
        model = _model_of(item)
        if model is None or model not in limits:
            return await call(index, item)
        if model not in limiters:
            limiters[model] = anyio.CapacityLimiter(limits[model])
        async with limiters[model]:
            return await call(index, item)

    return limited


def needs_tokens(rate_limit: RateLimit | Mapping[str, RateLimit] | None) -> bool:
    """Return True if a rate limit counts tokens."""
    if rate_limit is None:
        return False
    limits = rate_limit.values() if isinstance(rate_limit, Mapping) else [rate_limit]
    return any(limit.tokens_per_minute is not None for limit in limits)
