"""Raise an exit in a call or in a source: ``exits.py CASE LOOP KIND [FORM]``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import trio

from helpers.bridge_scripts import FORMS, REQUESTS, choose, ended, forever, passes, run
from parallel_core import parallel_completions
from parallel_core.bridge import parallel_map


def an_exit() -> BaseException:
    return SystemExit(7) if sys.argv[3] == "SystemExit" else KeyboardInterrupt()


def run_to_the_exit(main: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    try:
        run(main)
    except BaseException as exception:
        print(type(exception).__name__, sorted(ended), trio.lowlevel.in_trio_run())
        raise


def of_a_call() -> None:
    async def call(item: int) -> None:
        if item == 3:
            await passes(3)
            raise an_exit()
        await forever(item)

    run_to_the_exit(partial(FORMS[sys.argv[4]], call))


def of_a_sync_source() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise an_exit()

    run_to_the_exit(lambda: parallel_map(forever, source(), concurrency=4))


def of_an_async_source() -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        await passes(3)
        raise an_exit()

    run_to_the_exit(lambda: parallel_map(forever, source(), concurrency=4))


def of_a_call_of_parallel_completions() -> None:
    async def acompletion(*, model: str, messages: Any) -> None:
        if model == "m3":
            await passes(3)
            raise an_exit()
        await forever(model)

    try:
        parallel_completions(acompletion, REQUESTS, concurrency=4)
    except BaseException as exception:
        print(type(exception).__name__, sorted(ended))
        raise


choose(of_a_call, of_a_sync_source, of_an_async_source, of_a_call_of_parallel_completions)
