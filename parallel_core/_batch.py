"""The rules of a batch, written once for trio and asyncio.

A *slot* takes an item from the source, awaits the call, delivers the result, and begins again.
:class:`BatchCore` holds the rules; what differs between the two worlds (where a slot runs, what it
waits on) is its :class:`~parallel_core._slot_host.SlotHost`.
"""

from __future__ import annotations

import contextvars
import logging
import sys
import threading
import time
import types
from collections.abc import AsyncIterable, Callable, Collection, Generator
from typing import Any, ClassVar, Generic, cast

import trio

from ._agenda import Entry
from ._feed import NOTHING, Feed
from ._isolation import as_coroutine, as_the_calls_own, rest_of_call
from ._plan import BatchPlan, ResultT
from ._slot_host import SlotHost
from ._timers import Timers
from ._waiting import Places, Waiters
from .control._call import TryAgainLater
from .control.adaptive import LimitChange
from .control.watching import UsageTally
from .errors import (
    BatchAbortedError,
    BudgetExceededError,
    InvalidRequestError,
    NotSentError,
    add_note,
    cancelled_unasked,
)
from .types import RouterParallelRequest, StreamChunk, Usage

logger = logging.getLogger("parallel_core")

# Results that may wait for the consumer, calls in flight included, as multiples of `concurrency`.
# Input order needs more room, or one slow call would idle the other slots.
COMPLETION_ORDER_WINDOW = 2
INPUT_ORDER_WINDOW = 8

# Raised in place of an attempt.
_REFUSED = (BudgetExceededError, InvalidRequestError, NotSentError)

COROUTINE: Any = types.CoroutineType  # what `async def` gives

# Calls that never wait for anything must not keep everybody else on the loop waiting. So many are
# made between two turns of others, by all open slots together.
CALLS_BETWEEN_PAUSES = 100

# Seconds after which a call that ignores its cancellation is named in the log, and again.
STUBBORN_CALL_FIRST_WARNING = 5.0
STUBBORN_CALL_NEXT_WARNING = 30.0


# The batches in whose calls or sources the running code is.
_inside: contextvars.ContextVar[tuple[object, ...]] = contextvars.ContextVar(
    "parallel_core_inside", default=()
)


