"""The bar that draws the progress of batches on a terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, TextIO, cast

from .progress import Progress

if TYPE_CHECKING:  # rich takes a while to import, and most batches draw nothing
    import rich.console
    import rich.progress

logger = logging.getLogger("parallel_core")

_BAR_WIDTH = 16
# On narrower terminals the other figures need all the room.
_NARROWEST_WITH_BAR = 121
_NARROWEST_WITH_TOKEN_RATE = 94


class ProgressBar:
    """Draws the snapshots of one batch as a row on the terminal: a callback.

    It appears with the first snapshot and stays on the terminal as the last one has left it. All
    bars that are on one terminal at the same time share a display, with a row for each; what the
    program prints meanwhile goes above. Where the bar cannot be drawn it draws nothing: a broken
    terminal is no reason to lose a batch.

    Args:
        console: where to draw. None: on ``sys.stderr`` as it is now, if that is a terminal or a
            Jupyter notebook.

    Attributes:
        quiet: whether it draws nothing: where it is not on a terminal, or that has broken.
    """

    def __init__(self, console: rich.console.Console | None = None) -> None:
        self._console = _stderr_console() if console is None else console
        self.quiet = self._console is None or not _can_draw(self._console)
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
        """Leave the row on the terminal as it is now. Does nothing when that has been done."""
        with _displays_lock:
            display, self._display = self._display, None
            if display is not None:
                self.quiet = True
                with contextlib.suppress(Exception):  # a terminal that is not there any more
                    display.remove(self._row)

    def _draw(self, console: rich.console.Console, progress: Progress) -> None:
        if self._display is None:
            display = _displays.get(id(console.file)) or _Display(console)
            self._row = display.add(progress)
            self._display = display  # now there is something to close
        else:
            self._display.update(self._row, progress)


# The displays that are on a terminal now, by the id of the stream that they write to. Batches may
# run in several threads; and a console's own print may lead here again while it is drawing.
_displays_lock = threading.RLock()
_displays: dict[int, _Display] = {}


class _Display:
    """The rows of all batches on one terminal. Its methods need ``_displays_lock``."""

    def __init__(self, console: rich.console.Console) -> None:
        import rich.progress

        # What is redirected ends up on this console. That is right only for what would have come
        # out on the same terminal: results that are piped into a file must go on to the file.
        self._stream = console.file  # kept, so that its id stays its own
        to_notebook = console.is_jupyter
        self._progress = rich.progress.Progress(
            *_columns(console),
            console=console,
            auto_refresh=False,  # there is no thread: each snapshot draws
            redirect_stdout=to_notebook
            or (_is_terminal(sys.stdout) and _is_terminal(self._stream)),
            redirect_stderr=to_notebook or _without_proxy(sys.stderr) is self._stream,
        )

    def add(self, progress: Progress) -> rich.progress.TaskID:
        others = self._progress.task_ids
        try:
            row = self._progress.add_task(
                "", total=_bar_total(progress), completed=progress.done, **_figures(progress)
            )
            self._progress.start()  # where it has not been
        except BaseException:
            # rich may have drawn a half, and has not said which row it is.
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
        """Take a row out of the display; it stays on the terminal."""
        if len(self._progress.tasks) == 1:
            self._stop()
            return
        # Above the rows that go on. It cannot stay among them: where batches keep overlapping,
        # the display would grow for ever.
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
    # rich takes a pipe for a terminal where FORCE_COLOR asks for colours.
    return Console(file=stream, force_terminal=None if _is_terminal(stream) else False)


def _can_draw(console: rich.console.Console) -> bool:
    return console.is_jupyter or (console.is_terminal and console.is_interactive)


def _without_proxy(stream: TextIO | None) -> TextIO | None:
    """The stream itself, where rich has put its redirection in its place."""
    return cast("TextIO | None", getattr(stream, "rich_proxied_file", stream))


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and bool(stream.isatty())
    except (AttributeError, ValueError):  # it is only a little like a file, or it is closed
        return False


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
    # In the end an unknown length is known, and the bar is full.
    return progress.done if progress.finished and progress.total is None else progress.total


def _figures(progress: Progress) -> dict[str, Any]:
    """What the columns show, by name; with rich's markup."""
    total = "" if progress.total is None else f"/{progress.total}"
    failed = f"{progress.failed} failed"
    cost = progress.usage.cost
    rate, token_rate = _rates_shown(progress)
    return {
        "done": f"{progress.done}{total}",
        "ok": f"[green]{progress.succeeded} ok[/]",
        "failed": f"[red]{failed}[/]" if progress.failed else failed,
        "in_flight": f"{progress.in_flight} in flight",
        "rate": f"{rate:.1f}/s",
        "tokens": f"{_humanised(progress.usage.total_tokens)} tokens",
        "token_rate": f"{_humanised(round(token_rate))} tok/s"
        if progress.usage.total_tokens
        else "",
        "cost": f"${cost:,.{2 if cost >= 1 else 4}f}" if cost > 0 else "",
        "time": _time_shown(progress),
    }


def _rates_shown(progress: Progress) -> tuple[float, float]:
    # The last row stands beside the whole time: the rates are those of the whole batch.
    if not progress.finished:
        return progress.rate, progress.token_rate
    if progress.elapsed <= 0:
        return 0.0, 0.0
    return progress.done / progress.elapsed, progress.usage.total_tokens / progress.elapsed


def _time_shown(progress: Progress) -> str:
    if progress.finished:
        return f"in {_clock(progress.elapsed)}"
    if progress.total is None:
        return _clock(progress.elapsed)
    return "ETA -:--" if progress.eta is None else f"ETA {_clock(progress.eta)}"


def _clock(seconds: float) -> str:
    """``4000.3`` as ``"1:06:40"``, ``61`` as ``"1:01"``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _humanised(count: int) -> str:
    """``1234`` as ``"1.2k"``."""
    amount = float(count)
    for unit in ("", "k", "M"):
        if round(amount, 1) < 1000:
            return f"{amount:.1f}{unit}" if unit else str(count)
        amount /= 1000
    return f"{amount:.1f}B"
