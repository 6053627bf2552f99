"""Wait for Ctrl-C, once or twice: ``ctrl_c.py CASE LOOP [FORM]``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import trio

from helpers.bridge_scripts import (
    FORMS,
    REQUESTS,
    be_woken_by_signals,
    check_a_batch,
    choose,
    ended,
    forever,
    new_loop,
    passes,
    print_at_rest,
    run,
    until,
)
from parallel_core import parallel_completions
from parallel_core.bridge import iter_parallel_map


def run_until_interrupted(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def woken_main() -> None:
        be_woken_by_signals()
        await main()

    try:
        run(woken_main)
    except KeyboardInterrupt:
        print("interrupted", sorted(ended), trio.lowlevel.in_trio_run())
        raise


def once() -> None:
    async def call(item: int) -> None:
        if item == 3:
            print("ready", flush=True)
        await forever(item)

    run_until_interrupted(partial(FORMS[sys.argv[3]], call))


def twice() -> None:
    async def call(item: int) -> None:
        if item == 3:
            print("ready", flush=True)
        try:
            await asyncio.Event().wait()
        finally:
            try:
                if item == 3:
                    print_at_rest("cleaning")
                await asyncio.sleep(3600)
            finally:
                ended.append(item)

    run_until_interrupted(partial(FORMS[sys.argv[3]], call))


def in_a_busy_batch() -> None:
    async def call(item: int) -> None:
        if item == 200:
            print("ready", flush=True)
        await passes(item % 2)

    async def main() -> None:
        async for _ in iter_parallel_map(call, itertools.count(), concurrency=8):
            pass

    run_until_interrupted(main)


def between_short_batches() -> None:
    async def main() -> None:
        await check_a_batch()
        print("ready", flush=True)
        while True:
            await check_a_batch()

    run_until_interrupted(main)


def in_parallel_completions() -> None:
    async def acompletion(*, model: str, messages: Any) -> None:
        if model == "m3":
            print("ready", flush=True)
        await forever(model)

    try:
        parallel_completions(acompletion, REQUESTS, concurrency=4)
    except KeyboardInterrupt:
        names = [thread.name for thread in threading.enumerate()]
        print(sorted(ended), [name for name in names if not name.startswith("Trio thread")])
        raise


def with_a_handler_of_the_application() -> None:
    async def main() -> None:
        seen: list[str] = []
        before = signal.getsignal(signal.SIGINT)
        async with iter_parallel_map(forever, range(9)) as batch:
            await until(lambda: batch.in_flight == 8)
            assert signal.getsignal(signal.SIGINT) is before
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGINT, lambda: seen.append("SIGINT")
            )
            signal.raise_signal(signal.SIGINT)
            await until(lambda: seen)
            assert batch.in_flight == 8
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run(main)
    assert signal.getsignal(signal.SIGINT) is before
    print("fine")


def on_a_loop_without_a_runner() -> None:
    """Python's own handler stays in place, which trio would take over."""

    async def call(item: int) -> None:
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if item == 3:
            print_at_rest("ready")
        await forever(item)

    async def main() -> None:
        await FORMS["list"](call)

    with contextlib.closing(new_loop()) as loop:
        task = loop.create_task(main())
        try:
            loop.run_until_complete(task)
        except KeyboardInterrupt:
            print("interrupted", sorted(ended))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
            print("cancelled", sorted(ended), trio.lowlevel.in_trio_run())


choose(
    once,
    twice,
    in_a_busy_batch,
    between_short_batches,
    in_parallel_completions,
    on_a_loop_without_a_runner,
    with_a_handler_of_the_application,
)
