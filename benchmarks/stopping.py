"""Calls that run until they are cancelled, and what a peer does with them when it has to stop."""

from __future__ import annotations

from .question import Measured, World, now

GRACE = 0.2  # seconds that calls have to end after the caller has gone on
LATE_CALL = 0.01  # seconds that a call takes which was begun too late: after it comes the next


class HangingCalls:
    """Counts calls, before and after the moment at which there should be no more of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.begun = 0
        self._running = 0
        self._begun_late = 0
        self._stopped_at = 0.0
        self._last_end = 0.0

    def begin(self) -> int:
        """Count a call; how many there have been, this one included."""
        self.begun += 1
        self._begun_late += self._stopped_at > 0
        return self.begun

    def stop(self) -> None:
        """From now on a call is one too many."""
        self._stopped_at = now()

    async def hang(self, seconds: float = 3600.0) -> None:
        """Run until it is cancelled, or for some time."""
        self._running += 1
        try:
            await self._world.sleep(LATE_CALL if self._stopped_at else seconds)
        finally:
            self._running -= 1
            self._last_end = now()

    async def outcome(self) -> Measured:
        """Called as soon as the caller has gone on; waits for calls that are still running."""
        went_on_at = now()
        left_running = self._running
        # Of a peer that has left calls running, it is seen how it goes on.
        while (left_running or self._running) and now() - went_on_at < GRACE:
            await self._world.sleep(0.001)
        ended = max(self._last_end - self._stopped_at, 0.0) * 1000
        return {
            "went_on": (went_on_at - self._stopped_at) * 1000,
            "ended": None if self._running else ended,
            "left_running": left_running,
            "begun_late": self._begun_late,
        }
