"""The charts of a report as PNG, with matplotlib."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .axes import Axis
from .charts import COLORS, Bars, Chart, Line, charts_of
from .model import ReportError, RunReport

_LONGEST_LABEL = 46  # characters; the legend has two such labels side by side
_SHORT_LABEL = 16  # and five of these
_MARKS = ("-", "--", ":")
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
    "svg.hashsalt": "parallel_core",
}
# The same picture gives the same file.
_METADATA: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".png": {"Software": None}}


def write(report: RunReport, folder: Path) -> list[Path]:
    """Write the pictures and return their paths.

    Raises:
        ReportError: matplotlib is not installed.
        OSError: a file cannot be written.
    """
    written: list[Path] = []
    with matplotlib_style() as figures:
        folder.mkdir(parents=True, exist_ok=True)
        for name, charts in _pictures(report).items():
            figure: Any = figures.Figure(figsize=(8, 2.2 + 2.0 * len(charts)), layout="constrained")
            draw(figure, charts)
            written.append(save(figure, folder / f"{name}.png"))
    return written


@contextmanager
def matplotlib_style() -> Generator[Any]:
    """Set the style of all pictures, and yield the module with matplotlib's ``Figure``.

    Raises:
        ReportError: matplotlib is not installed.
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
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Do not warn about a letter in a model name that the font lacks; it is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph")
        yield figures


def save(figure: Any, path: Path) -> Path:
    """Save a figure in the format that the name of the file ends with, and return the path."""
    figure.savefig(path, dpi=130, metadata=_METADATA[path.suffix])
    return path


def _pictures(report: RunReport) -> dict[str, list[Chart]]:
    """Return the charts of each picture, by its name."""
    pictures = {chart.name: [chart] for chart in charts_of(report)}
    in_flight = pictures.pop("in-flight", [])
    if in_flight:
        pictures["throughput"] += in_flight
    if report.timeline is not None and any(limit is not None for limit in report.timeline.limit):
        pictures["limit"] = in_flight
    return pictures


def draw(figure: Any, charts: Sequence[Chart]) -> None:
    """Draw charts below each other, and below them one key, where it hides nothing."""
    key: list[tuple[Any, str]] = []  # what is drawn, and its name
    for number, chart in enumerate(charts, 1):
        axes: Any = figure.add_subplot(len(charts), 1, number)
        axes.set(title=chart.caption, **_scale("x", chart.x), **_scale("y", chart.y))
        axes.minorticks_off()
        for band in chart.bands:
            axes.axvspan(band.start, band.end, color=COLORS["orange"][0], alpha=0.2, linewidth=0)
        key += [(_layer(axes, layer), _shorten(layer.name)) for layer in chart.layers]
        for mark in chart.marks:
            if mark.label:
                style = {"color": "#1c2430", "linestyle": _MARKS[mark.row]}
                key.append((axes.axvline(mark.at, linewidth=1.2, **style), mark.label))
            else:
                axes.axvline(mark.at, linewidth=1.2, color=COLORS["grey"][0], linestyle=":")
    drawn, names = zip(*key, strict=True)
    columns = 5 if max(map(len, names)) <= _SHORT_LABEL else 2
    figure.legend(drawn, names, loc="outside lower left", ncols=columns)


def _scale(side: str, axis: Axis) -> dict[str, Any]:
    """Return the settings of one side of a matplotlib ``Axes``."""
    return {
        f"{side}label": axis.title,
        f"{side}scale": "log" if axis.logarithmic else "linear",
        f"{side}lim": (axis.low, axis.high),
        f"{side}ticks": [value for value, _ in axis.ticks],
        f"{side}ticklabels": [label for _, label in axis.ticks],
    }


def _layer(axes: Any, layer: Bars | Line) -> Any:
    """Draw a layer, and return what stands for it in the key."""
    color = COLORS[layer.color][0]
    if isinstance(layer, Bars):
        tops = [sum(ends) for ends in zip(layer.heights, layer.bottoms, strict=True)]
        return axes.stairs(tops, layer.edges, baseline=layer.bottoms, fill=True, color=color)
    lines: list[Any] = []
    for run in layer.runs:
        across, heights = zip(*run, strict=True)
        lines += axes.plot(across, heights, color=color, linewidth=1.8, clip_on=False)
        if layer.filled:
            axes.fill_between(across, heights, color=color, alpha=0.2)
    return lines[0]


def _shorten(name: str) -> str:
    """Shorten a long name in the middle: a number may stand at its end."""
    if len(name) <= _LONGEST_LABEL:
        return name
    return f"{name[: _LONGEST_LABEL - 11]}…{name[-10:]}"
