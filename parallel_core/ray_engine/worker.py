"""A worker: the code in the process of an actor, with its own Router and engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import platform
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from parallel_core import bridge
from parallel_core.batch_plans import map_plan
from parallel_core.config import silence_libraries
from parallel_core.control import BatchOptions, allow_connections, raise_open_files
from parallel_core.engine import TaskScope
from parallel_core.errors import RemoteCallError, cancelled_unasked
from parallel_core.router import DirectCounts, preparation
from parallel_core.router_hosts import enter_loop, leave_this_loop

from .messages import BETWEEN_BEATS, Given, Kind, Message, Pace
from .remote_values import pack_exception, pack_response, unpack_request
from .router_recipe import Recipe
from .worker_calls import WorkerCalls
from .worker_process import Driver, end_with_driver, limit_garbage_collection


@dataclass(frozen=True, slots=True)
class _Assignment:
    number: int
    packed: bytes


class Worker:
    """Make the calls that the driver gives.

    Args:
        recipe: recipe of the Router.
        concurrency: maximum calls in flight; further calls wait for a slot.
        pace: pace of the messages to the driver.
        driver: the driver, with which the worker ends; None if it is this process.
    """

    def __init__(
        self, recipe: Recipe, concurrency: int, pace: Pace, driver: Driver | None = None
    ) -> None:
        self._is_own_process = driver is not None
        if driver is not None:
            end_with_driver(driver)
        self._recipe = recipe
        self._concurrency = concurrency
        self._pace = pace
        self._answer: Callable[[dict[str, Any], DirectCounts], Awaitable[Any]]
        self._is_ending: Callable[[], bool]
        self._waiting: dict[int, _Assignment] = {}  # calls that wait for a slot
        # A call is added when the engine draws it: a cancellation may come before it begins.
        self._running: dict[int, TaskScope] = {}
        # Ray does not guarantee that messages arrive in the order in which they were sent.
        self._early: dict[int, Given] = {}
        self._next_given = 0
        self._stopped = False
        self._arrived = asyncio.Event()
        self._messages: list[Message] = []
        self._outcomes = 0  # of these messages
        self._news = asyncio.Event()
        self._much_news = asyncio.Event()

    async def give(self, sequence: int, given: Given) -> None:
        """Accept new calls, and cancel or give back others. Returns at once.

        Args:
            sequence: number of the message, from 0.
            given: the message.
        """
        self._early[sequence] = given
        while self._next_given in self._early:
            next_given = self._early.pop(self._next_given)
            self._next_given += 1
            for number, packed in next_given.calls:
                self._waiting[number] = _Assignment(number, packed)
            for number in next_given.recalled:
                self._give_back(number)
            for number in next_given.cancelled:
                self._cancel(number)
        self._arrived.set()

    async def stop(self) -> None:
        """Cancel all calls, after which :meth:`run` ends. Returns at once."""
        self._stopped = True
        for number in [*self._waiting, *self._running]:
            self._cancel(number)
        self._arrived.set()

    async def run(self) -> AsyncGenerator[list[Message], None]:
        """Work until :meth:`stop`. Yield messages, and an empty list if there are none for long."""
        work = asyncio.create_task(self._work())
        work.add_done_callback(lambda _: self._news.set())
        last = -float("inf")
        while True:
            if not await _wait_for(self._news, BETWEEN_BEATS):
                yield []
                continue
            left = last + self._pace.every - time.monotonic()
            if left > 0 and not self._much_news.is_set() and not work.done():
                await _wait_for(self._much_news, left)
            self._news.clear()
            self._much_news.clear()
            messages, self._messages = self._messages, []
            self._outcomes = 0
            if messages:
                last = time.monotonic()
                yield messages
            elif work.done():
                break
            if work.done():
                self._news.set()
        try:
            work.result()
        except Exception:
            raise
        except BaseException as error:
            # Ray would treat a SystemExit as an intended exit and report nothing.
            raise RuntimeError("the worker crashed") from error

    async def _work(self) -> None:
        with contextlib.ExitStack() as opened:
            if self._is_own_process:  # the output of this process goes into Ray's logs
                opened.enter_context(silence_libraries())
                raise_open_files()
                allow_connections(self._concurrency)
            try:
                router: Any = opened.enter_context(self._recipe.open())
            except Exception as error:  # noqa: BLE001 - sent to the driver, which raises it
                self._report(Kind.REFUSED, 0, pack_exception(error))
                return
            except (SystemExit, KeyboardInterrupt) as error:  # else the worker would end silently
                self._report(Kind.REFUSED, 0, pack_exception(RemoteCallError.standing_for(error)))
                return
            options = BatchOptions(concurrency=self._concurrency)
            plan = map_plan(self._call, self._assignments(), options)
            calls = WorkerCalls(router)
            self._answer = calls.answer
            plan = dataclasses.replace(plan, attachments=[*plan.attachments, calls])
            if (prepare := preparation(router)) is not None:
                await asyncio.to_thread(prepare)
            if self._is_own_process:
                limit_garbage_collection()
            self._report(Kind.READY, os.getpid(), platform.node().encode())
            try:
                batch = bridge.AsyncioParallelBatch(plan)
                core = batch._engine  # pyright: ignore[reportPrivateUsage]
                self._is_ending = lambda: core.stopping
                enter_loop(asyncio.get_running_loop())
                async with batch:
                    async for result in batch:
                        result.unwrap()  # calls report their own errors
            finally:
                await leave_this_loop()

    async def _assignments(self) -> AsyncGenerator[_Assignment, None]:
        while not self._stopped:
            while self._waiting:
                # The oldest comes first: a call that another worker gave back is the oldest.
                assignment = self._waiting.pop(min(self._waiting))
                # As in a batch, a call is cancelled only once, so its clean-up is not interrupted.
                self._running[assignment.number] = TaskScope()
                yield assignment
            self._arrived.clear()
            if not self._stopped:
                await self._arrived.wait()

    async def _call(self, assignment: _Assignment) -> None:
        number = assignment.number
        if self._running[number].cancelled:  # cancelled before its first step
            del self._running[number]
            self._report(Kind.CANCELLED, number)
            return
        counts = DirectCounts()
        with self._running[number] as scope:
            try:
                arguments = unpack_request(assignment.packed)
                packed = pack_response(await self._answer(arguments, counts))
            except asyncio.CancelledError as error:
                # If this worker is ending, the driver must send the call to another worker.
                if scope.cancelled or self._is_ending():
                    raise
                packed = pack_exception(cancelled_unasked("a call", error))
            except Exception as error:  # noqa: BLE001 - it is the call's outcome
                packed = pack_exception(error)
            except BaseException as error:  # noqa: BLE001 - an exit or a panic ends only this call
                packed = pack_exception(RemoteCallError.standing_for(error))
            finally:
                del self._running[number]
                if counts:
                    self._report(Kind.DIRECT, number, counts.packed())
            self._report(Kind.OUTCOME, number, packed)
            return
        self._report(Kind.CANCELLED, number)

    def _cancel(self, number: int) -> None:
        scope = self._running.get(number)
        if scope is not None:
            scope.cancel()
        else:
            self._give_back(number)

    def _give_back(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._report(Kind.CANCELLED, number)
        # The outcome of any other call is on its way.

    def _report(self, kind: Kind, number: int, packed: bytes = b"") -> None:
        self._messages.append((kind, number, packed))
        if kind is Kind.DIRECT:  # it goes with the end of its call
            return
        self._outcomes += kind is Kind.OUTCOME
        self._news.set()
        # The driver waits for the end of a cancelled call. After the last call, nothing else comes.
        is_last = not self._running and not self._waiting
        if kind is not Kind.OUTCOME or is_last or self._outcomes >= self._pace.many:
            self._much_news.set()


async def _wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Return True if the event was set within this time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
