"""Cancel scopes and task groups for asyncio."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

from parallel_core.uninterrupted import wait_until


class TaskScope:
    """A cancel scope around a part of an asyncio task: it cancels the task once, like a timeout.

    The algorithm is that of ``asyncio.timeout``: a cancellation that other code has also requested
    is not absorbed. A task that is already leaving, because of another scope or the end of its
    batch, is not cancelled again, since that would interrupt its clean-up. An inner scope then
    passes the cancellation on to the outer one.
    """

    def __init__(self, seconds: float | None = None, scopes: Scopes | None = None) -> None:
        self._seconds = seconds
        self._scopes = Scopes() if scopes is None else scopes
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


class Scopes:
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
        self.groups: dict[asyncio.Task[Any], list[AsyncioGroup]] = {}
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


class AsyncioGroup:
    """Tasks beside the task that opens the group. They are cancelled once, and awaited."""

    def __init__(self, scopes: Scopes) -> None:
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
