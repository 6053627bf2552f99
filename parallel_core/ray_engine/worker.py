"""A worker: what runs in the process of an actor. It has a Router and an engine of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import os
import platform
import signal
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from parallel_core import bridge
from parallel_core.batch_plans import map_plan
from parallel_core.config import only_our_words
from parallel_core.control import (
    BatchOptions,
    Engine,
    RouterMeter,
    Timeouts,
    allow_connections,
    raise_open_files,
)
from parallel_core.errors import RemoteCallError, cancelled_unasked
from parallel_core.journal import process_is_alive
from parallel_core.router import (
    BATCH_METADATA,
    INDEX,
    RETRIED,
    STALL_TIMEOUT,
    TIMEOUT,
    LeftToBatch,
    Streams,
    left_to_the_batch,
    preparation,
    send_metadata_to_store,
    unwrap_router,
)
from parallel_core.router_hosts import enter_loop, leave_this_loop
from parallel_core.types import RouterParallelRequest

from .remote_values import pack_exception, pack_response, unpack_request
from .router_recipe import Recipe

_BETWEEN_LOOKS = 0.25  # seconds
BETWEEN_BEATS = 10.0
"""Seconds after which a worker that has nothing to tell says that it is there."""


class Kind(IntEnum):
    """What a message of a worker is."""

    READY = 0  # its Router is there; its process id, and the name of its machine
    REFUSED = 1  # there will be no Router; the exception tells why
    OUTCOME = 2  # of the call with this number
    CANCELLED = 3  # so the call with this number has ended, or it has not begun


Message: TypeAlias = tuple[Kind, int, bytes]


class Given(NamedTuple):
    """A message to a worker.

    Attributes:
        calls: to make: number and arguments.
        cancelled: numbers of calls to cancel.
        recalled: numbers of calls that others would make sooner, unless they have begun.
    """

    calls: Sequence[tuple[int, bytes]] = ()
    cancelled: Sequence[int] = ()
    recalled: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a worker tells what has come.

    A message costs it and the driver a part of what a call costs, so many go together.

    Attributes:
        every: seconds between two messages at least, unless there is much to tell.
        many: outcomes that are told at once.
    """

    every: float
    many: int


@dataclass(frozen=True, slots=True)
class _Assignment:
    number: int
    packed: bytes


class Driver(NamedTuple):
    """The process for which workers work."""

    machine: str
    process: int

    @classmethod
    def here(cls) -> Driver:
        return cls(platform.node(), os.getpid())

    @property
    def has_ended(self) -> bool:
        """Whether it is known to; nothing is known of another machine."""
        if self.machine == platform.node():
            return not process_is_alive(self.process)
        return False


class _ProcessWatch:
    """Ends the process of a worker that nobody needs, or that can do nothing any more.

    Ray sees to a driver that has ended as well, some seconds later: meanwhile calls would be paid
    for. Without its main thread, or that of its loop, the process would stay, and its calls would
    be waited for.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._threads = [threading.main_thread(), threading.current_thread()]
        _die_of_sigterm()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._driver.has_ended and all(thread.is_alive() for thread in self._threads):
            time.sleep(_BETWEEN_LOOKS)
        os._exit(1)


def _die_of_sigterm() -> None:
    """As other processes do: Ray's handler leaves one that lives and does nothing any more.

    Python lets the main thread alone set a handler, and this is another one.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not on every system
        set_handler: Any = ctypes.CDLL(None).signal
        set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        set_handler(signal.SIGTERM, None)  # SIG_DFL


