"""The progress of a batch in the output of a notebook's cell.

IPython replaces a display that has an id. So the notebook needs no ipywidgets, and the last
snapshot is saved with it.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from html import escape
from typing import IO, Any

from .live_output import LinePace
from .progress import Progress
from .progress_texts import (
    cost_of_budget,
    eta_in_words,
    held_up_in_words,
    row_figures,
)

# The page has the other colours, dark or light. These are readable on both.
_STYLE = "max-width:48em;font:13px/1.5 ui-monospace,Menlo,Consolas,monospace"
_RED, _AMBER = "#ff0000", "#af5f00"


class NotebookProgress:
    """Shows the snapshots of one batch in the output of a cell, each in the place of the last.

    Where the notebook cannot display it, there are plain lines at a bounded rate.

    Args:
        stream: where plain lines go.
        clock: returns seconds.
    """

    def __init__(self, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._pace = LinePace()
        self._handle: Any = None
        self._is_plain = False

    def show(self, progress: Progress) -> None:
        """Show a snapshot."""
        if not self._is_plain:
            try:
                self._display(progress)
            except Exception:  # noqa: BLE001 - any front end: the lines below say the same
                self._is_plain = True
        if self._is_plain and (self._pace.is_due(self._clock()) or progress.finished):
            print(as_line(progress), file=self._stream, flush=True)

    def _display(self, progress: Progress) -> None:
        bundle = {"text/html": as_html(progress), "text/plain": as_line(progress)}
        if self._handle is not None:
            self._handle.update(bundle, raw=True)
            return
        # By name: IPython is no dependency, and is there in a notebook.
        display = importlib.import_module("IPython.display").display
        self._handle = display(bundle, raw=True, display_id=True)
        if self._handle is None:  # as without a running IPython
            self._is_plain = True


def as_line(progress: Progress) -> str:
    """Return a snapshot as a line of text."""
    figures = row_figures(progress)
    if not progress.finished and (eta := eta_in_words(progress)):
        figures["time"] = eta
    return ", ".join([*filter(None, figures.values()), *held_up_in_words(progress)])


def as_html(progress: Progress) -> str:
    """Return a snapshot as a small piece of HTML: a bar, its figures, and what it waits for."""
    figures = row_figures(progress)
    time_left = figures["time"] if progress.finished else eta_in_words(progress)
    value = ""  # without a value the bar moves to and fro: the number of calls is unknown
    if progress.finished or progress.total is not None:
        total = progress.done if progress.total is None else progress.total
        value = f' value="{progress.done}" max="{max(total, 1)}"'
    failed = escape(figures["failed"])
    parts = [
        f"<b>{escape(figures['done'])}</b>",
        escape(figures["ok"]),
        f'<span style="color:{_RED}">{failed}</span>' if progress.failed else failed,
        f"{progress.in_flight:,}/{progress.limit:,} in flight",
        escape(figures["rate"]),
        escape(figures["token_rate"]),
        escape(cost_of_budget(progress)),
        escape(time_left or figures["time"]),
    ]
    lines = "".join(
        f'<div style="color:{_AMBER}">{escape(text)}</div>' for text in held_up_in_words(progress)
    )
    return (
        f'<div style="{_STYLE}"><progress style="width:100%"{value}></progress>'
        f"<div>{' &middot; '.join(filter(None, parts))}</div>{lines}</div>"
    )
