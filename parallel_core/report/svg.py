"""Draw charts as SVG for the page of a report. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# The page shows two charts side by side; a phone shows one, a little smaller than this.
WIDTH, HEIGHT = 460.0, 250.0
# Texts are up to 15 high; labels also have a rim of 2.
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 16.0, 26.0, 40.0
_ROOM_FOR_A_LABEL, _ROW_OF_LABELS = 95.0, 20.0
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


class Chart:
    """A chart that is built from layers, the first one at the bottom.

    Args:
        name: name that is unique on the page; used in element ids.
        title, description: texts for people who cannot see the chart.
        x, y: the axes.
    """

    def __init__(self, name: str, title: str, description: str, x: Axis, y: Axis) -> None:
        self._name = name
        self._title = title
        self._description = description
        self._x = x
        self._y = y
        self._layers: list[str] = []
        self._labels: list[str] = []

    def bars(
        self,
        edges: Sequence[float],
        heights: Sequence[float],
        color: str,
        tips: Sequence[str],
        bottoms: Sequence[float] | None = None,
    ) -> None:
        """Draw a bar from each edge to the next, with a tooltip."""
        for number, height in enumerate(heights):
            if height <= 0:
                continue
            bottom = bottoms[number] if bottoms is not None else 0.0
            left, right = self._across(edges[number]), self._across(edges[number + 1])
            top, base = self._down(bottom + height), self._down(bottom)
            gap = min(1.0, (right - left) / 4)
            self._layers.append(
                f'<rect class="{color}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{max(right - left - gap, 0.5):.1f}" height="{max(base - top, 0.5):.1f}">'
                f"<title>{escape(tips[number])}</title></rect>"
            )

    def area(self, edges: Sequence[float], heights: Sequence[float], color: str) -> None:
        """Draw a line that is level from each edge to the next, and the area below it."""
        points = self._stairs(edges, heights)
        base = f"{self._down(0.0):.1f}"
        first, last = self._across(edges[0]), self._across(edges[-1])
        self._layers.append(
            f'<path class="{color} area" d="M{first:.1f} {base}L{points}L{last:.1f} {base}Z"/>'
            f'<path class="{color} line" d="M{points}"/>'
        )

    def stairs(self, edges: Sequence[float], heights: Sequence[float | None], color: str) -> None:
        """Draw a line that is level between edges, with gaps where a height is None."""
        known = [number for number, height in enumerate(heights) if height is not None]
        if not known:
            return
        runs: list[list[int]] = []
        for number in known:
            if runs and runs[-1][-1] == number - 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        for run in runs:
            part = [edges[number] for number in (*run, run[-1] + 1)]
            levels = [height for number in run if (height := heights[number]) is not None]
            self._layers.append(f'<path class="{color} line" d="M{self._stairs(part, levels)}"/>')

    def line(self, across: Sequence[float], heights: Sequence[float], color: str) -> None:
        """Draw a line from point to point, and the area below it."""
        points = "L".join(
            f"{self._across(x):.1f} {self._down(y):.1f}"
            for x, y in zip(across, heights, strict=True)
        )
        base = f"{self._down(0.0):.1f}"
        first, last = self._across(across[0]), self._across(across[-1])
        self._layers.append(
            f'<path class="{color} area" d="M{first:.1f} {base}L{points}L{last:.1f} {base}Z"/>'
            f'<path class="{color} line" d="M{points}"/>'
        )

    def mark(self, at: float, tip: str, label: str = "", row: int = 0) -> None:
        """Draw a vertical line, with an optional label near its top in one of several rows."""
        across = self._across(at)
        self._layers.append(
            f'<g class="mark"><title>{escape(tip)}</title>'
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></g>'
        )
        if label:
            near_the_end = across > WIDTH - _ROOM_FOR_A_LABEL
            anchor, shift = ("end", -4) if near_the_end else ("start", 4)
            # Labels are drawn last, over the lines of other marks.
            self._labels.append(
                f'<g class="mark"><text x="{across + shift:.1f}" '
                f'y="{_TOP + 10 + _ROW_OF_LABELS * row:.1f}" text-anchor="{anchor}">'
                f"{escape(label)}</text></g>"
            )

    def svg(self) -> str:
        """Return the chart as an SVG element."""
        return (
            f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
            f'aria-labelledby="{self._name}-title {self._name}-description">'
            f'<title id="{self._name}-title">{escape(self._title)}</title>'
            f'<desc id="{self._name}-description">{escape(self._description)}</desc>'
            f"{self._frame()}{''.join(self._layers + self._labels)}</svg>"
        )

    def _frame(self) -> str:
        bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
        parts: list[str] = []
        for value, label in self._y.ticks:
            down = self._down(value)
            parts.append(
                f'<line x1="{_LEFT}" x2="{right}" y1="{down:.1f}" y2="{down:.1f}"/>'
                f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{escape(label)}</text>'
            )
        for value, label in self._x.ticks:
            across = self._across(value)
            parts.append(
                f'<line class="tick" x1="{across:.1f}" x2="{across:.1f}" y1="{bottom}" '
                f'y2="{bottom + 4}"/><text x="{across:.1f}" y="{bottom + 17}" '
                f'text-anchor="middle">{escape(label)}</text>'
            )
        parts.append(
            f'<line class="tick" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
            f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
            f"{escape(self._x.title)}</text>"
            f'<text x="2" y="13">{escape(self._y.title)}</text>'
        )
        return f'<g class="frame">{"".join(parts)}</g>'

    def _stairs(self, edges: Sequence[float], heights: Sequence[float]) -> str:
        points: list[str] = []
        for number, height in enumerate(heights):
            down = self._down(height)
            points += [
                f"{self._across(edges[number]):.1f} {down:.1f}",
                f"{self._across(edges[number + 1]):.1f} {down:.1f}",
            ]
        return "L".join(points)

    def _across(self, value: float) -> float:
        return _LEFT + self._x.place(value) * (WIDTH - _LEFT - _RIGHT)

    def _down(self, value: float) -> float:
        return HEIGHT - _BOTTOM - self._y.place(value) * (HEIGHT - _TOP - _BOTTOM)


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 5, 10, … (in any decade) that is at least ``least``."""
    decade = 10.0 ** math.floor(math.log10(least))
    return next(
        multiple * decade for multiple in (1, 2, 5, 10) if multiple * decade >= least * (1 - 1e-9)
    )
