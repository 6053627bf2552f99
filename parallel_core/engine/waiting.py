"""Waiting, in trio and in asyncio alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .backend import Event


class Semaphore:
    """A counting semaphore: a place goes to whoever came first, and to nobody else."""

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
            except ValueError:  # given a place and cancelled at once
                self.release()
            raise

    def release(self) -> None:
        """Give a place back."""
        if self._queue:
            self._queue.popleft().set()
        else:
            self._free += 1


class Waiters:
    """Tasks that wait for something that comes one at a time; the first to come is woken first."""

    __slots__ = ("_new_event", "events")

    def __init__(self, new_event: Callable[[], Event]) -> None:
        self._new_event = new_event
        # Open to be looked at: on the path of every result, an empty deque saves a call.
        self.events: deque[Event] = deque()

    async def wait(self) -> None:
        event = self._new_event()
        self.events.append(event)
        try:
            await event.wait()
        except BaseException:
            try:
                self.events.remove(event)
            except ValueError:  # woken and cancelled at once: the turn goes to the next
                self.wake_one()
            raise

    def wake_one(self) -> None:
        if self.events:
            self.events.popleft().set()

    def wake_all(self) -> None:
        while self.events:
            self.events.popleft().set()
