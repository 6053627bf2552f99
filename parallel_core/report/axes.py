"""Axes of charts, with round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LEAST = 1e-12  # smaller values are drawn as 0
_MOST_TICKS = 6
_MOST_LOG_TICKS = 7


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: quantity and unit.
        low, high: the values at its ends.
        ticks: values with their labels.
        logarithmic: True for a logarithmic scale.
    """

    title: str
    low: float
    high: float
    ticks: list[tuple[float, str]]
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value on the axis, from 0 to 1."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(max((value - low) / (high - low), 0.0), 1.0)


def linear_axis(title: str, most: float) -> Axis:
    """Return an axis from 0 to a round number that is at least ``most``."""
    most = most if most > _LEAST else 1.0
    step = _round_step(most / (_MOST_TICKS - 1))
    number = math.ceil(most / step - 1e-9)
    ticks = [(step * tick, short(step * tick)) for tick in range(number + 1)]
    return Axis(title, 0.0, step * number, ticks)


def time_axis(seconds: float) -> Axis:
    """Return an axis from 0 to exactly this time, in a suitable unit."""
    units = (("s", 1, 180), ("min", 60, 180), ("h", 3600, 72), ("days", 86400, math.inf))
    unit, size = next((unit, size) for unit, size, most in units if seconds < size * most)
    step = _round_step(seconds / size / (_MOST_TICKS - 1))
    number = math.floor(seconds / size / step + 1e-9)
    ticks = [(step * tick * size, short(step * tick)) for tick in range(number + 1)]
    return Axis(f"active time, {unit}", 0.0, seconds, ticks)


def log_axis(title: str, low: float, high: float) -> Axis:
    """Return a logarithmic axis with ticks at 1, 2 and 5 of each decade, or fewer."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    values: list[float] = []
    for multiples, stride in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 3)):
        values = [
            multiple * 10.0**decade
            for decade in range(first, last + 1, stride)
            for multiple in multiples
            if low * (1 - 1e-9) <= multiple * 10.0**decade <= high * (1 + 1e-9)
        ]
        if len(values) <= _MOST_LOG_TICKS:
            break
    return Axis(title, low, high, [(value, short(value)) for value in values], logarithmic=True)


def short(value: float) -> str:
    """Format a number in a few characters: ``0.05``, ``12``, ``1.5k``, ``3M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    if value and value < 1e-4:
        return f"{value:.0e}"
    return f"{value:.4g}"


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, … (in any decade) that is at least ``least``."""
    decade = 10.0 ** math.floor(math.log10(least))
    return next(
        multiple * decade for multiple in (1, 2, 5, 10) if multiple * decade >= least * (1 - 1e-9)
    )
