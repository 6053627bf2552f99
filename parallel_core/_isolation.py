"""Run one call of a slot in a context of its own, without a task of its own.

A slot makes many calls in one task; a context variable that one call sets must not be seen by the
next. A task for every call would do, at twice the cost: here the call's coroutine is stepped by
hand, every step of it inside the call's own ``contextvars.Context``. Its start is written out
in the slot, since most of what a call costs is what surrounds it.
"""

from __future__ import annotations

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Run: TypeAlias = Callable[..., Any]
"""``Context.run`` of a call's own context."""


@types.coroutine
def rest_of_call(run: Run, coroutine: Coroutine[Any, Any, T], trap: Any) -> Generator[Any, Any, T]:
    """Step a coroutine to its end; ``trap`` is what its first step has yielded.

    What it yields (a future of asyncio, a trap of trio) goes up to the task of the slot unchanged,
    as ``await`` would pass it on.
    """
    send: Callable[[Any], Any] = coroutine.send
    throw: Callable[[BaseException], Any] = coroutine.throw
    value: Any = None
    try:
        while True:
            try:
                value = yield trap
            except BaseException as exception:  # noqa: BLE001 - handed to the call, whole
                thrown = exception
            else:
                trap = run(send, value)
                continue
            # Outside the handler: what the call raises later has nothing to do with `thrown`
            # unless the call itself says so.
            try:
                trap = run(throw, thrown)
            finally:
                del thrown
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        # The traceback of an exception may keep this frame; what it was sent or has waited for may
        # hold that exception (trio sends a cancellation in an outcome): a cycle for every call.
        trap = value = None


def as_coroutine(awaitable: Awaitable[T]) -> Coroutine[Any, Any, T]:
    """What a call has returned, where that is no coroutine itself."""
    if not hasattr(awaitable, "__await__"):
        raise TypeError(
            f"the call returned {type(awaitable).__qualname__}, which cannot be awaited: "
            "pass an async function"
        )

    async def wait_for_it() -> T:
        return await awaitable

    return wait_for_it()


def as_the_calls_own(exception: Exception) -> Exception:
    """What a call has raised, as its user shall see it.

    The frames of the engine are dropped from the head of the traceback. It then begins in the
    user's function; and an exception that the user keeps does not keep the slot alive, with the
    item and the result it was working on.

    A StopIteration, which only a plain function can raise, becomes a RuntimeError, as it would in
    a coroutine (PEP 479): raised as it is, it would silently end a generator of the user.
    """
    traceback = exception.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith(
        _ENGINE_MODULES
    ):
        traceback = traceback.tb_next
    exception = exception.with_traceback(traceback)
    if not isinstance(exception, StopIteration):
        return exception
    error = RuntimeError("the call raised StopIteration")
    error.__cause__ = exception
    return error


_ENGINE_MODULES = (
    __name__,
    f"{__package__}._answers",
    f"{__package__}._batch",
    f"{__package__}._call_loop",
    f"{__package__}.control.",
    f"{__package__}.trio_router",
)
