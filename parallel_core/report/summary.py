"""Compute the report of a run from its records."""

from __future__ import annotations

import itertools
import math
from array import array
from collections import defaultdict
from collections.abc import Mapping

from .model import FailureReport, Histogram, ModelReport, Percentiles, RunReport
from .records import NO_FINISH, OK, Records, Tally, shown_name
from .times import course_of

_SHORTEST = 1e-4  # seconds; the histogram counts shorter calls as this
_BINS_PER_DECADE = (10, 20, 40)
_ENOUGH_BINS = 18
_MOST_IDS = 3


def report_of(records: Records, name: str) -> RunReport:
    """Return the report of a run. This consumes the records."""
    _count_requests(records)
    failed_ids = _failed_ids(records)
    # Free the largest part of the memory; it is not needed any more.
    records.last.clear()
    course = course_of(records)
    _count_calls(records)
    everything = Tally()
    for tally in records.tallies.values():
        everything.add(tally)
    kinds = records.kinds.names
    total = _model_report("", everything, kinds, course.seconds)
    models = [
        _model_report(records.models.names[model], tally, kinds, course.seconds)
        for model, tally in records.tallies.items()
    ]
    return RunReport(
        name=name,
        started_at=course.began,
        ended_at=course.ended,
        active_seconds=course.seconds,
        peak_in_flight=course.peak_in_flight,
        total=total,
        models=sorted(models, key=lambda report: (-report.requests, report.model)),
        failures=[
            FailureReport(
                kind,
                count,
                records.messages.get(number, ""),
                [shown_name(custom_id) for custom_id in failed_ids.get(number, [])[:_MOST_IDS]],
            )
            for kind, count in total.failures.items()
            for number in (kinds.index(kind),)
        ],
        limit=course.limit,
        timeline=course.timeline,
        latency=_histogram(records),
        notes=[*records.notes, *_notes(total)],
    )


def _count_requests(records: Records) -> None:
    """Add the requests to the tallies of their models, by how they ended."""
    for row in records.last.values():
        tally, kind = records.tallies[records.model[row]], records.outcome_of(row)
        tally.outcomes[kind] += 1
        if kind == OK:
            if records.finish[row] != NO_FINISH:
                tally.finishes[records.finishes.names[records.finish[row]]] += 1
            tally.without_text += records.without_text[row]


def _count_calls(records: Records) -> None:
    """Add the measured calls to the tallies of their models."""
    for model, kind, duration in zip(records.model, records.kind, records.duration, strict=True):
        if not math.isnan(duration):
            tally = records.tallies[model]
            tally.calls += 1
            if kind == OK:
                tally.latencies.append(duration)


def _failed_ids(records: Records) -> dict[int, list[str]]:
    """Return ids of requests that failed in the end, by the number of their kind."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for custom_id in itertools.chain.from_iterable(records.failed_ids.values()):
        kind = records.outcome_of(records.last[hash(custom_id)])
        if kind != OK and custom_id not in found[kind]:
            found[kind].append(custom_id)
    return found


def _model_report(name: str, tally: Tally, kinds: list[str], seconds: float) -> ModelReport:
    failures = {kinds[kind]: count for kind, count in tally.outcomes.items() if kind != OK}
    ok, failed = tally.outcomes[OK], sum(failures.values())
    return ModelReport(
        model=name,
        requests=ok + failed,
        ok=ok,
        failed=failed,
        failures=_by_frequency(failures),
        finish_reasons=_by_frequency(tally.finishes),
        without_text=tally.without_text,
        calls=tally.calls,
        attempts=tally.attempts,
        calls_per_second=tally.calls / seconds if seconds > 0 and tally.calls else None,
        latency=_percentiles(tally.latencies),
        first_chunk=_percentiles(tally.first_chunks),
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        cached_tokens=tally.cached_tokens,
        reasoning_tokens=tally.reasoning_tokens,
        estimated_calls=tally.estimated_calls,
        cost=tally.cost,
        unpriced_calls=tally.unpriced_calls,
    )


def _by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


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
