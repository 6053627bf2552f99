"""Wait for something in spite of cancellations, in asyncio and in trio."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import trio

from .event_loops import in_trio

T = TypeVar("T")


async def wait_until(
    condition: Callable[[], bool],
    wait: Callable[[], Awaitable[object]],
    cancelled: Callable[[], object] | None = None,
) -> None:
    """Await ``wait()`` repeatedly until ``condition()`` is true.

    A cancellation that comes meanwhile is raised after that. In asyncio ``cancelled`` is called at
    each cancellation.
    """
    if in_trio():
        with trio.CancelScope(shield=True):
            while not condition():
                await wait()
        return
    cancellation: asyncio.CancelledError | None = None
    with _shield_from_anyio():
        while not condition():
            try:
                await wait()
            except asyncio.CancelledError as exception:
                cancellation = exception
                if cancelled is not None:
                    cancelled()
    if cancellation is not None:
        try:
            raise cancellation
        finally:
            del cancellation  # no reference cycle through the traceback


async def to_the_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine to its end. A cancellation that comes meanwhile is raised after that.

    In asyncio the coroutine runs in a separate task. If it also raises an error, that error is the
    ``__context__`` of the cancellation.
    """
    if in_trio():
        with trio.CancelScope(shield=True):
            return await coroutine
    task = asyncio.ensure_future(coroutine)
    try:
        await wait_until(task.done, lambda: asyncio.wait({task}))
    except asyncio.CancelledError as cancellation:
        cancellation.__context__ = None if task.cancelled() else task.exception()
        raise
    return task.result()


def _shield_from_anyio() -> contextlib.AbstractContextManager[object]:
    """Return a shield from anyio's scopes, which repeat a cancellation on every pass of asyncio.

    Return no shield if anyio's asyncio part is not imported, because then no scope can be open.
    Importing it here would put 10 ms or more between the first failure and its exception.
    """
    if "anyio._backends._asyncio" in sys.modules:
        return anyio.CancelScope(shield=True)
    return contextlib.nullcontext()
