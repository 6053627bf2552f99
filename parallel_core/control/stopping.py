"""Stop a batch early, without losing the calls in flight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parallel_core.errors import StoppedError

from .call import Call
from .protocols import Engine, Scope


class Stopping:
    """A control that stops one batch, in two steps.

    :meth:`stop` sends nothing more; calls that were sent may end within the grace period.
    :meth:`cancel` cancels those too. Each unfinished request fails with :class:`StoppedError`, so
    that every request that was drawn has a result.

    Use it only in the thread of the batch.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.cut_off = 0  # calls that were cancelled after they had been sent
        self._calls: dict[int, Scope] = {}  # by index of the request
        self._sent: set[int] = set()
        self._engine: Engine | None = None
        self._take_back: Callable[[], None] | None = None

    def watch(self, call: Call) -> Call:
        """Wrap what is really sent: nothing is sent once the batch is stopped."""

        async def sent(index: int, item: Any) -> Any:
            if self.stopped:
                raise StoppedError(index)
            self._sent.add(index)
            try:
                return await call(index, item)
            except Exception:
                self._sent.discard(index)  # it may wait to be sent again
                raise

        return sent

    def wrap(self, call: Call) -> Call:
        """Wrap the call with all its controls, which may make it wait."""

        async def stoppable(index: int, item: Any) -> Any:
            if not self.stopped:
                assert self._engine is not None
                scope = self._engine.new_scope()
                with scope:
                    self._calls[index] = scope
                    try:
                        result = await call(index, item)
                        self._sent.discard(index)
                        return result
                    finally:
                        del self._calls[index]
                        # Cancelled by this control, or by the total timeout.
                        self.cut_off += index in self._sent
                        self._sent.discard(index)
            raise StoppedError(index)

        return stoppable

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        if self.stopped:
            self.stop(None)

    def end(self) -> None:
        self._engine = None

    def stop(self, grace: float | None) -> None:
        """Send nothing more.

        ``grace``: seconds until calls that were sent are cancelled; None: never.
        """
        self.stopped = True
        for index, scope in list(self._calls.items()):
            if index not in self._sent:
                scope.cancel()
        if self._engine is None:
            return
        self._engine.stop_drawing()
        self._engine.skip_waits()
        if grace is not None and self._take_back is None:
            self._take_back = self._engine.call_later(grace, self.cancel)

    def cancel(self) -> None:
        """Send nothing more, and cancel what was sent."""
        self.stop(None)
        for scope in list(self._calls.values()):
            scope.cancel()
