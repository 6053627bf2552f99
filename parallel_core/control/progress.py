"""Progress of a batch: snapshots of its counts.

The engine ticks a :class:`ProgressReporter`, which makes a :class:`Progress` from the counts of the
batch and passes it to the callbacks: the user's ``on_progress``, a
:class:`~parallel_core.control.progress_bar.ProgressBar`, or both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from parallel_core.types import Usage

# Seconds over which the rate is measured: long enough to be smooth, short enough to show a change.
RATE_WINDOW = 10.0
# Minimum seconds between two samples: it bounds their number, however often the engine ticks.
_SAMPLE_SPACING = RATE_WINDOW / 100
# Maximum seconds between two snapshots, also while nothing changes: the elapsed time advances.
_LONGEST_SILENCE = 1.0


class Waiting(msgspec.Struct, frozen=True):
    """A model whose requests wait, because none of its calls gets through at the moment.

    Attributes:
        model: the model; None for items without one.
        endpoint: URL of its server, for instance ``http://127.0.0.1:8000``; None if unknown.
        reason: why the last call failed, as in :class:`~parallel_core.Failure`.
        since: seconds since the first of these failures.
        next_try: seconds until a request is sent again; None while one is in flight.
    """

    model: str | None
    endpoint: str | None
    reason: str
    since: float
    next_try: float | None


class Straggler(msgspec.Struct, frozen=True):
    """A call in flight that takes much longer than the others: 10 times the median, and 5 s.

    Attributes:
        index: index of its request.
        seconds: duration of this attempt so far.
        median: median duration of the last 1,000 calls that succeeded, in seconds.
    """

    index: int
    seconds: float
    median: float


class Progress(msgspec.Struct, frozen=True):
    """A snapshot of the progress of a batch.

    Attributes:
        total: calls that the batch will make; ``None`` if the length of its source is unknown.
        started: calls that have begun so far.
        succeeded: calls that returned.
        failed: calls that raised.
        in_flight: calls that are running now.
        elapsed: seconds since the batch began.
        rate: calls finished per second, over about the last ten seconds; 0.0 before the first one.
        token_rate: tokens of those calls per second, prompts and answers together.
        eta: seconds until all calls have finished, at this rate. ``None`` if it is unknown:
            ``total`` is unknown, ``rate`` is 0, or the batch has ended early. 0.0 when all have
            finished.
        usage: tokens and cost (USD) of the calls that have finished.
        limit: calls that may be in flight now. Adaptive concurrency changes it.
        finished: True if the batch has ended and this is its last snapshot.
        waiting: models of which no call gets through at the moment.
        stragglers: calls in flight that take much longer than the others, the longest first; at
            most five.
    """

    total: int | None
    started: int
    succeeded: int
    failed: int
    in_flight: int
    elapsed: float
    rate: float
    token_rate: float
    eta: float | None
    usage: Usage
    limit: int
    finished: bool
    waiting: tuple[Waiting, ...] = ()
    stragglers: tuple[Straggler, ...] = ()

    @property
    def done(self) -> int:
        """Number of calls that have finished: succeeded and failed."""
        return self.succeeded + self.failed


class _Sample(NamedTuple):
    """The number of finished calls at some time, and their tokens."""

    at: float
    done: int
    tokens: int


class SupportsCounts(Protocol):
    """The counts of a batch. :class:`Progress` describes each."""

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
    """Return the option ``progress``: True if a bar is drawn.

    Raises:
        TypeError: it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"progress must be True or False, not {type(value).__qualname__}")
    return value


def _none_of_them(now: float) -> tuple[Any, ...]:
    return ()


