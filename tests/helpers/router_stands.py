"""Stand-ins for a Router on a host."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.lowlevel
import trio.testing

from helpers.hosts import thread_names, threads_besides

REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Stand:
    """Stands in for a Router: a test decides how its calls wait and end."""

    def __init__(self, call: Callable[[int], Awaitable[Any]]) -> None:
        self._call = call
        self.running: set[int] = set()
        self.started: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.some_started = threading.Semaphore(0)

    async def acompletion(self, *, metadata: Any = None, **arguments: Any) -> Any:
        index: int = arguments["index"] if metadata is None else metadata["parallel_index"]
        self.threads.add(threading.current_thread())
        self.loops.add(asyncio.get_running_loop())
        self.started.append(index)
        self.running.add(index)
        self.some_started.release()
        try:
            return await self._call(index)
        finally:
            self.running.discard(index)

    async def have_started(self, count: int) -> None:
        for _ in range(count):
            await trio.to_thread.run_sync(self.some_started.acquire)


async def forever(index: int) -> None:
    await asyncio.Event().wait()


async def at_once(index: int) -> int:
    return index


def run(function: Callable[[], Awaitable[None]]) -> None:
    threads = thread_names()
    trio.run(function)
    assert threads_besides(threads) == []
