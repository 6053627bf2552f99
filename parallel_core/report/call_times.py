"""Beginnings and ends of calls, in memory that does not grow with their number."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass

from .model import LONGEST_GAP

_MOST_BINS = 20_000
_MOST_FAILURE_BINS = 40_000  # a bin of each kind
EXACT_CALLS = _MOST_BINS // 2  # a bin for its beginning, and one for its end
"""The times of so many calls are exact."""
# The finest difference between two times of this century as floats: equal times share a bin.
_FINEST = 2.0**-22  # seconds


@dataclass(slots=True)
class Bin:
    """Calls that began or ended in a short time.

    Attributes:
        starts, ends: numbers of calls.
        start_sum, end_sum: sums of their times, in seconds since ``CallTimes.origin``.
        cost: USD of the calls that ended.
    """

    starts: int = 0
    start_sum: float = 0.0
    ends: int = 0
    end_sum: float = 0.0
    cost: float = 0.0

    def add(self, other: Bin) -> None:
        """Add the calls of another bin."""
        self.starts += other.starts
        self.start_sum += other.start_sum
        self.ends += other.ends
        self.end_sum += other.end_sum
        self.cost += other.cost


class BusyTimes:
    """The times in which calls were in flight. Gaps of a minute count as busy, longer ones do not.

    Attributes:
        starts, ends: beginning and end of each of these times, sorted.
    """

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.ends: list[float] = []

    def add(self, start: float, end: float) -> None:
        """Add the time of a call."""
        if self.starts and self.starts[-1] <= start <= self.ends[-1]:  # as nearly every call
            self.ends[-1] = max(self.ends[-1], end)
            return
        # All times that this call connects become one.
        first = bisect_left(self.ends, start - LONGEST_GAP)
        after = bisect_right(self.starts, end + LONGEST_GAP)
        if first < after:
            start = min(start, self.starts[first])
            end = max(end, self.ends[after - 1])
        self.starts[first:after] = [start]
        self.ends[first:after] = [end]


class CallTimes:
    """The times of calls, in bins that become wider as the calls become more.

    The times of more than ``EXACT_CALLS`` calls are rounded: there are about 10,000 to 20,000 bins.

    Attributes:
        calls: number of calls.
        origin: zero of the sums in the bins, in seconds since the epoch.
        busy: the times in which calls were in flight.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.origin = 0.0
        self.busy = BusyTimes()
        self._width = _FINEST
        self._bins: dict[int, Bin] = {}
        self._failures = Counter[tuple[int, int]]()  # by bin and kind

    def add(self, start: float, duration: float, failure: int | None, cost: float) -> None:
        """Add a call.

        Args:
            start: seconds since the epoch.
            duration: seconds.
            failure: number of the kind of failure; None for an answer.
            cost: USD.
        """
        end = start + duration
        if not self.calls:
            self.origin = start
        self.calls += 1
        self.busy.add(start, end)
        first = self._bin(start)
        first.starts += 1
        first.start_sum += start - self.origin
        last = self._bin(end)
        last.ends += 1
        last.end_sum += end - self.origin
        last.cost += cost
        if failure is not None:
            self._failures[self._number(end), failure] += 1
        while len(self._bins) > _MOST_BINS or len(self._failures) > _MOST_FAILURE_BINS:
            self._widen()

    def bins(self) -> list[tuple[float, Bin]]:
        """Return the bins with their times, in seconds since the epoch, the earliest first."""
        return [(number * self._width, found) for number, found in sorted(self._bins.items())]

    def failures(self) -> list[tuple[float, int, int]]:
        """Return times of failures, each with its kind and how many there were."""
        return [
            (number * self._width, kind, count) for (number, kind), count in self._failures.items()
        ]

    def _number(self, moment: float) -> int:
        return math.floor(moment / self._width)

    def _bin(self, moment: float) -> Bin:
        number = self._number(moment)
        found = self._bins.get(number)
        if found is None:
            found = self._bins[number] = Bin()
        return found

    def _widen(self) -> None:
        """Double the width of the bins."""
        self._width *= 2
        bins, failures = self._bins, self._failures
        self._bins, self._failures = {}, Counter[tuple[int, int]]()
        for number, found in bins.items():
            wider = self._bins.get(number // 2)
            if wider is None:
                self._bins[number // 2] = found
            else:
                wider.add(found)
        for (number, kind), count in failures.items():
            self._failures[number // 2, kind] += count
