"""A progress bar for batches on a terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, TextIO, cast

from .live_output import is_live, is_terminal
from .progress import Progress
from .progress_texts import row_figures

if TYPE_CHECKING:  # rich takes a while to import, and most batches draw nothing
    import rich.console
    import rich.progress

logger = logging.getLogger("parallel_core")

_BAR_WIDTH = 16
# Narrower terminals have no room for the bar (or the token rate) beside the other figures.
_NARROWEST_WITH_BAR = 121
_NARROWEST_WITH_TOKEN_RATE = 94


class ProgressBar:
    """A callback that draws the snapshots of one batch as a row on the terminal.

    The row appears with the first snapshot, and the last snapshot stays on the terminal. All bars
    on one terminal share a display, with a row for each; output of the program appears above it. A
    bar that cannot be drawn draws nothing: a broken terminal must not end a batch.

    Args:
        console: where to draw. None: on the current ``sys.stderr``, if that is a terminal or a
            Jupyter notebook.

    Attributes:
        quiet: True if it draws nothing: there is no terminal, or the terminal has failed.
    """

    def __init__(self, console: rich.console.Console | None = None) -> None:
        self._console = _stderr_console() if console is None else console
        self.quiet = self._console is None or not is_live(self._console)
        self._display: _Display | None = None
        self._row: Any = None

    def __call__(self, progress: Progress) -> None:
        """Draw a snapshot; the last one closes the bar."""
        if self.quiet or self._console is None:
            return
        try:
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
                    display.remove(self._row)

    def _draw(self, console: rich.console.Console, progress: Progress) -> None:
        if self._display is None:
            display = _displays.get(id(console.file)) or _Display(console)
            self._row = display.add(progress)
            self._display = display  # now there is something to close
        else:
            self._display.update(self._row, progress)


# The open displays, by the id of the stream that they write to. The lock is needed because batches
# may run in several threads; it is reentrant because printing on a console may call this module
# again while it draws.
_displays_lock = threading.RLock()
_displays: dict[int, _Display] = {}


class _Display:
    """The rows of all batches on one terminal. Its methods need ``_displays_lock``."""

    def __init__(self, console: rich.console.Console) -> None:
        import rich.progress

        # Redirected output appears on this console. That is right only for output that goes to the
        # same terminal: results that are piped into a file must still reach the file.
        self._stream = console.file  # keep a reference, so that its id is not reused
        to_notebook = console.is_jupyter
        self._progress = rich.progress.Progress(
            *_columns(console),
            console=console,
            auto_refresh=False,  # no thread: each snapshot draws
            redirect_stdout=to_notebook or (is_terminal(sys.stdout) and is_terminal(self._stream)),
            redirect_stderr=to_notebook or _without_proxy(sys.stderr) is self._stream,
        )

    def add(self, progress: Progress) -> rich.progress.TaskID:
        others = self._progress.task_ids
        try:
            row = self._progress.add_task(
                "", total=_bar_total(progress), completed=progress.done, **_figures(progress)
            )
            self._progress.start()  # does nothing if it has started
        except BaseException:
            # rich may have added a row without returning its id.
            for unwanted in set(self._progress.task_ids) - set(others):
                with contextlib.suppress(Exception):
                    self.remove(unwanted)
            raise
        _displays[id(self._stream)] = self
        return row

    def update(self, row: rich.progress.TaskID, progress: Progress) -> None:
        self._progress.update(
            row,
            total=_bar_total(progress),
            completed=progress.done,
            refresh=True,
            **_figures(progress),
        )

    def remove(self, row: rich.progress.TaskID) -> None:
        """Remove a row from the display; it stays on the terminal."""
        if len(self._progress.tasks) == 1:
            self._stop()
            return
        # Print it above the rows of running batches. If it stayed among them, the display would
        # grow without bound while batches overlap.
        ended = [task for task in self._progress.tasks if task.id == row]
        self._progress.remove_task(row)
        with self._progress.console as console:
            console.print(self._progress.make_tasks_table(ended))
            self._progress.refresh()

    def _stop(self) -> None:
        _displays.pop(id(self._stream), None)  # it may have failed to start
        self._progress.stop()


def _stderr_console() -> rich.console.Console | None:
    from rich.console import Console

    stream = _without_proxy(sys.stderr)
    if stream is None:  # a program without a terminal on Windows
        return None
    return Console(file=stream)


def _without_proxy(stream: TextIO | None) -> TextIO | None:
    """Return the original stream if rich has replaced it with a redirection."""
    return cast("TextIO | None", getattr(stream, "rich_proxied_file", stream))


def _columns(console: rich.console.Console) -> list[rich.progress.ProgressColumn]:
    from rich.progress import BarColumn, ProgressColumn, TextColumn

    bar: list[ProgressColumn] = []
    if console.width >= _NARROWEST_WITH_BAR:
        bar.append(BarColumn(bar_width=_BAR_WIDTH))
    names = ["done", "ok", "failed", "in_flight", "rate", "tokens", "token_rate", "cost", "time"]
    if console.width < _NARROWEST_WITH_TOKEN_RATE:
        names.remove("token_rate")
    return [*bar, *(TextColumn(f"{{task.fields[{name}]}}", justify="right") for name in names)]


def _bar_total(progress: Progress) -> int | None:
    # At the end an unknown total becomes known, so the bar is full.
    return progress.done if progress.finished and progress.total is None else progress.total


def _figures(progress: Progress) -> dict[str, Any]:
    """Return the texts of the columns by name, in rich's markup."""
    figures: dict[str, Any] = {**row_figures(progress)}
    figures["ok"] = f"[green]{figures['ok']}[/]"
    if progress.failed:
        figures["failed"] = f"[red]{figures['failed']}[/]"
    return figures
