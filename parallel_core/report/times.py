"""Timeline of a run: equal parts of its active time."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from .call_times import Bin, BusyTimes
from .model import LimitReport, Pause, Timeline, WaitReport
from .records import Records

_MOST_PARTS = 100
_LEAST_PARTS = 10
_CALLS_PER_PART = 5
_SHORTEST = 1e-6  # seconds


class ActiveTime:
    """The time of a run without its pauses.

    Args:
        busy: the times in which calls were in flight; at least one.

    Attributes:
        began, ended: seconds since the epoch.
        seconds: length of the active time.
        pauses: pauses that were left out.
    """

    def __init__(self, busy: BusyTimes) -> None:
        self.began = busy.starts[0]
        self.ended = busy.ends[-1]
        self.pauses: list[Pause] = []
        self._stops = busy.ends[:-1]
        self._resumes = busy.starts[1:]
        self._left_out = [0.0]
        for end, start in zip(self._stops, self._resumes, strict=True):
            left_out = self._left_out[-1]
            self.pauses.append(Pause(end - self.began - left_out, start - end))
            self._left_out.append(left_out + start - end)
        self._at = [pause.at for pause in self.pauses]
        self.seconds = self.ended - self.began - self._left_out[-1]

    def position(self, moment: float) -> float:
        """Return the position of a time in the active time; in a pause, that of its beginning."""
        passed = bisect_right(self._resumes, moment)
        if passed < len(self._stops):
            moment = min(moment, self._stops[passed])
        return min(max(moment - self.began - self._left_out[passed], 0.0), self.seconds)

    def moment(self, position: float) -> float:
        """Return the earliest time at a position, in seconds since the epoch."""
        passed = bisect_left(self._at, position)
        return self.began + position + self._left_out[passed]


class Course(NamedTuple):
    """The times of a run; without measured calls they are unknown.

    Attributes:
        began, ended: seconds since the epoch.
        seconds: length of the active time.
        peak_in_flight: largest number of calls in flight at once.
        limit: the limit over the active time; None if none was recorded.
        waits: times in which nothing of a model got through.
        timeline: the course in parts; None if it took no time.
    """

    began: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    peak_in_flight: int = 0
    limit: LimitReport | None = None
    waits: Sequence[WaitReport] = ()
    timeline: Timeline | None = None


def course_of(records: Records) -> Course:
    """Return the times of a run."""
    times = records.times
    if not times.calls:
        return Course()
    time = ActiveTime(times.busy)
    bins = times.bins()
    return Course(
        began=time.began,
        ended=time.ended,
        seconds=time.seconds,
        peak_in_flight=_peak_in_flight(bins),
        limit=_limit_report(records.limits, time),
        waits=_waits(records, time),
        timeline=_timeline(records, time, bins),
    )


def _peak_in_flight(bins: list[tuple[float, Bin]]) -> int:
    """Return the largest number of calls in flight at the end of a bin."""
    peak = in_flight = 0
    for _, found in bins:
        in_flight += found.starts - found.ends
        peak = max(peak, in_flight)
    return max(peak, 1)


def _waits(records: Records, time: ActiveTime) -> list[WaitReport]:
    """Return the waits, the earliest first. One without an end is drawn to the next part."""
    found: list[WaitReport] = []
    for (at, model), wait in sorted(records.waits.items(), key=lambda one: one[0][0]):
        until = at + (wait.seconds or 0.0)
        if wait.seconds is None:
            later = bisect_right(records.begins, at)
            until = records.begins[later] if later < len(records.begins) else time.ended
        begin = time.position(at)
        found.append(
            WaitReport(
                model=records.models.names[model],
                reason=wait.reason,
                started_at=at,
                seconds=wait.seconds,
                at=begin,
                until=max(time.position(until), begin),
            )
        )
    return found


def _limit_report(limits: list[tuple[float, int, bool]], time: ActiveTime) -> LimitReport | None:
    """Return the limit over the active time; None if none was recorded."""
    steps = _limit_steps(limits, time)
    if not steps:
        return None
    spans = sorted((limit, end - begin) for begin, end, limit in steps)
    total = sum(span for _, span in spans)
    if total > 0:
        spans = [(limit, span) for limit, span in spans if span > 0]
    median, passed = spans[0][0], 0.0
    for limit, span in spans:
        median = limit
        passed += span
        if passed >= total / 2:
            break
    return LimitReport(spans[0][0], median, spans[-1][0], sum(change for _, _, change in limits))


def _timeline(records: Records, time: ActiveTime, bins: list[tuple[float, Bin]]) -> Timeline | None:
    """Return the course of the run; None if it took no time."""
    if time.seconds < _SHORTEST:
        return None
    parts = min(max(records.times.calls // _CALLS_PER_PART, _LEAST_PARTS), _MOST_PARTS)
    step = time.seconds / parts
    edges = [time.moment(step * part) for part in range(1, parts)]
    ended = [0] * parts
    spent = [0.0] * parts
    for moment, found in bins:
        part = bisect_left(edges, moment)
        ended[part] += found.ends
        spent[part] += found.cost
    errors: defaultdict[int, list[int]] = defaultdict(lambda: [0] * parts)
    for moment, kind, count in records.times.failures():
        errors[kind][bisect_left(edges, moment)] += count
    return Timeline(
        step=step,
        ended=ended,
        in_flight=_in_flight(
            [time.began, *edges, time.ended], step, bins, origin=records.times.origin
        ),
        limit=_limit_by_part(_limit_steps(records.limits, time), step, parts),
        errors={
            records.kinds.names[kind]: counts
            for kind, counts in sorted(errors.items(), key=lambda item: -sum(item[1]))
        },
        cost=list(itertools.accumulate(spent)),
        pauses=time.pauses,
    )


def _in_flight(
    edges: list[float], step: float, bins: list[tuple[float, Bin]], *, origin: float
) -> list[float]:
    """Return the mean number of calls in flight between each edge and the next.

    It is the total time of all calls in that part, divided by the length of the part.
    """
    taken: list[float] = []
    passed = Bin()
    rest = iter(bins)
    ahead = next(rest, None)
    for edge in edges:
        while ahead is not None and ahead[0] <= edge:
            passed.add(ahead[1])
            ahead = next(rest, None)
        in_flight = passed.starts - passed.ends
        taken.append(in_flight * (edge - origin) - passed.start_sum + passed.end_sum)
    return [max(after - before, 0.0) / step for before, after in itertools.pairwise(taken)]


def _limit_steps(
    limits: list[tuple[float, int, bool]], time: ActiveTime
) -> list[tuple[float, float, int]]:
    """Return the limits as tuples: begin and end in the active time, and the limit."""
    known = sorted(limits, key=lambda entry: entry[0])  # stable: of two equal times the later wins
    begins = [time.position(at) for at, _, _ in known]
    ends = [*begins[1:], time.seconds]
    return [
        (begin, end, limit)
        for begin, end, (_, limit, _) in zip(begins, ends[: len(begins)], known, strict=True)
    ]


def _limit_by_part(
    steps: list[tuple[float, float, int]], step: float, parts: int
) -> list[float | None]:
    sums = [0.0] * parts
    spans = [0.0] * parts
    for begin, end, limit in steps:
        for part in range(int(begin / step), min(math.ceil(end / step), parts)):
            span = min(end, (part + 1) * step) - max(begin, part * step)
            sums[part] += limit * span
            spans[part] += span
    return [total / span if span > 0 else None for total, span in zip(sums, spans, strict=True)]
