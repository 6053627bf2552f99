"""Share an object between batches in several threads: a lock, and wake-ups across loops."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import anyio

from parallel_core.event_loops import EventLoop, call_soon, current_event_loop_if_any

P = ParamSpec("P")
T = TypeVar("T")


class Turn:
    """One waiting caller. Any thread may wake it.

    Attributes:
        loop: the event loop on which the caller waits.
    """

    __slots__ = ("_event", "loop")

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self._event = anyio.Event()

    def rearm(self) -> None:
        """Forget earlier calls of :meth:`wake`."""
        self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait for :meth:`wake`."""
        await self._event.wait()

    def wake(self) -> bool:
        """Wake the caller. Return False if its loop or trio run has ended."""
        if self.loop is not current_event_loop_if_any():
            return call_soon(self.loop, self._event.set)
        self._event.set()
        return True


class WakeQueue:
    """Wakes callers one after another on each loop, in order.

    It is needed because trio runs tasks that are woken at the same time in any order.
    """

    def __init__(self) -> None:
        self._woken: dict[EventLoop, deque[Turn]] = {}

    def wake(self, turn: Turn) -> bool:
        """Wake a caller when those before it have resumed. Return False if its loop has ended."""
        if isinstance(turn.loop, asyncio.AbstractEventLoop) and turn.loop.is_closed():
            return False
        before = self._woken.get(turn.loop)
        if before is not None:
            before.append(turn)
            return True
        if not turn.wake():
            return False
        self._woken[turn.loop] = deque((turn,))
        return True

    def resumed(self, turn: Turn) -> None:
        """Note that a caller has resumed after :meth:`wake`, or was cancelled."""
        woken = self._woken[turn.loop]
        was_first = woken[0] is turn
        woken.remove(turn)
        if not woken:
            del self._woken[turn.loop]
        elif was_first:
            woken[0].wake()


class SerialLock:
    """A lock that runs functions one at a time, in whichever threads they are called.

    The garbage collector may close a coroutine, and so run that coroutine's clean-up, in the middle
    of such a function. A plain lock would deadlock there. A function that the clean-up passes to
    :meth:`run_soon` runs right after the interrupted function.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._postponed: deque[Callable[[], object]] = deque()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``function(…)``. Clean-up must use :meth:`run_soon` instead."""
        with self._lock:
            self._busy = True
            try:
                return function(*args, **kwargs)
            finally:
                self._busy = False
                while self._postponed:
                    self.run_soon(self._postponed.popleft())

    def run_soon(self, function: Callable[[], object]) -> None:
        """Call ``function()`` now, or right after the function that this thread is running."""
        with self._lock:
            if self._busy:
                self._postponed.append(function)
            else:
                self.run(function)
