"""Real Routers in trio, over HTTP, on each host.

In this process their calls run in a helper thread. With ``PARALLEL_CORE_ROUTER_HOST=trio-asyncio``
the same tests run on a loop of trio-asyncio: ``test_trio_router_processes.py`` does that, in a
process of its own, since the import of trio-asyncio changes asyncio for the whole process.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import time
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
import trio.testing

import parallel_core
from helpers.hosts import thread_names, threads_besides
from helpers.routers import make_router
from parallel_core import RouterParallelRequest
from parallel_core.demo_server import DemoServerThread

SERVER_TIMEOUT = 60.0  # seconds
UNDER_TRIO_ASYNCIO = os.environ.get("PARALLEL_CORE_ROUTER_HOST") == "trio-asyncio"

if UNDER_TRIO_ASYNCIO:
    with warnings.catch_warnings():  # it uses what Python 3.12 has deprecated
        warnings.simplefilter("ignore")
        importlib.import_module("trio_asyncio")


def names() -> list[Any]:
    if UNDER_TRIO_ASYNCIO:
        return ["trio-asyncio"]
    try:
        importlib.import_module("uvloop")
    except ImportError:
        return ["thread"]
    return ["thread", "thread-uvloop"]


def ask(index: int = 0, **orders: Any) -> RouterParallelRequest:
    messages = [{"role": "user", "content": f"secret prompt {index}"}]
    return RouterParallelRequest("fast", messages, {"extra_body": {"demo": orders}})


def arguments(index: int = 0, **orders: Any) -> dict[str, Any]:
    request = ask(index, **orders)
    return {"model": request.model, "messages": request.messages, **(request.kwargs or {})}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


_warm: set[str] = set()  # filled by the first call of a Router in this process


def _run_here(name: Any, function: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        if name == "trio-asyncio":
            async with parallel_core.open_trio_asyncio():
                await function()
        else:
            await function()

    trio.run(main)


def warm_up(name: Any, server: DemoServerThread | None) -> None:
    """Open what a process opens only once; with a server, also what litellm opens so."""

    async def main() -> None:
        async with parallel_core.open_router_host(StandIn(), name) as host:
            await host.run(asyncio.sleep, 0)
        if server is not None and not _warm:
            _warm.add(name)
            router = make_router(server)
            await parallel_core.parallel_acompletions(router, [ask()], router_host=name)
            await seen_by(server)
            server.reset_stats()

    _run_here(name, main)


def run(
    name: Any,
    server: DemoServerThread | None,
    function: Callable[[], Awaitable[None]],
) -> None:
    """Run in trio, and fail when the run leaves connections, threads, files or warnings behind."""
    warm_up(name, server)
    gc.collect()
    threads, files = thread_names(), open_files()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        _run_here(name, function)
        gc.collect()
    deadline = time.monotonic() + SERVER_TIMEOUT
    while server is not None and server.stats().open_connections:
        # The server needs a moment to notice that connections are closed.
        assert time.monotonic() < deadline, server.stats()
    while threads_besides(threads):  # workers of anyio need a moment to end
        assert time.monotonic() < deadline, threads_besides(threads)
        time.sleep(0)
    assert open_files() <= files
    assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []


class StandIn:
    """Takes the place of a Router."""

    async def acompletion(self, **arguments: Any) -> Any:
        return arguments


async def seen_by(server: DemoServerThread) -> Any:
    """Return the counts of the server when nothing is in flight there any more."""
    await trio.to_thread.run_sync(server.wait_idle, SERVER_TIMEOUT)
    return server.stats()
