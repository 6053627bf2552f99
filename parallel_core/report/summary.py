"""Compute the report of a run from its records."""

from __future__ import annotations

import itertools
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable

from .model import (
    FailureReport,
    Histogram,
    LimitReport,
    ModelReport,
    Percentiles,
    RunReport,
    Timeline,
)
from .records import NO_FINISH, OK, Records, Tally, shown_name
from .times import active_time, limit_report, peak_in_flight, timeline

_SHORTEST = 1e-4  # seconds; the histogram counts shorter calls as this
_BINS_PER_DECADE = (10, 20, 40)
_ENOUGH_BINS = 18
_MOST_IDS = 3


def report_of(records: Records, name: str) -> RunReport:
    """Return the report of a run. This consumes the records."""
    outcomes = _outcomes(records)
    finishes, without_text = _finishes(records)
    failed_ids = _failed_ids(records)
    # Free the largest part of the memory; it is not needed any more.
    records.last.clear()
    seconds, peak = 0.0, 0
    began: float | None = None
    ended: float | None = None
    limit: LimitReport | None = None
    course: Timeline | None = None
    found = active_time(records)
    if found is not None:
        time, starts, ends = found
        seconds, peak = time.seconds, peak_in_flight(starts, ends)
        began, ended = time.began, time.ended
        limit = limit_report(records.limits, time)
        course = timeline(records, time, starts, ends)
        del starts, ends, found
    calls: Counter[int] = Counter()
    latencies: defaultdict[int, array[float]] = defaultdict(lambda: array("d"))
    for model, kind, duration in zip(records.model, records.kind, records.duration, strict=True):
        if not math.isnan(duration):
            calls[model] += 1
            if kind == OK:
                latencies[model].append(duration)
    models = [
        _model_report(
            records.models.names[model],
            {kind: count for (of, kind), count in outcomes.items() if of == model},
            records.kinds.names,
            {reason: count for (of, reason), count in finishes.items() if of == model},
            without_text[model],
            calls[model],
            seconds,
            latencies[model],
            tally,
        )
        for model, tally in records.tallies.items()
    ]
    models.sort(key=lambda report: (-report.requests, report.model))
    everything: Counter[int] = Counter()
    for (_, kind), count in outcomes.items():
        everything[kind] += count
    every_finish: Counter[str] = Counter()
    for (_, reason), count in finishes.items():
        every_finish[reason] += count
    total = _model_report(
        "",
        everything,
        records.kinds.names,
        every_finish,
        without_text.total(),
        calls.total(),
        seconds,
        array("d", itertools.chain.from_iterable(latencies.values())),
        _sum(records.tallies.values()),
    )
    return RunReport(
        name=name,
        started_at=began,
        ended_at=ended,
        active_seconds=seconds,
        peak_in_flight=peak,
        total=total,
        models=models,
        failures=[
            FailureReport(
                name,
                count,
                records.messages.get(number, ""),
                [shown_name(custom_id) for custom_id in failed_ids.get(number, [])[:_MOST_IDS]],
            )
            for name, count in total.failures.items()
            for number in (records.kinds.names.index(name),)
        ],
        limit=limit,
        timeline=course,
        latency=_histogram(records),
        notes=[*records.notes, *_notes(total)],
    )


def _outcomes(records: Records) -> Counter[tuple[int, int]]:
    """Count the requests by the numbers of their model and of the kind with which they ended."""
    model, kind, otherwise = records.model, records.kind, records.outcome
    return Counter((model[row], otherwise.get(row, kind[row])) for row in records.last.values())


def _finishes(records: Records) -> tuple[Counter[tuple[int, str]], Counter[int]]:
    """Count answers by the number of the model and the finish reason, and those without text."""
    reasons: Counter[tuple[int, str]] = Counter()
    without_text: Counter[int] = Counter()
    for row in records.last.values():
        if records.outcome.get(row, records.kind[row]) == OK:
            model, finish = records.model[row], records.finish[row]
            if finish != NO_FINISH:
                reasons[model, records.finishes.names[finish]] += 1
            without_text[model] += records.without_text[row]
    return reasons, without_text


