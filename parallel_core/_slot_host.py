"""What a batch needs of the world that it runs in. There are two: trio and asyncio."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol

import trio


class HostEvent(Protocol):
    """What trio.Event and asyncio.Event have in common, and all that a slot waits on."""

    def set(self) -> None: ...
    async def wait(self) -> object: ...


class HostScope(Protocol):
    """A cancel scope around a part of one task."""

    def __enter__(self) -> object: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...
    def cancel(self) -> None: ...


class Ended(Protocol):
    """Told once of each task, when it has ended."""

    def __call__(self, exception: BaseException | None, *, cancelled: bool) -> None:
        """``exception``: what the task raised, unless that was a cancellation. ``cancelled``:
        whether its nursery has cancelled it."""
        ...


class SlotHost(Protocol):
    """The world in which the slots of a batch run: trio, or an asyncio loop."""

    def new_event(self) -> HostEvent: ...

    def new_scope(self) -> HostScope: ...

    def current_time(self) -> float:
        """Seconds on the clock of this world."""
        ...

    async def pause(self) -> None:
        """Let others run."""
        ...

    async def call(self, function: Callable[[], None]) -> None:
        """From trio: call a function of the user in this world, also where trio is cancelled."""
        ...

    def start(
        self,
        nursery: trio.Nursery,
        function: Callable[[], Coroutine[Any, Any, None]],
        ended: Ended,
    ) -> None:
        """Run ``function`` as a task of this world, under a trio task in ``nursery``.

        Cancelling the nursery cancels the task and waits for its end.
        """
        ...

    def call_later(
        self, nursery: trio.Nursery, seconds: float, function: Callable[[], None]
    ) -> Callable[[], None]:
        """Call ``function`` after a time. Gives a function that takes this back; it must be called
        before ``nursery`` can end."""
        ...

    def interrupted(self, interrupt: KeyboardInterrupt) -> None:
        """SIGINT has hit a task of the engine: raise it, or hand it to whom it was meant for."""
        ...

    def tampering(self) -> Callable[[], object] | None:
        """For the running slot: a function telling whether a call has marked the slot's task."""
        ...

    def error_of(self, exception: BaseException, what: str, stopping: bool) -> Exception | None:
        """The error that ``what`` (a call, a source) ended in; None when it is not its own."""
        ...
