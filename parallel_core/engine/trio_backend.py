"""The trio backend of the engine: calls are trio tasks of the batch's nursery."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import trio

from parallel_core.control import Group, Scope
from parallel_core.errors import cancelled_unasked

from .backend import Event, Shield, TaskEnded, Tasks

T = TypeVar("T")


class TrioBackend:
    """The trio backend: calls are trio tasks."""

    def new_event(self) -> Event:
        return trio.Event()

    def new_scope(self, seconds: float | None = None) -> Scope:
        return trio.CancelScope() if seconds is None else trio.move_on_after(seconds)

    def new_shield(self) -> Shield:
        return trio.CancelScope()

    def new_group(self) -> Group:
        return _TrioGroup()

    def current_time(self) -> float:
        return trio.current_time()

    async def pause(self) -> None:
        await trio.lowlevel.checkpoint()

    async def call(self, function: Callable[[], None]) -> None:
        function()

    def new_tasks(
        self,
        nursery: trio.Nursery,
        context: Context,
        function: Callable[[T], Awaitable[None]],
        ended: TaskEnded[T],
    ) -> Tasks[T]:
        return _TrioTasks(nursery, context, function, ended)

    def call_later(
        self, nursery: trio.Nursery, seconds: float, function: Callable[[], None]
    ) -> Callable[[], None]:
        scope = trio.CancelScope(shield=True)

        async def wait() -> None:
            with scope:
                await trio.sleep(seconds)
                function()

        nursery.start_soon(wait)
        return scope.cancel

    def interrupted(self, interrupt: KeyboardInterrupt) -> None:
        raise interrupt

    def error_of(self, exception: BaseException, what: str, stopping: bool) -> Exception | None:
        # A call that fails while it is cancelled raises both in a group. The cancellation may be
        # dropped here: trio raises it again at the next checkpoint.
        error = without_cancelled(exception)
        if error is None and trio.current_effective_deadline() > -math.inf:
            # No scope around this task is cancelled: the Cancelled was kept from another place.
            return cancelled_unasked(what, exception)
        return error if isinstance(error, Exception) else None


class _TrioGroup:
    """A nursery that is opened when it is entered."""

    def __init__(self) -> None:
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery

    async def __aenter__(self) -> Self:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        try:
            return await self._manager.__aexit__(exc_type, exc, traceback)
        except BaseExceptionGroup as group:
            if without_cancelled(group) is not None:
                raise
            cancelled = only_member(group.exceptions[0])
        raise cancelled  # several tasks had the same cancellation

    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        name = f"{trio.lowlevel.current_task().name}, second attempt"
        self._nursery.start_soon(function, name=name)


class _TrioTasks(Generic[T]):
    """Tasks that run one function in a nursery, and a task that keeps the nursery open for them."""

    def __init__(
        self,
        nursery: trio.Nursery,
        context: Context,
        function: Callable[[T], Awaitable[None]],
        ended: TaskEnded[T],
    ) -> None:
        self._nursery = nursery
        self._context = context
        self._function = function
        self._ended = ended
        self._arguments: deque[tuple[T, str]] = deque()
        self._released = trio.Event()
        nursery.start_soon(self._released.wait, name="parallel_core batch")

    def start(self, argument: T, name: str) -> bool:
        try:
            # A task copies the context that is current at its start: use that of the batch, not
            # that of the source.
            self._context.run(self._nursery.start_soon, self._run)
        except RuntimeError:  # the nursery is closed: it was cancelled with nothing in flight
            return False
        self._arguments.append((argument, name))
        return True

    def release(self) -> None:
        self._released.set()

    async def _run(self) -> None:
        # Take the argument now, not at the start: trio runs new tasks in a random order, but calls
        # must begin in the order of the source.
        argument, trio.lowlevel.current_task().name = self._arguments.popleft()
        try:
            await self._function(argument)
        except BaseException as exception:
            cancelled = isinstance(exception, trio.Cancelled)
            self._ended(argument, without_cancelled(exception), cancelled=cancelled)
            if cancelled:
                raise
        else:
            self._ended(argument, None, cancelled=False)


def without_cancelled(exception: BaseException) -> BaseException | None:
    if isinstance(exception, trio.Cancelled):
        return None
    if isinstance(exception, BaseExceptionGroup) and not isinstance(exception, Exception):
        group = cast("BaseExceptionGroup[BaseException]", exception)
        return group.split(trio.Cancelled)[1]
    return exception


def only_member(exception: BaseException) -> BaseException:
    """Return an exception without the groups in which nurseries have wrapped it."""
    members: tuple[BaseException, ...] = getattr(exception, "exceptions", ())
    return only_member(members[0]) if len(members) == 1 else exception
