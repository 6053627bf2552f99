"""Charts, as PNG and SVG: stopping, memory, overhead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parallel_core.report.png import matplotlib_style, save

from .peers import Peer
from .question import Parameters
from .runner import Answer, Group, Spread

OURS = ("#d1495b", "#8f2d56", "#f2a65a", "#c77dff")
OTHERS = (
    "#30638e",
    "#00798c",
    "#6a994e",
    "#7d8597",
    "#b08968",
    "#5e60ce",
    "#2a9d8f",
    "#8d99ae",
    "#9c6644",
    "#577590",
    "#a1a1aa",
)


@matplotlib_style()
def draw(answers: list[Answer], folder: Path) -> list[Path]:
    """Draw what was measured, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for answer in answers:
        name = answer.question.name
        figure = DRAWERS[name](answer) if name in DRAWERS else None
        if figure is not None:
            written += [save(figure, folder / f"{name}.{kind}") for kind in ("svg", "png")]
    return written


def cancel_latency(answer: Answer) -> Any:
    def of_calls(parameters: Parameters) -> bool:
        return bool(parameters["over"] == "calls")

    in_flight = _usual([group for group in answer.groups if of_calls(group.parameters)])
    return _lines(
        answer,
        lambda parameters: of_calls(parameters) and parameters["in_flight"] == in_flight,
        "went_on",
        title=f"One call fails, {in_flight} are in flight: time until the caller knows",
        across="requests in the batch",
        up="milliseconds",
        leaves_calls=_left_running,
    )


def memory(answer: Answer) -> Any:
    return _lines(
        answer,
        lambda parameters: True,
        "growth",
        title="Memory that a batch needs, requests from a generator",
        across="requests",
        up="MiB",
        least=0.1,
    )


def _lines(
    answer: Answer,
    takes: Callable[[Parameters], bool],
    quantity: str,
    *,
    title: str,
    across: str,
    up: str,
    least: float = 0.0,
    leaves_calls: Callable[[Group, Peer], bool] = lambda group, peer: False,
) -> Any:
    """A line for each peer, both scales logarithmic."""
    from matplotlib.figure import Figure

    groups = [group for group in answer.groups if takes(group.parameters)]
    if not groups:
        return None
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    ends: list[tuple[float, float, str, str, bool]] = []
    for peer, colour in _colours(groups):
        points: list[tuple[float, float]] = []
        leaves = False
        for group in groups:
            cell = group.of(peer.key)
            spread = None if cell is None else Spread.of(cell.values(quantity))
            if spread is not None:
                points.append((group.parameters["requests"], max(spread.median, least)))
                leaves = leaves or leaves_calls(group, peer)
        if not points:
            continue
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=2.6 if peer.ours else 1.3,
            linestyle=":" if leaves else "-",
            marker="o",
            markersize=5,
            markerfacecolor="white" if leaves else colour,
            zorder=3 if peer.ours else 2,
        )
        name = f"{peer.title} (calls go on)" if leaves else peer.title
        ends.append((*points[-1], name, colour, peer.ours))
    axes.set(xscale="log", yscale="log", xlabel=across, ylabel=up, title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, position: f"{value:,.10g}")
    _name_the_ends(axes, ends)
    return figure


def _name_the_ends(axes: Any, ends: list[tuple[float, float, str, str, bool]]) -> None:
    """Names at the right of the lines, moved apart where lines end close to each other."""
    if not ends:
        return
    axes.figure.draw_without_rendering()
    to_pixels = axes.transData.transform
    step = 13 * axes.figure.dpi / 100
    lowest: dict[float, float] = {}
    for x, y, name, colour, ours in sorted(ends, key=lambda end: end[1]):
        pixel = max(to_pixels((x, y))[1], lowest.get(x, float("-inf")) + step)
        lowest[x] = pixel
        height = axes.transData.inverted().transform((0, pixel))[1]
        axes.annotate(
            name,
            (x, y),
            xytext=(x * 1.35, height),
            textcoords="data",
            color=colour,
            fontsize=9,
            fontweight="bold" if ours else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4, "linewidth": 0.7},
        )


def overhead(answer: Answer) -> Any:
    """Bars: what a call costs that does nothing, and one that sleeps."""
    from matplotlib.figure import Figure

    groups = [
        group
        for group in answer.groups
        if group.parameters["concurrency"] == _usual(answer.groups, "concurrency")
        and group.parameters["results"] == "as a list"
    ]
    if not groups:
        return None
    figure = Figure(figsize=(4.8 * len(groups), 5), layout="constrained")
    plots = figure.subplots(1, len(groups), squeeze=False)
    for axes, group in zip(plots[0], groups, strict=True):
        bars = sorted(
            (spread.median, peer.title, colour, spread)
            for peer, colour in _colours([group])
            if (cell := group.of(peer.key)) is not None
            and (spread := Spread.of(cell.values("cpu"))) is not None
        )
        names = [name for _, name, _, _ in bars]
        medians = [median for median, *_ in bars]
        errors = [
            [median - spread.smallest for median, _, _, spread in bars],
            [spread.largest - median for median, _, _, spread in bars],
        ]
        axes.barh(
            names,
            medians,
            xerr=errors,
            color=[colour for _, _, colour, _ in bars],
            error_kw={"alpha": 0.4, "linewidth": 1},
        )
        axes.invert_yaxis()
        axes.set(
            xscale="log",
            xlabel="µs of CPU per call",
            title=f"a {group.parameters['call']} call, {group.parameters['concurrency']} at a time",
        )
        for name, (_, _, _, spread) in zip(names, bars, strict=True):
            axes.annotate(
                f"{spread.median:.3g}",
                (spread.largest, name),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:,.10g}")
        axes.margins(x=0.15)
    return figure


DRAWERS: dict[str, Callable[[Answer], Any]] = {
    "cancel_latency": cancel_latency,
    "memory": memory,
    "overhead": overhead,
}


def _usual(groups: list[Group], name: str = "in_flight") -> int:
    """64 where it was measured, else the largest number that was."""
    measured = {group.parameters[name] for group in groups}
    return 64 if 64 in measured else max(measured, default=64)


def _left_running(group: Group, peer: Peer) -> bool:
    cell = group.of(peer.key)
    return cell is not None and any(cell.values("left_running"))


def _colours(groups: list[Group]) -> Iterator[tuple[Peer, str]]:
    ours, others = iter(OURS), iter(OTHERS)
    peers = {cell.peer.key: cell.peer for group in groups for cell in group.cells}
    for peer in peers.values():
        yield peer, next(ours if peer.ours else others, "#444444")
