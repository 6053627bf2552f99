"""Progress of a batch: snapshots of its counts.

The engine ticks a :class:`ProgressReporter`, which makes a :class:`Progress` from the counts of the
batch and passes it to the callbacks: the user's ``on_progress``, a
:class:`~parallel_core.control.progress_bar.ProgressBar`, or both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from parallel_core.types import Usage

# Seconds over which the rate is measured: long enough to be smooth, short enough to show a change.
RATE_WINDOW = 10.0
# Seconds of a second measurement. The two, and the whole batch, give the range of the rate.
LONG_RATE_WINDOW = 60.0
# Samples in a window: they bound the memory, however often the engine ticks.
_SAMPLES = 100
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


DelayReason: TypeAlias = Literal["rate_limit", "budget", "retry", "overload"]


class Delay(msgspec.Struct, frozen=True):
    """Requests that wait although their model answers others.

    Attributes:
        reason: ``"rate_limit"``: calls hold their slots until the rate limit lets them begin.
            ``"budget"``: calls hold their slots until the budget has room. ``"retry"``: requests
            that have failed are to be sent again. ``"overload"``: adaptive concurrency lets no call
            begin, because the provider is overloaded.
        requests: number of these requests; 0 for ``"overload"``, which holds all of them.
        cause: why they failed, as in :class:`~parallel_core.Failure`; empty unless they are to be
            sent again.
        next_try: seconds until the first of them goes on; None if that is unknown.
    """

    reason: DelayReason
    requests: int
    cause: str = ""
    next_try: float | None = None


class BudgetUse(msgspec.Struct, frozen=True):
    """The state of a :class:`~parallel_core.Budget`, which other batches may use, too.

    Attributes:
        max_cost, max_tokens: the caps, in USD and in tokens; None if there is none.
        spent_cost, spent_tokens: what the calls that have ended count, with the worst case for each
            unknown bill.
        reserved_cost, reserved_tokens: what the calls in flight may need.
    """

    max_cost: float | None
    max_tokens: int | None
    spent_cost: float
    spent_tokens: int
    reserved_cost: float
    reserved_tokens: int


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
        rate_range: the lowest and the highest of three measured rates: over about the last ten
            seconds, over about the last minute, and over the whole batch.
        eta_range: ``eta`` at the highest and at the lowest of these rates. It says how much the
            rate has varied so far, and is no promise. ``None`` if ``eta`` is.
        delays: requests that wait although their model answers others.
        budget: the state of the budget; ``None`` if the batch has none.
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
    rate_range: tuple[float, float] = (0.0, 0.0)
    eta_range: tuple[float, float] | None = None
    delays: tuple[Delay, ...] = ()
    budget: BudgetUse | None = None

    @property
    def done(self) -> int:
        """Number of calls that have finished: succeeded and failed."""
        return self.succeeded + self.failed


class _Sample(NamedTuple):
    """The number of finished calls at some time, and their tokens."""

    at: float
    done: int
    tokens: int


class _Window:
    """A sliding window of samples, from which rates are measured."""

    def __init__(self, length: float, first: _Sample) -> None:
        self._length = length
        self._samples = deque([first])  # the oldest one first

    def add(self, sample: _Sample) -> None:
        if sample.at - self._samples[-1].at >= self._length / _SAMPLES:
            self._samples.append(sample)

    def rates(self, now: _Sample) -> tuple[float, float]:
        """Return calls and tokens per second."""
        # The window begins at the newest sample that is older than the window.
        while len(self._samples) > 1 and self._samples[1].at <= now.at - self._length:
            self._samples.popleft()
        return _rates_between(self._samples[0], now)


def _rates_between(since: _Sample, now: _Sample) -> tuple[float, float]:
    seconds = now.at - since.at
    if seconds <= 0:
        return 0.0, 0.0
    return (now.done - since.done) / seconds, (now.tokens - since.tokens) / seconds


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


def _no_budget() -> BudgetUse | None:
    return None


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
        delays: returns the requests that wait for another reason at a time.
        budget: returns the state of the budget.
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
        delays: Callable[[float], tuple[Delay, ...]] = _none_of_them,
        budget: Callable[[], BudgetUse | None] = _no_budget,
    ) -> None:
        self._counts = counts
        self._waiting = waiting
        self._stragglers = stragglers
        self._delays = delays
        self._budget = budget
        self._callbacks = list(callbacks)
        self._total = total
        self._first: _Sample | None = None  # the beginning of the batch
        self._windows: tuple[_Window, ...] = ()
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
        for window in self._windows:
            window.add(_Sample(now, progress.done, progress.usage.total_tokens))
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

    def _begin(self, now: float) -> _Sample:
        self._first = first = self._sample(now)
        self._windows = _Window(RATE_WINDOW, first), _Window(LONG_RATE_WINDOW, first)
        return first

    def _sample(self, now: float) -> _Sample:
        counts = self._counts
        return _Sample(now, counts.succeeded + counts.failed, counts.usage.total_tokens)

    def _snapshot(self, now: float, *, finished: bool) -> Progress:
        first = self._begin(now) if self._first is None else self._first
        counts, sample = self._counts, self._sample(now)
        (rate, token_rate), (long_rate, _) = [window.rates(sample) for window in self._windows]
        rates = rate, long_rate, _rates_between(first, sample)[0]
        rate_range = min(rates), max(rates)
        eta = _eta(self._total, sample.done, rate, finished=finished)
        left = 0 if self._total is None else self._total - sample.done
        return Progress(
            total=self._total,
            started=counts.started,
            succeeded=counts.succeeded,
            failed=counts.failed,
            in_flight=counts.in_flight,
            elapsed=max(0.0, now - first.at),
            rate=rate,
            token_rate=token_rate,
            eta=eta,
            usage=counts.usage,
            limit=counts.limit,
            finished=finished,
            waiting=() if finished else self._waiting(now),
            stragglers=() if finished else self._stragglers(now),
            rate_range=rate_range,
            eta_range=None if eta is None else eta_range(left, rate_range),
            delays=() if finished else self._delays(now),
            budget=self._budget(),
        )

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
            [(delay.reason, delay.cause, delay.requests) for delay in snapshot.delays],
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


def eta_range(left: int, rate_range: tuple[float, float]) -> tuple[float, float] | None:
    """Return the seconds for the calls that are left, at the highest and at the lowest rate.

    None if one of the rates is 0.
    """
    lowest, highest = rate_range
    if left <= 0:
        return 0.0, 0.0
    return None if lowest <= 0 else (left / highest, left / lowest)
