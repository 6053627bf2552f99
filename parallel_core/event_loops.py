"""The async library and the event loop that run the calling code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import sniffio
import trio

EventLoop: TypeAlias = trio.lowlevel.TrioToken | asyncio.AbstractEventLoop
"""A trio run or an asyncio loop."""


def running_library() -> str | None:
    """Return the name of the async library that runs the calling code; None if there is none."""
    # sniffio is asked and not trio: trio may run as a guest beside asyncio code.
    try:
        return sniffio.current_async_library()
    except sniffio.AsyncLibraryNotFoundError:
        return None


def in_trio() -> bool:
    """Return True if trio runs the calling code."""
    return running_library() == "trio"


def current_event_loop() -> EventLoop:
    """Return the trio run or asyncio loop that runs the calling code.

    Raises:
        RuntimeError: there is none.
    """
    return trio.lowlevel.current_trio_token() if in_trio() else asyncio.get_running_loop()


def current_event_loop_if_any() -> EventLoop | None:
    """Return the trio run or asyncio loop that runs the calling code; None if there is none."""
    try:
        return current_event_loop()
    except RuntimeError:
        return None


def call_soon(loop: EventLoop, function: Callable[[], object]) -> bool:
    """Call ``function()`` soon in an event loop, from any thread. Return False if it has ended."""
    try:
        if isinstance(loop, trio.lowlevel.TrioToken):
            loop.run_sync_soon(function)
        else:
            loop.call_soon_threadsafe(function)
    except RuntimeError:  # trio.RunFinishedError is a RuntimeError
        return False
    return True
