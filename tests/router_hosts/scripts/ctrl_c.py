"""Press Ctrl-C while a Router's calls are in flight: ``ctrl_c.py HOST FORM``.

A line on the standard input is the key.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import trio
import trio.testing

import parallel_core
from helpers.trio_application import ask, import_trio_asyncio, router_of_the_demo, threads
from parallel_core import iter_parallel_acompletions, open_router_host, parallel_acompletions

HANG = ask(fault="hang")
router = router_of_the_demo()


async def send(form: str, host: Any) -> None:
    if form == "list":
        await parallel_acompletions(router, [HANG] * 50, concurrency=16)
    elif form == "block":
        async with iter_parallel_acompletions(router, [HANG] * 50, concurrency=16) as batch:
            async for _ in batch:
                pass
    elif form == "host":
        await host.acompletion(**HANG)
    else:
        async with await host.acompletion(**ask(chunk_gap=3600.0), stream=True) as stream:
            async for _ in stream:
                print("a chunk", flush=True)  # from here on: before, the call may be cut off


async def press_ctrl_c() -> None:
    # When nothing runs: SIGINT then reaches trio, and not asyncio code that happens to run in the
    # main thread, where a loop of trio-asyncio can be broken by it.
    await trio.to_thread.run_sync(sys.stdin.readline)
    await trio.testing.wait_all_tasks_blocked(0.1)
    signal.raise_signal(signal.SIGINT)


async def main(name: Any, form: str) -> None:
    async with open_router_host(router, name) as host:
        try:
            trio.lowlevel.spawn_system_task(press_ctrl_c)
            await send(form, host)
        finally:
            print("ended", flush=True)


async def in_a_loop(name: str, form: str) -> None:
    import_trio_asyncio()
    async with parallel_core.open_trio_asyncio():
        await main(name, form)


def run(name: str, form: str) -> None:
    try:
        trio.run(in_a_loop if name == "trio-asyncio" else main, name, form)
    except BaseException as caught:
        error = caught
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            (error,) = error.exceptions  # trio-asyncio runs its body in nurseries
        assert type(error) is KeyboardInterrupt, repr(error)
        others = [thread for thread in threads() if thread != "MainThread"]
        print("interrupted", others, flush=True)


if __name__ == "__main__":
    run(*sys.argv[1:])
