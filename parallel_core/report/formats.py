"""Readable numbers, times and names for the tables, the page and the pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from parallel_core.quantities import NOTHING, count, money, rate, seconds, span
from parallel_core.router import describe_finishes

from .model import ModelReport, Percentiles, RunReport, Timeline

UNKNOWN = "unknown"
ALL = "all"
MOST_KINDS_SHOWN = 6  # kinds of failures in a chart


def moment(value: float) -> str:
    """Format a time in UTC, so that a report does not depend on the local time zone."""
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a report.

    Attributes:
        title: title, with the unit.
        heads: column heads; the first ``names`` columns have text, the others numbers.
        rows: rows with one cell per head.
        names: number of columns with text.
        sums: number of rows at the end that are totals of all models.
    """

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    names: int = 1
    sums: int = 0


def tables(report: RunReport) -> list[Table]:
    """Return the tables of a report. With several models, the last rows are totals."""
    rows = [(model.model, model) for model in report.models]
    several = len(rows) > 1
    if several:
        rows.append((ALL, report.total))

    def table(
        title: str, heads: tuple[str, ...], cells: Callable[[ModelReport], tuple[str, ...]]
    ) -> Table:
        filled = [(name, *cells(model)) for name, model in rows]
        return Table(title, ("model", *heads), filled, sums=int(several))

    made = [
        table("Requests", ("requests", "ok", "failed", "calls", "attempts", "calls/s"), _requests)
    ]
    if report.failures:
        made.append(_failures(report))
    if report.failures and several:
        by_model: list[tuple[str, ...]] = [
            (name, kind, count(number))
            for name, model in rows[:-1]  # without the totals
            for kind, number in model.failures.items()
        ]
        made.append(
            Table("Failed requests of each model", ("model", "kind", "requests"), by_model, names=2)
        )
    if report.total.finish_reasons:
        finishes: list[tuple[str, ...]] = [
            (name, reason, count(number))
            for name, model in rows
            for reason, number in model.finish_reasons.items()
        ]
        sums = len(report.total.finish_reasons) if several else 0
        made.append(
            Table(
                "Finish reasons of answers",
                ("model", "finish reason", "answers"),
                finishes,
                names=2,
                sums=sums,
            )
        )
    heads = ("calls", "p50", "p95", "p99", "maximum")
    if report.total.latency is not None:
        made.append(
            table(
                "Latency of calls with an answer, seconds",
                heads,
                lambda model: _percentiles(model.latency),
            )
        )
    if report.total.first_chunk is not None:
        made.append(
            table(
                "Time to the first chunk, seconds",
                heads,
                lambda model: _percentiles(model.first_chunk),
            )
        )
    made.append(table("Tokens", ("prompt", "cached", "completion", "reasoning"), _tokens))
    if report.total.calls:
        made.append(table("Cost", ("USD", "USD per 1,000 answers", "calls without a price"), _cost))
    return made


def _failures(report: RunReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            failure.kind,
            failure.message or NOTHING,
            ", ".join(failure.custom_ids) or NOTHING,
            count(failure.requests),
        )
        for failure in report.failures
    ]
    return Table("Failed requests", ("kind", "message", "ids", "requests"), rows, names=3)


def facts(report: RunReport) -> list[tuple[str, str]]:
    """Return the facts about the run as a whole: pairs of name and value."""
    found: list[tuple[str, str]] = []
    if report.started_at is not None and report.ended_at is not None:
        found.append(("period", f"{moment(report.started_at)} to {moment(report.ended_at)}"))
        found.append(("active", _active(report)))
    if report.total.calls_per_second is not None:
        found.append(
            ("throughput", f"{rate(report.total.calls_per_second)} calls/s of active time")
        )
    if report.peak_in_flight:
        # A call that is sent again counts from its first attempt to the end of its last one.
        over = report.limit is not None and report.peak_in_flight > report.limit.maximum
        waits = ", including calls that waited to be sent again" if over else ""
        found.append(("in flight", f"{count(report.peak_in_flight)} at most{waits}"))
    unusual = describe_finishes(report.total.finish_reasons, report.total.without_text)
    if unusual:
        found.append(("answers", unusual))
    if report.limit is not None:
        limit = report.limit
        text = f"{limit.maximum:,}"
        if limit.changes or limit.minimum < limit.maximum:
            text = f"minimum {limit.minimum:,}, median {limit.median:,}, maximum {text}"
            text += f"; {limit.changes:,} change{'' if limit.changes == 1 else 's'}"
        found.append(("limit", text))
    return found


def _active(report: RunReport) -> str:
    text = span(report.active_seconds)
    pauses = report.timeline.pauses if report.timeline is not None else []
    if not pauses:
        return text
    left_out = span(sum(pause.seconds for pause in pauses))
    what = "1 pause" if len(pauses) == 1 else f"{len(pauses):,} pauses"
    return f"{text}, without {what} of {left_out} (over a minute with no call in flight)"


def _requests(model: ModelReport) -> tuple[str, ...]:
    measured = (
        (count(model.calls), count(model.attempts), rate(model.calls_per_second))
        if model.calls
        else (NOTHING,) * 3
    )
    return count(model.requests), count(model.ok), count(model.failed), *measured


def _percentiles(found: Percentiles | None) -> tuple[str, ...]:
    if found is None:
        return ("0", *(NOTHING,) * 4)
    values = (found.p50, found.p95, found.p99, found.maximum)
    return count(found.count), *(seconds(value) for value in values)


def _tokens(model: ModelReport) -> tuple[str, ...]:
    numbers = (
        model.prompt_tokens,
        model.cached_tokens,
        model.completion_tokens,
        model.reasoning_tokens,
    )
    return tuple(count(number) for number in numbers)


def cost(model: ModelReport) -> str:
    """Format the cost in USD of the calls whose price is known."""
    return UNKNOWN if model.unpriced_calls and not model.cost else money(model.cost)


def _cost(model: ModelReport) -> tuple[str, ...]:
    known = model.ok and cost(model) != UNKNOWN
    each = money(1000 * model.cost / model.ok) if known else NOTHING
    return cost(model), each, count(model.unpriced_calls)


def errors_to_show(course: Timeline) -> dict[str, list[int]]:
    """Return the failed calls of each part by kind: the most frequent kinds, and the sum of the
    others."""
    kinds = list(course.errors.items())
    if len(kinds) <= MOST_KINDS_SHOWN:
        return dict(kinds)
    shown = dict(kinds[: MOST_KINDS_SHOWN - 1])
    rest = [counts for _, counts in kinds[MOST_KINDS_SHOWN - 1 :]]
    shown["others"] = [sum(counts) for counts in zip(*rest, strict=True)]
    return shown
