"""The engine: a batch is a nursery of calls and a memory channel of results.

One task draws the source. Each call runs in a separate task. When a call ends, its result is
delivered and the next item is drawn and started. Numbered comments explain the algorithm in order.

A :class:`~parallel_core.engine.backend.Backend` holds the differences between trio and asyncio:
:mod:`parallel_core.engine.trio_backend` for trio, and :mod:`parallel_core.bridge` for asyncio.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, cast

import trio

from .control import Group, LimitChange, RetryLater, Scope
from .engine import (
    NOTHING,
    Backend,
    BatchPlan,
    Entry,
    ParallelBatch,
    Resends,
    ResultT,
    Semaphore,
    Source,
    Tasks,
    Timers,
    TrioBackend,
    Waiters,
    describe,
    only_member,
    raise_crash,
    without_cancelled,
    without_engine_frames,
)
from .errors import (
    BatchAbortedError,
    BudgetExceededError,
    InvalidRequestError,
    NotSentError,
    add_note,
    cancelled_unasked,
)
from .types import StreamChunk, Usage

logger = logging.getLogger("parallel_core")

# Results that may wait for the consumer, calls in flight included, as multiples of `concurrency`.
# Input order needs more room, otherwise one slow call would idle the other slots.
COMPLETION_ORDER_WINDOW: Final = 2
INPUT_ORDER_WINDOW: Final = 8

# Other tasks get a turn after this many draws, or after this many seconds.
DRAWS_IN_A_TURN: Final = 100
LONGEST_TURN: Final = 0.001

# Seconds until a call that ignores its cancellation is named in the log: first, and repeatedly.
STUBBORN_CALL_FIRST_WARNING: Final = 5.0
STUBBORN_CALL_NEXT_WARNING: Final = 30.0

# Errors of refused requests: they do not count as an attempt.
_REFUSED = (BudgetExceededError, InvalidRequestError, NotSentError)

# The batches whose calls or sources contain the running code.
_inside: contextvars.ContextVar[tuple[object, ...]] = contextvars.ContextVar(
    "parallel_core_inside", default=()
)


class BatchEngine(Generic[ResultT]):
    """One batch: its calls, its counts, its results and its first error.

    :meth:`run` is the batch itself and runs in trio. Call all other methods where the calls run, in
    the same thread.
    """

    def __init__(self, plan: BatchPlan[ResultT], backend: Backend) -> None:
        self._plan = plan
        self._backend = backend
        self._context = contextvars.Context()
        self._token = object()
        self._thread: int | None = None  # thread in which the batch runs

        # In input order every drawn request must be able to begin, otherwise the request with the
        # next result might not. So the window counts draws.
        self._counts_draws = plan.preserve_order
        window = plan.window or plan.concurrency * (
            INPUT_ORDER_WINDOW if plan.preserve_order else COMPLETION_ORDER_WINDOW
        )
        self._window = window + (plan.order.look_ahead if self._counts_draws else 0)
        self._limit = plan.limit

        self._source = Source(plan.source)
        self._exhausted = False
        self._drawn = 0
        self._drawing: Scope = backend.new_scope()
        self._closing = backend.new_shield()
        self._room = Waiters(backend.new_event)
        self._order = plan.order
        self._resends = Resends(plan.order)
        self._skips_waits = False

        self._helpers: trio.Nursery | None = None
        self._nursery: trio.Nursery | None = None
        self._tasks: Tasks[Entry] | None = None
        self._timers = Timers(backend, self.fail)
        self.calls: dict[int, Any] = {}  # items of the calls in flight, by index
        self.succeeded = 0
        self.failed = 0

        # The window bounds the results in the channel, so sending a result never blocks.
        self._chunk_room = Semaphore(plan.waiting_chunks, backend.new_event)
        self._send_channel: trio.MemorySendChannel[ResultT]
        self.results: trio.MemoryReceiveChannel[ResultT]
        self._send_channel, self.results = trio.open_memory_channel(
            self._window + plan.waiting_chunks
        )
        self._kept: list[ResultT] | None = None
        self.arrivals = Waiters(backend.new_event)
        self._early: dict[int, ResultT] = {}  # in input order: results before their turn
        self._next_index = 0
        self._undelivered = 0  # results that wait for the consumer or for their turn
        self.delivered = 0

        self.stopping = False
        self.cancelled_from_outside = False  # cancelled by a scope around the batch
        self._watching = trio.CancelScope()
        self._calls_have_ended = self._source_has_ended = False
        self._error: Exception | None = None
        self._crash: BaseException | None = None
        self.on_crash: Callable[[], None] = lambda: None

    # --- 1. The batch: a nursery that holds the source and the calls ---

    def enter(self) -> contextvars.Context:
        """Copy the context of the caller. Each call gets its own copy of it."""
        self._thread = threading.get_ident()
        self._context = contextvars.copy_context()
        self._context.run(_inside.set, (*_inside.get(), self._token))
        return self._context

    async def run(self) -> None:
        """Run the batch until the source is exhausted or the batch is stopped.

        Return, or raise ``trio.Cancelled``, when no call is in flight any more. Every other error
        is kept for the consumer (:meth:`take_error`).
        """
        try:
            async with trio.open_nursery() as self._helpers:
                self._helpers.start_soon(self._notice_cancellation)
                if self._plan.before is not None:  # before any clock starts
                    await trio.to_thread.run_sync(self._plan.before)
                if self._plan.attachments:
                    await self._backend.call(self._attach)
                try:
                    await self._run_calls(self._helpers)
                finally:
                    self._drawing.cancel()
                    self._calls_have_ended = True
                    self._end_watching()
                    self._timers.cancel_all()
        finally:
            if self._plan.attachments:
                await self._backend.call(self._detach)
            self.stopping = True
            for index in sorted(self._early):  # stopped with gaps: hand out the finished results
                self._hand_over(self._early.pop(index))
            self._kept = None  # the caller owns the list; a reference here may be part of a cycle
            self._send_channel.close()
            self.arrivals.wake_all()

    async def _run_calls(self, helpers: trio.Nursery) -> None:
        async with trio.open_nursery() as self._nursery:
            self._tasks = self._backend.new_tasks(
                self._nursery, self._context, self._make_call, self._call_ended
            )
            # Outside the nursery of the calls: a source may await while it is closed.
            drawing = self._backend.new_tasks(
                helpers, self._context, self._draw_all, self._drawing_ended
            )
            drawing.start(None, "parallel_core source")
            drawing.release()
            if self.stopping:
                self._nursery.cancel_scope.cancel()

    def _attach(self) -> None:
        for attachment in self._plan.attachments:
            try:
                attachment.begin(self)
            except BaseException as exception:  # noqa: BLE001 - reported to the consumer
                self.fail(exception)

    def _detach(self) -> None:
        for attachment in self._plan.attachments:
            try:
                attachment.end()
            except BaseException as exception:  # noqa: BLE001 - reported to the consumer
                self.fail(exception)

    def _end_watching(self) -> None:
        # Not before the source has ended: a cancellation must reach what it awaits at its end.
        if self._calls_have_ended and self._source_has_ended:
            self._watching.cancel()

    async def _notice_cancellation(self) -> None:
        with self._watching:
            while True:
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    if not self._watching.cancel_called:  # otherwise the batch has ended
                        self.cancelled_from_outside = True
                        self._closing.shield = False
                        self.stop()
                    raise
                except KeyboardInterrupt as interrupt:
                    self._backend.interrupted(interrupt)

    # --- 2. Draw an item when a slot is free for it, or the backlog wants to look ahead ---

    async def _draw_all(self, _: None) -> None:
        with self._drawing, self._closing:
            try:
                try:
                    await self._draw_items()
                except BaseException as exception:
                    is_ending = self._exhausted or self.stopping
                    error = self._backend.error_of(exception, "the source", is_ending)
                    if error is None:  # cancelled: the batch is about to be stopped
                        raise
                    (self.crash if is_ending else self._source_failed)(error)
                    del error  # no reference cycle through the traceback
                self._exhaust()
            finally:
                # Inside both scopes, because the source may hold a scope. It may await while it is
                # closed, unless the whole batch was cancelled from outside.
                self._closing.shield = not self.cancelled_from_outside
                await self._close_source()

    async def _close_source(self) -> None:
        try:
            await self._source.close()
        except Exception as exception:  # noqa: BLE001 - reported to the consumer
            self.crash(exception)
        except BaseExceptionGroup as group:  # GeneratorExit left a task group of the source
            rest = group.split(GeneratorExit)[1]
            if rest is not None:
                self.crash(rest)

    async def _draw_items(self) -> None:
        source = self._source
        draws, turn_ends = 0, time.perf_counter() + LONGEST_TURN
        while not (self._exhausted or self.stopping):
            wanted = self._wanted_items()
            is_over = draws >= DRAWS_IN_A_TURN or time.perf_counter() > turn_ends
            if is_over or not wanted:
                # 2a. Let others run, or wait until something has changed.
                if await self._wait(self._room.wait if not wanted else self._backend.pause):
                    return
                draws, turn_ends = 0, time.perf_counter() + LONGEST_TURN
                continue
            for _ in range(1 if source.is_async else wanted):
                item = await source.draw() if source.is_async else source.draw_now()
                if item is NOTHING:
                    return
                self._add(item)
                draws += 1
                if self.stopping or draws == DRAWS_IN_A_TURN or time.perf_counter() > turn_ends:
                    break
                if self._order.is_full:
                    break
            self._start_calls()

    async def _wait(self, wait: Callable[[], Awaitable[object]]) -> bool:
        """Await something between two items. Return True if the source has ended meanwhile.

        A cancellation that the engine did not request comes from a scope that the source holds.
        """
        try:
            await wait()
        except BaseException as exception:
            if self._exhausted or self.stopping:
                raise
            cancellation = exception
        else:
            return False
        try:
            item = await self._source.throw(cancellation)
        finally:
            del cancellation
        if item is NOTHING:
            return True
        self._add(item)
        self._start_calls()
        return False

    def _wanted_items(self) -> int:
        """Return the number of items to draw: one for each free slot, and those to look ahead."""
        if self._order.is_full:
            return 0
        wanted = self._order.look_ahead - len(self._order) + self._free_slots()
        if self._counts_draws:
            wanted = min(wanted, self._window - self._drawn + self.delivered)
        return max(wanted, 0)

    def _free_slots(self) -> int:
        """Return the number of new calls that may begin: calls that were never made before."""
        if self._resends.held:
            return 0
        in_flight = len(self.calls)
        free = self._limit - in_flight
        if not self._counts_draws:
            free = min(free, self._window - in_flight - self._undelivered)
            if self._resends.count:
                # Requests to be sent again do not count in the window, otherwise rejected keys
                # would fill it and idle the others. Those beyond the order's bound block new ones.
                free -= max(0, self._resends.count - self._order.uncounted)
        return max(free, 0)

    def _add(self, item: Any) -> None:
        index = self._drawn
        self._drawn += 1
        try:
            self._order.push(Entry(index, item))
        except Exception as exception:  # noqa: BLE001 - the user's key function
            add_note(exception, f"raised by fair_by for {describe(index, item)}")
            self.fail(exception)

    def _exhaust(self) -> None:
        if not self._exhausted:
            self._exhausted = True
            self._order.source_ended()
        self._advance()

    def _drawing_ended(self, _: None, exception: BaseException | None, *, cancelled: bool) -> None:
        self._source_has_ended = True
        self._end_watching()
        if exception is not None:
            self.crash(exception)
        elif not (self._exhausted or self.stopping or cancelled):
            # Other code has cancelled its task before the first step.
            self._source_failed(cancelled_unasked("the source"))

    # --- 3. Start calls while there are slots: first requests to be sent again, then new ones ---

    def _start_calls(self) -> None:
        resends, order = self._resends, self._order
        try:
            while resends.due and self._may_resume() and not self.stopping:
                entry = resends.next_due(self._limit)
                if entry is None:
                    break
                self._start(entry)
            for _ in range(min(self._free_slots(), len(order))):
                entry = order.pop(self._limit)
                if entry is None or self.stopping:
                    return
                self._start(entry)
        except BaseException as exception:  # noqa: BLE001 - raised by the user's keys; reported
            self.fail(exception)

    def _may_resume(self) -> bool:
        in_flight = len(self.calls)
        has_room = self._counts_draws or in_flight + self._undelivered < self._window
        return has_room and in_flight < self._limit and not self._resends.held

    def _start(self, entry: Entry) -> None:
        assert self._tasks is not None
        if self._tasks.start(entry, describe(entry.index, entry.item)):
            self.calls[entry.index] = entry.item

    def _advance(self) -> None:
        """Start calls, wake the source or end the batch, after something has changed."""
        if self.stopping or self._tasks is None:
            return
        if self._order or self._resends.due:
            self._start_calls()
        if not self._exhausted:
            if self._room.events and self._wanted_items():
                self._room.wake_one()
        elif not (self.calls or self._order or self._resends.count):
            self._calls_have_ended = True
            self._end_watching()  # here as well as at the end: it saves a trio step
            self._tasks.release()

    # --- 4. A call: prepare the item, await the call, deliver its result ---

    async def _make_call(self, entry: Entry) -> None:
        if self.stopping:
            return
        index, item = entry.index, entry.item
        value: Any = None
        failure: Exception | None = None
        if entry.began is None:
            entry.started_at = time.time()
            entry.began = time.perf_counter()
        try:
            if self._plan.prepare is not None:
                self.calls[index] = item = self._plan.prepare(index, item)
            returned = self._plan.call(index, item)
            if not hasattr(returned, "__await__"):
                raise _cannot_be_awaited(returned)
            value = await returned
        except BaseException as exception:
            failure = self._backend.error_of(exception, "the call", self.stopping)
            if failure is None:
                raise
        try:
            self._settle(entry, item, value, failure)
        finally:
            del value, failure  # no reference cycle through the traceback

    def _call_ended(
        self, entry: Entry, exception: BaseException | None, *, cancelled: bool
    ) -> None:
        """Free the slot of a call whose task has ended."""
        if entry.index in self.calls:  # it has no result
            if exception is None and not (cancelled or self.stopping):
                # Other code has cancelled its task before the first step.
                self._settle(entry, entry.item, None, cancelled_unasked("the call"))
            else:
                del self.calls[entry.index]
        if exception is not None:
            self.crash(exception)
        self._advance()

    def _settle(self, entry: Entry, item: Any, value: Any, failure: Exception | None) -> None:
        index, plan, tally = entry.index, self._plan, self._plan.tally
        del self.calls[index]
        try:
            self._order.ended(entry)
        except Exception as exception:  # noqa: BLE001 - raised by a key; the result is delivered
            add_note(exception, f"found when {describe(index, item)} had ended")
            self.fail(exception)
        if failure is None:
            self.succeeded += 1
            entry.attempts += 1
        else:
            if isinstance(failure, RetryLater):
                entry.attempts += failure.counts
                if not self.stopping:
                    self._postpone(entry, failure.delay)
                    return
                failure = failure.error
            elif not isinstance(failure, _REFUSED):
                entry.attempts += 1
            self.failed += 1
            failure = without_engine_frames(failure)
            if tally is not None:
                tally.add_failed(failure)
            if not plan.return_exceptions:
                self._set_first_error(failure, describe(index, item))
                return
        duration = 0.0 if entry.began is None else time.perf_counter() - entry.began
        started_at, attempts = entry.started_at, entry.attempts
        self._deliver(
            index, plan.result_type(index, item, value, failure, started_at, duration, attempts)
        )
        if failure is None and tally is not None:
            try:
                tally.add(item, value)
            except Exception as exception:  # noqa: BLE001 - raised by a meter; result is delivered
                self.fail(exception)

    def _postpone(self, entry: Entry, delay: float) -> None:
        delay = 0.0 if self._skips_waits else delay
        self._resends.postpone(entry, self.call_later(delay, functools.partial(self._due, entry)))

    def _due(self, entry: Entry) -> None:
        self._resends.make_due(entry)
        self._advance()

    # --- 5. Deliver in completion order, or hold a result back until its turn in input order ---

    def collect_into(self, results: list[ResultT]) -> None:
        """Add every result to this list, in completion order. Call it before the start.

        A consumer of all results need not be woken for each one, and does not set the pace. It
        waits for the end of :attr:`results`, which stays empty.
        """
        self._window = sys.maxsize
        self._kept = results

    def _deliver(self, index: int, result: Any) -> None:
        if self._error is not None and not self._plan.return_exceptions:
            return  # the batch ended in an error before this call did
        kept = self._kept
        if kept is None:
            self._undelivered += 1
        elif not self._plan.preserve_order:
            kept.append(result)
            return
        if not self._plan.preserve_order:
            self._hand_over(result)
            return
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
        await self._chunk_room.acquire()
        self._send_channel.send_nowait(cast("ResultT", piece))
        self.arrivals.wake_one()

    def handed_out(self, result: object) -> None:
        """Make room for one more, after the consumer has taken this from ``results``."""
        if type(result) is StreamChunk:
            self._chunk_room.release()
            return
        self.delivered += 1
        self._undelivered -= 1
        self._advance()

    # --- 6. The first error stops a fail-fast batch; errors of calls being cancelled do not ---

    def stop(self) -> None:
        """Cancel every call and start no more. :meth:`run` ends when the last call has ended."""
        if self.stopping:
            return
        self.stopping = True
        self._timers.cancel_all()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            if self.calls:
                self.call_later(STUBBORN_CALL_FIRST_WARNING, self._name_stubborn_calls)
        self._drawing.cancel()

    def _set_first_error(self, error: Exception, origin: str) -> None:
        if self.stopping:
            return
        add_note(error, f"raised by {origin}")
        self._error = error
        self.stop()

    def _source_failed(self, exception: Exception) -> None:
        self._exhaust()
        if self._plan.return_exceptions:
            self._error = exception  # the calls in flight may end
        else:
            self._set_first_error(exception, f"the source, drawing request {self._drawn}")

    def crash(self, exception: BaseException) -> None:
        """Stop the batch for an error that no result can carry.

        For instance KeyboardInterrupt, SystemExit, an error of a source that is being closed, or a
        broken backend.
        """
        interrupt = not isinstance(exception, Exception)
        if self._error is not None and not interrupt:
            # The first error remains the one that is raised.
            if not isinstance(exception, BatchAbortedError):
                add_note(self._error, f"then its batch failed to end: {exception!r}")
        elif self._crash is None or (interrupt and isinstance(self._crash, Exception)):
            self._crash = exception
        self.stop()
        if interrupt:
            self.on_crash()

    def abandon(self, error: BaseException) -> None:
        """End the batch without :meth:`run`: its trio run is gone. The consumer gets the error."""
        self.stopping = True
        if self._crash is None:
            self._crash = error
        self._timers.cancel_all()
        self._send_channel.close()
        self.arrivals.wake_all()

    @property
    def crash_error(self) -> BaseException | None:
        """Return the error that no result can carry, until it has been raised."""
        return self._crash

    def take_error(self) -> BaseException | None:
        """Return the error to raise after the last result, once; None if there is none."""
        error = self._error if self._crash is None else self._crash
        self._crash = self._error = None
        return error

    def _name_stubborn_calls(self) -> None:
        for index, item in self.calls.items():
            logger.warning(
                "%s was cancelled and still runs; its batch waits for it", describe(index, item)
            )
        self.call_later(STUBBORN_CALL_NEXT_WARNING, self._name_stubborn_calls)

    # --- the interface to the handle (engine.handle.RunningBatch) ---

    @property
    def started(self) -> int:
        return self._drawn - len(self._order)

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

    @property
    def direct_calls(self) -> int:
        counts = self._plan.direct_counts
        return 0 if counts is None else counts.direct_calls

    @property
    def indirect_calls(self) -> dict[str, int]:
        counts = self._plan.direct_counts
        return {} if counts is None else dict(counts.indirect_calls)

    @property
    def direct_differences(self) -> dict[str, int]:
        counts = self._plan.direct_counts
        return {} if counts is None else dict(counts.differences)

    def check_not_inside(self) -> None:
        """Raise if a call of this batch, or its source, is about to wait for the batch's end."""
        if self._token in _inside.get():
            raise RuntimeError(
                "a call or a source, or a task that it has started, cannot wait for the end of "
                "its own batch: use batch.cancel()"
            )

    def check_thread(self) -> None:
        """Raise if the calling thread is not the one in which the batch runs."""
        if self._thread not in (None, threading.get_ident()):
            raise RuntimeError(
                "this batch runs in another thread: use it there (to cancel it from here, call "
                "loop.call_soon_threadsafe(batch.cancel), or run_sync_soon of its TrioToken)"
            )

    # --- the interface to controls (control.protocols.Engine) ---

    def current_time(self) -> float:
        return self._backend.current_time()

    def new_scope(self, seconds: float | None = None) -> Scope:
        return self._backend.new_scope(seconds)

    def new_group(self) -> Group:
        return self._backend.new_group()

    def drop_results(self) -> None:
        """Drop the results that the consumer will not take."""
        with contextlib.suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self.results.receive_nowait()

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        assert self._helpers is not None
        return self._timers.call_later(self._helpers, self._context, seconds, function)

    def fail(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            self.crash(error)
            return
        known = self._crash if self._error is None else self._error
        if known is not None:
            add_note(known, f"then a control failed: {error!r}")
        elif self.stopping:  # the consumer is leaving: raise it there
            self._crash = error
        else:
            self._error = error
        self.stop()

    def stop_drawing(self) -> None:
        self._exhaust()
        self._drawing.cancel()

    def set_limit(self, limit: int) -> None:
        """Change the number of calls that may be in flight. Excess calls are not cancelled."""
        self._limit = limit
        self._advance()

    def pause_calls(self) -> None:
        self._resends.held = not self._skips_waits

    def resume_calls(self) -> None:
        self._resends.held = False
        self._advance()

    def recheck(self) -> None:
        self._advance()

    def bring_forward(self, indexes: Collection[int]) -> None:
        self._resends.bring_forward(indexes)
        self._advance()

    def skip_waits(self) -> None:
        self._skips_waits = True  # also for calls that are ending now and may yet be postponed
        self._resends.skip_waits()
        self._advance()


class TrioParallelBatch(ParallelBatch[ResultT]):
    """A batch in trio: enter it with ``async with``, then iterate."""

    _is_checkpoint = True

    def __init__(self, plan: BatchPlan[ResultT]) -> None:
        self._running = self._engine = BatchEngine(plan, TrioBackend())
        self._nursery_manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery
        self._finished = trio.Event()

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can be entered only once: make a new one")
        self._begun = True
        self._nursery_manager = trio.open_nursery()
        self._nursery = nursery = await self._nursery_manager.__aenter__()
        # An error like KeyboardInterrupt in a call also ends the caller's block.
        self._engine.on_crash = nursery.cancel_scope.cancel
        self._engine.enter()
        nursery.start_soon(self._run)
        return self

    async def _run(self) -> None:
        try:
            await self._engine.run()
        finally:
            self._finished.set()

    async def aclose(self) -> None:
        self._engine.check_not_inside()
        self._engine.stop()
        if self._nursery_manager is not None:
            await self._finished.wait()
        self._begun = self._closed = True

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._nursery_manager is not None
        engine = self._engine
        engine.stop()
        # Pass the exception of the body to the nursery only if it is a cancellation that may be the
        # nursery's: the nursery would wrap any other exception in a group.
        body = (exc_type, exc, traceback)
        cancelled_by_us = (
            self._nursery.cancel_scope.cancel_called
            and exc is not None
            and without_cancelled(exc) is None
        )
        absorbed: bool | None = False
        leaving: BaseException | None = None
        try:
            absorbed = await self._nursery_manager.__aexit__(
                *(body if cancelled_by_us else (None, None, None))
            )
        except BaseException as exception:  # noqa: BLE001 - raised below, if nothing else is raised
            leaving = exception
        finally:
            self._closed = True
            engine.drop_results()
        try:
            interrupt = None if leaving is None else without_cancelled(leaving)
            if interrupt is not None:
                raise only_member(interrupt)
            raise_crash(engine, leaving if exc is None else exc)
            # Cancelled while waiting. The exception of the body takes precedence; trio raises the
            # cancellation again at the next checkpoint.
            if leaving is not None and exc is None:
                raise leaving
        finally:
            del leaving, body
        return cancelled_by_us and absorbed

    async def _begin(self) -> None:
        raise RuntimeError(
            "enter the batch before iterating: async with iter_parallel_…(…) as batch: "
            "async for result in batch: …"
        )


def _cannot_be_awaited(returned: object) -> TypeError:
    return TypeError(
        f"the call returned {type(returned).__qualname__}, which cannot be awaited: "
        "pass an async function"
    )


if TYPE_CHECKING:
    from .api import (
        iter_parallel_acompletions,
        iter_parallel_map,
        iter_parallel_streams,
        parallel_acompletions,
        parallel_map,
    )

__all__ = [
    "BatchEngine",
    "ParallelBatch",
    "TrioParallelBatch",
    "iter_parallel_acompletions",
    "iter_parallel_map",
    "iter_parallel_streams",
    "parallel_acompletions",
    "parallel_map",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of this module

    def __getattr__(name: str) -> Any:
        """Return a function of :mod:`parallel_core.api`, which imports this module."""
        if name in __all__:
            return getattr(importlib.import_module("parallel_core.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
