"""How a batch draws its source, and closes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

import parallel_core
from helpers.batch_calls import Gate, double
from helpers.hosts import Host, settle


async def numbers(count: int, closed: list[str] | None = None) -> AsyncIterator[int]:
    try:
        for number in range(count):
            await anyio.lowlevel.checkpoint()
            yield number
    finally:
        if closed is not None:
            await anyio.lowlevel.checkpoint()
            closed.append("closed")


def test_async_source(host: Host) -> None:
    async def main() -> None:
        closed: list[str] = []
        results = await parallel_core.parallel_map(double, numbers(30, closed), concurrency=4)
        assert sorted(result.unwrap() for result in results) == [2 * n for n in range(30)]
        assert closed == ["closed"]

    host.run(main)


def test_an_async_source_is_drawn_only_when_a_slot_is_free(host: Host) -> None:
    async def main() -> None:
        drawn = 0

        async def endless() -> AsyncIterator[int]:
            nonlocal drawn
            while True:
                drawn += 1
                yield drawn

        gate = Gate()
        async with parallel_core.iter_parallel_map(gate.call, endless(), concurrency=3) as batch:
            await settle()
            assert drawn == 3
            await gate.let_go(2)
            assert drawn == 4
            assert (await anext(batch)).item == 2

    host.run(main)


def test_an_async_generator_is_closed_on_break_and_may_await_while_it_cleans_up(host: Host) -> None:
    """Nobody has cancelled a generator that waits at its ``yield``: it is closed, not cancelled."""

    async def main() -> None:
        closed: list[str] = []
        async with parallel_core.iter_parallel_map(double, numbers(1000, closed)) as batch:
            async for _ in batch:
                await settle()  # all slots wait for the consumer; nothing is being drawn
                break
        assert closed == ["closed"]

    host.run(main)


def test_an_async_generator_that_waits_is_cancelled_and_closed(host: Host) -> None:
    async def main() -> None:
        closed: list[str] = []

        async def stuck() -> AsyncIterator[int]:
            try:
                yield 0
                await anyio.sleep_forever()
            finally:
                closed.append("closed")

        async with parallel_core.iter_parallel_map(double, stuck()) as batch:
            assert (await anext(batch)).index == 0
            await settle()
        assert closed == ["closed"]

    host.run(main)


def test_a_scope_held_across_the_yields_of_an_async_source(host: Host) -> None:
    """Such a generator must be stepped by one task from beginning to end."""

    async def main() -> None:
        async def source() -> AsyncIterator[int]:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.lowlevel.checkpoint)
                    for number in range(20):
                        await anyio.lowlevel.checkpoint()
                        yield number

        results = await parallel_core.parallel_map(double, source(), concurrency=3)
        assert len(results) == 20

    host.run(main)


def test_a_sync_generator_is_closed(host: Host) -> None:
    async def main() -> None:
        closed: list[str] = []

        def source() -> Iterator[int]:
            try:
                yield from range(1000)
            finally:
                closed.append("closed")

        async with parallel_core.iter_parallel_map(double, source()) as batch:
            await anext(batch)
        assert closed == ["closed"]

    host.run(main)


def three_numbers_and(error: Exception, kind: str) -> Any:
    def sync_source() -> Iterator[int]:
        yield from range(3)
        raise error

    async def async_source() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        raise error

    return sync_source() if kind == "sync" else async_source()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_source_that_raises_when_collecting(host: Host, kind: str) -> None:
    """Calls in flight finish and are delivered; then the source's own exception comes out."""

    async def main() -> None:
        error = OSError("the file is broken")

        gate = Gate()
        source = three_numbers_and(error, kind)
        async with parallel_core.iter_parallel_map(gate.call, source, concurrency=4) as batch:
            await settle()
            assert sorted(gate.waiting) == [0, 1, 2]
            await gate.let_go(2, 1, 0)
            assert [(await anext(batch)).index for _ in range(3)] == [2, 1, 0]
            with pytest.raises(OSError) as caught:
                await anext(batch)
            assert caught.value is error
        assert not gate.cancelled

    host.run(main)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_source_that_raises_when_failing_fast(host: Host, kind: str) -> None:
    async def main() -> None:
        error = OSError("the file is broken")

        gate = Gate()
        source = three_numbers_and(error, kind)
        with pytest.raises(OSError) as caught:
            await parallel_core.parallel_map(
                gate.call, source, concurrency=4, return_exceptions=False
            )
        assert caught.value is error
        assert sorted(gate.cancelled) == sorted(gate.ended)
        assert not gate.waiting

    host.run(main)


def test_a_source_whose_cleanup_fails_is_not_silent(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[int]:
            try:
                for number in range(1000):
                    yield number
            finally:
                raise OSError("cannot close")

        with pytest.raises(OSError, match="cannot close"):
            async with parallel_core.iter_parallel_map(double, source()) as batch:
                await anext(batch)

        error = LookupError("of the body")
        with pytest.raises(LookupError) as caught:
            async with parallel_core.iter_parallel_map(double, source()) as batch:
                await anext(batch)
                raise error
        assert caught.value is error
        assert "cannot close" in error.__notes__[-1]
        assert (
            "LookupError left the block of a batch, which then failed to end: OSError"
            in caplog.text
        )
        assert "cannot close" not in caplog.text

    host.run(main)


@pytest.mark.parametrize("return_exceptions", [True, False])
def test_the_task_of_an_async_source_is_cancelled_before_its_first_step(
    asyncio_host: Host, return_exceptions: bool
) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        running = asyncio.create_task(
            parallel_core.parallel_map(double, source(), return_exceptions=return_exceptions)
        )
        tasks: set[asyncio.Task[Any]] = set()
        while not tasks:
            await asyncio.sleep(0)
            tasks = {
                task for task in asyncio.all_tasks() if task.get_name() == "parallel_core source"
            }
        for task in tasks:
            task.cancel()
        with pytest.raises(parallel_core.CallCancelledError, match="the source"):
            await running

    asyncio_host.run(main)


def test_a_batch_that_is_stopped_while_its_source_closes(host: Host) -> None:
    """Its calls have ended: there is nothing to warn about, and only the source to wait for."""

    async def main() -> None:
        closing, may_close = anyio.Event(), anyio.Event()

        async def source() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                closing.set()
                await may_close.wait()

        async with (
            parallel_core.iter_parallel_map(double, source()) as batch,
            anyio.create_task_group() as group,
        ):

            async def stop() -> None:
                await closing.wait()
                await settle()
                batch.cancel()
                await settle()
                may_close.set()

            group.start_soon(stop)
            assert [result.index async for result in batch] == [0]

    host.run(main)
