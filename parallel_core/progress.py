"""Watching a batch: snapshots of what it has done, and the bar that draws them on a terminal.

The engine ticks a :class:`ProgressReporter`; that makes a :class:`Progress` of the batch's counts
and hands it to the callbacks: to the user's ``on_progress``, to a :class:`ProgressBar`, or to both.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

import msgspec

from .types import Usage

if TYPE_CHECKING:  # rich takes a while to import, and most batches draw nothing
    import rich.console
    import rich.progress

logger = logging.getLogger("parallel_core")

# The rate is that of so many seconds: long enough to be calm, short enough to show a change.
RATE_WINDOW = 10.0
# Samples are at least so far apart, however often the engine ticks: there are never many.
_SAMPLE_SPACING = RATE_WINDOW / 100
# Where nothing happens, there still is a snapshot after so many seconds: its clock goes on.
_LONGEST_SILENCE = 1.0

_BAR_WIDTH = 16
# On a narrower terminal the figures need all the room.
_NARROWEST_WITH_BAR = 110


class Progress(msgspec.Struct, frozen=True):
    """How far a batch is: a snapshot.

    Attributes:
        total: calls that the batch will make; ``None`` where the length of its source is unknown.
        started: calls that have begun so far.
        succeeded: calls that returned.
        failed: calls that raised.
        in_flight: calls that are running now.
        elapsed: seconds since the batch began.
        rate: calls that finished per second, of about the last ten seconds; 0.0 while none has.
        eta: seconds until all calls have finished, at this rate. ``None`` where that cannot be
            told: ``total`` is unknown, ``rate`` is 0, or the batch has ended early. 0.0 when all
            have finished.
        usage: tokens, and USD, of the calls that have finished.
        limit: calls that may be in flight now. Adaptive concurrency changes it.
        finished: whether the batch has ended and this is its last snapshot.
    """

    total: int | None
    started: int
    succeeded: int
    failed: int
    in_flight: int
    elapsed: float
    rate: float
    eta: float | None
    usage: Usage
    limit: int
    finished: bool

    @property
    def done(self) -> int:
        """Calls that have finished: those that succeeded, and those that failed."""
        return self.succeeded + self.failed


class SupportsCounts(Protocol):
    """What a batch tells of itself. :class:`Progress` says what each count means."""

    @property
    def started(self) -> int: ...
    @property
    def succeeded(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def usage(self) -> Usage: ...


def checked_progress(value: object) -> bool:
    """The option ``progress``: whether a bar is drawn.

    Raises:
        TypeError: it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"progress must be True or False, not {type(value).__qualname__}")
    return value


def checked_callback(on_progress: object) -> Callable[[Progress], object]:
    """The option ``on_progress``: a plain function that takes a :class:`Progress`.

    The function that comes back raises TypeError when what ``on_progress`` returns would have to
    be awaited: nobody does that. A coroutine is closed first.

    Raises:
        TypeError: it cannot be called, or it is an async function.
    """
    if not callable(on_progress):
        raise TypeError(
            f"on_progress must be a plain function, not {type(on_progress).__qualname__}"
        )
    if _is_async(on_progress) or _is_async(getattr(on_progress, "__call__", None)):  # noqa: B004
        raise TypeError("on_progress must be a plain function, not an async function")

    def call(progress: Progress) -> object:
        returned = on_progress(progress)
        if inspect.isawaitable(returned):
            close: Any = getattr(returned, "close", None)
            if callable(close):
                close()  # or it would complain that it was never awaited
            raise TypeError(
                "on_progress must be a plain function: it has returned "
                f"{type(returned).__qualname__}, which nobody awaits"
            )
        return returned

    return call


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


