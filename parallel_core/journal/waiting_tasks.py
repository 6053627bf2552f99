"""Tasks of any event loop that wait for the thread of a journal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import trio

from parallel_core.engine import Event as EngineEvent
from parallel_core.event_loops import EventLoop, call_soon, current_event_loop, in_trio


class WaitingTasks:
    """Tasks that wait until the thread has written a group.

    Args:
        lock: guards what the tasks wait for.
    """

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._waiting: list[tuple[EventLoop, EngineEvent]] = []

    async def wait_while(self, is_needed: Callable[[], bool]) -> None:
        """Wait until a condition is false. It is asked again after each :meth:`wake_all`."""
        while is_needed():
            event = self._register(is_needed)
            if event is not None:
                await event.wait()

    def wake_all(self) -> None:
        """Wake the tasks that wait now. Any thread may call this."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        by_loop: dict[EventLoop, list[EngineEvent]] = {}
        for loop, event in waiting:
            by_loop.setdefault(loop, []).append(event)
        for loop, events in by_loop.items():
            call_soon(loop, _Setting(events))  # a loop that has ended has no waiting task

    def _register(self, is_needed: Callable[[], bool]) -> EngineEvent | None:
        """Return an event of the current task's loop that the next :meth:`wake_all` sets.

        None if there is nothing to wait for.
        """
        event: EngineEvent = trio.Event() if in_trio() else asyncio.Event()
        with self._lock:
            if not is_needed():
                return None
            self._waiting.append((current_event_loop(), event))
        return event


class _Setting:
    """Callable that sets events; it must run in their loop."""

    def __init__(self, events: list[EngineEvent]) -> None:
        self._events = events

    def __call__(self) -> None:
        for event in self._events:
            event.set()
