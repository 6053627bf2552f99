"""Sources that hold a cancel scope, a timeout or a task group between two items."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

import parallel_core
from helpers.hosts import Host


async def call(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    return item


async def end_early(source: Any, how: str) -> list[Any]:
    async def failing(item: int) -> int:
        await anyio.lowlevel.checkpoint()
        if item == 3:
            raise LookupError
        return item

    got: list[Any] = []
    async with parallel_core.iter_parallel_map(
        failing if how == "first error" else call, source, concurrency=2, return_exceptions=False
    ) as batch:
        async for result in batch:
            got.append(result)
            if how == "cancel":
                batch.cancel()
            elif how == "break":
                break
    return got


@pytest.mark.parametrize("how", ["break", "cancel", "first error", "end"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_scope_of_trio_that_a_source_holds_is_left_in_order(how: str, kind: str) -> None:
    closed: list[str] = []

    async def async_source() -> AsyncIterator[int]:
        with trio.move_on_after(50):
            try:
                for number in range(20):
                    yield number
            finally:
                await trio.lowlevel.checkpoint()  # it may await while it is closed
                closed.append("closed")

    def sync_source() -> Iterator[int]:
        with trio.move_on_after(50):  # noqa: ASYNC100 - the task that draws has checkpoints
            try:
                yield from range(20)
            finally:
                closed.append("closed")

    async def main() -> None:
        source = async_source() if kind == "async" else sync_source()
        expected: Any = contextlib.nullcontext()
        if how == "first error":
            expected = pytest.raises(LookupError)
        with expected as raised:
            await end_early(source, how)
        assert closed == ["closed"]
        assert how != "first error" or len(raised.value.__notes__) == 1

    trio.run(main)


@pytest.mark.parametrize("leaves", [False, True])
def test_a_source_is_not_waited_for_when_a_scope_around_the_batch_is_cancelled(
    leaves: bool,
) -> None:
    """Also if the batch has been left before, and only the source has not ended yet."""

    async def source() -> AsyncIterator[int]:
        try:
            for number in range(20):
                yield number
        finally:
            await trio.sleep_forever()

    async def main() -> None:
        with trio.move_on_after(0.01) as scope:
            async with parallel_core.iter_parallel_map(call, source(), concurrency=2) as batch:
                if leaves:
                    await anext(batch)
                else:
                    await trio.sleep_forever()
        assert scope.cancelled_caught

    trio.run(main)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_timeout_that_a_source_holds_is_raised_in_it(asyncio_host: Host, blocking: bool) -> None:
    """Also when it fires while others have their turn."""
    told: list[str] = []

    async def source() -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(None) as timeout:
                for number in range(10_000):
                    if number == 10:
                        timeout.reschedule(asyncio.get_running_loop().time())
                    if blocking:
                        time.sleep(0.002)  # noqa: ASYNC251 - a source that blocks
                    yield number
        except TimeoutError:
            told.append("timeout")

    async def slow(item: int) -> int:
        await asyncio.sleep(0 if blocking else 0.005)
        return item

    async def main() -> None:
        results = await parallel_core.parallel_map(slow, source(), concurrency=4)
        assert told == ["timeout"]
        assert results
        assert all(result.ok for result in results)

    asyncio_host.run(main)


@pytest.mark.parametrize("how", ["break", "first error"])
def test_a_task_group_that_a_source_holds_does_not_hide_the_first_error(
    host: Host, how: str
) -> None:
    async def source() -> AsyncIterator[int]:
        group: Any = trio.open_nursery() if host.library == "trio" else asyncio.TaskGroup()
        async with group:
            for number in range(20):
                yield number

    async def main() -> None:
        expected: Any = contextlib.nullcontext()
        if how == "first error":
            expected = pytest.raises(LookupError)
        with expected:
            await end_early(source(), how)

    host.run(main)
