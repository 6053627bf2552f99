"""Readable numbers, times and names for the tables, the page and the pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from parallel_core.quantities import NOTHING, count, money, rate, seconds, span
from parallel_core.router import describe_finishes

from .call_times import EXACT_CALLS
from .model import CallReport, ModelReport, Percentiles, RunReport

UNKNOWN = "unknown"
ALL = "all"
_MOST_WAITS = 50  # in the table; the charts show more

# Heads of the tables with a row for each model.
_REQUESTS = ("requests", "ok", "failed", "calls", "attempts", "calls/s")
_TIMES = ("calls", "p50", "p95", "p99", "maximum")
_TOKENS = ("prompt", "cached", "completion", "reasoning")
_COST = ("USD", "USD per 1,000 answers", "calls without a price")


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
        model, kind: numbers of the columns with the model and with the kind of failure; None if
            there is none.
        remark: text below the title.
    """

    title: str
    heads: tuple[str, ...]
    rows: list[tuple[str, ...]]
    names: int = 1
    sums: int = 0
    model: int | None = None
    kind: int | None = None
    remark: str = ""


def tables(report: RunReport) -> list[Table]:
    """Return the tables of a report. With several models, the last rows are totals."""
    total = report.total
    made = [_by_model(report, "Requests", _REQUESTS, _requests)]
    if report.failures:
        made.append(_failures(report))
        if len(report.models) > 1:
            made.append(_failures_by_model(report))
    if total.finish_reasons:
        made.append(_finishes(report))
    if total.latency is not None:
        title = "Latency of calls with an answer, seconds"
        made.append(_by_model(report, title, _TIMES, lambda model: _percentiles(model.latency)))
    if total.first_chunk is not None:
        title = "Time to the first chunk, seconds"
        made.append(_by_model(report, title, _TIMES, lambda model: _percentiles(model.first_chunk)))
    made.append(_by_model(report, "Tokens", _TOKENS, _tokens))
    if total.calls:
        made.append(_by_model(report, "Cost", _COST, _cost))
    return made


def page_tables(report: RunReport) -> list[Table]:
    """Return the tables of the page: those of the terminal, and some requests by their ids."""
    made = tables(report)
    if report.waits:
        made.append(_waits(report))
    if report.failed:
        shown, failed = len(report.failed), report.total.failed
        remark = "" if shown == failed else f"{shown:,} of {failed:,}, of each kind some."
        made.append(_calls("Failed requests by id", report.failed, remark))
    if report.slowest:
        remark = "Calls with and without an answer, of each model some."
        made.append(_calls("The slowest calls", report.slowest, remark))
    return made


def _rows(report: RunReport) -> list[tuple[str, ModelReport]]:
    """Return the models with their names; if there are several, the total is the last."""
    rows = [(model.model, model) for model in report.models]
    return [*rows, (ALL, report.total)] if len(rows) > 1 else rows


def _by_model(
    report: RunReport,
    title: str,
    heads: tuple[str, ...],
    cells: Callable[[ModelReport], tuple[str, ...]],
) -> Table:
    rows = [(name, *cells(model)) for name, model in _rows(report)]
    return Table(title, ("model", *heads), rows, sums=int(len(rows) > 1), model=0)


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
    return Table("Failed requests", ("kind", "message", "ids", "requests"), rows, names=3, kind=0)


def _failures_by_model(report: RunReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (model.model, kind, count(number))
        for model in report.models
        for kind, number in model.failures.items()
    ]
    heads = ("model", "kind", "requests")
    return Table("Failed requests of each model", heads, rows, names=2, model=0, kind=1)


def _finishes(report: RunReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (name, reason, count(number))
        for name, model in _rows(report)
        for reason, number in model.finish_reasons.items()
    ]
    heads = ("model", "finish reason", "answers")
    sums = len(report.total.finish_reasons) if len(report.models) > 1 else 0
    return Table("Finish reasons of answers", heads, rows, names=2, sums=sums, model=0)


def _waits(report: RunReport) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            wait.model,
            wait.reason,
            moment(wait.started_at),
            "no end recorded" if wait.seconds is None else span(wait.seconds),
        )
        for wait in reversed(report.waits[-_MOST_WAITS:])
    ]
    remark = "Times in which no call of a model got through, the last one first."
    heads = ("model", "reason", "from", "for")
    return Table("Waits", heads, rows, names=2, model=0, remark=remark)


def _calls(title: str, calls: list[CallReport], remark: str) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            call.custom_id,
            call.model,
            call.kind or "ok",
            NOTHING if call.started_at is None else moment(call.started_at),
            NOTHING if call.attempts is None else count(call.attempts),
            seconds(call.seconds),
        )
        for call in calls
    ]
    heads = ("id", "model", "ended as", "began", "attempts", "seconds")
    return Table(title, heads, rows, names=3, model=1, kind=2, remark=remark)


def cards(total: ModelReport) -> list[tuple[str, str]]:
    """Return the most important numbers: pairs of name and value."""
    found = [
        ("requests", count(total.requests)),
        ("ok", count(total.ok)),
        ("failed", count(total.failed)),
    ]
    if total.calls_per_second is not None:
        found.append(("calls/s", rate(total.calls_per_second)))
    if total.latency is not None:
        found.append(("p50, seconds", seconds(total.latency.p50)))
        found.append(("p95, seconds", seconds(total.latency.p95)))
    if total.calls:
        found.append(("cost, USD", cost(total)))
    return found


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
        about = "about " if report.total.calls > EXACT_CALLS else ""
        found.append(("in flight", f"{about}{count(report.peak_in_flight)} at most{waits}"))
    unusual = describe_finishes(report.total.finish_reasons, report.total.without_text)
    if unusual:
        found.append(("answers", unusual))
    if report.waits:
        found.append(("waits", _waits_together(report)))
    if report.limit is not None:
        limit = report.limit
        text = f"{limit.maximum:,}"
        if limit.changes or limit.minimum < limit.maximum:
            text = f"minimum {limit.minimum:,}, median {limit.median:,}, maximum {text}"
            text += f"; {limit.changes:,} change{'' if limit.changes == 1 else 's'}"
        found.append(("limit", text))
    return found


def _waits_together(report: RunReport) -> str:
    ended = [wait.seconds for wait in report.waits if wait.seconds is not None]
    text = f"{count(len(report.waits))}, together {span(sum(ended))}"
    others = len(report.waits) - len(ended)
    return f"{text}, and {count(others)} without a recorded end" if others else text


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
