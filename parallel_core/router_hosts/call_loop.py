"""Asyncio code that trio waits for: on a loop in a helper thread, or on one of trio-asyncio.

What differs between the two is only how a callback gets from trio to the loop and back.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

import outcome
import sniffio
import trio
from anyio.from_thread import start_blocking_portal

from parallel_core.errors import RouterHostClosedError, cancelled_unasked
from parallel_core.uninterrupted import wait_until

from .litellm_loop import enter_loop, leave_this_loop

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("parallel_core")

END_OF_STREAM: Final = object()


class _Call:
    """One call: a trio task that waits, and the asyncio task that it waits for."""

    __slots__ = (
        *("_arguments", "_context", "_function", "_loop", "_task", "_to_the_end", "_waiter"),
        "raise_cancel",
    )

    def __init__(
        self,
        loop: CallLoop,
        function: Callable[..., Awaitable[Any]],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        *,
        to_the_end: bool = False,
    ) -> None:
        self._loop = loop
        self._function = function
        self._arguments = arguments
        self._waiter = trio.lowlevel.current_task()
        self._context = contextvars.copy_context()
        # Whoever has started this trio run through anyio has left "trio" there.
        self._context.run(sniffio.current_async_library_cvar.set, "asyncio")
        self._task: asyncio.Task[outcome.Outcome[Any]] | None = None
        self._to_the_end = to_the_end
        self.raise_cancel: trio.lowlevel.RaiseCancelT | None = None

    # --- on the loop ---

    def start(self) -> None:
        if self._loop.closed:
            self._loop.to_trio(self.fail)
            return
        args, kwargs = self._arguments
        # Captured, whatever it is: KeyboardInterrupt and SystemExit belong to the trio code that
        # waits, and would end the loop here. Made past the loop's task factory, so that the task
        # does not begin before it is known.
        self._task = task = asyncio.Task(
            outcome.acapture(self._function, *args, **kwargs),
            loop=self._loop.loop,
            name="parallel_core call",
            context=self._context,
        )
        (self._loop.closing if self._to_the_end else self._loop.tasks).add(task)
        task.add_done_callback(self._done)

    def _cancel(self) -> None:
        # The task, and no future inside it: litellm takes a cancelled future for a broken
        # connection, and tries again.
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[outcome.Outcome[Any]]) -> None:
        self._loop.tasks.discard(task)
        self._loop.closing.discard(task)
        try:
            result = task.result()
        except asyncio.CancelledError as cancellation:  # before its first step
            result = outcome.Error(cancellation)
        self._loop.to_trio(functools.partial(self._end, result))

    # --- in trio ---

    def abort(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        if self._to_the_end:
            return trio.lowlevel.Abort.FAILED  # trio will raise it later
        self.raise_cancel = raise_cancel
        with contextlib.suppress(RuntimeError):  # the loop is closed: the end is on its way
            self._loop.to_loop(self._cancel)
        return trio.lowlevel.Abort.FAILED  # trio waits until the task has really ended

    def fail(self) -> None:
        """End the call, if it has not ended yet, since its loop will not do it."""
        self._end(outcome.Error(RouterHostClosedError()))

    def _end(self, result: outcome.Outcome[Any]) -> None:
        if self in self._loop.calls:
            self._loop.calls.discard(self)
            trio.lowlevel.reschedule(self._waiter, outcome.Value(result))


class CallLoop(ABC):
    """An asyncio loop on which the trio run that has made this object runs asyncio code.

    A *keeper* task on the loop ends the calls before the loop ends, whoever ends it.
    """

    loop: asyncio.AbstractEventLoop
    _keeper: asyncio.Task[None]
    _stopping: asyncio.Event

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.ended = trio.Event()
        self._closed = False
        self.calls: set[_Call] = set()  # that trio waits for
        # What has to be ended with this loop, looked after on the loop itself.
        self.tasks: set[asyncio.Task[Any]] = set()
        self.closing: set[asyncio.Task[Any]] = set()  # that clean up, and are not cancelled
        self._streams: dict[int, Any] = {}
        self._unread: set[int] = set()  # of these, by id

    @property
    def closed(self) -> bool:
        """Whether no call can begin any more; so also when the loop is being shut down."""
        return self._closed or self._keeper.cancelling() > 0

    def start_keeper(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the loop."""
        self.loop = loop
        self._stopping = asyncio.Event()
        self._keeper = asyncio.Task(self._keep(), loop=loop, name="parallel_core keeper")

    async def _keep(self) -> None:
        try:
            await self._stopping.wait()
        finally:
            try:
                await self._end_calls()
                await self.leave()
            finally:
                self.to_trio(self._fail_calls)

    def stop(self) -> None:
        """On the loop: end the calls, and take no more."""
        self._stopping.set()

    @abstractmethod
    async def leave(self) -> None:
        """On the loop, when no call is left."""

    @abstractmethod
    def to_loop(self, callback: Callable[[], object]) -> None:
        """Have the loop call something soon; called in trio.

        Raises RuntimeError when the loop is closed.
        """

    @abstractmethod
    def to_trio(self, callback: Callable[[], object]) -> None:
        """Have trio call something soon; called on the loop."""

    # KeyboardInterrupt must not come between the start of the call and the wait for its end.
    @trio.lowlevel.enable_ki_protection
    async def run(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await ``function(…)`` as a task of the loop, in a copy of the current context.

        Cancelled, it cancels the task and waits for its end. A result that is there all the same
        is returned.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        value: T = await self._wait_for(_Call(self, function, (args, kwargs)))
        return value

    @trio.lowlevel.enable_ki_protection
    async def run_to_the_end(
        self, function: Callable[[A], Awaitable[object]], argument: A, /
    ) -> None:
        """As :meth:`run`, but nothing cancels it: for what cleans up."""
        await self._wait_for(_Call(self, function, ((argument,), {}), to_the_end=True))

    @trio.lowlevel.enable_ki_protection
    async def _wait_for(self, call: _Call) -> Any:
        self.check_run()
        if self.closed or self.loop.is_closed():
            raise RouterHostClosedError
        self.calls.add(call)
        try:
            self.to_loop(call.start)
        except RuntimeError:
            self.calls.discard(call)
            raise RouterHostClosedError from None
        result = cast(
            "outcome.Value[Any] | outcome.Error",
            await trio.lowlevel.wait_task_rescheduled(call.abort),
        )
        if isinstance(result, outcome.Value):
            return result.value
        error = result.error
        try:
            if isinstance(error, asyncio.CancelledError):
                if call.raise_cancel is not None:
                    call.raise_cancel()
                if self.closed:
                    raise RouterHostClosedError
                error = cancelled_unasked("the call", error)
            raise error
        finally:
            del result, call, error  # no reference cycle through the traceback

    def check_run(self) -> None:
        """Refuse to be used by another trio run than the one that has made this."""
        if self.token is not trio.lowlevel.current_trio_token():
            raise RuntimeError("this router host belongs to another trio run: open one in this run")

    async def _end_calls(self) -> None:
        self._closed = True
        shutting_down = self._keeper.cancelling() > 0
        for task in self.tasks:
            # Whoever shuts the loop down has cancelled everybody. A second cancellation would cut
            # short what a call cleans up.
            if not (shutting_down and task.cancelling()):
                task.cancel()
        await _all_done(self.tasks)
        for stream in list(self._streams.values()):
            self._close_stream_soon(stream)
        await _all_done(self.closing)

    def _fail_calls(self) -> None:
        """In trio: wake those whose calls have not begun when the loop ended."""
        self.ended.set()
        for call in list(self.calls):
            call.fail()

    # --- streams: async iterators that calls have returned, which stay bound to the loop ---

    def keep_stream(self, stream: object) -> None:
        """On the loop: have a stream closed at the latest when the loop ends."""
        self._streams[id(stream)] = stream
        self._unread.add(id(stream))

    async def next_chunk(self, stream: AsyncIterator[Any]) -> Any:
        """On the loop: the next chunk of a stream; END_OF_STREAM after the last."""
        self._unread.discard(id(stream))
        return await anext(stream, END_OF_STREAM)

    async def close_stream(self, stream: Any) -> None:
        """On the loop: close a stream and its connection."""
        self._streams.pop(id(stream), None)
        if id(stream) in self._unread:
            self._unread.discard(id(stream))
            await _begin_to_read(stream)
        if hasattr(stream, "aclose"):
            await stream.aclose()

    def abandon_stream(self, stream: object) -> None:
        """From any thread: nobody reads this stream any more."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so is the stream
            self.loop.call_soon_threadsafe(self._close_stream_soon, stream)

    def _close_stream_soon(self, stream: object) -> None:
        closing = asyncio.Task(self.close_stream(stream), loop=self.loop)
        self.closing.add(closing)
        closing.add_done_callback(self._stream_closed)

    def _stream_closed(self, closing: asyncio.Task[None]) -> None:
        self.closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            # Its text may quote what the stream has said.
            logger.error("a stream failed to close: %s", type(error).__qualname__)

    @abstractmethod
    async def close(self) -> None:
        """In trio: end the calls, and what this object has opened. Nothing cancels it."""


async def _begin_to_read(stream: AsyncIterator[Any]) -> None:
    """What a Router returns holds the provider's stream, and its place, in an async generator: to
    close one that has not begun closes neither."""

    async def read() -> None:
        await anext(stream, None)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    if not reading.cancelled():
        reading.exception()  # seen; nobody wants to read


async def _all_done(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait until a set of tasks, which they leave by themselves, is empty.

    A loop that is shut down cancels everybody, and waits for this task as it does for those.
    """
    await wait_until(lambda: not tasks, lambda: asyncio.wait(list(tasks)))


async def shielded(function: Callable[[], Awaitable[object]]) -> None:
    """In trio: await ``function()`` in spite of cancellations and of Ctrl-C.

    It may be called again: KeyboardInterrupt reaches the main task at a checkpoint, shielded or
    not, and is raised when it is done.
    """
    interrupt: KeyboardInterrupt | None = None
    with trio.CancelScope(shield=True):
        while True:
            try:
                await function()
                break
            except KeyboardInterrupt as exception:
                interrupt = exception
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt


class HelperThread(CallLoop):
    """A plain asyncio loop in a thread of its own."""

    # An interrupt while it starts would leave the thread behind.
    @trio.lowlevel.enable_ki_protection
    def __init__(self, *, use_uvloop: bool) -> None:
        super().__init__()
        # Callbacks wait here, so that many of them wake the loop once.
        self._callbacks: deque[Callable[[], object]] = deque()
        self._woken = False
        # A plain loop, whatever is installed as the process's default: on a loop of trio-asyncio,
        # which its import makes the default, this would fail.
        new_loop = plain_loop_factory(use_uvloop=use_uvloop)
        self._portal_manager = start_blocking_portal(
            "asyncio", {"loop_factory": lambda: self._watched(new_loop())}
        )
        self._portal = self._portal_manager.__enter__()
        self._portal.call(self._begin)

    async def _begin(self) -> None:
        threading.current_thread().name = "parallel_core router host"
        enter_loop(asyncio.get_running_loop())
        self.start_keeper(asyncio.get_running_loop())

    def _watched(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """Whatever happens to a loop (a SystemExit in a callback, and another while it is shut
        down), it is closed at last. Calls that have not ended by then never will."""
        close = loop.close

        def close_and_tell() -> None:
            try:
                close()
            finally:
                self._closed = True
                self.to_trio(self._fail_calls)

        loop.close = close_and_tell  # type: ignore[method-assign]
        return loop

    async def leave(self) -> None:
        await leave_this_loop()

    def to_loop(self, callback: Callable[[], object]) -> None:
        # Looked at after the callback has been added, and taken back before the callbacks are
        # run: none is missed.
        self._callbacks.append(callback)
        if not self._woken:
            self._woken = True
            self.loop.call_soon_threadsafe(self._run_callbacks)

    def _run_callbacks(self) -> None:
        self._woken = False
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()

    def to_trio(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # it broke; nobody waits any more
            self.token.run_sync_soon(callback)

    async def close(self) -> None:
        # A limiter of its own: the application's may be used up by threads that wait for us.
        limiter = trio.CapacityLimiter(1)
        await shielded(lambda: trio.to_thread.run_sync(self._stop, limiter=limiter))

    def _stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._portal.call(self._end)
        self._portal_manager.__exit__(None, None, None)

    async def _end(self) -> None:
        self.stop()
        await asyncio.wait([self._keeper])


def plain_loop_factory(*, use_uvloop: bool = False) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop that is not trio-asyncio's, whatever the process's default is."""
    if use_uvloop:
        import uvloop

        return uvloop.new_event_loop
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop
    return asyncio.SelectorEventLoop
