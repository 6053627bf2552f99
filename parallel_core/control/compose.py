"""Combine the controls of a batch."""

from __future__ import annotations

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
from .retry import NO_ROUTER, Retry, Retrying, RouterTraits
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTraits:
    """Facts about the calls of a batch, besides its options.

    Attributes:
        total: number of calls; None if unknown.
        meter: reports the usage of calls; None if nothing can.
        of_requests: the items are requests, with a model and possibly a timeout.
        timed_elsewhere: the workers that make the calls apply the timeouts.
        may_reject: calls in flight, by model, above which the Router itself rejects.
        router: facts about the Router or callable that makes the calls.
    """

    total: int | None = None
    meter: BatchMeter | None = None
    of_requests: bool = False
    timed_elsewhere: bool = False
    may_reject: Mapping[str, int] = field(default_factory=dict[str, int])
    router: RouterTraits = NO_ROUTER


def compose(
    call: Call, concurrency: int | AdaptiveConcurrency, options: BatchOptions, traits: CallTraits
) -> Composition:
    """Wrap a call in its controls, in the required order.

    From the outside: the total timeout; the attempts; budget and rate limit, for which a call
    waits; then, around what is really sent, the timeout, the hedge, the watch of adaptive
    concurrency, and the limit of a deployment that rejects calls instead of queueing them.
    """
    controls, stopping, meter = options.controls, options.stopping, traits.meter
    settings = concurrency if isinstance(concurrency, AdaptiveConcurrency) else None
    most = settings.maximum if settings is not None else concurrency
    assert isinstance(most, int)
    composition = Composition(call, most, most)
    if meter is not None:
        composition.tally = tally = UsageTally(meter)
        composition.usage = tally.usage

    fair_by = controls.get("fair_by")
    queue = None
    if fair_by is not None:
        look_ahead = max(_LEAST_LOOK_AHEAD, _LOOK_AHEAD * most)
        queue = FairQueue(fair_key(fair_by), controls.get("concurrency_per_key"), look_ahead)
        composition.order = queue

    adaptation = None
    is_retried = traits.router.is_router or settings is not None
    retry = controls.get("retry", Retry() if is_retried else None)
    retrying = None
    if retry is not None:
        keyed: FairQueue | FirstInFirstOut | None = queue if fair_by == "model" else None
        if queue is None:
            composition.order = keyed = FirstInFirstOut(_HELD * most)
        retrying = Retrying(
            retry,
            concurrency=most,
            model_of=_model_of,
            timeout_of=_timeout_of(controls.get("timeout")),
            order=None if settings is not None else keyed,
            adaptive=settings is not None,
            dooms=traits.of_requests,
            router=traits.router,
        )
    bar, callback = controls.get("progress", False), controls.get("on_progress")
    progress = None
    if bar or callback is not None:
        progress = ProgressWatch(
            bar=bar,
            callback=callback,
            total=traits.total,
            waiting=_no_waiting if retrying is None else retrying.waiting,
        )
        composition.call = progress.watch(composition.call)
    if stopping is not None:
        composition.call = stopping.watch(composition.call)
    if traits.may_reject:
        composition.call = _limit_calls_per_model(composition.call, traits.may_reject)
    if settings is not None:
        failed_attempts = _never_failed if retrying is None else retrying.failed_attempts
        adaptation = _adaptation(settings, fair_by, queue, failed_attempts)
        if retrying is not None:
            retrying.held_until = adaptation.held_until
            retrying.end_hold = adaptation.end_hold
        composition.initial_limit = adaptation.first_limit
        composition.call = adaptation.watch(composition.call)
        composition.limit_changes = lambda: adaptation.changes
        composition.attachments.append(adaptation)
    _wrap_sent_call(composition, controls, traits)
    if adaptation is not None:
        composition.call = adaptation.watch_timeouts(composition.call)
    if retrying is not None:
        composition.call = retrying.wrap(composition.call)
        composition.attachments.append(retrying)
        composition.failed_deployments = retrying.failed_deployments
    total_timeout = controls.get("total_timeout")
    if total_timeout is not None:
        control = TotalTimeout(
            total_timeout, fail_fast=not options.return_exceptions, total=traits.total
        )
        composition.call = control.wrap(composition.call)
        composition.attachments.append(control)
    if stopping is not None:
        composition.call = stopping.wrap(composition.call)
        composition.attachments.append(stopping)
    if progress is not None:
        composition.attachments.append(progress)
    return composition


def _adaptation(
    settings: AdaptiveConcurrency,
    fair_by: object,
    queue: FairQueue | None,
    failed_attempts: Callable[[int], int],
) -> Adaptation:
    """Return one adaptive limit for the batch, or one for each key."""
    if queue is None:
        return Adaptation(settings, failed_attempts=failed_attempts)
    # Providers count per model. What the keys of a function share is unknown.
    adaptation = Adaptation(
        settings, queue, apart=fair_by == "model", failed_attempts=failed_attempts
    )
    queue.allowed = adaptation.allowed
    return adaptation


def _wrap_sent_call(
    composition: Composition,
    controls: Controls,
    traits: CallTraits,
) -> None:
    call, meter = composition.call, traits.meter
    budget, rate_limit = controls.get("budget"), controls.get("rate_limit")
    admission = None
    if budget is not None or rate_limit is not None:
        admission = Admission(budget=budget, rate_limit=rate_limit, meter=meter, model_of=_model_of)
    hedge = controls.get("hedge")
    if hedge is not None:
        hedging = Hedging(hedge, None if admission is None else admission.try_extra)
        composition.attachments.append(hedging)
        call = hedging.wrap(call)
    has_timeouts = traits.of_requests or controls.get("timeout") is not None
    if has_timeouts and not traits.timed_elsewhere:
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


def _limit_calls_per_model(call: Call, places: Mapping[str, int]) -> Call:
    """Make calls wait for a deployment that rejects calls above a limit."""
    limiters: dict[str, anyio.CapacityLimiter] = {}

    async def placed(index: int, item: Any) -> Any:
        model = _model_of(item)
        if model is None or model not in places:
            return await call(index, item)
        if model not in limiters:
            limiters[model] = anyio.CapacityLimiter(places[model])
        async with limiters[model]:
            return await call(index, item)

    return placed


def needs_tokens(rate_limit: RateLimit | Mapping[str, RateLimit] | None) -> bool:
    """Return True if a rate limit counts tokens."""
    if rate_limit is None:
        return False
    limits = rate_limit.values() if isinstance(rate_limit, Mapping) else [rate_limit]
    return any(limit.tokens_per_minute is not None for limit in limits)
