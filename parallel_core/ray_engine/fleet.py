"""The driver's side of workers: start them, deal calls to them, and replace dead ones.

All of it runs on one asyncio loop. A call is dealt to the worker that has the fewest calls, so a
faster worker gets more. In addition to its calls in flight, a worker has as many calls waiting as
it ends between two messages (a block), so none of its slots is idle until the next message. Calls
that begin in the same pass of the loop are sent in one message. A worker reports all outcomes of
:data:`INTERVAL` seconds in one message.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, TypeAlias

from parallel_core.errors import WorkerDiedError, WorkersLostError
from parallel_core.uninterrupted import wait_until

from .remote_values import unpack_outcome
from .worker import BETWEEN_BEATS, Given, Kind, Message, Pace

logger = logging.getLogger("parallel_core")

# A message to a worker and one back cost the driver 1 ms and the worker about as much. At this
# interval that is 1 % of a core. A worker with a Router makes 25 calls in this time.
INTERVAL = 0.1  # seconds between two messages of a worker
_MESSAGES_PER_SECOND = 400.0  # that one driver can take in addition to its other work
_CALLS_PER_SECOND = 300.0  # maximum of one worker with a Router
_MEMORY = 0.5  # seconds that count for the speed of a worker
_DEATHS_OF_A_REQUEST = 3
_DEATHS_OF_A_SUSPECT = 2  # from this number on, a request is sent alone, so no other is blamed
_FAILED_STARTS = 3  # per worker, in a row
_BETWEEN_TRIES = 30.0  # seconds between two tries after the failed starts
_PATIENCE_WITH_A_CANCELLATION = 5.0  # seconds
_PATIENCE_WITH_AN_END = 6.0  # seconds; litellm's callbacks may take 5 of them
_PATIENCE_WITH_A_START = 120.0  # seconds
_PATIENCE_WITH_SILENCE = 6  # checks in a row without a message from the worker


def interval(workers: int) -> float:
    """Return the seconds between two messages of each worker, for a number of workers."""
    return max(INTERVAL, workers / _MESSAGES_PER_SECOND)


def largest_block(workers: int, concurrency: int) -> int:
    """Return how many calls may queue in a worker, so that it stays busy between two messages."""
    return min(concurrency, round(_CALLS_PER_SECOND * interval(workers)))


class WorkerHandle(Protocol):
    """A worker in another process."""

    def messages(self) -> AsyncIterator[list[Message]]:
        """Run the worker and yield its messages.

        Raises an exception if the worker is lost. The iterator ends after ``stop``.
        """
        ...

    def give(self, sequence: int, given: Given) -> None:
        """Send the worker calls and cancellations. Does not wait or raise."""
        ...

    def stop(self) -> None:
        """Make the worker cancel its calls and end. Does not wait or raise."""
        ...

    def kill(self) -> None:
        """Kill the worker's process, in any state. Does not wait or raise."""
        ...

    async def gone(self) -> None:
        """Wait until the worker's process has ended, for a few seconds at most. Does not raise."""
        ...


class WorkerSource(Protocol):
    """Source of new workers."""

    def spawn(self, concurrency: int, pace: Pace) -> WorkerHandle:
        """Begin to start a new worker and return its handle."""
        ...

    def why_none_starts(self) -> str:
        """Return the likely reason why no worker starts, and what to do."""
        ...


CheckResend: TypeAlias = Callable[[], Exception | None]
"""Called before a call is sent again. If it returns an exception, the call fails with it."""


def _always_resend() -> None:
    return None


class Assignment:
    """A call on its way to a worker and back."""

    def __init__(self, number: int, packed: bytes, again: CheckResend) -> None:
        self.number = number
        self.packed = packed
        self.again = again
        self.member: _Member | None = None
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


class _Member:
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


