"""Texts of snapshots: in few characters for the bar of a batch, in words for a run of a file."""

from __future__ import annotations

import math
from collections.abc import Sequence

from parallel_core.printable import printable_name
from parallel_core.quantities import clock, counted, money, short_count, short_money
from parallel_core.types import Usage

from .progress import Delay, Progress, Waiting

_MOST_LINES = 3  # endpoints in a list of waits, and reasons in a list of delays


def row_figures(progress: Progress) -> dict[str, str]:
    """Return the figures of a snapshot by name, for a row of 80 characters."""
    usage, budget = progress.usage, progress.budget
    rate, token_rate = measured_rates(progress)
    cost = short_money(usage.cost) if usage.cost else ""
    if budget is not None and budget.max_cost is not None:
        cost = f"{short_money(budget.spent_cost)} of {short_money(budget.max_cost)}"
    return {
        "done": f"{progress.done}" + ("" if progress.total is None else f"/{progress.total}"),
        "ok": f"{progress.succeeded} ok",
        "failed": f"{progress.failed} failed",
        "in_flight": f"{progress.in_flight} in flight",
        "rate": f"{rate:.1f}/s",
        "tokens": f"{short_count(usage.total_tokens)} tokens",
        "token_rate": f"{short_count(round(token_rate))} tok/s" if usage.total_tokens else "",
        "cost": cost,
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
    rate, token_rate = measured_rates(progress)
    figures = [
        f"in flight {progress.in_flight:,}/{progress.limit:,}",
        f"{rate:.1f} calls/s",
        f"{token_rate:,.0f} tokens/s",
        cost_of_budget(progress),
        "" if progress.finished else eta_in_words(progress),
    ]
    return [figure for figure in figures if figure]


def measured_rates(progress: Progress) -> tuple[float, float]:
    """Return calls and tokens per second: those of the whole batch once it has ended."""
    # The last snapshot shows the total time, so its rates are averages over the whole batch.
    if not progress.finished:
        return progress.rate, progress.token_rate
    if progress.elapsed <= 0:
        return 0.0, 0.0
    calls = progress.succeeded + progress.failed
    return calls / progress.elapsed, progress.usage.total_tokens / progress.elapsed


def eta_in_words(progress: Progress) -> str:
    """Return the remaining time with its range; empty if it is unknown."""
    if progress.eta is None:
        return ""
    eta = f"ETA {clock(progress.eta)}"
    if progress.eta_range is None:
        return eta
    shortest, longest = map(clock, progress.eta_range)
    return eta if shortest == longest else f"{eta} ({shortest} to {longest})"


def cost_of_budget(progress: Progress) -> str:
    """Return the cost of the calls, and of how much that is, if there is a budget."""
    budget = progress.budget
    if budget is None:
        return cost_in_words(progress.usage)
    parts: list[str] = []
    if budget.max_cost is None:
        parts.append(cost_in_words(progress.usage))
    else:
        parts.append(f"{money(budget.spent_cost)} of {budget.max_cost:,.10g} USD")
    if budget.max_tokens is not None:
        parts.append(f"{budget.spent_tokens:,} of {budget.max_tokens:,} tokens")
    return ", ".join(filter(None, parts))


def cost_in_words(usage: Usage) -> str:
    """Return the cost of calls; empty if they cost nothing."""
    if usage.known_cost is None:
        return "price unknown"
    if not usage.cost:
        return ""
    without = f" + {usage.unpriced_calls:,} without price" if usage.unpriced_calls else ""
    return f"{money(usage.cost)} USD{without}"


def held_up_in_words(progress: Progress) -> list[str]:
    """Describe what the calls of a batch wait for; nothing once it has ended."""
    if progress.finished:
        return []
    texts = [*describe_waiting(progress.waiting), *describe_delays(progress.delays)]
    return [printable_name(text) for text in texts]


def describe_waiting(waiting: Sequence[Waiting]) -> list[str]:
    """Describe what calls wait for: a text for each endpoint and reason."""
    found: dict[tuple[str, str], list[Waiting]] = {}
    for one in waiting:
        found.setdefault((one.endpoint or one.model or "", one.reason), []).append(one)
    return _first_of(
        [
            f"waiting for {whom}: {reason}, since {max(one.since for one in ones):,.0f} s, "
            f"{_next_try(ones)}"
            for (whom, reason), ones in found.items()
        ]
    )


def _next_try(waiting: Sequence[Waiting]) -> str:
    times = [one.next_try for one in waiting if one.next_try is not None]
    if len(times) < len(waiting):
        return "trying now"
    return f"next try in {math.ceil(min(times)):,} s"


def describe_delays(delays: Sequence[Delay]) -> list[str]:
    """Describe requests that wait although their model answers others: a text for each reason."""
    return _first_of([_describe_delay(delay) for delay in delays])


def _describe_delay(delay: Delay) -> str:
    verb = "waits" if delay.requests == 1 else "wait"
    match delay.reason:
        case "rate_limit":
            return f"{counted(delay.requests, 'call')} {verb} for the rate limit"
        case "budget":
            return f"{counted(delay.requests, 'call')} {verb} for room in the budget"
        case "overload":
            return f"the provider is overloaded: no new calls{_in(' for', delay.next_try)}"
        case "retry":
            first = _in(", the first in", delay.next_try)
            return f"{counted(delay.requests, 'request')} to send again{first}: {delay.cause}"


def _in(words: str, seconds: float | None) -> str:
    """Return the words and the seconds; nothing if the time has come, or is unknown."""
    return f"{words} {math.ceil(seconds):,} s" if seconds else ""


def _first_of(texts: list[str]) -> list[str]:
    more = len(texts) - _MOST_LINES
    return texts[:_MOST_LINES] + ([f"and {more:,} more"] if more > 0 else [])
