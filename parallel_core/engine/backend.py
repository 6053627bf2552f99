"""The interface of a backend: the differences between trio and asyncio under the engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context
from types import TracebackType
from typing import Protocol, TypeVar

import trio

from parallel_core.control import Group, Scope

T_contra = TypeVar("T_contra", contravariant=True)


class Event(Protocol):
    """The common part of trio.Event and asyncio.Event."""

    def set(self) -> None: ...
    async def wait(self) -> object: ...


class Shield(Protocol):
    """A part of a task that cancellations do not reach while ``shield`` is true."""

    @property
    def shield(self) -> bool: ...
    @shield.setter
    def shield(self, value: bool, /) -> None: ...
    def __enter__(self) -> object: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...


class TaskEnded(Protocol[T_contra]):
    """A callback that is called once for each task, when the task has ended."""

    def __call__(
        self, argument: T_contra, exception: BaseException | None, /, *, cancelled: bool
    ) -> None:
        """Take the exception of the task, unless that was a cancellation.

        ``cancelled``: True if its group has cancelled it.
        """
        ...


class Tasks(Protocol[T_contra]):
    """Tasks that run one function each, under a trio nursery.

    Cancelling the nursery cancels them and waits for their end. The nursery stays open until
    :meth:`release` has been called and the last task has ended.
    """

    def start(self, argument: T_contra, name: str) -> bool:
        """Start a task. Return False if none can be started any more."""
        ...

    def release(self) -> None: ...


class Backend(Protocol):
    """Trio or an asyncio loop: it runs the tasks of a batch and makes the objects they wait on."""

    def new_event(self) -> Event: ...

    def new_scope(self, seconds: float | None = None) -> Scope:
        """Return a scope that is cancelled this many seconds after its entry."""
        ...

    def new_shield(self) -> Shield:
        """Return a shield: code in it can await in spite of outer scopes, if ``shield`` is set."""
        ...

    def new_group(self) -> Group: ...

    def current_time(self) -> float:
        """Return the seconds on the clock of the loop or of the trio run."""
        ...

    async def pause(self) -> None:
        """Let other tasks run."""
        ...

    async def call(self, function: Callable[[], None]) -> None:
        """Call a user's function where the calls run, also if trio is cancelled. Use it in trio."""
        ...

    def new_tasks(
        self,
        nursery: trio.Nursery,
        context: Context,
        function: Callable[[T_contra], Awaitable[None]],
        ended: TaskEnded[T_contra],
    ) -> Tasks[T_contra]:
        """Return tasks under ``nursery``, each of which runs in its own copy of ``context``."""
        ...

    def call_later(
        self, nursery: trio.Nursery, seconds: float, function: Callable[[], None]
    ) -> Callable[[], None]:
        """Call ``function`` after a delay.

        Return a function that cancels the timer. Call that function before ``nursery`` can end.
        """
        ...

    def interrupted(self, interrupt: KeyboardInterrupt) -> None:
        """Raise a SIGINT that has hit a task of the engine, or pass it to the event loop."""
        ...

    def error_of(self, exception: BaseException, what: str, stopping: bool) -> Exception | None:
        """Return the error that ``what`` (a call, a source) raised itself; None if it did not."""
        ...
