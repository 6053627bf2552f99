"""End a process, or its loop, while batches run: ``process_end.py CASE LOOP``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import trio

from helpers.bridge_scripts import at_once, begun, brief, choose, ended, forever, kept, run
from parallel_core.bridge import iter_parallel_map


def with_batches_left_over() -> None:
    async def main() -> None:
        for _ in range(3):
            batch = iter_parallel_map(at_once, range(9), concurrency=4)
            kept.append(batch)
            await anext(batch)
        async for _ in iter_parallel_map(at_once, range(9), concurrency=4):
            break

    run(main)
    assert len(begun) >= 16, begun
    assert sorted(ended) == sorted(begun), (begun, ended)
    assert not trio.lowlevel.in_trio_run()
    print("fine")


def with_a_loop_that_is_never_closed() -> None:
    async def first_only(item: int) -> None:
        if item == 0:
            await brief(item)
        else:
            await forever(item)

    async def main() -> Any:
        batch = iter_parallel_map(first_only, range(9), concurrency=4)
        await anext(batch)
        return batch

    loop = asyncio.new_event_loop()
    kept.extend([loop, loop.run_until_complete(main())])
    print("fine", flush=True)
    sys.exit(0)


choose(with_batches_left_over, with_a_loop_that_is_never_closed)
