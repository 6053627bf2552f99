"""Compute the report of a run from its records, which may grow afterwards."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .durations import histogram
from .model import CallReport, FailureReport, ModelReport, RunReport
from .names import shown_name
from .records import NO_FINISH, OK, CallRecord, Records
from .tallies import Tally
from .times import course_of

_MOST_IDS = 3
_MOST_FAILED = 100  # requests that are shown by id
_MOST_SLOW_MODELS = 10


@dataclass(slots=True)
class _Requests:
    """Numbers of requests of one model, by how they ended."""

    outcomes: Counter[int] = field(default_factory=Counter[int])
    finishes: Counter[str] = field(default_factory=Counter[str])
    without_text: int = 0

    def add(self, other: _Requests) -> None:
        self.outcomes.update(other.outcomes)
        self.finishes.update(other.finishes)
        self.without_text += other.without_text


def report_of(records: Records, name: str, notes: Iterable[str] = ()) -> RunReport:
    """Return the report of a run.

    Args:
        records: what was read so far.
        name: name of the output file.
        notes: remarks about the files.
    """
    requests = _requests(records)
    course = course_of(records)
    kinds = records.kinds.names
    tally, counted = Tally(), _Requests()
    models: list[tuple[int, ModelReport]] = []
    for model in records.tallies.keys() | requests.keys():
        of_model = records.tallies.get(model) or Tally()
        tally.add(of_model)
        counted.add(requests[model])
        model_name = records.models.names[model]
        report = _model_report(model_name, of_model, requests[model], kinds, course.seconds)
        if report.requests or report.calls:
            models.append((model, report))
    models.sort(key=lambda one: (-one[1].requests, one[1].model))
    total = _model_report("", tally, counted, kinds, course.seconds)
    return RunReport(
        name=name,
        expected=records.expected,
        ending=records.ending,
        started_at=course.began,
        ended_at=course.ended,
        active_seconds=course.seconds,
        peak_in_flight=course.peak_in_flight,
        total=total,
        models=[report for _, report in models],
        failures=_failures(records, total),
        failed=_failed(records, total),
        slowest=_slowest(records, [model for model, _ in models[:_MOST_SLOW_MODELS]]),
        waits=list(course.waits),
        limit=course.limit,
        timeline=course.timeline,
        latency=histogram(tally.latencies, tally.failed_latencies),
        notes=[*notes, *_notes(total)],
    )


def without_statistics(records: Records) -> int:
    """Return the number of results without statistics."""
    return sum(count for state, count in records.requests.items() if state.call is None)


def lost_answers(records: Records) -> int:
    """Return the number of answers in the statistics that the output does not have."""
    return sum(
        count
        for state, count in records.requests.items()
        if state.call == OK and state.line is None
    )


def _requests(records: Records) -> defaultdict[int, _Requests]:
    found: defaultdict[int, _Requests] = defaultdict(_Requests)
    for state, count in records.requests.items():
        if not count:
            continue
        requests, outcome = found[state.model], state.outcome
        requests.outcomes[outcome] += count
        if outcome == OK:
            if state.finish != NO_FINISH:
                requests.finishes[records.finishes.names[state.finish]] += count
            requests.without_text += count * state.without_text
    return found


def _model_report(
    name: str, tally: Tally, requests: _Requests, kinds: list[str], seconds: float
) -> ModelReport:
    failures = {kinds[kind]: count for kind, count in requests.outcomes.items() if kind != OK}
    ok, failed = requests.outcomes[OK], sum(failures.values())
    return ModelReport(
        model=name,
        requests=ok + failed,
        ok=ok,
        failed=failed,
        failures=_by_frequency(failures),
        finish_reasons=_by_frequency(requests.finishes),
        without_text=requests.without_text,
        calls=tally.calls,
        attempts=tally.attempts,
        calls_per_second=tally.calls / seconds if seconds > 0 and tally.calls else None,
        latency=tally.latencies.percentiles(),
        first_chunk=tally.first_chunks.percentiles(),
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


def _failures(records: Records, total: ModelReport) -> list[FailureReport]:
    kinds = records.kinds.names
    return [
        FailureReport(
            kind,
            count,
            records.messages.get(number, ""),
            [
                shown_name(failed.custom_id)
                for failed in itertools.islice(records.failed[number].values(), _MOST_IDS)
            ],
        )
        for kind, count in total.failures.items()
        for number in (kinds.index(kind),)
    ]


def _failed(records: Records, total: ModelReport) -> list[CallReport]:
    """Return failed requests: of every kind one, then of every kind a second one, and so on."""
    kinds = records.kinds.names
    of_kinds = [records.failed[kinds.index(kind)].values() for kind in total.failures]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*of_kinds))
    chosen = itertools.islice((one for one in in_turn if one is not None), _MOST_FAILED)
    order = {kind: place for place, kind in enumerate(total.failures)}
    found = [_call_report(records, one) for one in chosen]
    return sorted(found, key=lambda one: order[one.kind])  # stable: within a kind as in the files


def _slowest(records: Records, models: Iterable[int]) -> list[CallReport]:
    calls = [entry for model in models for entry in records.slowest.get(model, ())]
    calls.sort(key=lambda entry: (-entry[0], entry[1]))
    return [_call_report(records, record) for _, _, record in calls]


def _call_report(records: Records, record: CallRecord) -> CallReport:
    return CallReport(
        custom_id=shown_name(record.custom_id),
        model=records.models.names[record.model],
        kind="" if record.kind == OK else records.kinds.names[record.kind],
        started_at=record.started_at,
        seconds=record.seconds,
        attempts=record.attempts,
    )


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
