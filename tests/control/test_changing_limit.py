"""A limit of calls in flight that changes while a batch runs."""

from __future__ import annotations

import itertools
from typing import Any

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.calls import numbers
from helpers.engines import engine_of
from helpers.hosts import in_virtual_time
from parallel_core import AdaptiveConcurrency


@given(
    limits=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    items=st.integers(0, 120),
    preserve_order=st.booleans(),
    lazy=st.booleans(),
)
def test_a_changing_limit_is_kept_and_nothing_is_lost(
    limits: list[int], items: int, preserve_order: bool, lazy: bool
) -> None:
    """Whatever the limit does: each item has one result, and calls begin below the limit only."""
    running = 0
    batch: parallel_core.ParallelBatch[Any]

    async def call(item: int) -> int:
        nonlocal running
        assert running < batch.limit
        running += 1
        await trio.sleep(1 + item % 3)
        running -= 1
        return item

    async def main() -> None:
        nonlocal batch
        source = numbers(range(items)) if lazy else range(items)
        batch = parallel_core.iter_parallel_map(
            call,
            source,
            concurrency=AdaptiveConcurrency(initial=3, maximum=12),
            preserve_order=preserve_order,
        )
        seen: list[int] = []
        async with batch, trio.open_nursery() as nursery:
            nursery.start_soon(change)
            async for result in batch:
                seen.append(result.unwrap())
            nursery.cancel_scope.cancel()
        assert sorted(seen) == list(range(items))
        if preserve_order:
            assert seen == sorted(seen)

    async def change() -> None:
        for limit in itertools.cycle(limits):
            await trio.sleep(0.7)
            engine_of(batch).set_limit(limit)  # pyright: ignore[reportPrivateUsage]

    in_virtual_time(main)