class BatchCore(Generic[ResultT]):
    """One batch: its slots, its counts, its results and its first error.

    ``run`` is the batch itself and runs in trio. Everything else may be called from the world in
    which the slots run, in the same thread.
    """

    has_agenda: ClassVar[bool] = False  # of :mod:`parallel_core._agenda_batch`

    def __init__(self, plan: BatchPlan[ResultT], host: SlotHost, *, look_ahead: int = 0) -> None:
        self._plan = plan
        self._host = host
        self._context = contextvars.Context()
        self._token = object()
        self._thread: int | None = None  # in which it runs
        self._limit = plan.limit
        window = plan.window or plan.concurrency * (
            INPUT_ORDER_WINDOW if plan.preserve_order else COMPLETION_ORDER_WINDOW
        )
        self._window = look_ahead + window

        self._iterator: Any = None
        self._feed: Feed | None = None
        self._exhausted = False
        self._claimed: int = 0  # items drawn, or being drawn
        self._drawn: int = 0
        self._room = Waiters(host.new_event)

        self._timers = Timers(host, self.fail)
        self._helpers: trio.Nursery | None = None
        self._slots: trio.Nursery | None = None
        self._open_slots = 0
        self.calls: dict[int, Any] = {}  # in flight, by index
        self.succeeded = 0
        self.failed = 0

        # Claims bound what can be in the channel, so that a result never waits to be sent.
        self._pieces = Places(plan.pieces, host.new_event)
        self._send_channel: trio.MemorySendChannel[ResultT]
        self.results: trio.MemoryReceiveChannel[ResultT]
        self._send_channel, self.results = trio.open_memory_channel(self._window + plan.pieces)
        self._kept: list[ResultT] | None = None
        self.arrivals = Waiters(host.new_event)
        self._early: dict[int, ResultT] = {}  # in input order: done before their turn
        self._next_index = 0
        self.delivered = 0

        self.stopping = False
        self.cancelled_from_outside = False  # by a scope around the batch
        self._watching = trio.CancelScope()
        self._error: Exception | None = None
        self._crash: BaseException | None = None
        self.on_crash: Callable[[], None] = lambda: None

    @property
    def started(self) -> int:
        return self._drawn

    @property
    def in_flight(self) -> int:
        return len(self.calls)

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def usage(self) -> Usage:
        return self._plan.usage()

    @property
    def limit_changes(self) -> list[LimitChange]:
        return self._plan.limit_changes()

    @property
    def failed_deployments(self) -> dict[str, str]:
        return self._plan.failed_deployments()

    # --- the batch ---

    def enter(self) -> contextvars.Context:
        """Take the context of the caller, of which each call gets a copy."""
        self._thread = threading.get_ident()
        self._context = contextvars.copy_context()
        self._context.run(_inside.set, (*_inside.get(), self._token))
        return self._context

    def check_not_inside(self) -> None:
        """Refuse to let a call of this batch, or its source, wait for the end of the batch."""
        if self._token in _inside.get():
            raise RuntimeError(
                "a call or a source, or a task that it has started, cannot wait for the end of "
                "its own batch: use batch.cancel()"
            )

    def check_thread(self) -> None:
        """Refuse to be used in another thread than the one in which the batch runs."""
        if self._thread not in (None, threading.get_ident()):
            raise RuntimeError(
                "this batch runs in another thread: use it there (to cancel it from here, call "
                "loop.call_soon_threadsafe(batch.cancel), or run_sync_soon of its TrioToken)"
            )

    async def run(self) -> None:
        """Run the slots until the source is exhausted or the batch is stopped.

        Returns or raises ``trio.Cancelled`` when no call is in flight any more; all else that goes
        wrong is kept for the consumer (:meth:`take_error`).
        """
        try:
            async with trio.open_nursery() as helpers:
                self._helpers = helpers
                helpers.start_soon(self._notice_cancellation)
                if self._plan.before is not None:  # and before any clock starts
                    await trio.to_thread.run_sync(self._plan.before)
                self._open_source(helpers)
                for attachment in self._plan.attachments:
                    attachment.begin(self)
                try:
                    async with trio.open_nursery() as slots:
                        self._slots = slots
                        if self.stopping:
                            slots.cancel_scope.cancel()
                        elif not self._exhausted:
                            self._start_slots(1)
                finally:
                    if self._feed is not None:
                        self._feed.stop()
                    self._watching.cancel()
                    self._timers.take_back_all()
        finally:
            if self._plan.attachments:
                await self._host.call(self._detach)
            self.stopping = True
            self._close_generator()
            for index in sorted(self._early):  # stopped with gaps: what is done is handed out
                self._hand_over(self._early.pop(index))
            self._kept = None  # the list is its owner's; what is left here may be in a cycle
            self._send_channel.close()
            self.arrivals.wake_all()

    def stop(self) -> None:
        """Cancel every call and start no more. :meth:`run` ends when the last call has ended."""
        if self.stopping:
            return
        self.stopping = True
        if self._slots is not None:
            self._slots.cancel_scope.cancel()
            if self._open_slots:
                self.call_later(STUBBORN_CALL_FIRST_WARNING, self._name_stubborn_calls)
        if self._feed is not None:
            self._feed.stop()

    def _detach(self) -> None:
        for attachment in self._plan.attachments:
            try:
                attachment.end()
            except BaseException as exception:  # noqa: BLE001 - reported to the consumer
                self.fail(exception)

    def _open_source(self, helpers: trio.Nursery) -> None:
        source = self._plan.source
        # What is both is made for async code: its sync form would block, or mean something else.
        if isinstance(source, AsyncIterable):
            self._feed = Feed(source, self._host, self._source_failed, self.crash)
            self._host.start(helpers, self._feed.run, self._feed_ended)
            return
        try:
            self._iterator = iter(source)
        except Exception as exception:  # noqa: BLE001 - reported to the consumer
            self._source_failed(exception)

    def _close_generator(self) -> None:
        iterator = self._iterator
        if isinstance(iterator, Generator):
            try:
                cast("Generator[Any, None, None]", iterator).close()
            except Exception as exception:  # noqa: BLE001 - reported to the consumer
                self.crash(exception)

    async def _notice_cancellation(self) -> None:
        with self._watching:
            while True:
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    if not self._watching.cancel_called:  # then all calls have ended
                        self.cancelled_from_outside = True
                        self.stop()
                    raise
                except KeyboardInterrupt as interrupt:
                    self._host.interrupted(interrupt)

    def _name_stubborn_calls(self) -> None:
        for index, item in self.calls.items():
            logger.warning(
                "%s was cancelled and still runs; its batch waits for it",
                describe(index, item),
            )
        self.call_later(STUBBORN_CALL_NEXT_WARNING, self._name_stubborn_calls)

    # --- what controls may ask (control._engine.Engine) ---

    def current_time(self) -> float:
        return self._host.current_time()

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        assert self._helpers is not None
        return self._timers.call_later(self._helpers, self._context, seconds, function)

    def fail(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            self.crash(error)
            return
        known = self._error or self._crash
        if known is not None:
            add_note(known, f"then a control failed: {error!r}")
        elif self.stopping:  # the consumer is on its way out, and is told there
            self._crash = error
        else:
            self._error = error
        self.stop()

    def draw_no_more(self) -> None:
        self._exhaust()
        if self._feed is not None:
            self._feed.stop()

    def set_limit(self, limit: int) -> None:
        self._limit = limit
        # Slots that wait find out whether they are too many.
        self._room.wake_all()
        self._start_slots(limit - self._open_slots)

    def hold(self) -> None:
        """Only a batch with an agenda can."""

    def go_on(self) -> None:
        pass

    def bring_forward(self, indexes: Collection[int]) -> None:
        pass

    def look_again(self) -> None:
        self._room.wake_all()

    def hurry(self) -> None:
        pass

    # --- slots ---

    def _start_slot(self) -> None:
        assert self._slots is not None
        self._open_slots += 1
        self._host.start(self._slots, self._slot, self._slot_ended)

    def _branch(self) -> None:
        """A slot's call has begun to wait: there is time for the calls of two more slots.

        So full concurrency is reached after a few passes of the loop, and neither a short source
        nor calls that never wait start slots that find nothing to do.
        """
        self._start_slots(min(2, self._limit - self._open_slots))

    def _start_slots(self, number: int) -> None:
        if self._slots is not None and not (self.stopping or self._nothing_to_do):
            for _ in range(number):
                self._start_slot()

    @property
    def _nothing_to_do(self) -> bool:
        return self._exhausted

    def _slot_ended(self, exception: BaseException | None, *, cancelled: bool) -> None:
        self._open_slots -= 1
        if exception is not None:
            self.crash(exception)
        elif not cancelled and self._open_slots < self._limit:
            # Its task was cancelled by somebody else, or left marked by a call: the slot goes on
            # in a new one.
            self._start_slots(1)
        if not self._open_slots:
            # Said here as well as at the end, it costs the end one step of trio less.
            self._watching.cancel()

    def _feed_ended(self, exception: BaseException | None, *, cancelled: bool) -> None:
        assert self._feed is not None
        if exception is not None:
            self.crash(exception)
        if not self._feed.ended:  # cancelled before its first step, by somebody else
            if not (cancelled or self.stopping):
                self._source_failed(cancelled_unasked("the source"))
            self._feed.give_up()

    async def _slot(self) -> None:
        plan = self._plan
        call, prepare, result_type = plan.call, plan.prepare, plan.result_type
        has_agenda, tally = self.has_agenda, plan.tally
        tampered = self._host.tampering()
        calls_without_a_turn = 0  # for others
        while not self.stopping:
            entry: Entry | None = None
            if not has_agenda:
                if self._claimed - self.delivered >= self._window:
                    await self._room.wait()
                    continue
                item = self._draw() if self._feed is None else await self._draw_async(self._feed)
                if item is NOTHING or self.stopping:
                    return
                index = self._drawn
                self._drawn += 1
            else:
                entry = await self._next_entry()
                if entry is None:
                    return
                index, item = entry.index, entry.item
            value: Any = None
            failure: Exception | None = None
            run: Any
            coroutine: Any
            trap: Any
            rest: Any
            self.calls[index] = item
            calls_without_a_turn += 1
            started_at = time.time()
            began = time.perf_counter()
            try:
                if prepare is not None:
                    self.calls[index] = item = prepare(index, item)
                run = self._context.copy().run
                coroutine = run(call, index, item)
                if type(coroutine) is not COROUTINE:
                    coroutine = run(as_coroutine, coroutine)
                try:
                    trap = run(coroutine.send, None)
                except StopIteration as stop:
                    value = stop.value
                else:
                    calls_without_a_turn = 0
                    if self._open_slots < self._limit:
                        self._branch()
                    rest = rest_of_call(run, coroutine, trap)
                    trap = None  # what it first waited for may hold something large
                    value = await rest
            except BaseException as exception:
                failure = self._host.error_of(exception, "the call", self.stopping)
                if failure is None:
                    raise
            finally:
                del self.calls[index]
                # A slot that waits for its next call keeps nothing of the last one.
                run = coroutine = trap = rest = None
            attempts = 0 if isinstance(failure, _REFUSED) else 1
            if entry is not None:
                began, started_at = self._call_ended(entry, began, started_at)
                if isinstance(failure, TryAgainLater):
                    attempts = int(failure.counts)
                    if not self.stopping:
                        entry.attempts += attempts
                        self._postpone(entry, failure.delay)
                        del item, value, failure
                        continue
                    failure = failure.error
                attempts += entry.attempts
            duration = time.perf_counter() - began
            if failure is None:
                self.succeeded += 1
                self._deliver(
                    index, result_type(index, item, value, None, started_at, duration, attempts)
                )
                if tally is not None:
                    self._count_usage(tally, item, value)
            else:
                self.failed += 1
                if tally is not None:
                    tally.add_failed(failure)
                failure = as_the_calls_own(failure)
                if plan.return_exceptions:
                    self._deliver(
                        index,
                        result_type(index, item, None, failure, started_at, duration, attempts),
                    )
                else:
                    self._fail(failure, describe(index, item))
            del item, value, failure, entry
            if calls_without_a_turn * self._open_slots >= CALLS_BETWEEN_PAUSES:
                calls_without_a_turn = 0
                await self._host.pause()
            if tampered is not None and tampered():
                return

    def _count_usage(self, tally: UsageTally, item: Any, value: Any) -> None:
        try:
            tally.add(item, value)
        except Exception as exception:  # noqa: BLE001 - of the user's meter; the result is delivered
            self.fail(exception)

    def _draw(self) -> Any:
        if not self._exhausted:
            try:
                item = next(self._iterator)
            except StopIteration:
                self._exhaust()
            except BaseException as exception:
                failure = self._host.error_of(exception, "the source", self.stopping)
                if failure is None:
                    raise
                self._source_failed(failure)
            else:
                self._claimed += 1
                return item
        return NOTHING

    async def _draw_async(self, feed: Feed) -> Any:
        self._claimed += 1
        item = NOTHING
        try:
            item = await feed.take()
        finally:
            if item is NOTHING:
                self._claimed -= 1
        if item is NOTHING:
            self._exhaust()
        return item

    def _exhaust(self) -> None:
        self._exhausted = True
        self._room.wake_all()

    async def _next_entry(self) -> Entry | None:
        """With an agenda: the request that a slot is to send next; None: the slot is to end."""
        raise NotImplementedError

    def _call_ended(self, entry: Entry, began: float, started_at: float) -> tuple[float, float]:
        """With an agenda: a call of this entry has ended. Gives the times of its first one."""
        raise NotImplementedError

    def _postpone(self, entry: Entry, delay: float) -> None:
        """With an agenda: send it again after so many seconds."""
        raise NotImplementedError

    # --- results and errors ---

    def collect_into(self, results: list[ResultT]) -> None:
        """Before the start: put every result there, in completion order.

        A consumer that wants them all need not be woken for each, and sets no pace. It waits for
        the end of :attr:`results`, which stays empty.
        """
        self._window = sys.maxsize
        self._kept = results

    def _deliver(self, index: int, result: Any) -> None:
        if self._error is not None and not self._plan.return_exceptions:
            return  # the batch ended in an error before this call did
        if not self._plan.preserve_order:
            self._hand_over(result)
        else:
            self._early[index] = result
            while self._next_index in self._early:
                self._hand_over(self._early.pop(self._next_index))
                self._next_index += 1

    def _hand_over(self, result: Any) -> None:
        if self._kept is not None:
            self._kept.append(result)
            return
        self._send_channel.send_nowait(result)
        if self.arrivals.events:
            self.arrivals.wake_one()

    async def emit(self, piece: object) -> None:
        await self._pieces.take()
        self._send_channel.send_nowait(cast("ResultT", piece))
        self.arrivals.wake_one()

    def handed_out(self, result: object) -> None:
        """The consumer has taken this from ``results``: there is room for one more."""
        if type(result) is StreamChunk:
            self._pieces.give()
            return
        self.delivered += 1
        if self._room.events:
            self._room.wake_one()

    def _fail(self, error: Exception, origin: str) -> None:
        """End a fail-fast batch, at once; the first error is the one that counts.

        What calls raise on their way out of a batch that is being stopped does not.
        """
        if self.stopping:
            return
        add_note(error, f"raised by {origin}")
        self._error = error
        self.stop()

    def _source_failed(self, exception: Exception) -> None:
        self._exhaust()
        if self._plan.return_exceptions:
            self._error = exception
        else:
            self._fail(exception, f"the source, drawing request {self._drawn}")

    def crash(self, exception: BaseException) -> None:
        """Stop the batch for something that no result can carry: KeyboardInterrupt, SystemExit,
        an error of a source while it is closed, a broken host."""
        interrupt = not isinstance(exception, Exception)
        if self._error is not None and not interrupt:
            # The first error stays the one that comes out.
            if not isinstance(exception, BatchAbortedError):
                add_note(self._error, f"then its batch failed to end: {exception!r}")
        elif self._crash is None or (interrupt and isinstance(self._crash, Exception)):
            self._crash = exception
        self.stop()
        if interrupt:
            self.on_crash()

    def give_up(self, error: BaseException) -> None:
        """End without :meth:`run`, whose world is gone; the consumer is told why."""
        self.stopping = True
        if self._crash is None:
            self._crash = error
        self._timers.take_back_all()
        self._send_channel.close()
        self.arrivals.wake_all()

    @property
    def crash_error(self) -> BaseException | None:
        """What no result can carry, until somebody has been told."""
        return self._crash

    def take_error(self) -> BaseException | None:
        """What the consumer must be told, once, when the last result has been handed out."""
        error = self._error if self._crash is None else self._crash
        self._crash = self._error = None
        return error


def describe(index: int, item: object) -> str:
    """Name a call in a log or a note: its index and model, never what it says."""
    model: object = None
    if isinstance(item, RouterParallelRequest):
        model = item.model
    elif isinstance(item, dict):  # of anything else, looking might run code of the user
        model = cast("dict[object, object]", item).get("model")
    return f"request {index}" + (f" (model {model!r})" if isinstance(model, str) else "")
