"""Texts of snapshots: in few characters for the bar of a batch, in words for a run of a file."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parallel_core.quantities import clock, money, short_count, short_money
from parallel_core.types import Usage

from .progress import Progress, Waiting

_MOST_WAITING = 3  # endpoints in a list of waits


def row_figures(progress: Progress) -> dict[str, str]:
    """Return the figures of a snapshot by name, for a row of 80 characters."""
    usage = progress.usage
    rate, token_rate = _rates(progress)
    return {
        "done": f"{progress.done}" + ("" if progress.total is None else f"/{progress.total}"),
        "ok": f"{progress.succeeded} ok",
        "failed": f"{progress.failed} failed",
        "in_flight": f"{progress.in_flight} in flight",
        "rate": f"{rate:.1f}/s",
        "tokens": f"{short_count(usage.total_tokens)} tokens",
        "token_rate": f"{short_count(round(token_rate))} tok/s" if usage.total_tokens else "",
        "cost": short_money(usage.cost) if usage.cost else "",
        "time": _time_in_a_row(progress),
    }


def _time_in_a_row(progress: Progress) -> str:
    if progress.finished:
        return f"in {clock(progress.elapsed)}"
    if progress.total is None:
        return clock(progress.elapsed)
    return "ETA -:--" if progress.eta is None else f"ETA {clock(progress.eta)}"


def figures_in_words(progress: Progress) -> list[str]:
    """Return what a snapshot says beside its counts: calls in flight, rates, cost and ETA."""
    rate, token_rate = _rates(progress)
    figures = [
        f"in flight {progress.in_flight}/{progress.limit}",
        f"{rate:.1f} calls/s",
        f"{token_rate:,.0f} tokens/s",
    ]
    if cost := cost_in_words(progress.usage):
        figures.append(cost)
    if progress.eta is not None and not progress.finished:
        figures.append(f"ETA {clock(progress.eta)}")
    return figures


def _rates(progress: Progress) -> tuple[float, float]:
    # The last snapshot shows the total time, so its rates are averages over the whole batch.
    if not progress.finished:
        return progress.rate, progress.token_rate
    if progress.elapsed <= 0:
        return 0.0, 0.0
    calls = progress.succeeded + progress.failed
    return calls / progress.elapsed, progress.usage.total_tokens / progress.elapsed


def cost_in_words(usage: Usage) -> str:
    """Return the cost of calls; empty if they cost nothing."""
    if usage.known_cost is None:
        return "price unknown"
    if not usage.cost:
        return ""
    without = f" + {usage.unpriced_calls:,} without price" if usage.unpriced_calls else ""
    return f"{money(usage.cost)} USD{without}"


def describe_waiting(waiting: Sequence[Waiting]) -> list[str]:
    """Describe what calls wait for: a text for each endpoint and reason."""
    found: dict[tuple[str, str], list[Waiting]] = {}
    for one in waiting:
        found.setdefault((one.endpoint or one.model or "", one.reason), []).append(one)
    texts = [
        f"waiting for {whom}: {reason}, since {max(one.since for one in ones):,.0f} s, "
        f"{_next_try(ones)}"
        for (whom, reason), ones in found.items()
    ]
    more = len(texts) - _MOST_WAITING
    return texts[:_MOST_WAITING] + ([f"and {more:,} more"] if more > 0 else [])


def _next_try(waiting: Sequence[Waiting]) -> str:
    times = [one.next_try for one in waiting if one.next_try is not None]
    if len(times) < len(waiting):
        return "trying now"
    return f"next try in {math.ceil(min(times)):,} s"
