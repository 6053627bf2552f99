"""What the scripts of the bridge's tests share: calls, checks, and the loop that a script runs on.

A script is started with the name of one of its functions, and that of a loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from parallel_core.bridge import iter_parallel_map, parallel_map

T = TypeVar("T")
Call = Callable[[int], Awaitable[Any]]

# On a busy machine each callback may be a slow one, and debug mode tells that.
logging.getLogger("asyncio").addFilter(lambda record: "Executing" not in record.getMessage())

ended: list[Any] = []
begun: list[int] = []
# Kept here, since the names of a script are gone while its process ends.
kept: list[Any] = []

REQUESTS = [
    {"model": f"m{number}", "messages": [{"role": "user", "content": "x"}]} for number in range(20)
]


async def passes(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1_000_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")


async def forever(item: object) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await passes(2)
        ended.append(item)


async def brief(item: int) -> int:
    await passes(item % 3)
    return 2 * item


async def at_once(item: int) -> None:
    """Needs no time to clean up; the first one returns."""
    begun.append(item)
    try:
        await (brief(item) if item == 0 else asyncio.Event().wait())
    finally:
        ended.append(item)


# --- the forms of a batch ---


async def as_list(call: Call) -> None:
    await parallel_map(call, range(20), concurrency=4)


async def as_block(call: Call) -> None:
    async with iter_parallel_map(call, range(20), concurrency=4) as batch:
        async for _ in batch:
            pass


async def as_plain_loop(call: Call) -> None:
    async for _ in iter_parallel_map(call, range(20), concurrency=4):
        pass


async def in_background(call: Call) -> None:
    task = asyncio.ensure_future(parallel_map(call, range(20), concurrency=4))
    await asyncio.Event().wait()
    del task


FORMS: dict[str, Callable[[Call], Coroutine[Any, Any, None]]] = {
    "list": as_list,
    "block": as_block,
    "plain": as_plain_loop,
    "background": in_background,
}


# --- checks ---


async def check_a_batch() -> None:
    results = await parallel_map(brief, range(12), concurrency=4, preserve_order=True)
    assert [result.unwrap() for result in results] == [2 * n for n in range(12)]


async def check_what_ends_otherwise() -> None:
    """A failure, a timeout, a cancellation and a break."""
    await check_a_failure()
    await check_a_timeout()
    await check_cancellations()
    await check_a_break()


async def check_a_failure() -> None:
    async def failing(item: int) -> None:
        if item == 2:
            await asyncio.sleep(0)
            raise LookupError("mine")
        await forever(item)

    ended.clear()
    try:
        await parallel_map(failing, range(9), concurrency=4, return_exceptions=False)
    except LookupError as error:
        message = str(error)
    else:
        raise AssertionError("no error")
    assert message == "mine"
    assert set(ended) == {0, 1, 3}, ended


async def check_a_timeout() -> None:
    ended.clear()
    waiting: list[int] = []
    try:
        async with asyncio.timeout(None) as timeout:

            async def until_timeout(item: int) -> None:
                waiting.append(item)
                if len(waiting) == 4:  # not before: it is their end that is to be seen
                    timeout.reschedule(asyncio.get_running_loop().time())
                await forever(item)

            await parallel_map(until_timeout, range(9), concurrency=4)
    except TimeoutError:
        pass
    else:
        raise AssertionError("no timeout")
    assert sorted(ended) == [0, 1, 2, 3], ended


async def check_cancellations() -> None:
    for count in range(20):
        ended.clear()
        task = asyncio.ensure_future(parallel_map(forever, range(9), concurrency=4))
        await passes(count)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task
        assert len(ended) == len(set(ended))


async def check_a_break() -> None:
    ended.clear()
    others: list[int] = []

    async def first_only(item: int) -> None:
        if item == 0:
            await until(lambda: len(others) == 3)
        else:
            others.append(item)
            await forever(item)

    async for result in iter_parallel_map(first_only, range(9), concurrency=4):
        assert result.index == 0
        break
    await until(lambda: {1, 2, 3} <= set(ended))  # the one in the place of 0 may not have begun


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- the loop and the process ---


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop of the kind that the command line names."""
    if sys.argv[2] == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    loop = asyncio.new_event_loop()
    if sys.argv[2] == "eager" and sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main())


def be_woken_by_signals() -> None:
    """Have a signal wake the running loop, whenever it comes.

    As in an application that handles any signal: only then does asyncio set a wakeup descriptor.
    Without it, a signal that comes just before the loop waits is noticed when something else wakes
    the loop, with or without a batch.
    """
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)


def print_at_rest(line: str) -> None:
    """Print a line when the main thread has nothing to do: a signal will not hit a callback."""
    threading.Thread(target=_print_at_rest, args=(line,)).start()


def _print_at_rest(line: str) -> None:
    main_thread = threading.main_thread()
    assert main_thread.ident is not None
    clock = time.pthread_getcpuclockid(main_thread.ident)
    status = Path(f"/proc/self/task/{os.getpid()}/stat")
    worked = -1
    while True:
        state, work = status.read_text().rpartition(")")[2].split()[0], time.clock_gettime_ns(clock)
        # While this thread sleeps, the other one gets the GIL, if that is what it waits for.
        if state == "S" and work == worked:
            break
        worked = work
        time.sleep(0.01)
    print(line, flush=True)


def choose(*cases: Callable[[], object]) -> None:
    """Run the case that the command line names."""
    (case,) = (case for case in cases if case.__name__ == sys.argv[1])
    case()