class ProgressReporter:
    """A reporter that makes the snapshots of one batch and calls the callbacks.

    The engine calls :meth:`tick` repeatedly, and :meth:`finish` once, when no call is in flight any
    more. Both raise what a callback raises. A callback that raised is not called again. The others
    are, in whatever order they are given, so that none of them misses the last snapshot.

    Args:
        counts: counts of the batch; read at each tick.
        callbacks: called with each snapshot, in this order.
        total: calls that the batch will make; None if unknown.
        started_at: start of the batch, in seconds on the clock of the ticks; None: the first tick.
        waiting: returns the models for which the batch waits at a time.
        stragglers: returns the slow calls at a time.
    """

    def __init__(
        self,
        counts: SupportsCounts,
        callbacks: Sequence[Callable[[Progress], object]],
        total: int | None,
        started_at: float | None = None,
        *,
        waiting: Callable[[float], tuple[Waiting, ...]] = _none_of_them,
        stragglers: Callable[[float], tuple[Straggler, ...]] = _none_of_them,
    ) -> None:
        self._counts = counts
        self._waiting = waiting
        self._stragglers = stragglers
        self._callbacks = list(callbacks)
        self._total = total
        self._started_at = 0.0
        self._samples: deque[_Sample] = deque()  # the oldest one first
        self._last: Progress | None = None
        self._finished = False
        if started_at is not None:
            self._begin(started_at)

    def tick(self, now: float) -> None:
        """Call the callbacks if a count has changed, or if the last snapshot is one second old.

        Args:
            now: seconds on a monotonic clock.

        Raises:
            BaseException: a callback raised it.
        """
        if self._finished:
            return
        progress = self._snapshot(now, finished=False)
        self._take_sample(_Sample(now, progress.done, progress.usage.total_tokens))
        if self._last is None or _differs(progress, self._last):
            self._call_callbacks(progress)

    def finish(self, now: float) -> None:
        """Call the callbacks once for the last time, even if nothing has changed. Idempotent.

        Args:
            now: seconds on a monotonic clock.

        Raises:
            BaseException: a callback raised it.
        """
        if self._finished:
            return
        self._finished = True
        self._call_callbacks(self._snapshot(now, finished=True))

    def _begin(self, now: float) -> None:
        self._started_at = now
        counts = self._counts
        done = counts.succeeded + counts.failed
        self._samples.append(_Sample(now, done, counts.usage.total_tokens))

    def _snapshot(self, now: float, *, finished: bool) -> Progress:
        if not self._samples:
            self._begin(now)
        counts = self._counts
        done = counts.succeeded + counts.failed
        usage = counts.usage
        rate, token_rate = self._rates(_Sample(now, done, usage.total_tokens))
        return Progress(
            total=self._total,
            started=counts.started,
            succeeded=counts.succeeded,
            failed=counts.failed,
            in_flight=counts.in_flight,
            elapsed=max(0.0, now - self._started_at),
            rate=rate,
            token_rate=token_rate,
            eta=_eta(self._total, done, rate, finished=finished),
            usage=usage,
            limit=counts.limit,
            finished=finished,
            waiting=() if finished else self._waiting(now),
            stragglers=() if finished else self._stragglers(now),
        )

    def _rates(self, now: _Sample) -> tuple[float, float]:
        """Return calls and tokens per second."""
        # The window begins at the newest sample that is older than the window.
        while len(self._samples) > 1 and self._samples[1].at <= now.at - RATE_WINDOW:
            self._samples.popleft()
        since = self._samples[0]
        seconds = now.at - since.at
        if seconds <= 0:
            return 0.0, 0.0
        return (now.done - since.done) / seconds, (now.tokens - since.tokens) / seconds

    def _take_sample(self, sample: _Sample) -> None:
        if sample.at - self._samples[-1].at >= _SAMPLE_SPACING:
            self._samples.append(sample)

    def _call_callbacks(self, progress: Progress) -> None:
        self._last = progress
        errors: list[BaseException] = []
        for callback in list(self._callbacks):
            try:
                callback(progress)
            except BaseException as error:  # noqa: BLE001 - raised below, after all callbacks
                errors.append(error)
                self._callbacks.remove(callback)
        if errors:
            # Raise the first error, but prefer an interrupt: Ctrl-C must not be lost.
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
            # Not their times, which change constantly.
            [(waiting.model, waiting.reason) for waiting in snapshot.waiting],
            [straggler.index for straggler in snapshot.stragglers],
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
