"""Deal calls to the workers of a driver.

A call is dealt to the worker that has the fewest calls, so a faster worker gets more. In addition
to its calls in flight, a worker has as many calls waiting as it ends between two messages (a
block), so none of its slots is idle until the next message. Calls that begin in the same pass of
the loop are sent in one message.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from parallel_core.errors import WorkerDiedError
from parallel_core.router import DirectCounts

from .messages import Given, WorkerHandle

_MEMORY = 0.5  # seconds that count for the speed of a worker
_DEATHS_OF_A_REQUEST = 3
_DEATHS_OF_A_SUSPECT = 2  # from this number on, a request is sent alone, so no other is blamed

CheckResend: TypeAlias = Callable[[], Exception | None]
"""Called before a call is sent again. If it returns an exception, the call fails with it."""


class Assignment:
    """A call on its way to a worker and back."""

    def __init__(
        self, number: int, packed: bytes, again: CheckResend, counts: DirectCounts
    ) -> None:
        self.number = number
        self.packed = packed
        self.again = again
        self.counts = counts
        self.member: Member | None = None
        self.deaths = 0
        self.cancelled = False
        self.recalled = False
        self.ended = asyncio.Event()
        self._outcome: bytes | None = None
        self._error: Exception | None = None

    def settle(self, packed: bytes | None) -> None:
        """End the call with the packed outcome from its worker; None: it was cancelled."""
        self._outcome = packed
        self.ended.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self.ended.set()

    def result(self) -> bytes | None:
        if self._error is not None:
            raise self._error
        return self._outcome


class Member:
    """State of one worker in the driver."""

    def __init__(self, handle: WorkerHandle) -> None:
        self.handle = handle
        self.assignments: dict[int, Assignment] = {}
        self.ready = False
        self.alone = False  # it gets only suspected requests, one at a time
        self.silences = 0
        self._speed = 0.0  # ended calls per second; older calls count less
        self._speed_at = 0.0
        self.reading: asyncio.Future[None]
        self._given: list[tuple[int, bytes]] = []  # calls for the next message
        self._cancelled: list[int] = []
        self._recalled: list[int] = []
        self._sequence = 0
        self._flushing = False

    def give(self, assignment: Assignment) -> None:
        assignment.member = self
        self.assignments[assignment.number] = assignment
        self._given.append((assignment.number, assignment.packed))
        self._flush_soon()

    def cancel(self, assignment: Assignment) -> None:
        self._cancelled.append(assignment.number)
        self._flush_soon()

    def recall(self, assignment: Assignment) -> None:
        assignment.recalled = True
        self._recalled.append(assignment.number)
        self._flush_soon()

    def calls_ended(self, number: int) -> None:
        self._forget()
        self._speed += number / _MEMORY

    def ends_in(self, seconds: float) -> int:
        """Return the number of calls that the worker is expected to end in this time."""
        self._forget()
        return round(self._speed * seconds)

    def _forget(self) -> None:
        now = time.monotonic()
        self._speed *= math.exp((self._speed_at - now) / _MEMORY)
        self._speed_at = now

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        given = Given(self._given, self._cancelled, self._recalled)
        self._given, self._cancelled, self._recalled = [], [], []
        self.handle.give(self._sequence, given)
        self._sequence += 1


class Dealer:
    """Calls that wait for a worker, and the choice of the worker that gets the next one.

    Args:
        members: the workers; the owner of the list adds and removes them.
        concurrency: calls in flight in each worker.
        every: seconds between two messages of a worker.
        block: maximum calls that wait for a slot in a worker.
    """

    def __init__(
        self, members: Sequence[Member], concurrency: int, every: float, block: int
    ) -> None:
        self._members = members
        self._concurrency = concurrency
        self._every = every
        self._block = block
        self._waiting: deque[Assignment] = deque()
        # Calls that were in flight in several workers that died: one of them may be the cause.
        self._suspects: deque[Assignment] = deque()

    def add(self, assignment: Assignment) -> None:
        """Add a new call, and deal."""
        self._waiting.append(assignment)
        self.deal()

    def take_back(self, assignment: Assignment) -> None:
        """Put a call that a worker gave back in front of the others."""
        assignment.member, assignment.recalled = None, False
        self._waiting.appendleft(assignment)

    def remove(self, assignment: Assignment) -> None:
        """Remove a call that no worker has."""
        for queue in (self._waiting, self._suspects):
            with contextlib.suppress(ValueError):
                queue.remove(assignment)

    def remove_all(self) -> list[Assignment]:
        """Remove and return the calls that no worker has."""
        removed = [*self._waiting, *self._suspects]
        self._waiting.clear()
        self._suspects.clear()
        return removed

    def take_back_lost(self, member: Member) -> int:
        """Queue the calls of a worker that died, or end them if they cannot be sent again.

        Return the number of calls that are sent again.
        """
        lost = list(member.assignments.values())
        member.assignments.clear()
        again: list[Assignment] = []
        for assignment in lost:
            assignment.member, assignment.recalled = None, False
            assignment.deaths += 1
            if assignment.cancelled:
                assignment.settle(None)
            elif assignment.deaths >= _DEATHS_OF_A_REQUEST:
                assignment.fail(WorkerDiedError(assignment.deaths))
            elif (refusal := assignment.again()) is not None:
                assignment.fail(refusal)
            else:
                again.append(assignment)
        self._suspects.extend(one for one in again if one.deaths >= _DEATHS_OF_A_SUSPECT)
        self._waiting.extendleft(
            one for one in reversed(again) if one.deaths < _DEATHS_OF_A_SUSPECT
        )
        return len(again)

    def deal(self) -> None:
        """Give the waiting calls to workers, as far as these have room."""
        if self._suspects:
            self._deal_suspects()
        while self._waiting:
            member = self._least_loaded()
            if member is None:
                return
            member.give(self._waiting.popleft())
        self._balance()

    def _balance(self) -> None:
        """Recall calls that wait for a slot in one worker while another worker has a free slot."""
        dealing = [member for member in self._members if member.ready and not member.alone]
        free = sum(max(0, self._concurrency - len(member.assignments)) for member in dealing)
        if not free:
            return
        for member in self._members:
            more = min(free, len(member.assignments) - self._concurrency)
            for assignment in itertools.islice(reversed(member.assignments.values()), max(0, more)):
                if not (assignment.recalled or assignment.cancelled):
                    member.recall(assignment)
            free -= max(0, more)

    def _least_loaded(self) -> Member | None:
        best: Member | None = None
        for member in self._members:
            if not member.ready or member.alone or self._is_full(member):
                continue
            if best is None or len(member.assignments) < len(best.assignments):
                best = member
        return best

    def _is_full(self, member: Member) -> bool:
        waiting = len(member.assignments) - self._concurrency
        return waiting >= min(member.ends_in(self._every), self._block)

    def _deal_suspects(self) -> None:
        """Empty one worker for the suspected requests, and give it one at a time."""
        member = next((member for member in self._members if member.alone), None)
        if member is None:
            ready = [member for member in self._members if member.ready]
            if not ready:
                return
            member = min(ready, key=lambda one: len(one.assignments))
            member.alone = True
        if not member.assignments:
            member.give(self._suspects.popleft())
