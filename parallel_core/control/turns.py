"""What batches in several threads need to share an object: one lock, and wake-ups across loops."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import ParamSpec, TypeAlias, TypeVar

import anyio
import sniffio
import trio

P = ParamSpec("P")
T = TypeVar("T")

World: TypeAlias = trio.lowlevel.TrioToken | asyncio.AbstractEventLoop
"""A trio run or an asyncio loop."""


def current_world() -> World | None:
    """Return what runs the calling code; None in code that is not async."""
    try:
        if sniffio.current_async_library() == "trio":
            return trio.lowlevel.current_trio_token()
        return asyncio.get_running_loop()
    except (sniffio.AsyncLibraryNotFoundError, RuntimeError):
        return None


class Turn:
    """One waiting caller. Any thread may wake it.

    Attributes:
        world: where the caller waits.
    """

    __slots__ = ("_event", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self._event = anyio.Event()

    def rearm(self) -> None:
        """Forget earlier calls of :meth:`wake`."""
        self._event = anyio.Event()

    async def wait(self) -> None:
        """Wait for :meth:`wake`."""
        await self._event.wait()

    def wake(self) -> bool:
        """Wake the caller. Return False if its loop or trio run has ended."""
        if self.world is current_world():
            self._event.set()
            return True
        try:
            if isinstance(self.world, trio.lowlevel.TrioToken):
                self.world.run_sync_soon(self._event.set)
            else:
                self.world.call_soon_threadsafe(self._event.set)
        except RuntimeError:  # RunFinishedError of trio is one
            return False
        return True


class InOrder:
    """Wakes callers one after another on each loop, in the order in which they are to go on.

    Trio runs tasks that are woken at the same time in any order.
    """

    def __init__(self) -> None:
        self._woken: dict[World, deque[Turn]] = {}

    def wake(self, turn: Turn) -> bool:
        """Wake a caller when those before it have gone on. Return False if its loop has ended."""
        if isinstance(turn.world, asyncio.AbstractEventLoop) and turn.world.is_closed():
            return False
        before = self._woken.get(turn.world)
        if before is not None:
            before.append(turn)
            return True
        if not turn.wake():
            return False
        self._woken[turn.world] = deque((turn,))
        return True

    def gone_on(self, turn: Turn) -> None:
        """A caller that :meth:`wake` was told of goes on, or was cancelled."""
        woken = self._woken[turn.world]
        was_first = woken[0] is turn
        woken.remove(turn)
        if not woken:
            del self._woken[turn.world]
        elif was_first:
            woken[0].wake()


class Serial:
    """Runs functions one at a time, in whichever threads they are called.

    The garbage collector may close a coroutine, and with it run that coroutine's clean-up, in the
    middle of such a function. A plain lock would deadlock there. What :meth:`run_soon` is given
    then runs right after the function that it has interrupted.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._busy = False
        self._postponed: deque[Callable[[], object]] = deque()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``function(…)``. Not for clean-up, which must use :meth:`run_soon`."""
        with self._lock:
            self._busy = True
            try:
                return function(*args, **kwargs)
            finally:
                self._busy = False
                while self._postponed:
                    self.run_soon(self._postponed.popleft())

    def run_soon(self, function: Callable[[], object]) -> None:
        """Call ``function()`` now, or as soon as this thread has left the function it is in."""
        with self._lock:
            if self._busy:
                self._postponed.append(function)
            else:
                self.run(function)
