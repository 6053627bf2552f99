"""Wait for something in spite of cancellations, in asyncio and in trio."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
import sniffio
import trio

T = TypeVar("T")


async def to_the_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await a coroutine to its end. A cancellation that comes meanwhile is raised after that.

    In asyncio the coroutine runs in a task of its own. If it raises an error as well, that is the
    ``__context__`` of the cancellation.
    """
    if sniffio.current_async_library() == "trio":
        with trio.CancelScope(shield=True):
            return await coroutine
    task = asyncio.ensure_future(coroutine)
    cancelled: asyncio.CancelledError | None = None
    with shield_from_anyio():
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
    try:
        if cancelled is not None:
            cancelled.__context__ = None if task.cancelled() else task.exception()
            raise cancelled
        return task.result()
    finally:
        del cancelled, task  # no reference cycle through the traceback


def shield_from_anyio() -> contextlib.AbstractContextManager[object]:
    """Return a shield from anyio's scopes, which repeat a cancellation on every pass of asyncio.

    Where none can have been opened, the first use of a scope would import that part of anyio: ten
    milliseconds and more between the first failure of a process and its exception.
    """
    if "anyio._backends._asyncio" in sys.modules:
        return anyio.CancelScope(shield=True)
    return contextlib.nullcontext()
