"""Waiting lists for trio and asyncio."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .backend import Event


class Semaphore:
    """A counting semaphore that is strictly first come, first served."""

    __slots__ = ("_free", "_new_event", "_queue")

    def __init__(self, number: int, new_event: Callable[[], Event]) -> None:
        self._free = number
        self._new_event = new_event
        self._queue: deque[Event] = deque()

    async def acquire(self) -> None:
        """Take a place, or wait for one."""
        if self._free:
            self._free -= 1
            return
        event = self._new_event()
        self._queue.append(event)
        try:
            await event.wait()
        except BaseException:
            try:
                self._queue.remove(event)
            except ValueError:  # it got a place and was cancelled before it ran
                self.release()
            raise

    def release(self) -> None:
        """Give a place back."""
        if self._queue:
            self._queue.popleft().set()
        else:
            self._free += 1


class Waiters:
    """A list of waiting tasks, woken one at a time, first come, first served."""

    __slots__ = ("_new_event", "events")

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self._new_event = new_event
        # Public, so that the path of every result can check for an empty deque without a call.
        self.events: deque[Event] = deque()

    async def wait(self) -> None:
        event = self._new_event()
        self.events.append(event)
        try:
            await event.wait()
        except BaseException:
            try:
                self.events.remove(event)
            except ValueError:  # it was woken and cancelled before it ran: wake the next
                self.wake_one()
            raise

    def wake_one(self) -> None:
        if self.events:
            self.events.popleft().set()

    def wake_all(self) -> None:
        while self.events:
            self.events.popleft().set()
