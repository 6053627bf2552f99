"""A progress bar for batches on a terminal, or in a notebook."""

from __future__ import annotations

import contextlib
import logging
import sys
import textwrap
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .live_output import is_live
from .notebook import NotebookProgress
from .progress import Progress
from .progress_texts import held_up_in_words, row_figures

if TYPE_CHECKING:  # rich takes a while to import, and most batches draw nothing
    import rich.console
    import rich.text

    from .live_lines import LiveLines

logger = logging.getLogger("parallel_core")

_BAR_WIDTH: Final = 16
_NARROWEST_WITH_BAR: Final = 121
# The figures of a row, each with the width of the terminal, in characters, from which it is shown.
_COLUMNS: Final = {
    "done": 0,
    "ok": 52,
    "failed": 0,
    "in_flight": 64,
    "rate": 0,
    "tokens": 80,
    "token_rate": 94,
    "cost": 72,
    "time": 0,
}


class ProgressBar:
    """A callback that shows the snapshots of one batch as a row on the terminal.

    The row appears with the first snapshot, and the last snapshot stays on the terminal. Below it
    stands what calls wait for: a server, a limit, their next attempt. All bars
    on one terminal share a display, with a row for each; output of the program appears above it. A
    bar that cannot be drawn draws nothing: a broken terminal must not end a batch. In a notebook
    each batch has a display of its own.

    Args:
        console: where to draw. None: on the current ``sys.stderr``, if that is a terminal or a
            Jupyter notebook.

    Attributes:
        quiet: True if it draws nothing: there is no terminal, or the terminal has failed.
    """

    def __init__(self, console: rich.console.Console | None = None) -> None:
        self._console = _stderr_console() if console is None else console
        self._notebook: NotebookProgress | None = None
        self.quiet = self._console is None
        if self._console is not None and self._console.is_jupyter:
            self._notebook = NotebookProgress(self._console.file)
        elif self._console is not None:
            self.quiet = not is_live(self._console)
        self._display: _Display | None = None

    def __call__(self, progress: Progress) -> None:
        """Draw a snapshot; the last one closes the bar."""
        if self.quiet or self._console is None:
            return
        try:
            if self._notebook is not None:
                self._notebook.show(progress)
            else:
                with _displays_lock:
                    self._draw(self._console, progress)
        except BaseException as error:
            self.quiet = True
            self.close()
            if not isinstance(error, Exception):
                raise
            logger.debug("parallel_core: the progress bar cannot be drawn", exc_info=True)
        if progress.finished:
            self.close()

    def close(self) -> None:
        """Leave the row on the terminal as it is now. Idempotent."""
        with _displays_lock:
            display, self._display = self._display, None
            if display is not None:
                self.quiet = True
                with contextlib.suppress(Exception):  # the terminal may be gone
                    display.remove(self)

    def _draw(self, console: rich.console.Console, progress: Progress) -> None:
        display = self._display
        if display is None:
            display = _displays.get(id(console.file)) or _Display(console)
            self._display = display  # now there is something to close
        display.show(self, progress)


# The open displays, by the id of the stream that they write to. The lock is needed because batches
# may run in several threads; it is reentrant because printing on a console may call this module
# again while it draws.
_displays_lock = threading.RLock()
_displays: dict[int, _Display] = {}


class _Display:
    """The rows of all batches on one terminal. Its methods need ``_displays_lock``."""

    def __init__(self, console: rich.console.Console) -> None:
        from .live_lines import LiveLines

        self._console = console
        self._stream = console.file  # keep a reference, so that its id is not reused
        self._rows: dict[ProgressBar, Progress] = {}
        self._lines: LiveLines = LiveLines(console)

    def show(self, bar: ProgressBar, progress: Progress) -> None:
        _displays[id(self._stream)] = self
        self._rows[bar] = progress
        self._draw()

    def remove(self, bar: ProgressBar) -> None:
        """Remove a row from the display; it stays on the terminal."""
        if len(self._rows) == 1:
            _displays.pop(id(self._stream), None)
            try:  # an end before the last snapshot leaves nothing that it waits for
                self._lines.show(rows_of([self._rows.pop(bar)], self._console.width))
            finally:
                self._lines.close()
            return
        # Print it above the rows of running batches. If it stayed among them, the display would
        # grow without bound while batches overlap.
        ended = self._rows.pop(bar)
        with self._console:
            self._lines.print_above(rows_of([ended], self._console.width))
            self._draw()

    def _draw(self) -> None:
        height = self._console.height - 1  # see LiveLines
        self._lines.show(rows_of(list(self._rows.values()), self._console.width, height))


def _stderr_console() -> rich.console.Console | None:
    from rich.console import Console

    from .live_lines import without_proxy

    stream = without_proxy(sys.stderr)
    if stream is None:  # a program without a terminal on Windows
        return None
    return Console(file=stream)


def rows_of(
    snapshots: Sequence[Progress], width: int, height: int | None = None
) -> list[rich.text.Text]:
    """Return snapshots as rows with aligned figures, for a terminal of this width.

    Args:
        snapshots: one of each batch.
        width: columns of the terminal.
        height: rows of the terminal, of which some say below the row of a batch what its calls wait
            for. None: none of them.
    """
    from rich.text import Text

    from .live_lines import BAD, GOOD, WAITING, bar

    names = [name for name, least in _COLUMNS.items() if width >= least]
    table = [row_figures(progress) for progress in snapshots]
    widest = {name: max(len(row[name]) for row in table) for name in table[0]}
    rows: list[Text] = []
    room = 0 if height is None else height - len(snapshots)
    for progress, figures in zip(snapshots, table, strict=True):
        # At the end an unknown total becomes known, so the bar is full.
        total = progress.done if progress.finished else progress.total
        styles = {"ok": GOOD, "failed": BAD if progress.failed else ""}
        cells = [bar(progress.done, total, _BAR_WIDTH)] if width >= _NARROWEST_WITH_BAR else []
        cells += [
            Text(figures[name].rjust(widest[name]), style=styles.get(name, ""))
            for name in names
            if widest[name]
        ]
        rows.append(Text(" ").join(cells))
        lines = [
            f"  {line}"
            for text in held_up_in_words(progress)
            for line in textwrap.wrap(text, max(20, width - 2))
        ][: max(0, room)]
        rows += [Text(line, WAITING) for line in lines]
        room -= len(lines)
    return rows
