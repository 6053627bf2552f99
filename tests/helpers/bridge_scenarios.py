"""Batches of the bridge's tests, as users write them."""

from __future__ import annotations

import asyncio
from typing import Any

from helpers.bridge_checks import Calls, passes
from parallel_core import iter_parallel_map, parallel_map


async def as_list(calls: Calls) -> int:
    results = await parallel_map(calls.brief, range(12), concurrency=4)
    return len([result for result in results if result.ok])


async def in_a_block(calls: Calls) -> int:
    async with iter_parallel_map(calls.brief, range(12), concurrency=4) as batch:
        return len([result async for result in batch if result.ok])


async def with_aclose(calls: Calls) -> int:
    batch = iter_parallel_map(calls.brief, range(12), concurrency=4)
    try:
        return len([result async for result in batch if result.ok])
    finally:
        await batch.aclose()


async def from_an_async_source(calls: Calls) -> int:
    async def source() -> Any:
        try:
            for number in range(12):
                await passes(number % 2)
                yield number
        finally:
            calls.ended.append(-1)
            await asyncio.sleep(0)

    results = await parallel_map(calls.brief, source(), concurrency=4)
    return len([result for result in results if result.ok])


CLOSING = [as_list, in_a_block, with_aclose, from_an_async_source]


def own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def twice(item: int) -> int:
    await passes(item % 3)
    return 2 * item


async def check_a_batch(count: int = 12) -> None:
    results = await parallel_map(twice, range(count), concurrency=4, preserve_order=True)
    assert [result.unwrap() for result in results] == [2 * number for number in range(count)]
