"""The engine on an asyncio loop: its backend, and the entry to the trio guest run that carries it.

A batch is the same trio nursery (:mod:`parallel_core.nursery_engine`), in a trio guest run on the
caller's loop. A call is a plain ``asyncio.Task`` that a trio task of the nursery supervises. So
calls are ordinary asyncio code, and trio wakes only for the start, the first error and the end.
``trio.lowlevel.start_guest_run`` documents that synchronous trio functions may be called from the
host loop; cancelling a nursery and using a memory channel with ``…_nowait`` are such functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, cast

import trio

from .control import Group, Scope
from .engine import (
    BatchPlan,
    Carrier,
    Event,
    ParallelBatch,
    ResultT,
    Shield,
    TaskEnded,
    Tasks,
    close_task,
    join_trio_run,
    outlive_closed_loops,
    raise_,
    raise_crash,
)
from .errors import BatchAbortedError, cancelled_unasked
from .nursery_engine import BatchEngine
from .router_hosts import prepare_trio_asyncio_loop
from .uninterrupted import wait_until

T = TypeVar("T")


class TaskScope:
    """A cancel scope around a part of an asyncio task: it cancels the task once, like a timeout.

    The algorithm is that of ``asyncio.timeout``: a cancellation that other code has also requested
    is not absorbed. A task that is already leaving, because of another scope or the end of its
    batch, is not cancelled again, since that would interrupt its clean-up. An inner scope then
    passes the cancellation on to the outer one.
    """

    def __init__(self, seconds: float | None = None, scopes: _Scopes | None = None) -> None:
        self._seconds = seconds
        self._scopes = _Scopes() if scopes is None else scopes
        self._task: asyncio.Task[Any] | None = None  # while it is inside
        self._timer: asyncio.TimerHandle | None = None
        self._requests_before = 0  # cancellations of the task, when it entered
        self._requested = False  # by this scope
        self.outer: TaskScope | None = None
        self.cancelled = False

    def __enter__(self) -> Self:
        self._task = task = asyncio.current_task()
        assert task is not None
        self.outer = self._scopes.innermost.get(task)
        self._scopes.innermost[task] = self
        self._requests_before = task.cancelling()
        if self.cancelled:
            task.get_loop().call_soon(self.request)
        elif self._seconds is not None:
            self._timer = task.get_loop().call_later(self._seconds, self.cancel)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        assert task is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        outer, self.outer = self.outer, None
        if outer is None:
            del self._scopes.innermost[task]
        else:
            self._scopes.innermost[task] = outer
        requests = task.cancelling()
        if self._requested:
            requests = task.uncancel()
            self._scopes.leaving.discard(task)
        while outer is not None and not outer.cancelled:
            outer = outer.outer
        is_next = outer is not None or self._scopes.all_cancelled
        if self.cancelled and isinstance(exc, asyncio.CancelledError):
            return requests <= self._requests_before and not is_next
        if self._requested and is_next:  # the body absorbed the cancellation: request the next one
            loop = task.get_loop()
            if outer is None:
                loop.call_soon(self._scopes.cancel, task)
            else:
                loop.call_soon(outer.request)
        return False

    def cancel(self) -> None:
        if self.cancelled:
            return
        self.cancelled = True
        task = self._task
        if task is None or task.get_loop().is_closed():
            return
        if task is _current_task():
            # Not at once: if the task is about to leave the scope, the cancellation would hit its
            # first await after the scope.
            task.get_loop().call_soon(self.request)
        else:
            self.request()

    def request(self) -> None:
        """Cancel the task if it is still inside."""
        if self._task is not None and not self._requested:
            self._requested = self._scopes.cancel(self._task, self)


class _Scopes:
    """The scopes and groups of one batch.

    Attributes:
        innermost: the innermost scope of each task.
        groups: the groups that each task has opened.
        leaving: cancelled tasks that are leaving a scope, or ending.
        all_cancelled: True if the batch has cancelled all of its tasks.
        shutting_down: returns True while all tasks of the loop are being cancelled.
    """

    def __init__(self) -> None:
        self.innermost: dict[asyncio.Task[Any], TaskScope] = {}
        self.groups: dict[asyncio.Task[Any], list[_AsyncioGroup]] = {}
        self.leaving: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.all_cancelled = False
        self.shutting_down: Callable[[], bool] = lambda: False

    def cancel(self, task: asyncio.Task[Any], scope: TaskScope | None = None) -> bool:
        """Cancel the groups of a task, and the task unless it is leaving or the loop shuts down.

        Return True if the task was cancelled.

        Args:
            task: the task to cancel.
            scope: cancel only the groups inside this scope of the task; None: all of them.
        """
        for group in self.groups.get(task, ()):
            if scope is None or group.is_inside(scope):
                group.cancel()
        # The shutdown of the loop has already cancelled the task.
        if task in self.leaving or (task.cancelling() and self.shutting_down()):
            return False
        self.leaving.add(task)
        task.cancel()
        return True


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # called from a trio task under trio-asyncio
        return None


class _AsyncioGroup:
    """Tasks beside the task that opens the group. They are cancelled once, and awaited."""

    def __init__(self, scopes: _Scopes) -> None:
        self._scopes = scopes
        self._scope: TaskScope | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._opener: asyncio.Task[Any]

    async def __aenter__(self) -> Self:
        opener = asyncio.current_task()
        assert opener is not None
        self._opener = opener
        self._scope = self._scopes.innermost.get(opener)
        self._scopes.groups.setdefault(opener, []).append(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self.cancel()
        cancellation: asyncio.CancelledError | None = None
        try:
            await wait_until(
                lambda: all(task.done() for task in self._tasks),
                lambda: asyncio.wait(self._tasks),
                self.cancel,
            )
        except asyncio.CancelledError as exception:
            cancellation = exception
        groups = self._scopes.groups[self._opener]
        groups.remove(self)
        if not groups:
            del self._scopes.groups[self._opener]
        errors = [error for task in self._tasks if (error := _error_of_task(task)) is not None]
        self._tasks.clear()
        if exc is None and errors:
            raise BaseExceptionGroup("errors of a group", errors)
        if cancellation is not None and not isinstance(exc, asyncio.CancelledError):
            raise cancellation

    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        name = f"{self._opener.get_name()}, second attempt"
        task = asyncio.Task(function(), loop=asyncio.get_running_loop(), name=name)
        self._tasks.add(task)

    def is_inside(self, scope: TaskScope) -> bool:
        """Return True if the group was opened in this scope."""
        around = self._scope
        while around is not None and around is not scope:
            around = around.outer
        return around is scope

    def cancel(self) -> None:
        """Cancel the tasks of the group."""
        for task in self._tasks:
            if not task.done():
                self._scopes.cancel(task)


def _error_of_task(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


@types.coroutine
def _wait_for_first_step() -> Generator[None, None, None]:
    yield


class AsyncioTasks(Generic[T]):
    """Asyncio tasks, and one trio task in the nursery that represents all of them."""

    def __init__(
        self,
        backend: AsyncioBackend,
        nursery: trio.Nursery,
        context: Context,
        function: Callable[[T], Awaitable[None]],
        ended: TaskEnded[T],
    ) -> None:
        self._backend = backend
        self._loop = backend.loop
        self._context = context
        self._function = function
        self._ended = ended
        self.tasks: dict[T, asyncio.Task[None]] = {}
        self._released = backend.loop.is_closed()
        self._cancelled = False
        self._wake: Callable[[], None] | None = None  # set while the trio task waits
        nursery.start_soon(self._supervise, name="parallel_core batch")

    def start(self, argument: T, name: str) -> bool:
        loop = self._loop
        if loop.is_closed():
            self.release()  # no task runs there any more
            return False
        coroutine = self._run(argument)
        # Step into its `try`: a task that is cancelled before its first step would never enter it.
        coroutine.send(None)
        # Not loop.create_task: an eager task would start inside a trio step. Use the context of the
        # caller, not that of the task that may be running here.
        self.tasks[argument] = task = asyncio.Task(
            coroutine, loop=loop, name=name, context=self._context.copy()
        )
        if self._cancelled:
            task.cancel()
        return True

    def release(self) -> None:
        self._released = True
        self._wake_if_empty()

    async def _run(self, argument: T) -> None:
        try:
            await _wait_for_first_step()
            await self._function(argument)
        except asyncio.CancelledError:
            self._notice_shutdown()
            self._end(argument, None)
            raise
        except BaseException:
            # Report it after the loop has seen it: an interrupt is about to shut the loop down.
            if argument in self.tasks:
                self.tasks[argument].add_done_callback(
                    functools.partial(self._end_with_error, argument)
                )
            raise
        # The same as `_end`, inlined for the path of nearly every call.
        del self.tasks[argument]
        if not self._backend.abandoned:
            self._ended(argument, None, cancelled=False)
            if self._released:
                self._wake_if_empty()

    def _end_with_error(self, argument: T, task: asyncio.Task[None]) -> None:
        self._notice_shutdown()
        error = None if task.cancelled() else task.exception()
        self._end(argument, None if error is None else _without_cancelled(error))

    def _end(self, argument: T, error: BaseException | None) -> None:
        backend = self._backend
        self.tasks.pop(argument, None)
        if backend.abandoned:
            return
        self._ended(argument, error, cancelled=backend.scopes.all_cancelled)
        if self._released:
            self._wake_if_empty()

    def _notice_shutdown(self) -> None:
        backend = self._backend
        if not backend.abandoned and backend.scopes.shutting_down():
            backend.abort("its event loop is being shut down")

    def _wake_if_empty(self) -> None:
        if not self.tasks and self._wake is not None:
            self._wake()

    def lose_loop(self) -> None:
        """Close all tasks: the loop was closed, and runs no task again."""
        wake = self._wake
        self._released = True
        self._close_all()
        if wake is not None:
            wake()

    def _close_all(self) -> None:
        # Their `finally` blocks run now or never.
        self._wake = None
        tasks = list(self.tasks.values())
        self.tasks.clear()
        for task in tasks:
            close_task(task)

    async def _supervise(self) -> None:
        """Wait in trio until every task is done. If cancelled, cancel the tasks and keep waiting.

        It never raises: exceptions of tasks are reported to the batch.
        """
        supervisor = trio.lowlevel.current_task()

        def wake() -> None:
            self._wake = None
            trio.lowlevel.reschedule(supervisor)

        while self.tasks or not self._released:
            try:
                self._wake = wake
                await trio.lowlevel.wait_task_rescheduled(self._abort)
            except KeyboardInterrupt as interrupt:
                self._backend.interrupted(interrupt)
            finally:
                self._wake = None

    def _abort(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
        backend = self._backend
        self._released = self._cancelled = backend.scopes.all_cancelled = True
        if backend.loop.is_closed():
            self._close_all()
        if not self.tasks:
            self._wake = None
            return trio.lowlevel.Abort.SUCCEEDED
        for task in list(self.tasks.values()):
            backend.scopes.cancel(task)
        return trio.lowlevel.Abort.FAILED  # trio waits until the calls have really ended


class _NoShield(contextlib.nullcontext[None]):
    """A shield that does nothing: in asyncio a task that is being cancelled may await."""

    shield = False


class AsyncioBackend:
    """The asyncio backend: calls are asyncio tasks on the caller's loop."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop
        self.context: Context
        self.abort: Callable[[str], None]
        self.scopes = _Scopes()
        self._tasks: list[AsyncioTasks[Any]] = []
        self._called: set[trio.Event] = set()
        self.abandoned = False

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [task for tasks in self._tasks for task in tasks.tasks.values()]

    def lose_loop(self) -> None:
        for called in self._called:
            called.set()
        for tasks in self._tasks:
            tasks.lose_loop()

    def new_event(self) -> Event:
        return asyncio.Event()

    def new_scope(self, seconds: float | None = None) -> Scope:
        return TaskScope(seconds, self.scopes)

    def new_shield(self) -> Shield:
        return _NoShield()

    def new_group(self) -> Group:
        return _AsyncioGroup(self.scopes)

    def current_time(self) -> float:
        return self.loop.time()

    async def pause(self) -> None:
        await asyncio.sleep(0)

    async def call(self, function: Callable[[], None]) -> None:
        if self.loop.is_closed():
            return
        called = trio.Event()

        def call() -> None:
            try:
                function()
            finally:
                called.set()

        # On the loop, not in this trio step: an eager task that the function creates would start
        # inside the step.
        self.loop.call_soon(call, context=self.context.copy())
        self._called.add(called)  # unless the loop is closed meanwhile
        with trio.CancelScope(shield=True):
            await called.wait()
        self._called.discard(called)

    def new_tasks(
        self,
        nursery: trio.Nursery,
        context: Context,
        function: Callable[[T], Awaitable[None]],
        ended: TaskEnded[T],
    ) -> Tasks[T]:
        tasks = AsyncioTasks(self, nursery, context, function, ended)
        self._tasks.append(tasks)
        return tasks

    def call_later(
        self, nursery: trio.Nursery, seconds: float, function: Callable[[], None]
    ) -> Callable[[], None]:
        if self.loop.is_closed():
            return lambda: None
        # A timer of the loop does not wake the guest run, unlike one of trio.
        return self.loop.call_later(seconds, function).cancel

    def interrupted(self, interrupt: KeyboardInterrupt) -> None:
        # SIGINT has hit the thread during a trio step. It was meant for the loop, which now raises
        # it as if it had come a moment later.
        self.loop.call_soon(raise_, interrupt)

    def error_of(self, exception: BaseException, what: str, stopping: bool) -> Exception | None:
        # A call that fails while it is cancelled raises both in a group.
        error = _without_cancelled(exception)
        if error is None and not (
            stopping or self.scopes.all_cancelled or self.scopes.shutting_down()
        ):
            return cancelled_unasked(what, exception)
        return error if isinstance(error, Exception) else None