class Fleet:
    """The workers of one driver.

    Args:
        source: source of the workers.
        workers: number of workers.
        concurrency: calls in flight in each worker.

    Attributes:
        lost_workers: number of workers that died after they were ready.
        resent_requests: number of calls that were in flight in lost workers and were dealt again.
    """

    def __init__(self, source: WorkerSource, workers: int, concurrency: int) -> None:
        self._source = source
        self._workers = workers
        self._concurrency = concurrency
        self._largest_block = largest_block(workers, concurrency)
        self._pace = Pace(interval(workers), max(8, concurrency // 4))
        self._members: list[_Member] = []
        self._waiting: deque[Assignment] = deque()
        self._suspects: deque[Assignment] = deque()
        self._numbers = 0
        self._failed_starts = 0
        self._refused: Exception | None = None
        self._last_loss: Exception | None = None
        self._filling_up: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self._lost_for_good: WorkersLostError | None = None
        self.lost_workers = 0
        self.resent_requests = 0

    # --- lifetime ---

    async def start(self) -> None:
        """Start all workers, and wait until they are ready.

        If some are not ready in time, the others begin.

        Raises:
            WorkersLostError: no worker is ready in time.
            Exception: any exception that the recipe of the Router raises in a worker.
        """
        self._look_for_silence()
        for _ in range(self._workers):
            self._add_member()
        until = time.monotonic() + _PATIENCE_WITH_A_START
        while not all(member.ready for member in self._members):
            if self._refused is not None:
                raise self._refused
            self._changed.clear()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                ready = sum(member.ready for member in self._members)
                reason = self._source.why_none_starts()
                waited = f"within {_PATIENCE_WITH_A_START:g} s: {reason}"
                if not ready:
                    text = f"none of {self._workers} workers has started {waited}"
                    raise WorkersLostError(text) from self._last_loss
                logger.warning("%d of %d workers have started %s", ready, self._workers, waited)
                break
        if not self._members:
            assert self._lost_for_good is not None
            raise self._refused or self._lost_for_good

    def _add_member(self) -> None:
        member = _Member(self._source.spawn(self._concurrency, self._pace))
        self._members.append(member)
        member.reading = asyncio.ensure_future(self._read(member))

    async def _read(self, member: _Member) -> None:
        """Process the messages of a worker until it ends in any way."""
        reason: Exception | None = None
        try:
            async for messages in member.handle.messages():
                self._take(member, messages)
        except asyncio.CancelledError:
            # The loop is being shut down: no task would process further messages.
            self.abandon()
            raise
        except Exception as error:  # noqa: BLE001 - after any error, no more messages come
            reason = error
        if not self._closed:
            self._lost(member, reason)

    def _look_for_silence(self) -> None:
        """Kill workers that send no messages: their loop is blocked or their process is stopped.

        The number of checks counts, and not the time: if the driver itself was stopped, it made no
        checks in that time.
        """
        if self._closed:
            return
        for member in list(self._members):
            member.silences += 1
            if member.ready and member.silences > _PATIENCE_WITH_SILENCE:
                logger.warning("a worker sends no more messages: it is killed")
                member.handle.kill()
        self._looking = asyncio.get_running_loop().call_later(BETWEEN_BEATS, self._look_for_silence)

    def _take(self, member: _Member, messages: list[Message]) -> None:
        member.silences = 0
        for kind, number, packed in messages:
            if kind is Kind.READY:
                member.ready = True
                self._failed_starts = 0
                self._changed.set()
            elif kind is Kind.REFUSED:
                error = unpack_outcome(packed).exception
                assert error is not None
                self._refused = error
                self._changed.set()
            else:
                assignment = member.assignments.pop(number, None)
                if assignment is None:
                    continue
                if kind is Kind.OUTCOME:
                    assignment.settle(packed)
                elif assignment.cancelled or self._closed:
                    assignment.settle(None)
                else:
                    self._deal_again(assignment)
        member.calls_ended(sum(kind is Kind.OUTCOME for kind, _, _ in messages))
        if not member.assignments:
            member.alone = False
        self._deal()

    def _lost(self, member: _Member, reason: Exception | None) -> None:
        self._members.remove(member)
        member.handle.kill()
        self._last_loss = reason
        if member.ready:
            self.lost_workers += 1
        else:
            self._failed_starts += 1
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
        self.resent_requests += len(again)
        self._suspects.extend(one for one in again if one.deaths >= _DEATHS_OF_A_SUSPECT)
        self._waiting.extendleft(
            one for one in reversed(again) if one.deaths < _DEATHS_OF_A_SUSPECT
        )
        logger.warning(
            "a worker was lost (%s); calls in flight that are sent again: %d",
            "it has ended" if reason is None else type(reason).__name__,
            len(again),
        )
        self._replace()
        self._changed.set()
        self._deal()

    def _replace(self) -> None:
        if self._refused is None and self._failed_starts < _FAILED_STARTS * self._workers:
            self._fill_up()
        if not self._members:
            self._give_up()
        elif len(self._members) < self._workers and self._filling_up is None:
            loop = asyncio.get_running_loop()
            self._filling_up = loop.call_later(_BETWEEN_TRIES, self._try_again)

    def _fill_up(self) -> None:
        try:
            while len(self._members) < self._workers:
                self._add_member()
        except Exception as error:  # noqa: BLE001 - the source of workers is gone
            self._last_loss = error

    def _try_again(self) -> None:
        self._filling_up = None
        if not self._closed and self._lost_for_good is None:
            self._fill_up()
            self._replace()

    def _give_up(self) -> None:
        self._lost_for_good = WorkersLostError(
            f"no worker is left, and {self._failed_starts} could not be started: "
            f"{self._source.why_none_starts()}"
        )
        self._lost_for_good.__cause__ = self._refused or self._last_loss
        for assignment in [*self._waiting, *self._suspects]:
            assignment.fail(self._lost_for_good)
        self._waiting.clear()
        self._suspects.clear()

    async def close(self) -> None:
        """End all workers and wait for their end."""
        if self._closed:
            return
        self._closed = True
        for timer in (self._filling_up, self._looking):
            if timer is not None:
                timer.cancel()
        self._settle_all()
        ready = [member for member in self._members if member.ready]
        for member in self._members:
            if member.ready:
                member.handle.stop()
            else:  # it has no calls, and its start may be blocked
                member.handle.kill()
        if ready:
            await asyncio.wait([member.reading for member in ready], timeout=_PATIENCE_WITH_AN_END)
        readings = [member.reading for member in self._members]
        for member in self._members:
            member.handle.kill()
            member.reading.cancel()
        await asyncio.gather(
            *readings, *(member.handle.gone() for member in self._members), return_exceptions=True
        )
        self._members.clear()

    def abandon(self) -> None:
        """Kill all workers without waiting. May be called in any thread."""
        self._closed = True
        for member in self._members:
            member.handle.kill()
        with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits any more
            self._settle_all()

    def _settle_all(self) -> None:
        for member in self._members:
            for assignment in member.assignments.values():
                assignment.settle(None)
        for assignment in [*self._waiting, *self._suspects]:
            assignment.settle(None)
        self._waiting.clear()
        self._suspects.clear()

    # --- calls ---

    async def call(self, packed: bytes, again: CheckResend = _always_resend) -> Any:
        """Make a call in a worker.

        Args:
            packed: the packed arguments.
            again: called before the call is sent again because its worker died.

        Raises:
            WorkersLostError, WorkerDiedError: no worker finished the call.
            Exception: any exception that the call raised.
        """
        if self._lost_for_good is not None:
            raise self._lost_for_good
        if self._closed:
            raise RuntimeError("the workers have been ended: open a new router")
        self._numbers += 1
        assignment = Assignment(self._numbers, packed, again)
        self._waiting.append(assignment)
        self._deal()
        try:
            await assignment.ended.wait()
        except asyncio.CancelledError:
            await self._cancel(assignment)
            # An outcome that arrived before the cancellation is not lost.
            if assignment.result() is None:
                raise
        received = assignment.result()
        if received is None:
            raise RuntimeError("the workers were ended while a call was in flight")
        outcome = unpack_outcome(received)
        if outcome.exception is not None:
            raise outcome.exception
        return outcome.value

    async def _cancel(self, assignment: Assignment) -> None:
        """Cancel a call and wait for its end."""
        if assignment.ended.is_set():
            return
        assignment.cancelled = True
        member = assignment.member
        if member is None:
            for queue in (self._waiting, self._suspects):
                with contextlib.suppress(ValueError):
                    queue.remove(assignment)
            return
        member.cancel(assignment)

        def kill() -> None:
            logger.warning(
                "killing a worker that did not end a cancelled call; "
                "its other calls may be sent again"
            )
            member.handle.kill()

        loop = asyncio.get_running_loop()
        killing = loop.call_later(_PATIENCE_WITH_A_CANCELLATION, kill)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the caller raises it already
                await wait_until(assignment.ended.is_set, assignment.ended.wait)
        finally:
            killing.cancel()

    def _deal_again(self, assignment: Assignment) -> None:
        assignment.member, assignment.recalled = None, False
        self._waiting.appendleft(assignment)

    def _deal(self) -> None:
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

    def _least_loaded(self) -> _Member | None:
        best: _Member | None = None
        for member in self._members:
            if not member.ready or member.alone or self._is_full(member):
                continue
            if best is None or len(member.assignments) < len(best.assignments):
                best = member
        return best

    def _is_full(self, member: _Member) -> bool:
        waiting = len(member.assignments) - self._concurrency
        return waiting >= min(member.ends_in(self._pace.every), self._largest_block)

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
