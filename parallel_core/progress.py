"""How far a batch is: snapshots, and a bar that draws them. Only a bar imports rich."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import msgspec

from .types import Usage

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import TaskID

# Seconds over which the rate is taken, and after which a batch in which nothing happens reports.
_RATE_WINDOW = 10.0
_SILENCE = 1.0


class Progress(msgspec.Struct, frozen=True):
    """A moment of a running batch.

    Attributes:
        total: requests of the batch; None where their number is not known.
        started: calls begun.
        succeeded: calls that returned.
        failed: calls that raised, and requests that were refused.
        in_flight: calls that are running.
        limit: calls that may be running; adaptive concurrency changes it.
        elapsed: seconds since the batch began.
        rate: calls ended in a second, over the last 10 s.
        eta: seconds until the batch is done at this rate; None where that cannot be told.
        usage: tokens and cost so far.
        finished: whether this is the last one.
    """

    total: int | None
    started: int
    succeeded: int
    failed: int
    in_flight: int
    limit: int
    elapsed: float
    rate: float
    eta: float | None
    usage: Usage
    finished: bool = False

    @property
    def done(self) -> int:
        """Calls that ended."""
        return self.succeeded + self.failed


class SupportsCounts(Protocol):
    """The numbers of a running batch."""

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


class ProgressReporter:
    """Makes snapshots of one batch and hands them to callbacks.

    Args:
        counts: the numbers of the batch.
        callbacks: each is given every snapshot. One that has raised is not called again.
        total: requests of the batch, where that is known.
        began: when the batch began, in seconds on the clock of the ``now`` below.
    """

    def __init__(
        self,
        counts: SupportsCounts,
        callbacks: Sequence[Callable[[Progress], object]],
        total: int | None,
        began: float,
    ) -> None:
        self._counts = counts
        self._callbacks = list(callbacks)
        self._total = total
        self._began = began
        self._samples: deque[tuple[float, int]] = deque([(began, 0)])
        self._last: Progress | None = None
        self._finished = False

    def tick(self, now: float) -> None:
        """Report, if something has changed or nothing was said for a second.

        Raises:
            Exception: what a callback raises, when all have been called.
        """
        if self._finished:
            return
        progress = self._snapshot(now, finished=False)
        last = self._last
        if last is None or progress.elapsed - last.elapsed >= _SILENCE or _differ(progress, last):
            self._report(progress)

    def finish(self, now: float) -> None:
        """Report the end, once. Raises as :meth:`tick` does."""
        if not self._finished:
            self._finished = True
            self._report(self._snapshot(now, finished=True))

    def _snapshot(self, now: float, *, finished: bool) -> Progress:
        counts = self._counts
        done = counts.succeeded + counts.failed
        rate = self._rate(now, done)
        return Progress(
            self._total,
            counts.started,
            counts.succeeded,
            counts.failed,
            counts.in_flight,
            counts.limit,
            now - self._began,
            rate,
            _eta(self._total, done, rate),
            counts.usage,
            finished,
        )

    def _rate(self, now: float, done: int) -> float:
        """Over the window, of which the oldest sample is the last before it."""
        samples = self._samples
        samples.append((now, done))
        while len(samples) > 2 and samples[1][0] <= now - _RATE_WINDOW:
            samples.popleft()
        since, before = samples[0]
        return (done - before) / (now - since) if now > since else 0.0

    def _report(self, progress: Progress) -> None:
        self._last = progress
        first_error: BaseException | None = None
        for callback in list(self._callbacks):
            try:
                _refuse_awaitable(callback(progress))
            except BaseException as error:  # noqa: BLE001 - raised when the bar has been told
                self._callbacks.remove(callback)
                first_error = first_error or error
        if first_error is not None:
            try:
                raise first_error
            finally:
                del first_error


def _differ(one: Progress, other: Progress) -> bool:
    return (one.started, one.done, one.in_flight, one.limit) != (
        other.started,
        other.done,
        other.in_flight,
        other.limit,
    )


def _eta(total: int | None, done: int, rate: float) -> float | None:
    if total is None:
        return None
    left = max(0, total - done)
    if not left:
        return 0.0
    return left / rate if rate > 0 else None


def _refuse_awaitable(value: object) -> None:
    if inspect.isawaitable(value):
        close = getattr(value, "close", None)
        if close is not None:
            close()
        raise TypeError("on_progress must be a plain function, and this one gives an awaitable")


def checked_callback(on_progress: object) -> Callable[[Progress], object]:
    """Raises TypeError where it is no plain function."""
    if not callable(on_progress):
        raise TypeError(
            f"on_progress must be a function of one Progress, not {type(on_progress).__qualname__}"
        )
    if inspect.iscoroutinefunction(on_progress) or inspect.iscoroutinefunction(
        getattr(on_progress, "__call__", None)  # noqa: B004 - of an object with an async __call__
    ):
        raise TypeError("on_progress must be a plain function, not an async one")
    return cast("Callable[[Progress], object]", on_progress)


def checked_progress(progress: object) -> bool:
    """Raises TypeError where it is neither True nor False."""
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be True or False, not {type(progress).__qualname__}")
    return progress


# --- the bar ---


class _SharedDisplay:
    """What is drawn at the foot of the terminal: one row for each batch, of all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._display: Display | None = None
        self._console: Console | None = None
        self._rows = 0

    def add(self, console: Console) -> tuple[Display, TaskID]:
        with self._lock:
            if self._display is None or self._console is not console:
                self._stop()
                self._display, self._console, self._rows = _new_display(console), console, 0
                self._display.start()
            self._rows += 1
            return self._display, self._display.add_task("")

    def leave(self, display: Display) -> None:
        with self._lock:
            if display is self._display:
                self._rows -= 1
                if not self._rows:
                    self._stop()

    def _stop(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = self._console = None


_shared = _SharedDisplay()
_consoles: dict[int, tuple[Any, Console]] = {}


def _console_of_stderr() -> Console:
    """One for each stderr: bars that are drawn at the same time have to share it."""
    from rich.console import Console

    stream = sys.stderr
    known = _consoles.get(id(stream))
    if known is None or known[0] is not stream:
        _consoles.clear()
        known = _consoles[id(stream)] = (stream, Console(stderr=True))
    return known[1]


def _new_display(console: Console) -> Display:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Display

    return Display(
        BarColumn(bar_width=20),
        TextColumn("{task.fields[words]}", markup=False),
        console=console,
        auto_refresh=False,  # no thread: each snapshot draws
    )


class ProgressBar:
    """Draws the snapshots of one batch on stderr: a callback of :class:`ProgressReporter`.

    Quiet where stderr is neither a terminal nor Jupyter's. Batches that run at the same time have a
    row each.

    Args:
        console: where to draw; None: stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or _console_of_stderr()
        self._row: tuple[Display, TaskID] | None = None
        self._draws = console.is_terminal or console.is_jupyter
        self._console = console

    def __call__(self, progress: Progress) -> None:
        if not self._draws:
            return
        if self._row is None:
            self._row = _shared.add(self._console)
        display, task = self._row
        try:
            display.update(
                task, total=progress.total, completed=progress.done, words=describe(progress)
            )
            display.refresh()
        finally:
            if progress.finished:
                display.stop_task(task)
                self._row = None
                self._draws = False
                _shared.leave(display)


def describe(progress: Progress) -> str:
    """A snapshot in one line of text."""
    total = "" if progress.total is None else f"/{progress.total:,}"
    words = [
        f"{progress.done:,}{total}",
        f"{progress.succeeded:,} ok",
        f"{progress.failed:,} failed",
        f"{progress.in_flight:,} in flight",
        f"{progress.rate:.1f}/s",
    ]
    usage = progress.usage
    if usage.total_tokens:
        words.append(f"{_short(usage.total_tokens)} tokens")
    if usage.cost:
        words.append(f"${usage.cost:.4f}" if usage.cost < 1 else f"${usage.cost:,.2f}")
    if progress.finished:
        words.append(f"took {_clock(progress.elapsed)}")
    elif progress.eta is not None:
        words.append(f"ETA {_clock(progress.eta)}")
    return " · ".join(words)


def _short(number: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
