"""The charts of a report as PNG, with matplotlib."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from parallel_core import quantities

from .formats import errors_to_show
from .model import Histogram, ReportError, RunReport, Timeline
from .svg import short, time_axis

_BLUE, _GREEN, _RED, _ORANGE, _VIOLET, _TEAL, _GREY = (
    *("#2563eb", "#0d9166", "#cf3341", "#c86f04", "#7a45d6", "#0e8aa3", "#7b8794"),
)
_LONGEST_LABEL = 40  # characters; the legend has two labels side by side
_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    # A dollar sign in a name from a file must not start a formula.
    "text.parse_math": False,
}


def write(report: RunReport, folder: Path) -> list[Path]:
    """Write the pictures and return their paths.

    Raises:
        ReportError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    try:
        mpl: Any = importlib.import_module("matplotlib")
        # Not pyplot: it has global state, and its windows belong to the main thread.
        figures: Any = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError:
        raise ReportError(
            "PNG needs matplotlib, which is not installed: pip install 'parallel_core[report]'; "
            "--html works without it"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Do not warn about a letter in a model name that the font lacks; it is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph")
        for name, draw, panels in _pictures(report):
            size = (8, 2.2 + 2.0 * panels)
            figure: Any = figures.Figure(figsize=size, layout="constrained")
            draw([figure.add_subplot(panels, 1, panel + 1) for panel in range(panels)])
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=130, metadata={"Software": None})
            written.append(path)
    return written


_Picture: TypeAlias = tuple[str, Callable[[list[Any]], None], int]


def _pictures(report: RunReport) -> list[_Picture]:
    """Return the pictures to draw: name, drawing function and number of panels of each."""
    course, found = report.timeline, report.latency
    pictures: list[_Picture] = []
    if course is not None:
        pictures.append(("throughput", partial(_throughput, course), 2))
    if found is not None:
        pictures.append(("latency", partial(_latency, found, report), 1))
    if course is not None:
        if course.errors:
            pictures.append(("errors", partial(draw_errors, course), 1))
        if course.cost[-1] > 0:
            pictures.append(("cost", partial(_cost, course), 1))
        if any(limit is not None for limit in course.limit):
            pictures.append(("limit", partial(_limit, course), 1))
    return pictures


def _plain(value: float, _position: int) -> str:
    return short(value)


def _nothing(_value: float, _position: int) -> str:
    return ""


def _edges(course: Timeline) -> list[float]:
    return [course.step * part for part in range(len(course.ended) + 1)]


def _over_time(axes: Any, course: Timeline, title: str, unit: str) -> None:
    scale = time_axis(course.step * len(course.ended))
    axes.set_title(title)
    axes.set_xlim(scale.low, scale.high)
    axes.set_xticks([value for value, _ in scale.ticks], [label for _, label in scale.ticks])
    axes.set_xlabel(scale.title)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    for pause in course.pauses:
        axes.axvline(pause.at, color=_GREY, linestyle=":", linewidth=1.2)


def _explain(axes: Any, columns: int) -> None:
    """Put the legend below the chart, where it hides nothing."""
    axes.figure.legend(loc="outside lower left", ncols=columns)


def _throughput(course: Timeline, panels: list[Any]) -> None:
    upper, lower = panels
    part = quantities.span(course.step)
    rates = [ended / course.step for ended in course.ended]
    upper.stairs(rates, _edges(course), fill=True, color=_BLUE, alpha=0.85)
    _over_time(upper, course, f"Throughput, mean over {part}", "calls/s")
    _fill(lower, course)
    _over_time(lower, course, f"Calls in flight, mean over {part}", "calls")


def _fill(axes: Any, course: Timeline) -> None:
    axes.stairs(course.in_flight, _edges(course), fill=True, color=_TEAL, alpha=0.25)
    axes.stairs(
        course.in_flight,
        _edges(course),
        color=_TEAL,
        linewidth=1.6,
        baseline=None,
        label="in flight",
    )


def _limit(course: Timeline, panels: list[Any]) -> None:
    (axes,) = panels
    _fill(axes, course)
    limits = [float("nan") if limit is None else limit for limit in course.limit]
    axes.stairs(limits, _edges(course), color=_ORANGE, linewidth=1.8, baseline=None, label="limit")
    _over_time(axes, course, "Limit of calls in flight", "calls")
    _explain(axes, 2)


def _latency(found: Histogram, report: RunReport, panels: list[Any]) -> None:
    (axes,) = panels
    both = [ok + failed for ok, failed in zip(found.ok, found.failed, strict=True)]
    if any(found.failed):
        axes.stairs(both, found.edges, baseline=found.ok, fill=True, color=_RED, label="failed")
    axes.stairs(found.ok, found.edges, fill=True, color=_GREEN, label="ok")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    axes.xaxis.set_minor_formatter(_nothing)
    axes.set_xlim(found.edges[0], found.edges[-1])
    axes.set_title("Latency")
    axes.set_xlabel("seconds")
    axes.set_ylabel("calls")
    axes.set_ylim(bottom=0)
    percentiles = report.total.latency
    if percentiles is not None:
        for name, value, style in (
            ("p50", percentiles.p50, "-"),
            ("p95", percentiles.p95, "--"),
            ("p99", percentiles.p99, ":"),
        ):
            label = f"{name} {quantities.seconds(value)} s"
            axes.axvline(value, color="#1c2430", linestyle=style, linewidth=1.2, label=label)
    _explain(axes, 5)


def draw_errors(course: Timeline, panels: list[Any]) -> None:
    """Draw the failed calls by kind on one panel."""
    (axes,) = panels
    below = [0] * len(course.ended)
    colors = (_RED, _ORANGE, _VIOLET, _TEAL, _BLUE, _GREY)
    for (name, counts), color in zip(errors_to_show(course).items(), colors, strict=False):
        above = [bottom + number for bottom, number in zip(below, counts, strict=True)]
        label = f"{name[:_LONGEST_LABEL]}: {sum(counts):,}"
        axes.stairs(above, _edges(course), baseline=below, fill=True, color=color, label=label)
        below = above
    part = quantities.span(course.step)
    _over_time(axes, course, "Failed calls by kind", f"calls in {part}")
    _explain(axes, 2)


def _cost(course: Timeline, panels: list[Any]) -> None:
    (axes,) = panels
    edges, spent = _edges(course), [0.0, *course.cost]
    axes.plot(edges, spent, color=_VIOLET, linewidth=1.8)
    axes.fill_between(edges, spent, color=_VIOLET, alpha=0.2)
    _over_time(axes, course, "Cumulative cost", "USD")