def _without_cancelled(exception: BaseException) -> BaseException | None:
    if isinstance(exception, asyncio.CancelledError):
        return None
    if isinstance(exception, BaseExceptionGroup) and not isinstance(exception, Exception):
        group = cast("BaseExceptionGroup[BaseException]", exception)
        return group.split(asyncio.CancelledError)[1]
    return exception


class _CarriedBatch:
    """The batch as the guest run carries it.

    It has no reference to the user's iterator, so that the iterator is finalized when it is
    dropped.
    """

    def __init__(self, engine: BatchEngine[Any], backend: AsyncioBackend) -> None:
        self._engine = engine
        self._backend = backend
        self.ended = False

    async def run(self) -> None:
        engine = self._engine
        try:
            await engine.run()
        except RuntimeError:
            if not self._backend.loop.is_closed():  # on a closed loop there is no one to wake
                raise
        finally:
            if engine.cancelled_from_outside:
                engine.crash(_aborted("the trio run that carried it ended"))
            self.ended = True

    def stop(self) -> None:
        if not self.ended:
            self._engine.stop()

    def abort(self, reason: str) -> None:
        if not self.ended and not self._engine.stopping:
            self._engine.crash(_aborted(reason))

    def lose_loop(self) -> None:
        self.abort("its event loop was closed")
        self._backend.lose_loop()

    def abandon(self, error: BaseException) -> None:
        self.ended = self._backend.abandoned = True
        for task in self._backend.tasks:
            task.cancel()
        self._engine.abandon(error)


