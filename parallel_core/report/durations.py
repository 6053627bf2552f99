"""Distributions of durations, in memory that does not grow with the number of calls."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from itertools import accumulate

from .model import Histogram, Percentiles

_SHORTEST = 1e-4  # seconds; the histogram counts shorter calls as this
_BINS_PER_DECADE = (10, 20, 40)
_ENOUGH_BINS = 18


class Durations:
    """Counts of durations, each rounded to four significant digits."""

    def __init__(self) -> None:
        self._counts = Counter[float]()

    def add(self, seconds: float) -> None:
        """Add a duration."""
        # At most 9,000 different values in a decade.
        self._counts[float(f"{seconds:.3e}")] += 1

    def update(self, other: Durations) -> None:
        """Add all durations of another distribution."""
        self._counts.update(other._counts)

    def sorted(self) -> list[tuple[float, int]]:
        """Return the durations with their numbers, the shortest first."""
        return sorted(self._counts.items())

    def percentiles(self) -> Percentiles | None:
        """Return percentiles, interpolated between two durations; None if there are none."""
        if not self._counts:
            return None
        found = self.sorted()
        values = [value for value, _ in found]
        passed = list(accumulate(count for _, count in found))
        number = passed[-1]

        def nth(place: int) -> float:
            return values[bisect_right(passed, place)]

        def at(part: float) -> float:
            place = part * (number - 1)
            low = int(place)
            lower, upper = nth(low), nth(min(low + 1, number - 1))
            return lower + (upper - lower) * (place - low)

        return Percentiles(number, at(0.5), at(0.95), at(0.99), values[-1])


def histogram(ok: Durations, failed: Durations) -> Histogram | None:
    """Return the histogram of the calls with an answer and of those without; None without calls.

    Its edges are round (10, 20 or 40 per decade), so that two reports can be compared.
    """
    parts = ok.sorted(), failed.sorted()
    known = [value for part in parts for value, _ in (part[:1] + part[-1:])]
    if not known:
        return None
    low = math.log10(max(min(known), _SHORTEST))
    high = math.log10(max(*known, _SHORTEST, _SHORTEST))
    per_decade = next(
        (number for number in _BINS_PER_DECADE if (high - low) * number >= _ENOUGH_BINS),
        _BINS_PER_DECADE[-1],
    )
    first = math.floor(low * per_decade)
    bins = max(math.floor(high * per_decade) - first + 1, 1)
    columns = [0] * bins, [0] * bins
    for column, part in zip(columns, parts, strict=True):
        for value, count in part:
            place = math.floor(math.log10(max(value, _SHORTEST)) * per_decade) - first
            column[min(place, bins - 1)] += count
    edges = [10 ** ((first + number) / per_decade) for number in range(bins + 1)]
    return Histogram(edges, *columns)