def _failed_ids(records: Records) -> dict[int, list[str]]:
    """Return ids of requests that failed in the end, by the number of their kind."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for custom_id in itertools.chain.from_iterable(records.failed_ids.values()):
        kind = records.outcome_of(records.last[hash(custom_id)])
        if kind != OK and custom_id not in found[kind]:
            found[kind].append(custom_id)
    return found


def _model_report(
    name: str,
    outcomes: dict[int, int],
    kinds: list[str],
    finishes: dict[str, int],
    without_text: int,
    calls: int,
    seconds: float,
    latencies: array[float],
    tally: Tally,
) -> ModelReport:
    failures = sorted(
        ((kinds[kind], count) for kind, count in outcomes.items() if kind != OK),
        key=lambda failure: (-failure[1], failure[0]),
    )
    ok = outcomes.get(OK, 0)
    failed = sum(count for _, count in failures)
    return ModelReport(
        model=name,
        requests=ok + failed,
        ok=ok,
        failed=failed,
        failures=dict(failures),
        finish_reasons=dict(sorted(finishes.items(), key=lambda one: (-one[1], one[0]))),
        without_text=without_text,
        calls=calls,
        attempts=tally.attempts,
        calls_per_second=calls / seconds if seconds > 0 and calls else None,
        latency=_percentiles(latencies),
        first_chunk=_percentiles(tally.first_chunks),
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        cached_tokens=tally.cached_tokens,
        reasoning_tokens=tally.reasoning_tokens,
        estimated_calls=tally.estimated_calls,
        cost=tally.cost,
        unpriced_calls=tally.unpriced_calls,
    )


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.attempts += tally.attempts
        total.prompt_tokens += tally.prompt_tokens
        total.completion_tokens += tally.completion_tokens
        total.cached_tokens += tally.cached_tokens
        total.reasoning_tokens += tally.reasoning_tokens
        total.estimated_calls += tally.estimated_calls
        total.cost += tally.cost
        total.unpriced_calls += tally.unpriced_calls
        total.first_chunks.extend(tally.first_chunks)
    return total


def _percentiles(values: array[float]) -> Percentiles | None:
    if not values:
        return None
    ordered = sorted(values)

    def at(part: float) -> float:
        place = part * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return Percentiles(len(ordered), at(0.5), at(0.95), at(0.99), ordered[-1])


def _histogram(records: Records) -> Histogram | None:
    """Return the histogram of durations.

    Its edges are round (10, 20 or 40 per decade), so that two reports can be compared.
    """
    known = [value for value in records.duration if not math.isnan(value)]
    if not known:
        return None
    low = math.log10(max(min(known), _SHORTEST))
    high = math.log10(max(*known, _SHORTEST, _SHORTEST))
    del known
    per_decade = next(
        (number for number in _BINS_PER_DECADE if (high - low) * number >= _ENOUGH_BINS),
        _BINS_PER_DECADE[-1],
    )
    first = math.floor(low * per_decade)
    bins = max(math.floor(high * per_decade) - first + 1, 1)
    ok, failed = [0] * bins, [0] * bins
    for duration, kind in zip(records.duration, records.kind, strict=True):
        if math.isnan(duration):
            continue
        place = math.floor(math.log10(max(duration, _SHORTEST)) * per_decade) - first
        (ok if kind == OK else failed)[min(place, bins - 1)] += 1
    edges = [10 ** ((first + number) / per_decade) for number in range(bins + 1)]
    return Histogram(edges, ok, failed)


def _notes(total: ModelReport) -> list[str]:
    notes: list[str] = []
    if total.estimated_calls:
        notes.append(f"Calls whose tokens are estimated: {total.estimated_calls:,}.")
    if total.unpriced_calls and total.calls:
        notes.append(
            f"Calls whose price is not known: {total.unpriced_calls:,}. The cost does not include "
            "them."
        )
    return notes
