"""Event loops on which trio code runs asyncio code: in a helper thread, or from trio-asyncio.

The two differ only in how a callback gets from trio to the loop and back.
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
        *("_arguments", "_context", "_function", "_loop", "_task", "_uncancellable", "_waiter"),
        "raise_cancel",
    )

    def __init__(
        self,
        loop: CallLoop,
        function: Callable[..., Awaitable[Any]],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        *,
        uncancellable: bool = False,
    ) -> None:
        self._loop = loop
        self._function = function
        self._arguments = arguments
        self._waiter = trio.lowlevel.current_task()
        self._context = contextvars.copy_context()
        # If anyio started this trio run, the variable is "trio".
        self._context.run(sniffio.current_async_library_cvar.set, "asyncio")
        self._task: asyncio.Task[outcome.Outcome[Any]] | None = None
        self._uncancellable = uncancellable
        self.raise_cancel: trio.lowlevel.RaiseCancelT | None = None

    # --- on the loop ---

    def start(self) -> None:
        if self._loop.closed:
            self._loop.to_trio(self.fail)
            return
        args, kwargs = self._arguments
        # Every exception is captured: KeyboardInterrupt and SystemExit belong to the waiting trio
        # code, and would end the loop here. The task is made without the loop's task factory, so
        # that it does not begin before `self._task` is set.
        self._task = task = asyncio.Task(
            outcome.acapture(self._function, *args, **kwargs),
            loop=self._loop.loop,
            name="parallel_core call",
            context=self._context,
        )
        (self._loop.closing if self._uncancellable else self._loop.tasks).add(task)
        task.add_done_callback(self._done)

    def _cancel(self) -> None:
        # This cancels the task and not a future inside it: litellm takes a cancelled future for a
        # broken connection and tries again.
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[outcome.Outcome[Any]]) -> None:
        self._loop.tasks.discard(task)
        self._loop.closing.discard(task)
        try:
            result = task.result()
        except asyncio.CancelledError as cancellation:  # cancelled before its first step
            result = outcome.Error(cancellation)
        self._loop.to_trio(functools.partial(self._end, result))

    # --- in trio ---

    def abort(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        if self._uncancellable:
            return trio.lowlevel.Abort.FAILED  # trio raises the cancellation later
        self.raise_cancel = raise_cancel
        with contextlib.suppress(RuntimeError):  # the loop is closed, which ends the call
            self._loop.to_loop(self._cancel)
        return trio.lowlevel.Abort.FAILED  # trio waits until the task has ended

    def fail(self) -> None:
        """Fail the call, unless it has ended, because its loop has ended."""
        self._end(outcome.Error(RouterHostClosedError()))

    def _end(self, result: outcome.Outcome[Any]) -> None:
        if self in self._loop.calls:
            self._loop.calls.discard(self)
            trio.lowlevel.reschedule(self._waiter, outcome.Value(result))


class CallLoop(ABC):
    """An asyncio loop on which the trio run that made this object runs asyncio code.

    A *keeper* task on the loop ends the calls before the loop ends, however the loop is ended.
    """

    loop: asyncio.AbstractEventLoop
    _keeper: asyncio.Task[None]
    _stopping: asyncio.Event

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.ended = trio.Event()
        self._closed = False
        self.calls: set[_Call] = set()  # calls that trio waits for
        # Tasks and streams that end with this loop. Only code on the loop uses them.
        self.tasks: set[asyncio.Task[Any]] = set()
        self.closing: set[asyncio.Task[Any]] = set()  # tasks that clean up; they are not cancelled
        self._streams: dict[int, Any] = {}  # by id
        self._unread: set[int] = set()  # ids of the streams that have not been read yet

    @property
    def closed(self) -> bool:
        """True if no call can begin any more, also while the loop is being shut down."""
        return self._closed or self._keeper.cancelling() > 0

    def start_keeper(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the keeper task. Called on the loop."""
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
        """End the calls and accept no more. Called on the loop."""
        self._stopping.set()

    @abstractmethod
    async def leave(self) -> None:
        """Clean up when no call is left. Called on the loop."""

    @abstractmethod
    def to_loop(self, callback: Callable[[], object]) -> None:
        """Schedule a callback on the loop. Called in trio.

        Raises:
            RuntimeError: the loop is closed.
        """

    @abstractmethod
    def to_trio(self, callback: Callable[[], object]) -> None:
        """Schedule a callback in trio. Called on the loop."""

    # KeyboardInterrupt must not occur between the start of the call and the wait for its end.
    @trio.lowlevel.enable_ki_protection
    async def run(
        self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Await ``function(…)`` as a task of the loop, in a copy of the current context.

        A cancellation cancels the task and waits for its end. If the task has a result
        nevertheless, that is returned.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        value: T = await self._wait_for(_Call(self, function, (args, kwargs)))
        return value

    @trio.lowlevel.enable_ki_protection
    async def run_uncancellable(
        self, function: Callable[[A], Awaitable[object]], argument: A, /
    ) -> None:
        """Await ``function(argument)`` as :meth:`run` does, but never cancel it: for clean-up."""
        await self._wait_for(_Call(self, function, ((argument,), {}), uncancellable=True))

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
        """Raise RuntimeError in any trio run but the one that made this object."""
        if self.token is not trio.lowlevel.current_trio_token():
            raise RuntimeError("this router host belongs to another trio run: open one in this run")

    async def _end_calls(self) -> None:
        self._closed = True
        shutting_down = self._keeper.cancelling() > 0
        for task in self.tasks:
            # A shutdown of the loop has cancelled every task. A second cancellation would interrupt
            # the clean-up of a call.
            if not (shutting_down and task.cancelling()):
                task.cancel()
        await _all_done(self.tasks)
        for stream in list(self._streams.values()):
            self._close_stream_soon(stream)
        await _all_done(self.closing)

    def _fail_calls(self) -> None:
        """Fail the calls that had not begun when the loop ended. Called in trio."""
        self.ended.set()
        for call in list(self.calls):
            call.fail()

    # --- streams: async iterators that calls returned; they stay bound to the loop ---

    def keep_stream(self, stream: object) -> None:
        """Register a stream, to close it when the loop ends. Called on the loop."""
        self._streams[id(stream)] = stream
        self._unread.add(id(stream))

    async def next_chunk(self, stream: AsyncIterator[Any]) -> Any:
        """Return the next chunk of a stream, END_OF_STREAM after the last. Called on the loop."""
        self._unread.discard(id(stream))
        return await anext(stream, END_OF_STREAM)

    async def close_stream(self, stream: Any) -> None:
        """Close a stream and its connection. Called on the loop."""
        self._streams.pop(id(stream), None)
        if id(stream) in self._unread:
            self._unread.discard(id(stream))
            await _begin_reading(stream)
        if hasattr(stream, "aclose"):
            await stream.aclose()

    def abandon_stream(self, stream: object) -> None:
        """Close a stream that was dropped unread. Called in any thread; returns at once."""
        with contextlib.suppress(RuntimeError):  # the loop is closed and has closed the stream
            self.loop.call_soon_threadsafe(self._close_stream_soon, stream)

    def _close_stream_soon(self, stream: object) -> None:
        closing = asyncio.Task(self.close_stream(stream), loop=self.loop)
        self.closing.add(closing)
        closing.add_done_callback(self._stream_closed)

    def _stream_closed(self, closing: asyncio.Task[None]) -> None:
        self.closing.discard(closing)
        if not closing.cancelled() and (error := closing.exception()) is not None:
            # The text of the error may quote the answer, so it is not logged.
            logger.error("a stream failed to close: %s", type(error).__qualname__)

    @abstractmethod
    async def close(self) -> None:
        """End the calls and close what this object opened. Called in trio; not cancellable."""


async def _begin_reading(stream: AsyncIterator[Any]) -> None:
    """Begin to read a stream, so that closing it also closes the provider's stream.

    A Router's stream holds the provider's stream, and its slot, in an async generator. Closing a
    generator that has not begun closes neither.
    """

    async def read() -> None:
        await anext(stream, None)

    reading = asyncio.ensure_future(read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    if not reading.cancelled():
        reading.exception()  # retrieve it, so that asyncio does not log it


async def _all_done(tasks: set[asyncio.Task[Any]]) -> None:
    """Wait until a set of tasks is empty. Each task removes itself from the set.

    A shutdown of the loop cancels every task and waits for this one as well.
    """
    await wait_until(lambda: not tasks, lambda: asyncio.wait(list(tasks)))


async def shielded(function: Callable[[], Awaitable[object]]) -> None:
    """Await ``function()`` despite cancellations and Ctrl-C. Called in trio.

    KeyboardInterrupt reaches the main task at a checkpoint even if it is shielded. Then the
    function is called again, and KeyboardInterrupt is raised after it has returned.
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
    """A plain asyncio loop in its own thread."""

    # KeyboardInterrupt during the start would leave the thread running.
    @trio.lowlevel.enable_ki_protection
    def __init__(self, *, use_uvloop: bool) -> None:
        super().__init__()
        # Callbacks are queued, so that the loop is woken once for many of them.
        self._callbacks: deque[Callable[[], object]] = deque()
        self._woken = False
        # The thread needs a plain loop. The process's default may be a loop of trio-asyncio, whose
        # import changes the default, and that would fail here.
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
        """Make a loop fail the remaining calls when it is closed.

        The loop is closed in every case, even after a SystemExit in a callback and another one
        during the shutdown. Calls that have not ended by then never end.
        """
        close = loop.close

        def close_and_fail_calls() -> None:
            try:
                close()
            finally:
                self._closed = True
                self.to_trio(self._fail_calls)

        loop.close = close_and_fail_calls  # type: ignore[method-assign]
        return loop

    async def leave(self) -> None:
        await leave_this_loop()

    def to_loop(self, callback: Callable[[], object]) -> None:
        # No callback is missed: `_woken` is read after the callback was added, and reset before
        # the callbacks are run.
        self._callbacks.append(callback)
        if not self._woken:
            self._woken = True
            self.loop.call_soon_threadsafe(self._run_callbacks)

    def _run_callbacks(self) -> None:
        self._woken = False
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()

    def to_trio(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):  # the trio run crashed; no task waits
            self.token.run_sync_soon(callback)

    async def close(self) -> None:
        # A separate limiter: the application's may be exhausted by threads that wait for this one.
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
    """Return a factory of loops that are not trio-asyncio's, whatever the process's default is."""
    if use_uvloop:
        import uvloop

        return uvloop.new_event_loop
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop
    return asyncio.SelectorEventLoop
