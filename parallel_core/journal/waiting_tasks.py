"""Tasks of any event loop that wait for the thread of a journal."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeAlias

import sniffio
import trio

from parallel_core.engine import Event as EngineEvent

Wake: TypeAlias = Callable[[Callable[[], None]], object]
"""Schedules a function in the event loop of a waiting task; may be called from any thread."""


class WaitingTasks:
    """Tasks that wait until the thread has written a group.

    Args:
        lock: guards what the tasks wait for.
    """

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._waiting: list[tuple[object, Wake, EngineEvent]] = []

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
        by_loop: dict[object, tuple[Wake, list[EngineEvent]]] = {}
        for loop, wake, event in waiting:
            by_loop.setdefault(loop, (wake, []))[1].append(event)
        for wake, events in by_loop.values():
            # A loop that was closed meanwhile has no waiting task.
            with contextlib.suppress(RuntimeError, trio.RunFinishedError):
                wake(_Setting(events))

    def _register(self, is_needed: Callable[[], bool]) -> EngineEvent | None:
        """Return an event of the current task's loop that the next :meth:`wake_all` sets.

        None if there is nothing to wait for.
        """
        loop: trio.lowlevel.TrioToken | asyncio.AbstractEventLoop
        event: EngineEvent
        if sniffio.current_async_library() == "trio":
            loop = token = trio.lowlevel.current_trio_token()
            wake: Wake = token.run_sync_soon
            event = trio.Event()
        else:
            loop = asyncio.get_running_loop()
            wake = loop.call_soon_threadsafe
            event = asyncio.Event()
        with self._lock:
            if not is_needed():
                return None
            self._waiting.append((loop, wake, event))
        return event


class _Setting:
    """Callable that sets events; it must run in their loop."""

    def __init__(self, events: list[EngineEvent]) -> None:
        self._events = events

    def __call__(self) -> None:
        for event in self._events:
            event.set()
