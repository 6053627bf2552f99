"""A worker: the code in the process of an actor, with its own Router and engine."""

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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from parallel_core import bridge
from parallel_core.batch_plans import map_plan
from parallel_core.config import only_our_words, unwrap_router
from parallel_core.control import (
    BatchOptions,
    Engine,
    RouterMeter,
    Timeouts,
    allow_connections,
    raise_open_files,
)
from parallel_core.engine import TaskScope
from parallel_core.errors import RemoteCallError, cancelled_unasked
from parallel_core.journal import process_is_alive
from parallel_core.router import (
    BATCH_METADATA,
    DIRECT,
    INDEX,
    RETRIED,
    STALL_TIMEOUT,
    TIMEOUT,
    LeftToBatch,
    Streams,
    direct_lane,
    left_to_the_batch,
    preparation,
    send_metadata_to_store,
)
from parallel_core.router_hosts import enter_loop, leave_this_loop
from parallel_core.types import RouterParallelRequest

if TYPE_CHECKING:
    from parallel_core.router.direct.lane import DirectLane

from .remote_values import pack_exception, pack_response, unpack_request
from .router_recipe import Recipe

_BETWEEN_LOOKS = 0.25  # seconds
BETWEEN_BEATS = 10.0
"""Seconds after which a worker without news sends an empty message."""


class Kind(IntEnum):
    """Kind of a worker's message. Each message is a kind, a number and bytes."""

    READY = 0  # the Router is made; the process id and the name of the machine
    REFUSED = 1  # no Router could be made; the packed exception
    OUTCOME = 2  # the number and the packed outcome of a call
    CANCELLED = 3  # the number of a call that was cancelled, or given back before it began


Message: TypeAlias = tuple[Kind, int, bytes]


class Given(NamedTuple):
    """A message to a worker.

    Attributes:
        calls: calls to make, each a number and packed arguments.
        cancelled: numbers of calls to cancel.
        recalled: numbers of calls to give back unless they have begun, because another worker can
            make them sooner.
    """

    calls: Sequence[tuple[int, bytes]] = ()
    cancelled: Sequence[int] = ()
    recalled: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Pace:
    """Pace at which a worker reports outcomes.

    A message costs the worker and the driver a part of the cost of a call, so many outcomes share a
    message.

    Attributes:
        every: minimum seconds between two messages, unless there are many outcomes.
        many: number of outcomes that are reported without waiting.
    """

    every: float
    many: int


@dataclass(frozen=True, slots=True)
class _Assignment:
    number: int
    packed: bytes


class Driver(NamedTuple):
    """Process that starts workers and gives them calls."""

    machine: str
    process: int

    @classmethod
    def here(cls) -> Driver:
        return cls(platform.node(), os.getpid())

    @property
    def has_ended(self) -> bool:
        """True if the driver is known to have ended; always False for another machine."""
        if self.machine == platform.node():
            return not process_is_alive(self.process)
        return False


class _ProcessWatch:
    """End a worker's process if its driver has ended or one of its main threads has died.

    Ray also ends workers after their driver has ended, but some seconds later, and until then calls
    would be billed. Without its main thread or the thread of its loop, the process would stay, and
    the driver would wait for its calls.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._threads = [threading.main_thread(), threading.current_thread()]
        _restore_default_sigterm()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._driver.has_ended and all(thread.is_alive() for thread in self._threads):
            time.sleep(_BETWEEN_LOOKS)
        os._exit(1)


def _restore_default_sigterm() -> None:
    """Make SIGTERM end the process. With Ray's handler it stays alive and does nothing.

    Only the main thread may set a handler from Python, and this is another thread, so the C
    function is called.
    """
    # The function does not exist on every system.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        set_handler: Any = ctypes.CDLL(None).signal
        set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        set_handler(signal.SIGTERM, None)  # SIG_DFL


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
            _ProcessWatch(driver)
        self._recipe = recipe
        self._concurrency = concurrency
        self._pace = pace
        self._answer: Callable[[dict[str, Any]], Awaitable[Any]]
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
                opened.enter_context(only_our_words())
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
            calls = _Calls(router)
            self._answer = calls.answer
            plan = dataclasses.replace(plan, attachments=[*plan.attachments, calls])
            if (prepare := preparation(router)) is not None:
                await asyncio.to_thread(prepare)
            if self._is_own_process:
                _limit_garbage_collection()
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
        with self._running[number] as scope:
            try:
                packed = pack_response(await self._answer(unpack_request(assignment.packed)))
            except asyncio.CancelledError as error:
                # If this worker is ending, the driver shall send the call to another worker.
                if scope.cancelled or self._is_ending():
                    raise
                packed = pack_exception(cancelled_unasked("a call", error))
            except Exception as error:  # noqa: BLE001 - it is the call's outcome
                packed = pack_exception(error)
            except BaseException as error:  # noqa: BLE001 - an exit or a panic ends only this call
                packed = pack_exception(RemoteCallError.standing_for(error))
            finally:
                del self._running[number]
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
        self._news.set()
        # The driver waits for the end of a cancelled call. After the last call, nothing else comes.
        is_last = not self._running and not self._waiting
        if kind is not Kind.OUTCOME or is_last or len(self._messages) >= self._pace.many:
            self._much_news.set()


def _limit_garbage_collection() -> None:
    """Make the garbage collector skip all existing objects and run less often.

    It would traverse all of litellm again and again, for 0.15 s at a time. Together with the young
    generation, it took 11 % of a worker's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


async def _wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Return True if the event was set within this time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class _Calls:
    """Attachment of the worker's batch that sends what a local batch would send."""

    def __init__(self, router: Any) -> None:
        self._acompletion: Callable[..., Awaitable[Any]] = getattr(router, "acompletion", router)
        self._is_router = hasattr(router, "acompletion")
        self._router = router
        self._left_to_batch: LeftToBatch | None = None
        self._meter = RouterMeter(unwrap_router(router))
        self._timeouts = Timeouts(None)
        self._timed = self._timeouts.wrap(self._send)
        self._lane: DirectLane | None = None
        self._engine: Engine

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        self._timeouts.begin(engine)

    def end(self) -> None:
        pass

    def answer(self, arguments: dict[str, Any]) -> Awaitable[Any]:
        """Call the Router with these arguments. Read a streamed answer and return it as a whole."""
        stall_timeout = arguments.pop(STALL_TIMEOUT, None)
        timeout = arguments.pop(TIMEOUT, None)
        index = arguments.pop(INDEX, 0)
        retried = arguments.pop(RETRIED, False)
        if not self._is_router:
            # A bare callable gets only the request's own metadata.
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
        # Each call has its own reader, because calls of two batches may have the same index.
        reader = Streams(self._meter, stall_timeout=stall_timeout)
        reader.begin(self._engine)
        return reader.wrap_controls(self._timeouts.wrap(reader.wrap(self._send)))(index, request)

    def _send(self, index: int, request: RouterParallelRequest) -> Awaitable[Any]:
        arguments = dict(request.kwargs or {})
        if not arguments.pop(DIRECT, False):
            return self._acomplete(request, arguments)
        self._lane = self._lane or direct_lane(self._router, True)
        assert self._lane is not None
        call = self._lane.wrap(lambda _, request: self._acomplete(request, arguments))
        return call(index, request)

    def _acomplete(
        self, request: RouterParallelRequest, arguments: dict[str, Any]
    ) -> Awaitable[Any]:
        return self._acompletion(model=request.model, messages=request.messages, **arguments)
