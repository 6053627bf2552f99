"""Calls from the event loop of a run into threads, and from other threads into the loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
import sniffio
import trio

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a thread. A cancellation waits for it, so that a lock which it
    takes is not lost."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=False)


def caller_from_other_threads() -> Callable[[Callable[[], object]], None]:
    """Return a function that schedules a call in the current event loop, from any thread."""
    if sniffio.current_async_library() == "trio":
        in_trio = trio.lowlevel.current_trio_token().run_sync_soon
        return lambda function: in_trio(function)
    in_asyncio = asyncio.get_running_loop().call_soon_threadsafe

    def call(function: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing runs in it
            in_asyncio(function)

    return call
