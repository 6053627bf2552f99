"""Draw a chart as SVG, for the page of a report. Every text is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .charts import Band, Bars, Chart, Line, Mark, Point

# The page shows two charts side by side; a phone shows one, a little smaller than this.
WIDTH, HEIGHT = 460.0, 250.0
# Texts are up to 15 high; labels also have a rim of 2.
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 16.0, 26.0, 40.0
_END, _BASE = WIDTH - _RIGHT, HEIGHT - _BOTTOM
_ROOM_FOR_A_LABEL, _ROW_OF_LABELS = 95.0, 20.0


def svg(chart: Chart) -> str:
    """Return the chart as an SVG element."""
    parts = [_band(chart, band) for band in chart.bands]
    parts += _frame(chart)
    for layer in chart.layers:
        parts += _bars(chart, layer) if isinstance(layer, Bars) else _line(chart, layer)
    parts += [_mark(chart, mark) for mark in chart.marks]
    # Labels are drawn last, over the lines of other marks.
    parts += [_label(chart, mark) for mark in chart.marks if mark.label]
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" '
        f'aria-labelledby="{chart.name}-title {chart.name}-description">'
        f'<title id="{chart.name}-title">{escape(chart.title)}</title>'
        f'<desc id="{chart.name}-description">{escape(chart.description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _frame(chart: Chart) -> Iterator[str]:
    yield '<g class="frame">'
    for value, label in chart.y.ticks:
        down = _down(chart, value)
        yield (
            f'<line x1="{_LEFT}" x2="{_END}" y1="{down:.1f}" y2="{down:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{escape(label)}</text>'
        )
    for value, label in chart.x.ticks:
        across = _across(chart, value)
        yield (
            f'<line class="tick" x1="{across:.1f}" x2="{across:.1f}" y1="{_BASE}" '
            f'y2="{_BASE + 4}"/><text x="{across:.1f}" y="{_BASE + 17}" '
            f'text-anchor="middle">{escape(label)}</text>'
        )
    yield (
        f'<line class="tick" x1="{_LEFT}" x2="{_END}" y1="{_BASE}" y2="{_BASE}"/>'
        f'<text x="{(_LEFT + _END) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f'{escape(chart.x.title)}</text><text x="2" y="13">{escape(chart.y.title)}</text></g>'
    )


def _bars(chart: Chart, bars: Bars) -> Iterator[str]:
    for number, (height, bottom) in enumerate(zip(bars.heights, bars.bottoms, strict=True)):
        if height <= 0:
            continue
        left, right = (_across(chart, edge) for edge in bars.edges[number : number + 2])
        top, base = _down(chart, bottom + height), _down(chart, bottom)
        gap = min(1.0, (right - left) / 4)
        kind = f' data-kind="{escape(bars.kind)}"' if bars.kind else ""
        yield (
            f'<rect class="{bars.color}"{kind} x="{left:.1f}" y="{top:.1f}" '
            f'width="{max(right - left - gap, 0.5):.1f}" height="{max(base - top, 0.5):.1f}">'
            f"<title>{escape(bars.tips[number])}</title></rect>"
        )


def _line(chart: Chart, line: Line) -> Iterator[str]:
    for run in line.runs:
        if line.filled:
            (first, _), (last, _) = run[0], run[-1]
            area = _path(chart, [(first, 0.0), *run, (last, 0.0)])
            yield f'<path class="{line.color} area" d="M{area}Z"/>'
        yield f'<path class="{line.color} line" d="M{_path(chart, run)}"/>'


def _path(chart: Chart, points: Sequence[Point]) -> str:
    return "L".join(f"{_across(chart, x):.1f} {_down(chart, y):.1f}" for x, y in points)


def _band(chart: Chart, band: Band) -> str:
    left, right = _across(chart, band.start), _across(chart, band.end)
    return (
        f'<rect class="wait" x="{left:.1f}" y="{_TOP}" width="{max(right - left, 2):.1f}" '
        f'height="{_BASE - _TOP}"><title>{escape(band.tip)}</title></rect>'
    )


def _mark(chart: Chart, mark: Mark) -> str:
    across = _across(chart, mark.at)
    return (
        f'<g class="mark"><title>{escape(mark.tip)}</title>'
        f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{_TOP}" y2="{_BASE}"/></g>'
    )


def _label(chart: Chart, mark: Mark) -> str:
    across = _across(chart, mark.at)
    near_the_end = across > WIDTH - _ROOM_FOR_A_LABEL
    anchor, shift = ("end", -4) if near_the_end else ("start", 4)
    return (
        f'<g class="mark"><text x="{across + shift:.1f}" '
        f'y="{_TOP + 10 + _ROW_OF_LABELS * mark.row:.1f}" text-anchor="{anchor}">'
        f"{escape(mark.label)}</text></g>"
    )


def _across(chart: Chart, value: float) -> float:
    return _LEFT + chart.x.place(value) * (_END - _LEFT)


def _down(chart: Chart, value: float) -> float:
    return _BASE - chart.y.place(value) * (_BASE - _TOP)
