"""What a control may ask of the engine that runs its batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self

from .progress import SupportsCounts


class Scope(Protocol):
    """A cancel scope around a part of one task.

    In asyncio its cancellation is edge-triggered: the task gets one ``CancelledError``, and may
    await while it cleans up. In trio it is level-triggered, as everywhere.
    """

    def __enter__(self) -> object: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...
    def cancel(self) -> None: ...


class Group(Protocol):
    """Runs functions beside the task that opens it. Leaving it waits for them."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool | None: ...
    def start_soon(self, function: Callable[[], Coroutine[Any, Any, None]], /) -> None: ...


class Engine(SupportsCounts, Protocol):
    """A running batch, as its controls see it. All of it belongs to the thread of the batch."""

    def current_time(self) -> float:
        """Seconds on the clock of the event loop, or of the trio run."""
        ...

    def new_scope(self, seconds: float | None = None) -> Scope:
        """Return a scope that is cancelled when so many seconds have passed since its entry."""
        ...

    def new_group(self) -> Group: ...

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call ``function`` after a time, in the world of the batch; what it raises fails the
        batch. Gives a function that takes this back. Nothing is called after the batch's end."""
        ...

    def fail(self, error: Exception) -> None:
        """End the batch: cancel every call, and raise ``error`` to the consumer, after the results
        that are there."""
        ...

    def stop_drawing(self) -> None:
        """Begin no request that has not been drawn."""
        ...

    def set_limit(self, limit: int) -> None:
        """Let more or fewer calls be in flight. Those that are too many are not cancelled."""
        ...

    async def emit(self, piece: object) -> None:
        """Hand a piece of a result to the consumer, when it has room for it; first come, first
        served."""
        ...

    def pause_calls(self) -> None:
        """Begin no call until :meth:`resume_calls`."""
        ...

    def resume_calls(self) -> None: ...

    def recheck(self) -> None:
        """Requests that might not begin may now."""
        ...

    def bring_forward(self, indexes: Collection[int]) -> None:
        """Send at once what waits to be sent again, of these requests."""
        ...

    def skip_waits(self) -> None:
        """Send at once what waits to be sent again, and go on."""
        ...


class Attachment(Protocol):
    """A control that is told of the beginning and the end of its batch."""

    def begin(self, engine: Engine) -> None:
        """Called before the first call, in the world of the batch."""
        ...

    def end(self) -> None:
        """Called when no call is in flight any more. What it raises fails the batch."""
        ...
