"""Calls from the event loop of a run into threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """Run a blocking function in a thread. A cancellation waits for it, so that a lock which it
    takes is not lost."""
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=False)
