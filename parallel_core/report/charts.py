"""The charts of a report, described for the two that draw them: ``svg.py`` and ``png.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from parallel_core.quantities import money, rate, seconds, span

from .axes import Axis, linear_axis, log_axis, time_axis
from .model import Histogram, Percentiles, RunReport, Timeline, WaitReport

# Names of colors: on a light ground, and on a dark one.
COLORS = {
    "blue": ("#2563eb", "#6ea0ff"),
    "green": ("#0d9166", "#3ecf9b"),
    "red": ("#cf3341", "#ff7480"),
    "orange": ("#c86f04", "#f3a94a"),
    "violet": ("#7a45d6", "#b794ff"),
    "teal": ("#0e8aa3", "#4cc9e0"),
    "grey": ("#7b8794", "#93a0ae"),
}
_OTHERS = "others"
_KIND_COLORS = ("red", "orange", "violet", "teal", "blue", "grey")

Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Bars:
    """Bars from each edge to the next.

    Attributes:
        name, color: entry of the key.
        edges: ends of the bars on the x axis; one more than there are bars.
        heights, bottoms: heights of the bars, and where they begin.
        tips: text of each bar.
        kind: kind of failure that it shows; empty for none.
    """

    name: str
    color: str
    edges: Sequence[float]
    heights: Sequence[float]
    bottoms: Sequence[float]
    tips: Sequence[str]
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line, with gaps between its runs.

    Attributes:
        name, color: entry of the key.
        runs: points of each run.
        filled: True to fill the area below.
    """

    name: str
    color: str
    runs: Sequence[Sequence[Point]]
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line.

    Attributes:
        at: position on the x axis.
        tip: text that explains it.
        label: text near its top; empty for none.
        row: row of the label, so that labels do not overlap.
    """

    at: float
    tip: str
    label: str = ""
    row: int = 0


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of the x axis, behind everything else.

    Attributes:
        start, end: its ends on the x axis.
        tip: text that explains it.
    """

    start: float
    end: float
    tip: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart.

    Attributes:
        name: name that is unique in the report.
        caption: heading.
        title, description: texts for people who cannot see the chart.
        x, y: the axes.
        layers: bars and lines, the first at the bottom.
        marks: vertical lines above them.
        bands: stretches below them.
    """

    name: str
    caption: str
    title: str
    description: str
    x: Axis
    y: Axis
    layers: Sequence[Bars | Line]
    marks: Sequence[Mark] = ()
    bands: Sequence[Band] = ()


def charts_of(report: RunReport) -> list[Chart]:
    """Return the charts of a report; none of values that were not measured."""
    course = report.timeline
    if course is None:
        over_time = dict[str, Chart]()
    else:
        over_time = {chart.name: chart for chart in _over_time(course, _waits(report.waits))}
    charts = [over_time.pop(name) for name in ("throughput", "in-flight") if name in over_time]
    if report.latency is not None:
        charts.append(_latency(report.latency, report.total.latency))
    return [*charts, *over_time.values()]


def _over_time(course: Timeline, waits: list[Band]) -> Iterator[Chart]:
    yield _throughput(course, waits)
    yield _in_flight(course, waits)
    if course.errors:
        yield _errors(course, waits)
    if course.cost[-1] > 0:
        yield _cost(course, waits)


def _throughput(course: Timeline, waits: list[Band]) -> Chart:
    rates = [ended / course.step for ended in course.ended]
    part = span(course.step)
    tips = [
        f"{rate(value)} calls/s: {ended:,} in {part}"
        for value, ended in zip(rates, course.ended, strict=True)
    ]
    return Chart(
        "throughput",
        "Throughput",
        "Throughput over time",
        f"Calls that ended per second, averaged over {part}: at most {rate(max(rates))}.",
        _time(course),
        linear_axis("calls/s", max(rates)),
        _stacked(_edges(course), [(f"calls/s, mean over {part}", "blue", rates, tips)]),
        _pauses(course),
        waits,
    )


def _in_flight(course: Timeline, waits: list[Band]) -> Chart:
    part, edges = span(course.step), _edges(course)
    limits = [limit for limit in course.limit if limit is not None]
    description = f"Calls in flight on average over {part}: at most {rate(max(course.in_flight))}."
    name = f"in flight, mean over {part}"
    layers = [Line(name, "teal", _level(edges, course.in_flight), filled=True)]
    if limits:
        description += f" The limit was from {min(limits):,.0f} to {max(limits):,.0f}."
        layers.append(Line("limit", "orange", _level(edges, course.limit)))
    return Chart(
        "in-flight",
        "Calls in flight and their limit" if limits else "Calls in flight",
        "Calls in flight over time",
        description,
        _time(course),
        linear_axis("calls", max([*course.in_flight, *limits])),
        layers,
        _pauses(course),
        waits,
    )


def _latency(found: Histogram, percentiles: Percentiles | None) -> Chart:
    description = f"{sum(found.ok):,} calls with an answer, {sum(found.failed):,} without."
    marks: list[Mark] = []
    if percentiles is not None:
        values = (percentiles.p50, percentiles.p95, percentiles.p99)
        p50, p95, p99 = map(seconds, values)
        description += (
            f" Half of the answers took at most {p50} s, 95 % at most {p95} s, "
            f"99 % at most {p99} s."
        )
        labels = (f"p50 {p50}", f"p95 {p95}", f"p99 {p99}")
        marks = [
            Mark(value, f"{label} s, of the calls with an answer", label, row)
            for row, (value, label) in enumerate(zip(values, labels, strict=True))
        ]
    bins = [f"{seconds(low)} to {seconds(high)} s" for low, high in pairwise(found.edges)]
    layers = [
        (
            name,
            color,
            counts,
            [f"{number:,} {name}, {a_bin}" for number, a_bin in zip(counts, bins, strict=True)],
        )
        for name, color, counts in (("ok", "green", found.ok), ("failed", "red", found.failed))
        if any(counts)
    ]
    most = max(map(sum, zip(found.ok, found.failed, strict=True)))
    return Chart(
        "latency",
        "Latency",
        "Distribution of latency",
        description,
        log_axis("latency, seconds", found.edges[0], found.edges[-1]),
        linear_axis("calls", most),
        _stacked(found.edges, layers),
        marks,
    )


def _errors(course: Timeline, waits: list[Band]) -> Chart:
    part = span(course.step)
    shown = _frequent(course.errors)
    names = {kind: f"{kind}: {sum(counts):,}" for kind, counts in shown.items()}
    layers = [
        (names[kind], color, counts, [f"{number:,} in {part}: {kind}" for number in counts])
        for (kind, counts), color in zip(shown.items(), _KIND_COLORS, strict=False)
    ]
    most = max(map(sum, zip(*shown.values(), strict=True)))
    return Chart(
        "errors",
        "Failed calls by kind",
        "Failed calls over time, by kind",
        "; ".join(names.values()) + ".",
        _time(course),
        linear_axis(f"failed calls in {part}", most),
        [
            replace(bars, kind="" if kind == _OTHERS else kind)
            for bars, kind in zip(_stacked(_edges(course), layers), shown, strict=True)
        ],
        _pauses(course),
        waits,
    )


def _cost(course: Timeline, waits: list[Band]) -> Chart:
    points = list(zip(_edges(course), [0.0, *course.cost], strict=True))
    return Chart(
        "cost",
        "Cost",
        "Cumulative cost",
        f"It reaches {money(course.cost[-1])} USD.",
        _time(course),
        linear_axis("USD", course.cost[-1]),
        [Line("USD so far", "violet", [points], filled=True)],
        _pauses(course),
        waits,
    )


def _edges(course: Timeline) -> list[float]:
    return [course.step * part for part in range(len(course.ended) + 1)]


def _time(course: Timeline) -> Axis:
    return time_axis(course.step * len(course.ended))


def _pauses(course: Timeline) -> list[Mark]:
    return [Mark(pause.at, f"a pause of {span(pause.seconds)}") for pause in course.pauses]


def _waits(waits: Sequence[WaitReport]) -> list[Band]:
    return [
        Band(
            wait.at,
            wait.until,
            f"no call of {wait.model} got through{_for(wait.seconds)}: {wait.reason}",
        )
        for wait in waits
    ]


def _for(length: float | None) -> str:
    return " (its end was not recorded)" if length is None else f" for {span(length)}"


def _frequent(errors: dict[str, list[int]]) -> dict[str, list[int]]:
    """Return the most frequent kinds, a color for each, and the sum of the others as the last."""
    kinds = list(errors.items())
    most = len(_KIND_COLORS)
    if len(kinds) <= most:
        return errors
    rest = [counts for _, counts in kinds[most - 1 :]]
    return {**dict(kinds[: most - 1]), _OTHERS: [sum(part) for part in zip(*rest, strict=True)]}


def _stacked(
    edges: Sequence[float], layers: Iterable[tuple[str, str, Sequence[float], Sequence[str]]]
) -> list[Bars]:
    """Put bars on top of each other; a layer is its name, color, heights and tips."""
    bars: list[Bars] = []
    below = [0.0] * (len(edges) - 1)
    for name, color, heights, tips in layers:
        bars.append(Bars(name, color, edges, heights, below, tips))
        below = [bottom + height for bottom, height in zip(below, heights, strict=True)]
    return bars


def _level(edges: Sequence[float], heights: Sequence[float | None]) -> list[list[Point]]:
    """Return the runs of a line that is level from each edge to the next, with gaps at None."""
    runs: list[list[Point]] = [[]]
    for (left, right), height in zip(pairwise(edges), heights, strict=True):
        if height is not None:
            runs[-1] += [(left, height), (right, height)]
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
