"""The interface of the engine to the controls of its batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self

from .progress import SupportsCounts


class Scope(Protocol):
    """A cancel scope around a part of one task.

    In asyncio its cancellation is edge-triggered: the task gets one ``CancelledError``, and may
    await while it cleans up. In trio it is level-triggered, as usual.
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
    """A group of functions that run beside the task that opens it. Leaving it waits for them."""

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
    """A running batch, as its controls see it. Use it only in the thread of the batch."""

    def current_time(self) -> float:
        """Return the seconds on the clock of the event loop, or of the trio run."""
        ...

    def new_scope(self, seconds: float | None = None) -> Scope:
        """Return a scope that is cancelled this many seconds after its entry."""
        ...

    def new_group(self) -> Group: ...

    def call_later(self, seconds: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call ``function`` after a delay, on the event loop of the batch.

        What it raises fails the batch. Nothing is called after the end of the batch.

        Returns:
            A function that cancels the call.
        """
        ...

    def fail(self, error: Exception) -> None:
        """End the batch: cancel every call, and raise ``error`` to the consumer.

        The consumer first gets the results that are ready.
        """
        ...

    def stop_drawing(self) -> None:
        """Draw no more requests from the source."""
        ...

    def set_limit(self, limit: int) -> None:
        """Change the number of calls that may be in flight. Excess calls are not cancelled."""
        ...

    async def emit(self, piece: object) -> None:
        """Wait for room at the consumer (first come, first served), then hand it a piece."""
        ...

    def pause_calls(self) -> None:
        """Start no call until :meth:`resume_calls`."""
        ...

    def resume_calls(self) -> None: ...

    def recheck(self) -> None:
        """Check again which requests may begin, because more may begin now."""
        ...

    def bring_forward(self, indexes: Collection[int]) -> None:
        """Send at once those of these requests that wait to be sent again."""
        ...

    def skip_waits(self) -> None:
        """Send at once every request that waits to be sent again, and resume calls."""
        ...


class Attachment(Protocol):
    """A control that the engine calls at the beginning and at the end of its batch."""

    def begin(self, engine: Engine) -> None:
        """Prepare for a batch. Called before the first call, on the event loop of the batch."""
        ...

    def end(self) -> None:
        """Clean up. Called when no call is in flight any more; what it raises fails the batch."""
        ...
