"""Batches in asyncio code under trio-asyncio: ``under_trio_asyncio.py CASE``."""

from __future__ import annotations

import asyncio
import importlib
import warnings
from typing import Any

import trio
import trio.testing

from helpers.bridge_scripts import (
    at_once,
    begun,
    check_a_batch,
    check_what_ends_otherwise,
    choose,
    ended,
    files,
    forever,
)
from parallel_core.bridge import iter_parallel_map, parallel_map

with warnings.catch_warnings():  # it uses what Python 3.12 has deprecated
    warnings.simplefilter("ignore")
    trio_asyncio: Any = importlib.import_module("trio_asyncio")


def several_batches() -> None:
    async def main() -> None:
        async with trio_asyncio.open_loop():
            before = files()
            for _ in range(3):
                await trio_asyncio.aio_as_trio(check_a_batch)()
                await trio_asyncio.aio_as_trio(check_what_ends_otherwise)()
            await trio.testing.wait_all_tasks_blocked()
            assert files() == before
            statistics = trio.lowlevel.current_statistics()
            assert statistics.tasks_living < 12, statistics

    trio.run(main)
    trio_asyncio.run(trio_asyncio.aio_as_trio(check_a_batch))


def many_at_once() -> None:
    async def nested(item: int) -> int:
        await check_a_batch()
        return item

    async def many() -> None:
        await asyncio.gather(*(check_a_batch() for _ in range(10)))
        results = await parallel_map(nested, range(6), concurrency=3)
        assert [result.exception for result in results] == [None] * 6, results

    trio_asyncio.run(trio_asyncio.aio_as_trio(many))


def in_a_trio_scope() -> None:
    async def main() -> None:
        async with trio_asyncio.open_loop():
            with trio.CancelScope() as scope:

                async def until_cancelled(item: int) -> None:
                    begun.append(item)
                    if len(begun) == 4:
                        asyncio.get_running_loop().call_soon(scope.cancel)
                    await forever(item)

                async def stuck() -> None:
                    await parallel_map(until_cancelled, range(9), concurrency=4)

                await trio_asyncio.aio_as_trio(stuck)()
            assert scope.cancelled_caught
            assert sorted(ended) == [0, 1, 2, 3], ended
            await trio_asyncio.aio_as_trio(check_a_batch)()

    trio.run(main)


def dropped() -> None:
    async def main() -> None:
        async for _ in iter_parallel_map(at_once, range(9), concurrency=4):
            break

    trio_asyncio.run(trio_asyncio.aio_as_trio(main))
    assert len(begun) >= 4, begun
    assert sorted(ended) == sorted(begun), (begun, ended)


choose(several_batches, many_at_once, in_a_trio_scope, dropped)
print("fine")