class Worker:
    """Makes the calls that it is given.

    Args:
        recipe: of the Router.
        concurrency: calls in flight at most; what else is given waits for a slot.
        pace: of what is told.
        driver: with which it ends; None where it is in the same process.
    """

    def __init__(
        self, recipe: Recipe, concurrency: int, pace: Pace, driver: Driver | None = None
    ) -> None:
        self._is_own_process = driver is not None
        if driver is not None:
            _ProcessWatch(driver)
        self._recipe = recipe
        self._concurrency = concurrency
        self._pace = pace
        self._answer: Callable[[dict[str, Any]], Awaitable[Any]]
        self._is_ending: Callable[[], bool]
        self._waiting: dict[int, _Assignment] = {}  # for a slot
        # From the moment in which the engine draws them: a cancellation may come before the call.
        self._running: dict[int, bridge.TaskScope] = {}
        # Ray does not say that messages arrive in the order in which they were sent.
        self._early: dict[int, Given] = {}
        self._next_given = 0
        self._stopped = False
        self._arrived = asyncio.Event()
        self._messages: list[Message] = []
        self._news = asyncio.Event()
        self._much_news = asyncio.Event()

    async def give(self, sequence: int, given: Given) -> None:
        """Take calls to make, and give others up. Returns at once.

        Args:
            sequence: which message this is, from 0.
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
        """Cancel all calls; then :meth:`run` ends. Returns at once."""
        self._stopped = True
        for number in [*self._waiting, *self._running]:
            self._cancel(number)
        self._arrived.set()

    async def run(self) -> AsyncGenerator[list[Message], None]:
        """Work until :meth:`stop`; gives what has become of the calls, as it comes, and an empty
        list now and then where nothing does."""
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
            # Of itself, Ray would take an exit for one that was asked for, and say nothing.
            raise RuntimeError("the worker has broken down") from error

    async def _work(self) -> None:
        with contextlib.ExitStack() as opened:
            if self._is_own_process:  # what is said here goes into logs of Ray
                opened.enter_context(only_our_words())
                raise_open_files()
                allow_connections(self._concurrency)
            try:
                router: Any = opened.enter_context(self._recipe.open())
            except Exception as error:  # noqa: BLE001 - told to the driver, which raises it
                self._tell(Kind.REFUSED, 0, pack_exception(error))
                return
            except (SystemExit, KeyboardInterrupt) as error:  # of the recipe: it would end silently
                self._tell(Kind.REFUSED, 0, pack_exception(RemoteCallError.standing_for(error)))
                return
            options = BatchOptions(concurrency=self._concurrency)
            plan = map_plan(self._call, self._assignments(), options)
            calls = _Calls(router)
            self._answer = calls.answer
            plan = dataclasses.replace(plan, attachments=[*plan.attachments, calls])
            if (prepare := preparation(router)) is not None:
                await asyncio.to_thread(prepare)
            if self._is_own_process:
                _spare_the_collector()
            self._tell(Kind.READY, os.getpid(), platform.node().encode())
            try:
                batch = bridge.AsyncioParallelBatch(plan)
                core = batch._engine  # pyright: ignore[reportPrivateUsage]
                self._is_ending = lambda: core.stopping
                enter_loop(asyncio.get_running_loop())
                async with batch:
                    async for result in batch:
                        result.unwrap()  # calls tell their own errors
            finally:
                await leave_this_loop()

    async def _assignments(self) -> AsyncGenerator[_Assignment, None]:
        while not self._stopped:
            while self._waiting:
                # The oldest: one that another worker has given back is older than the others.
                assignment = self._waiting.pop(min(self._waiting))
                # As a batch cancels its calls: once, so that what they do last is not cut short.
                self._running[assignment.number] = bridge.TaskScope()
                yield assignment
            self._arrived.clear()
            if not self._stopped:
                await self._arrived.wait()

    async def _call(self, assignment: _Assignment) -> None:
        number = assignment.number
        if self._running[number].cancelled:  # before its first step
            del self._running[number]
            self._tell(Kind.CANCELLED, number)
            return
        with self._running[number] as scope:
            try:
                packed = pack_response(await self._answer(unpack_request(assignment.packed)))
            except asyncio.CancelledError as error:
                # Where all is at its end here, the driver is to send it to another worker.
                if scope.cancelled or self._is_ending():
                    raise
                packed = pack_exception(cancelled_unasked("a call", error))
            except Exception as error:  # noqa: BLE001 - it is the call's outcome
                packed = pack_exception(error)
            except BaseException as error:  # noqa: BLE001 - an exit, or a panic: of this call alone
                packed = pack_exception(RemoteCallError.standing_for(error))
            finally:
                del self._running[number]
            self._tell(Kind.OUTCOME, number, packed)
            return
        self._tell(Kind.CANCELLED, number)

    def _cancel(self, number: int) -> None:
        scope = self._running.get(number)
        if scope is not None:
            scope.cancel()
        else:
            self._give_back(number)

    def _give_back(self, number: int) -> None:
        if self._waiting.pop(number, None) is not None:
            self._tell(Kind.CANCELLED, number)
        # Of others, the outcome is on its way.

    def _tell(self, kind: Kind, number: int, packed: bytes = b"") -> None:
        self._messages.append((kind, number, packed))
        self._news.set()
        # Somebody waits for the end of what was cancelled, or there is nothing more to wait for.
        is_last = not self._running and not self._waiting
        if kind is not Kind.OUTCOME or is_last or len(self._messages) >= self._pace.many:
            self._much_news.set()


def _spare_the_collector() -> None:
    """Have the garbage collector leave what is here alone, and look at the rest less often.

    It would go through all of litellm again and again, for 0.15 s at a time: with that and the
    young generation it took 11 % of a worker's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


async def _wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Whether it has come in this time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class _Calls:
    """Sends what a batch of the driver would have sent. An attachment of the worker's batch."""

    def __init__(self, router: Any) -> None:
        self._acompletion: Callable[..., Awaitable[Any]] = getattr(router, "acompletion", router)
        self._is_router = hasattr(router, "acompletion")
        self._router = router
        self._left_to_batch: LeftToBatch | None = None
        self._meter = RouterMeter(unwrap_router(router))
        self._timeouts = Timeouts(None)
        self._timed = self._timeouts.wrap(self._send)
        self._engine: Engine

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        self._timeouts.begin(engine)

    def end(self) -> None:
        pass

    def answer(self, arguments: dict[str, Any]) -> Awaitable[Any]:
        """The call of these arguments; a streamed answer is read here and given as a whole."""
        stall_timeout = arguments.pop(STALL_TIMEOUT, None)
        timeout = arguments.pop(TIMEOUT, None)
        index = arguments.pop(INDEX, 0)
        retried = arguments.pop(RETRIED, False)
        if not self._is_router:
            # A bare callable gets what the request says.
            metadata: dict[str, Any] = arguments.get("metadata") or {}
            own = {name: metadata[name] for name in metadata if name not in BATCH_METADATA}
            arguments.pop("metadata", None)
            if own:
                arguments["metadata"] = own
        model, messages = arguments.pop("model"), arguments.pop("messages")
        if self._is_router:
            send_metadata_to_store(self._router, model, arguments)
            if retried:
                self._left_to_batch = self._left_to_batch or left_to_the_batch(self._router)
                self._left_to_batch.add_to(arguments, model)
        request = RouterParallelRequest(model, messages, arguments, timeout)
        if not arguments.get("stream"):
            return self._timed(index, request)
        # One for each call: those of two batches may have the same index.
        reader = Streams(self._meter, stall_timeout=stall_timeout)
        reader.begin(self._engine)
        return reader.wrap_controls(self._timeouts.wrap(reader.wrap(self._send)))(index, request)

    def _send(self, _: int, request: RouterParallelRequest) -> Awaitable[Any]:
        return self._acompletion(
            model=request.model, messages=request.messages, **(request.kwargs or {})
        )
