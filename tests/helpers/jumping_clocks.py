"""Clocks that a test moves on, where real answers come beside what is to last a minute."""

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
    """The clock of a run. It goes as the real one does, and jumps when it is told to.

    Attributes:
        host: where a run has this clock.
    """

    def __init__(self, library: Literal["trio", "asyncio"]) -> None:
        self._of_trio = trio.testing.MockClock(rate=1.0)
        self.host = Host(library, library, loop_factory=_JumpingLoop, clock=self._of_trio)

    def jump(self, seconds: float) -> None:
        """Call it in the run."""
        if self.host.library == "trio":
            self._of_trio.jump(seconds)
            return
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _JumpingLoop)
        loop.jumped += seconds
