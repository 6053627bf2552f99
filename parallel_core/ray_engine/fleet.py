"""The workers of a driver: start them, make calls in them, replace dead ones, end them.

All of it runs on one asyncio loop. ``dealing`` chooses the worker of a call. A worker reports all
outcomes of :data:`~parallel_core.ray_engine.messages.INTERVAL` seconds in one message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from parallel_core.errors import WorkersLostError
from parallel_core.router import DirectCounts
from parallel_core.uninterrupted import wait_until

from .dealing import Assignment, CheckResend, Dealer, Member
from .messages import BETWEEN_BEATS, Kind, Message, Pace, WorkerSource, interval, largest_block
from .remote_values import unpack_outcome

logger = logging.getLogger("parallel_core")

_FAILED_STARTS = 3  # per worker, in a row
_BETWEEN_TRIES = 30.0  # seconds between two tries after the failed starts
_PATIENCE_WITH_A_CANCELLATION = 5.0  # seconds
_PATIENCE_WITH_AN_END = 6.0  # seconds; litellm's callbacks may take 5 of them
_PATIENCE_WITH_A_START = 120.0  # seconds
_PATIENCE_WITH_SILENCE = 6  # checks in a row without a message from the worker


def _always_resend() -> None:
    return None


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
        self._pace = Pace(interval(workers), max(8, concurrency // 4))
        self._members: list[Member] = []
        self._dealer = Dealer(
            self._members, concurrency, self._pace.every, largest_block(workers, concurrency)
        )
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
        member = Member(self._source.spawn(self._concurrency, self._pace))
        self._members.append(member)
        member.reading = asyncio.ensure_future(self._read(member))

    async def _read(self, member: Member) -> None:
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

    def _take(self, member: Member, messages: list[Message]) -> None:
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
            elif kind is Kind.DIRECT:
                if (counted := member.assignments.get(number)) is not None:
                    counted.counts.add(DirectCounts.unpacked(packed))
            else:
                assignment = member.assignments.pop(number, None)
                if assignment is None:
                    continue
                if kind is Kind.OUTCOME:
                    assignment.settle(packed)
                elif assignment.cancelled or self._closed:
                    assignment.settle(None)
                else:
                    self._dealer.take_back(assignment)
        member.calls_ended(sum(kind is Kind.OUTCOME for kind, _, _ in messages))
        if not member.assignments:
            member.alone = False
        self._dealer.deal()

    def _lost(self, member: Member, reason: Exception | None) -> None:
        self._members.remove(member)
        member.handle.kill()
        self._last_loss = reason
        if member.ready:
            self.lost_workers += 1
        else:
            self._failed_starts += 1
        again = self._dealer.take_back_lost(member)
        self.resent_requests += again
        logger.warning(
            "a worker was lost (%s); calls in flight that are sent again: %d",
            "it has ended" if reason is None else type(reason).__name__,
            again,
        )
        self._replace()
        self._changed.set()
        self._dealer.deal()

    def _replace(self) -> None:
        if self._refused is None and self._failed_starts < _FAILED_STARTS * self._workers:
            self._fill_up()
        if not self._members:
            self._abandon_calls()
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

    def _abandon_calls(self) -> None:
        failed = self._failed_starts
        not_started = f", and {failed} could not be started" if failed else ""
        self._lost_for_good = WorkersLostError(
            f"no worker is left{not_started}: {self._source.why_none_starts()}"
        )
        self._lost_for_good.__cause__ = self._refused or self._last_loss
        for assignment in self._dealer.remove_all():
            assignment.fail(self._lost_for_good)

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
        for assignment in self._dealer.remove_all():
            assignment.settle(None)

    # --- calls ---

    async def call(
        self,
        packed: bytes,
        again: CheckResend = _always_resend,
        counts: DirectCounts | None = None,
    ) -> Any:
        """Make a call in a worker.

        Args:
            packed: the packed arguments.
            again: called before the call is sent again because its worker died.
            counts: the attempts that the worker makes directly are added to these. What a worker
                had sent when it died is unknown.

        Raises:
            WorkersLostError, WorkerDiedError: no worker finished the call.
            Exception: any exception that the call raised.
        """
        if self._lost_for_good is not None:
            raise self._lost_for_good
        if self._closed:
            raise RuntimeError("the workers have been ended: open a new router")
        self._numbers += 1
        assignment = Assignment(
            self._numbers, packed, again, DirectCounts() if counts is None else counts
        )
        self._dealer.add(assignment)
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
            self._dealer.remove(assignment)
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
