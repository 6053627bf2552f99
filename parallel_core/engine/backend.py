"""What differs between trio and asyncio under the engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context
from types import TracebackType
from typing import Protocol, TypeVar

import trio

from parallel_core.control import Group, Scope

T_contra = TypeVar("T_contra", contravariant=True)


class Event(Protocol):
    """What trio.Event and asyncio.Event have in common."""

    def set(self) -> None: ...
    async def wait(self) -> object: ...


class Shield(Protocol):
    """A part of a task that cancellations do not reach, while ``shield`` is true."""

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
    """Called once for each task, when it has ended."""

    def __call__(
        self, argument: T_contra, exception: BaseException | None, /, *, cancelled: bool
    ) -> None:
        """Take what the task raised, unless that was a cancellation.

        ``cancelled`` says whether its group has cancelled it.
        """
        ...


class Tasks(Protocol[T_contra]):
    """Tasks that run one function each, under a nursery of trio.

    Cancelling the nursery cancels them and waits for their end. The nursery stays open until
    :meth:`release` has been called and the last one has ended.
    """

    def start(self, argument: T_contra, name: str) -> bool:
        """Start a task. Return False if none can be started any more."""
        ...

    def release(self) -> None: ...


class Backend(Protocol):
    """Trio, or an asyncio loop: where the tasks of a batch run, and what they wait on."""

    def new_event(self) -> Event: ...

    def new_scope(self, seconds: float | None = None) -> Scope:
        """Return a scope that is cancelled when so many seconds have passed since its entry."""
        ...

    def new_shield(self) -> Shield:
        """Return what lets code await in spite of the scopes around it, if ``shield`` is set."""
        ...

    def new_group(self) -> Group: ...

    def current_time(self) -> float:
        """Return the seconds on the clock of the loop or of the trio run."""
        ...

    async def pause(self) -> None:
        """Let others run."""
        ...

    async def call(self, function: Callable[[], None]) -> None:
        """From trio: call a function of the user where its calls run, also if trio is cancelled."""
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
        """Call ``function`` after a time.

        Return a function that takes this back. It must be called before ``nursery`` can end.
        """
        ...

    def interrupted(self, interrupt: KeyboardInterrupt) -> None:
        """Raise a SIGINT that has hit a task of the engine, or hand it to whom it was meant for."""
        ...

    def error_of(self, exception: BaseException, what: str, stopping: bool) -> Exception | None:
        """Return the error that ``what`` (a call, a source) ended in, None if it is not its own."""
        ...
