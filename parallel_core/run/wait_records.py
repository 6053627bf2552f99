"""The waits of a run, for its statistics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parallel_core.control import Waiting
from parallel_core.journal import WaitStatistics

_SAME_WAIT = 0.5  # seconds between two measurements of its beginning


@dataclass(slots=True)
class _Wait:
    began: float
    reason: str
    lasts: bool = False


class WaitRecords:
    """Notices when nothing of a model gets through any more, and when something does again.

    Args:
        record: takes a line for the statistics.
        redact: removes keys from a text.
    """

    def __init__(
        self, record: Callable[[WaitStatistics], object], redact: Callable[[str], str]
    ) -> None:
        self._record = record
        self._redact = redact
        self._waits: dict[str | None, _Wait] = {}  # the last one of each model

    def note(self, waiting: tuple[Waiting, ...], now: float) -> None:
        """Compare the models that wait with those that have waited.

        Args:
            waiting: the models that wait now.
            now: seconds since the epoch.
        """
        for one in waiting:
            wait = self._waits.get(one.model)
            began = now - one.since
            if wait is not None and abs(wait.began - began) > _SAME_WAIT:
                self._end(one.model, wait, began)
                wait = None
            if wait is None:
                wait = self._waits[one.model] = _Wait(began, self._redact(one.reason))
            # A wait may seem to have ended while a single try was in flight.
            if not wait.lasts:
                wait.lasts = True
                self._write(one.model, wait, None)
        models = {one.model for one in waiting}
        for model, wait in self._waits.items():
            if model not in models:
                self._end(model, wait, now)

    def _end(self, model: str | None, wait: _Wait, at: float) -> None:
        if wait.lasts:
            wait.lasts = False
            self._write(model, wait, max(at - wait.began, 0.0))

    def _write(self, model: str | None, wait: _Wait, seconds: float | None) -> None:
        self._record(
            WaitStatistics(at=wait.began, model=model, reason=wait.reason, seconds=seconds)
        )
