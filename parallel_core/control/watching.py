"""What watches a batch: its usage, and its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parallel_core._progress_bar import ProgressBar
from parallel_core.errors import WITH_USAGE, EmptyResponseError
from parallel_core.progress import Progress, ProgressReporter
from parallel_core.types import Usage

from ._checks import checked_callback
from ._engine import Engine
from ._metering import ItemMeter, RouterMeter

SNAPSHOT_INTERVAL = 0.1  # seconds


class UsageTally:
    """What the calls of a batch have used."""

    def __init__(self, meter: RouterMeter | ItemMeter) -> None:
        self._usage_of = meter.usage_of
        self._told = Usage()
        self._not_told = 0  # calls

    def add(self, item: Any, value: Any) -> None:
        usage = self._usage_of(item, value)
        if usage is None:
            self._not_told += 1
        else:
            self._told += usage

    def add_failed(self, error: Exception) -> None:
        """A call has failed. Some failures tell what had been used."""
        if isinstance(error, WITH_USAGE):
            self._told += error.usage or Usage()
            # An answer that was paid for, unlike a stream of which nothing had come.
            self._not_told += isinstance(error, EmptyResponseError) and error.usage is None

    def usage(self) -> Usage:
        return self._told + Usage(unpriced_calls=self._not_told)


class ProgressWatch:
    """Reports the progress of one batch, at a bounded rate and at its end."""

    def __init__(
        self, *, bar: bool, callback: Callable[[Progress], object] | None, total: int | None
    ) -> None:
        self._bar = bar
        self._callback = callback
        self._total = total
        self._engine: Engine
        self._began = 0.0
        self._reporter: ProgressReporter | None = None

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        self._began = engine.current_time()
        engine.call_later(0, self._tick)

    def _tick(self) -> None:
        self._report().tick(self._engine.current_time())
        self._engine.call_later(SNAPSHOT_INTERVAL, self._tick)

    def _report(self) -> ProgressReporter:
        # Not in `begin`, which may be a step of trio in the middle of an asyncio program.
        if self._reporter is None:
            callbacks: list[Callable[[Progress], object]] = []
            if self._callback is not None:
                callbacks.append(checked_callback("on_progress", self._callback))
            if self._bar:
                callbacks.append(ProgressBar())
            self._reporter = ProgressReporter(self._engine, callbacks, self._total, self._began)
        return self._reporter

    def end(self) -> None:
        self._report().finish(self._engine.current_time())