class ProgressReporter:
    """Makes the snapshots of one batch and tells the callbacks.

    The engine calls :meth:`tick` again and again, and :meth:`finish` once, when no call
    is in flight any more. Both raise what a callback raises. That callback is not called again; the
    others are, so that none of them misses the last snapshot. It is no matter in which order they
    are given.

    Args:
        counts: of the batch; read at each tick.
        callbacks: called with each snapshot, in this order.
        total: calls that the batch will make; None where that is unknown.
        started_at: when the batch began, in seconds on the clock of the ticks; None: at the first
            tick.
    """

    def __init__(
        self,
        counts: SupportsCounts,
        callbacks: Sequence[Callable[[Progress], object]],
        total: int | None,
        started_at: float | None = None,
    ) -> None:
        self._counts = counts
        self._callbacks = list(callbacks)
        self._total = total
        self._started_at = 0.0
        # When, and how many calls had finished then; the oldest one first.
        self._samples: deque[tuple[float, int]] = deque()
        self._last: Progress | None = None
        self._finished = False
        if started_at is not None:
            self._begin(started_at)

    def tick(self, now: float) -> None:
        """Tell the callbacks if anything has changed, or they have not heard anything for a second.

        Args:
            now: seconds on a monotonic clock.

        Raises:
            BaseException: what a callback raised.
        """
        if self._finished:
            return
        progress = self._snapshot(now, finished=False)
        self._take_sample(now, progress.done)
        if self._last is None or _differs(progress, self._last):
            self._tell(progress)

    def finish(self, now: float) -> None:
        """Tell the callbacks for the last time, also where nothing has changed. Once.

        Args:
            now: seconds on a monotonic clock.

        Raises:
            BaseException: what a callback raised.
        """
        if self._finished:
            return
        self._finished = True
        self._tell(self._snapshot(now, finished=True))

    def _begin(self, now: float) -> None:
        self._started_at = now
        self._samples.append((now, self._counts.succeeded + self._counts.failed))

    def _snapshot(self, now: float, *, finished: bool) -> Progress:
        if not self._samples:
            self._begin(now)
        counts = self._counts
        done = counts.succeeded + counts.failed
        rate = self._rate(now, done)
        return Progress(
            total=self._total,
            started=counts.started,
            succeeded=counts.succeeded,
            failed=counts.failed,
            in_flight=counts.in_flight,
            elapsed=max(0.0, now - self._started_at),
            rate=rate,
            eta=_eta(self._total, done, rate, finished=finished),
            usage=counts.usage,
            limit=counts.limit,
            finished=finished,
        )

    def _rate(self, now: float, done: int) -> float:
        # Of those samples that are older than the window, the newest is where the window begins.
        while len(self._samples) > 1 and self._samples[1][0] <= now - RATE_WINDOW:
            self._samples.popleft()
        since, done_then = self._samples[0]
        return (done - done_then) / (now - since) if now > since else 0.0

    def _take_sample(self, now: float, done: int) -> None:
        if now - self._samples[-1][0] >= _SAMPLE_SPACING:
            self._samples.append((now, done))

    def _tell(self, progress: Progress) -> None:
        self._last = progress
        errors: list[BaseException] = []
        for callback in list(self._callbacks):
            try:
                callback(progress)
            except BaseException as error:  # noqa: BLE001 - it is raised below, when all are told
                errors.append(error)
                self._callbacks.remove(callback)
        if errors:
            # The first one; but Ctrl-C must not be lost behind an error.
            interrupts = [error for error in errors if not isinstance(error, Exception)]
            raise (interrupts or errors)[0]


def _differs(progress: Progress, last: Progress) -> bool:
    def counts(snapshot: Progress) -> tuple[object, ...]:
        return (
            snapshot.started,
            snapshot.succeeded,
            snapshot.failed,
            snapshot.in_flight,
            snapshot.limit,
            snapshot.usage,
        )

    silence = progress.elapsed - last.elapsed
    return silence >= _LONGEST_SILENCE or counts(progress) != counts(last)


def _eta(total: int | None, done: int, rate: float, *, finished: bool) -> float | None:
    if total is None:
        return None
    if done >= total:
        return 0.0
    if finished or rate <= 0:
        return None
    return (total - done) / rate


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
    names = ("done", "ok", "failed", "in_flight", "rate", "tokens", "cost", "time")
    return [*bar, *(TextColumn(f"{{task.fields[{name}]}}", justify="right") for name in names)]


def _bar_total(progress: Progress) -> int | None:
    # In the end an unknown length is known, and the bar is full.
    return progress.done if progress.finished and progress.total is None else progress.total


def _figures(progress: Progress) -> dict[str, Any]:
    """What the columns show, by name; with rich's markup."""
    total = "" if progress.total is None else f"/{progress.total}"
    failed = f"{progress.failed} failed"
    cost = progress.usage.cost
    return {
        "done": f"{progress.done}{total}",
        "ok": f"[green]{progress.succeeded} ok[/]",
        "failed": f"[red]{failed}[/]" if progress.failed else failed,
        "in_flight": f"{progress.in_flight} in flight",
        "rate": f"{_rate_shown(progress):.1f}/s",
        "tokens": f"{_humanised(progress.usage.total_tokens)} tokens",
        "cost": f"${cost:,.{2 if cost >= 1 else 4}f}" if cost > 0 else "",
        "time": _time_shown(progress),
    }


def _rate_shown(progress: Progress) -> float:
    # The last row stands beside the whole time: the rate is that of the whole batch.
    if not progress.finished:
        return progress.rate
    return progress.done / progress.elapsed if progress.elapsed > 0 else 0.0


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
