"""A hedged call whose attempts end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helpers.engines import begun
from parallel_core import Hedge
from parallel_core.control.hedge import Hedging, SecondAttempt
from parallel_core.engine import AsyncioBackend
from parallel_core.engine.trio_backend import TrioBackend

SOON = 1e-6  # seconds: the delay of a hedge that nobody waits for


class AttemptFailed(Exception):
    pass


class Ticket:
    """A permission for a second attempt, and what was reported to it."""

    def __init__(self, admit: Callable[[], Awaitable[None]] | None = None) -> None:
        self.settled: list[BaseException | None] = []
        self.admitted = 0
        self._admit = admit

    async def admit(self) -> None:
        self.admitted += 1
        if self._admit is not None:
            await self._admit()

    def settle(self, loser: BaseException | None, /) -> None:
        self.settled.append(loser)


class Attempts:
    """A call; the test decides when and how its attempts end."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.began = 0
        self.cancelled: list[int] = []
        self.ended: list[int] = []
        self.outcomes: dict[int, Any] = {}
        self.release: dict[int, anyio.Event] = {1: anyio.Event(), 2: anyio.Event()}
        self.has_begun: dict[int, anyio.Event] = {1: anyio.Event(), 2: anyio.Event()}
        self.stubborn = stubborn

    def let(self, attempt: int, outcome: object) -> None:
        self.outcomes[attempt] = outcome
        self.release[attempt].set()

    async def __call__(self, index: int, item: Any) -> Any:
        self.began += 1
        attempt = self.began
        self.has_begun[attempt].set()
        try:
            await self.release[attempt].wait()
            outcome = self.outcomes[attempt]
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(attempt)
            if self.stubborn:
                with anyio.CancelScope(shield=True):
                    await self.release[attempt].wait()
            raise
        finally:
            self.ended.append(attempt)
            outcome = None  # no cycle through the traceback


class Outcome:
    value: Any = None
    error: BaseException | None = None
    done = False


@asynccontextmanager
async def race(
    call: Callable[[int, Any], Awaitable[Any]], ticket: SecondAttempt | None = None
) -> AsyncIterator[Outcome]:
    """A hedged call beside the test, whose second attempt begins at once."""
    hedging = begun(Hedging(Hedge(SOON, 1.0), None if ticket is None else lambda *_: ticket))
    hedged = hedging.wrap(call)
    outcome = Outcome()

    async def run() -> None:
        try:
            outcome.value = await hedged(7, "item")
        except (Exception, KeyboardInterrupt, SystemExit, asyncio.CancelledError) as error:
            outcome.error = error
        finally:
            outcome.done = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield outcome


async def both_run(attempts: Attempts) -> None:
    await attempts.has_begun[1].wait()
    await attempts.has_begun[2].wait()


@contextmanager
def counted_group() -> Iterator[list[int]]:
    """Count the task groups that are opened."""
    opened: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for backend in (AsyncioBackend, TrioBackend):

            def counted(self: Any, original: Any = backend.new_group) -> Any:
                opened.append(1)
                return original(self)

            patch.setattr(backend, "new_group", counted)
        yield opened
