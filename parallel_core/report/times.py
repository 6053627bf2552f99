"""Timeline of a run: equal parts of its active time."""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from typing import NamedTuple

from .model import LONGEST_GAP, LimitReport, Pause, Timeline
from .records import OK, Records

_MOST_PARTS = 100
_LEAST_PARTS = 10
_CALLS_PER_PART = 5
_SHORTEST = 1e-6  # seconds


class ActiveTime:
    """The time of a run without its pauses.

    Args:
        starts: start times of the calls, sorted; at least one.
        ends: end times of the calls, sorted.

    Attributes:
        began, ended: seconds since the epoch.
        seconds: length of the active time.
        pauses: pauses that were left out.
    """

    def __init__(self, starts: array[float], ends: array[float]) -> None:
        self.began = starts[0]
        self.ended = ends[-1]
        self.pauses: list[Pause] = []
        self._stops: list[float] = []
        self._resumes: list[float] = []
        self._left_out = [0.0]
        # If call n + 1 begins after n calls have ended, no call is in flight between these times.
        for end, start in zip(ends, itertools.islice(starts, 1, None), strict=False):
            if start - end > LONGEST_GAP:
                left_out = self._left_out[-1]
                self.pauses.append(Pause(end - self.began - left_out, start - end))
                self._stops.append(end)
                self._resumes.append(start)
                self._left_out.append(left_out + start - end)
        self.seconds = self.ended - self.began - self._left_out[-1]

    def position(self, moment: float) -> float:
        """Return the position of a time in the active time; in a pause, that of its beginning."""
        passed = bisect_right(self._resumes, moment)
        if passed < len(self._stops):
            moment = min(moment, self._stops[passed])
        return min(max(moment - self.began - self._left_out[passed], 0.0), self.seconds)

    def moment(self, position: float) -> float:
        """Return the earliest time at a position, in seconds since the epoch."""
        passed = bisect_left([pause.at for pause in self.pauses], position)
        return self.began + position + self._left_out[passed]


class Course(NamedTuple):
    """The times of a run; without measured calls they are unknown.

    Attributes:
        began, ended: seconds since the epoch.
        seconds: length of the active time.
        peak_in_flight: largest number of calls in flight at once.
        limit: the limit over the active time; None if none was recorded.
        timeline: the course in parts; None if it took no time.
    """

    began: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    peak_in_flight: int = 0
    limit: LimitReport | None = None
    timeline: Timeline | None = None


def course_of(records: Records) -> Course:
    """Return the times of a run."""
    started, duration = records.started, records.duration
    known = [row for row, start in enumerate(started) if not math.isnan(start)]
    if not known:
        return Course()
    starts = array("d", sorted([started[row] for row in known]))
    ends = array("d", sorted([started[row] + duration[row] for row in known]))
    del known
    time = ActiveTime(starts, ends)
    return Course(
        began=time.began,
        ended=time.ended,
        seconds=time.seconds,
        peak_in_flight=_peak_in_flight(starts, ends),
        limit=_limit_report(records.limits, time),
        timeline=_timeline(records, time, starts, ends),
    )


def _peak_in_flight(starts: array[float], ends: array[float]) -> int:
    """Return the largest number of calls in flight at once."""
    peak = ended = 0
    for begun, start in enumerate(starts, 1):
        while ends[ended] <= start and ended < begun - 1:
            ended += 1
        peak = max(peak, begun - ended)
    return peak


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


def _timeline(
    records: Records, time: ActiveTime, starts: array[float], ends: array[float]
) -> Timeline | None:
    """Return the course of the run; None if it took no time."""
    if time.seconds < _SHORTEST:
        return None
    parts = min(max(len(starts) // _CALLS_PER_PART, _LEAST_PARTS), _MOST_PARTS)
    step = time.seconds / parts
    errors: defaultdict[int, list[int]] = defaultdict(lambda: [0] * parts)
    spent = [0.0] * parts
    for row, start in enumerate(records.started):
        kind, cost = records.kind[row], records.cost[row]
        if math.isnan(start) or (kind == OK and math.isnan(cost)):
            continue
        part = min(int(time.position(start + records.duration[row]) / step), parts - 1)
        if kind != OK:
            errors[kind][part] += 1
        if not math.isnan(cost):
            spent[part] += cost
    edges = [time.moment(step * part) for part in range(1, parts)]
    passed = [0, *(bisect_right(ends, edge) for edge in edges), len(ends)]
    return Timeline(
        step=step,
        ended=[after - before for before, after in itertools.pairwise(passed)],
        in_flight=_in_flight([time.began, *edges, time.ended], step, starts, ends),
        limit=_limit_by_part(_limit_steps(records.limits, time), step, parts),
        errors={
            records.kinds.names[kind]: counts
            for kind, counts in sorted(errors.items(), key=lambda item: -sum(item[1]))
        },
        cost=list(itertools.accumulate(spent)),
        pauses=time.pauses,
    )


def _in_flight(
    edges: list[float], step: float, starts: array[float], ends: array[float]
) -> list[float]:
    """Return the mean number of calls in flight between each edge and the next.

    It is the total time of all calls in that part, divided by the length of the part.
    """
    origin = edges[0]
    taken: list[float] = []
    sums = [0.0, 0.0]
    counts = [0, 0]
    for edge in edges:
        for side, moments in enumerate((starts, ends)):
            count = bisect_right(moments, edge)
            sums[side] += sum(moments[counts[side] : count]) - origin * (count - counts[side])
            counts[side] = count
        in_flight = counts[0] - counts[1]
        taken.append(in_flight * (edge - origin) - sums[0] + sums[1])
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
