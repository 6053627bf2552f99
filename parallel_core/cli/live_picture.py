"""A snapshot of a run as lines for a terminal, from 40 to 200 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.text import Text

from parallel_core.control import (
    cost_of_budget,
    eta_in_words,
    held_up_in_words,
    measured_rates,
)
from parallel_core.control.live_lines import BAD, GOOD, QUIET, WAITING, bar
from parallel_core.printable import printable
from parallel_core.quantities import clock, counted
from parallel_core.run import FailureGroup, RunProgress

from .run_texts import describe_direct, describe_group, describe_stragglers, share_done

_WIDEST: Final = 112  # characters; figures that are further apart are hard to read together
_CELL: Final = 20  # least width of a figure with the space behind it, in characters
_SPACE: Final = 2  # least space between two figures
_MOST_GROUPS: Final = 5  # groups of failures


def picture(progress: RunProgress, console: Console) -> list[Text]:
    """Return a snapshot as lines that fit into the width of a console.

    Figures keep their places while they change: they stand in columns.
    """
    width = min(console.width, _WIDEST)
    return [
        _bar_line(progress, width),
        *_in_columns(_counts(progress), width),
        *_in_columns(_times(progress), width),
        *_in_columns(_speed(progress), width),
        *(line for text in _failures(progress) for line in _wrapped(text, console, 2)),
        *(line for text in _held_up(progress) for line in _wrapped(text, console, 4)),
    ]


def _bar_line(progress: RunProgress, width: int) -> Text:
    figures = f" {progress.done:,}/{progress.total:,} {share_done(progress):5.1f} %"
    line = bar(progress.done, progress.total, max(0, width - len(figures)))
    line.append(figures, "bold")
    line.truncate(width)
    return line


def _counts(progress: RunProgress) -> list[Text]:
    return [
        Text(f"ok {progress.succeeded:,}", GOOD),
        Text(f"failed {progress.failed:,}", BAD if progress.failed else QUIET),
        *([Text(f"earlier {progress.earlier:,}")] if progress.earlier else []),
    ]


def _times(progress: RunProgress) -> list[Text]:
    times = [Text(f"time {clock(progress.elapsed)}")]
    if progress.stopping and not progress.finished:
        times.append(Text("stopping: no new calls", "bold"))
    elif not progress.finished:
        times.append(Text(eta_in_words(progress) or "ETA unknown", "bold"))
    return times


def _speed(progress: RunProgress) -> list[Text]:
    rate, token_rate = measured_rates(progress)
    figures = [
        f"in flight {progress.in_flight:,}/{progress.limit:,}",
        f"{rate:,.1f} calls/s",
        f"{token_rate:,.0f} tokens/s",
        cost_of_budget(progress),
    ]
    return [Text(figure) for figure in figures if figure]


def _failures(progress: RunProgress) -> list[Text]:
    groups = progress.failures
    texts = [_group(group) for group in groups[:_MOST_GROUPS]]
    if (more := len(groups) - _MOST_GROUPS) > 0:
        texts.append(Text(f"and {counted(more, 'more kind')} of failures", BAD))
    if progress.indirect_calls:
        direct = describe_direct(progress.direct_calls, progress.indirect_calls)
        texts.append(Text(f"direct {direct}"))
    return texts


def _group(group: FailureGroup) -> Text:
    """Return a line about failures of one kind. Only their kind and number are red."""
    kind, colon, rest = describe_group(group).partition(":")
    return Text.assemble((kind + colon, BAD), printable(rest))


def _held_up(progress: RunProgress) -> list[Text]:
    texts = [
        *held_up_in_words(progress),
        *describe_stragglers(progress.stragglers),
    ]
    return [Text(printable(text), WAITING) for text in texts]


def _in_columns(cells: Sequence[Text], width: int) -> list[Text]:
    """Put cells into columns of one width. A cell that is too wide takes several columns."""
    columns = max(2, width // _CELL)
    cell = width // columns
    lines: list[Text] = []
    left = 0  # columns of the last line
    for text in cells:
        needed = min(columns, -(-(text.cell_len + _SPACE) // cell))
        if needed > left:
            lines.append(Text())
            left = columns
        else:  # only between two cells: no line ends with spaces, which a terminal would wrap
            line = lines[-1]
            line.append(" " * ((columns - left) * cell - line.cell_len))
        lines[-1].append_text(text)
        left -= needed
    for line in lines:
        line.truncate(width, overflow="ellipsis")
    return lines


def _wrapped(text: Text, console: Console, most: int) -> list[Text]:
    """Return a text as a few lines that fit into the width of a console."""
    lines = list(text.wrap(console, console.width))
    for line in lines:
        line.rstrip()  # a terminal that gets narrower would wrap the spaces
    if len(lines) > most:
        lines[most - 1].truncate(console.width - 1)
        lines[most - 1].append("…")
    return lines[:most]
