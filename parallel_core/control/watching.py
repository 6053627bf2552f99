"""Watch the usage and the progress of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from parallel_core.errors import EmptyResponseError, PartialAnswerError
from parallel_core.types import Usage

from .budget import Budget
from .call import Call
from .checks import checked_callback
from .hedge import Durations
from .metering import BatchMeter
from .progress import BudgetUse, Delay, Progress, ProgressReporter, Straggler, Waiting
from .progress_bar import ProgressBar
from .protocols import Engine

SNAPSHOT_INTERVAL = 0.1  # seconds
# A call is a straggler if it takes this many times as long as the median call, and this many
# seconds.
_MUCH_LONGER = 10
_LEAST_SECONDS = 5.0
_MOST_STRAGGLERS = 5


class UsageTally:
    """The total usage of the calls of a batch."""

    def __init__(self, meter: BatchMeter) -> None:
        self._usage_of = meter.usage_of
        self._reported = Usage()
        self._unreported = 0  # calls

    def add(self, item: Any, value: Any) -> None:
        usage = self._usage_of(item, value)
        if usage is None:
            self._unreported += 1
        else:
            self._reported += usage

    def add_failed(self, error: Exception) -> None:
        """Note that a call has failed. Some errors report what the call used."""
        if isinstance(error, PartialAnswerError):
            self._reported += error.usage or Usage()
            # An empty answer is paid for, unlike a stream of which nothing has arrived.
            self._unreported += isinstance(error, EmptyResponseError) and error.usage is None

    def usage(self) -> Usage:
        return self._reported + Usage(unpriced_calls=self._unreported)


class Stragglers:
    """Calls in flight that take much longer than the others."""

    def __init__(self) -> None:
        self._durations = Durations()
        self._running: dict[object, tuple[int, float]] = {}  # index and start, the oldest first

    def watch(self, call: Call) -> Call:
        async def timed(index: int, item: Any) -> Any:
            began = anyio.current_time()
            attempt = object()  # a hedged call has two at a time
            self._running[attempt] = index, began
            try:
                value = await call(index, item)
                self._durations.add(anyio.current_time() - began)
                return value
            finally:
                del self._running[attempt]

        return timed

    def now(self, now: float) -> tuple[Straggler, ...]:
        """Return the slow calls at this time, the longest first."""
        median = self._durations.percentile(50)
        if median is None:
            return ()
        least = max(_MUCH_LONGER * median, _LEAST_SECONDS)
        found: dict[int, Straggler] = {}
        for index, began in self._running.values():
            if now - began < least or len(found) == _MOST_STRAGGLERS:
                break
            found.setdefault(index, Straggler(index, now - began, median))
        return tuple(found.values())


class ProgressWatch:
    """A control that reports the progress of one batch, at a bounded rate and at its end.

    Attributes:
        delays: functions of other controls that return the requests that wait at a time.
    """

    def __init__(
        self,
        *,
        bar: bool,
        callback: Callable[[Progress], object] | None,
        total: int | None,
        waiting: Callable[[float], tuple[Waiting, ...]],
        budget: Budget | None = None,
    ) -> None:
        self.delays: list[Callable[[float], list[Delay]]] = []
        self._budget = budget
        self._bar = bar
        self._callback = callback
        self._total = total
        self._waiting = waiting
        self._stragglers = Stragglers()
        self._engine: Engine
        self._began = 0.0
        self._reporter: ProgressReporter | None = None

    def watch(self, call: Call) -> Call:
        """Wrap what is really sent, to measure its duration."""
        return self._stragglers.watch(call)

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        self._began = engine.current_time()
        engine.call_later(0, self._tick)

    def _tick(self) -> None:
        self._report().tick(self._engine.current_time())
        self._engine.call_later(SNAPSHOT_INTERVAL, self._tick)

    def _report(self) -> ProgressReporter:
        # Not in `begin`, which may run inside a trio step of an asyncio program.
        if self._reporter is None:
            callbacks: list[Callable[[Progress], object]] = []
            if self._callback is not None:
                callbacks.append(checked_callback("on_progress", self._callback))
            if self._bar:
                callbacks.append(ProgressBar())
            self._reporter = ProgressReporter(
                self._engine,
                callbacks,
                self._total,
                self._began,
                waiting=self._waiting,
                stragglers=self._stragglers.now,
                delays=self._all_delays,
                budget=self._budget_use,
            )
        return self._reporter

    def _all_delays(self, now: float) -> tuple[Delay, ...]:
        return tuple(delay for delays in self.delays for delay in delays(now))

    def _budget_use(self) -> BudgetUse | None:
        return None if self._budget is None else self._budget.use()

    def end(self) -> None:
        self._report().finish(self._engine.current_time())
