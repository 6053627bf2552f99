"""The asyncio backend of the engine: a call is an asyncio task that a trio task supervises."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar, cast

import trio

from parallel_core.control import Group, Scope
from parallel_core.errors import cancelled_unasked

from .asyncio_scopes import AsyncioGroup, Scopes, TaskScope
from .backend import Event, Shield, TaskEnded, Tasks
from .guest import close_task, raise_

T = TypeVar("T")


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
        self.scopes = Scopes()
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
        return AsyncioGroup(self.scopes)

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