def _aborted(reason: str) -> BatchAbortedError:
    return BatchAbortedError(f"the batch was cancelled: {reason}")


class AsyncioParallelBatch(ParallelBatch[ResultT]):
    """A batch in asyncio: usable with plain ``async for``, and as ``async with``.

    It starts on entering the block, or at the first step of a plain ``async for``. With the block,
    or with :meth:`aclose`, nothing outlives it. With plain ``async for`` and ``break`` the batch is
    cancelled on the next passes of the loop, when the iterator is dropped.
    """

    def __init__(self, plan: BatchPlan[ResultT]) -> None:
        self._backend = AsyncioBackend()
        self._running = self._engine = BatchEngine(plan, self._backend)
        self._carried = _CarriedBatch(self._engine, self._backend)
        self._backend.abort = self._carried.abort
        self._carrier: Carrier | None = None

    async def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        backend = self._backend
        backend.loop = loop = asyncio.get_running_loop()
        prepare_trio_asyncio_loop(loop)  # a Router's calls would fail on it otherwise
        backend.context = self._engine.enter()
        try:
            self._carrier = await join_trio_run(self._carried)
        except BaseException:
            self._closed = self._carried.ended = True
            raise
        carrier = self._carrier
        backend.scopes.shutting_down = lambda: carrier.shutting_down

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can be entered only once")
        await self._begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()
        # asyncio has already raised the interrupt, and the shutdown that followed is what cancels
        # this task. Raising it a second time would break off the shutdown.
        if self.interrupt is None or not isinstance(exc, asyncio.CancelledError):
            raise_crash(self._engine, exc)

    @property
    def interrupt(self) -> BaseException | None:
        """Return the KeyboardInterrupt or SystemExit of a call that the consumer has not seen."""
        crash = self._engine.crash_error
        return crash if isinstance(crash, KeyboardInterrupt | SystemExit) else None

    async def aclose(self) -> None:
        self._engine.check_not_inside()
        await self._close()
        raise_crash(self._engine, None)

    async def _close(self) -> None:
        self._begun = True  # a batch that was closed before its start never starts
        self._carried.stop()
        try:
            await self._ended()
        finally:
            self._closed = True
            self._engine.drop_results()

    def _before_waiting(self) -> None:
        if self._lost_its_loop():
            raise _aborted("its event loop was closed")

    def _lost_its_loop(self) -> bool:
        home = self._backend.loop
        if home is asyncio.get_running_loop():
            return False
        if not home.is_closed():
            raise RuntimeError("this batch was started on another event loop: use it there")
        self._carried.ended = self._closed = True
        outlive_closed_loops()
        return True

    async def _ended(self) -> None:
        """Wait for the end of the batch and, if it is the last one, of the guest run.

        Wait on, however often the task is cancelled meanwhile. A cancellation is raised when
        nothing is left.
        """
        carrier = self._carrier
        if carrier is None or self._lost_its_loop():
            return
        await wait_until(
            lambda: self._carried.ended and carrier.settled,
            carrier.changed.wait,
            self._carried.stop,
        )

    def __del__(self) -> None:
        # May run in any thread. The batch continues without its iterator until the loop stops it.
        batch = getattr(self, "_carried", None)
        if batch is None or batch.ended or self._carrier is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: no task runs any more
            self._backend.loop.call_soon_threadsafe(batch.stop)


if TYPE_CHECKING:
    from .api import (
        iter_parallel_acompletions,
        iter_parallel_map,
        iter_parallel_streams,
        parallel_acompletions,
        parallel_map,
    )

__all__ = [
    "AsyncioParallelBatch",
    "iter_parallel_acompletions",
    "iter_parallel_map",
    "iter_parallel_streams",
    "parallel_acompletions",
    "parallel_map",
]


def __getattr__(name: str) -> Any:
    """Return a function of :mod:`parallel_core.api`, which imports this module."""
    if name in __all__:
        return getattr(importlib.import_module("parallel_core.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
