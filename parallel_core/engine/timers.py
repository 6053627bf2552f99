"""Timers of a batch, cancelled when it ends."""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import trio

from .backend import Backend


class Timers:
    """The timers of one batch.

    Args:
        backend: provides the clock.
        failed: called with an exception that a function raised.
    """

    def __init__(self, backend: Backend, failed: Callable[[BaseException], None]) -> None:
        self._backend = backend
        self._failed = failed
        self._waiting: set[_Timer] = set()

    def call_later(
        self,
        nursery: trio.Nursery,
        context: contextvars.Context,
        seconds: float,
        function: Callable[[], None],
    ) -> Callable[[], None]:
        """Call ``function`` after a delay, in a copy of ``context``.

        Return a function that cancels the timer.
        """
        timer = _Timer(self, context.copy(), function)
        self._waiting.add(timer)
        timer.cancel_handle = self._backend.call_later(nursery, seconds, timer.fire)
        return timer.cancel

    def cancel_all(self) -> None:
        for timer in list(self._waiting):
            timer.cancel()

    def remove(self, timer: _Timer) -> bool:
        """Remove a timer. Return True if it was still waiting."""
        waiting = timer in self._waiting
        self._waiting.discard(timer)
        return waiting

    def failed(self, exception: BaseException) -> None:
        self._failed(exception)


class _Timer:
    __slots__ = ("_context", "_function", "_timers", "cancel_handle")

    def __init__(
        self, timers: Timers, context: contextvars.Context, function: Callable[[], None]
    ) -> None:
        self._timers = timers
        self._context = context
        self._function = function
        self.cancel_handle: Callable[[], None] = _nothing

    def fire(self) -> None:
        if not self._timers.remove(self):
            return
        self.cancel_handle = _nothing  # break the cycle: timer, handle of the loop, timer
        try:
            self._context.run(self._function)
        except BaseException as exception:  # noqa: BLE001 - reported to the consumer
            self._timers.failed(exception)

    def cancel(self) -> None:
        if self._timers.remove(self):
            self.cancel_handle()
            self.cancel_handle = _nothing


def _nothing() -> None:
    pass
