"""The libraries and loops on which the suite runs its batches. Nothing may be left over there."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import trio
import trio.abc
import trio.testing

T = TypeVar("T")


@dataclass(frozen=True)
class Host:
    """One way to run async code. ``run`` fails when the code leaves anything behind."""

    name: str
    library: Literal["trio", "asyncio"]
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    debug: bool = False
    eager: bool = False
    clock: trio.abc.Clock | None = None  # of trio

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        if self.library == "trio":
            return trio.run(function, clock=self.clock)
        return self._run_in_asyncio(function)

    def _run_in_asyncio(self, function: Callable[[], Awaitable[T]]) -> T:
        complaints: list[dict[str, Any]] = []

        async def main() -> T:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            if self.eager and sys.version_info >= (3, 12):
                loop.set_task_factory(asyncio.eager_task_factory)
            result = await function()
            assert_nothing_left_in_asyncio()
            return result

        with asyncio.Runner(loop_factory=self.loop_factory, debug=self.debug) as runner:
            result = runner.run(main())
            gc.collect()  # asyncio reports some errors when it drops an object
            assert not complaints, complaints
            assert not trio.lowlevel.in_trio_run(), "the guest run is still there"
            return result


def name_of(host: Host) -> str:
    return host.name


def assert_nothing_left_in_asyncio() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, others


async def settle() -> None:
    """Wait until nothing happens any more without an event from outside.

    In asyncio this takes some passes of the loop. A guest run of trio may wait in its thread for a
    wake-up that is under way, so a callback goes through the queue of that thread as well.
    """
    if trio.lowlevel.in_trio_task():
        await trio.testing.wait_all_tasks_blocked()
        return
    for _ in range(3):
        for _ in range(20):
            await asyncio.sleep(0)
        if trio.lowlevel.in_trio_run():
            await _round_trip_through_trio()


async def _round_trip_through_trio() -> None:
    back = asyncio.get_running_loop().create_future()
    try:
        trio.lowlevel.current_trio_token().run_sync_soon(back.set_result, None)
    except trio.RunFinishedError:  # it is unwinding, and will be gone after a few more passes
        while trio.lowlevel.in_trio_run():
            await asyncio.sleep(0)
    else:
        await back


def in_virtual_time(function: Callable[[], Awaitable[T]]) -> T:
    """Run in trio, on a clock that jumps to the next deadline when all tasks wait."""
    return trio.run(function, clock=trio.testing.MockClock(autojump_threshold=0))


def _uvloop() -> list[Host]:
    try:
        import uvloop
    except ImportError:
        return []
    return [Host("asyncio-uvloop", "asyncio", loop_factory=uvloop.new_event_loop)]


def _debug() -> list[Host]:
    # Debug mode finds the same on every Python, so CI has it on one of them.
    if os.environ.get("PARALLEL_CORE_HOSTS") == "usual":
        return []
    return [Host("asyncio-debug", "asyncio", debug=True)]


ASYNCIO_HOSTS = [
    Host("asyncio", "asyncio"),
    *_debug(),
    *_uvloop(),
    *([Host("asyncio-eager", "asyncio", eager=True)] if sys.version_info >= (3, 12) else []),
]
TRIO = Host("trio", "trio")
HOSTS = [TRIO, *ASYNCIO_HOSTS]
EACH_LIBRARY = [TRIO, ASYNCIO_HOSTS[0]]


def thread_names() -> list[str]:
    """Names of all threads but the idle ones that trio keeps for later, which are no leak."""
    names = sorted(thread.name for thread in threading.enumerate())
    return [name for name in names if not name.startswith("Trio thread")]


def threads_besides(before: list[str]) -> list[str]:
    """Names of the threads that were started since. Threads of other tests may have ended."""
    return list((Counter(thread_names()) - Counter(before)).elements())
