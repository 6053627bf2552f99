"""Clocks that a test can move on, for real answers beside waits of a minute."""

from __future__ import annotations

import asyncio
from typing import Literal

import trio.testing

from helpers.hosts import Host


class _JumpingLoop(asyncio.SelectorEventLoop):
    jumped = 0.0

    def time(self) -> float:
        return super().time() + self.jumped


class JumpingClock:
    """A clock of an event loop that follows the real one, and jumps ahead on demand.

    Attributes:
        host: a host whose runs use this clock.
    """

    def __init__(self, library: Literal["trio", "asyncio"]) -> None:
        self._of_trio = trio.testing.MockClock(rate=1.0)
        self.host = Host(library, library, loop_factory=_JumpingLoop, clock=self._of_trio)

    def jump(self, seconds: float) -> None:
        """Move the clock on. To be called in the run."""
        if self.host.library == "trio":
            self._of_trio.jump(seconds)
            return
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _JumpingLoop)
        loop.jumped += seconds
