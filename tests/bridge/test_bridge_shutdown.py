"""The end of a loop, or of all its tasks, while batches run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers.bridge_checks import (
    Calls,
    after,
    assert_nothing_left,
    guest_gone,
    passes,
    run_and_shut_down,
    until,
)
from helpers.bridge_scenarios import check_a_batch
from helpers.hosts import Host
from parallel_core import BatchAbortedError, iter_parallel_map, parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


@pytest.mark.parametrize("form", ["list", "block", "plain", "async source"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 10, 30])
def test_the_loop_ends_while_a_background_task_runs_a_batch(
    asyncio_host: Host, form: str, count: int
) -> None:
    calls = Calls()
    outcomes: list[str] = []
    closed: list[str] = []

    async def source() -> Any:
        try:
            for number in range(20):
                yield number
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    async def background() -> None:
        try:
            if form == "list":
                await parallel_map(calls.slow_to_end, range(20), concurrency=3)
            elif form == "async source":
                await parallel_map(calls.slow_to_end, source(), concurrency=30)
            elif form == "block":
                async with iter_parallel_map(calls.slow_to_end, range(20)) as batch:
                    async for _ in batch:
                        pass
            else:
                async for _ in iter_parallel_map(calls.slow_to_end, range(20)):
                    pass
        except asyncio.CancelledError:
            outcomes.append("cancelled")
            raise

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(background())
        await passes(count)
        return task

    task = run_and_shut_down(asyncio_host, main)
    assert task.cancelled()
    assert outcomes == ["cancelled"]  # the loop goes round once more before it is shut down
    assert not calls.running
    assert sorted(calls.ended) == sorted(calls.started)
    if form == "async source" and calls.started:
        assert closed == ["closed"]


def test_the_loop_ends_while_a_consumer_ignores_its_cancellation(asyncio_host: Host) -> None:
    """It reads on, and is told that the batch was aborted."""
    calls = Calls()
    outcomes: list[BaseException] = []

    async def background() -> None:
        async with iter_parallel_map(calls.slow_to_end, range(20), concurrency=3) as batch:
            while True:
                try:
                    await anext(batch)
                except asyncio.CancelledError:
                    continue
                except (BatchAbortedError, StopAsyncIteration) as exception:
                    outcomes.append(exception)
                    break

    async def main() -> None:
        beside.append(asyncio.create_task(background()))
        await until(lambda: len(calls.running) == 3)

    beside: list[Any] = []
    run_and_shut_down(asyncio_host, main)
    (outcome,) = outcomes
    assert isinstance(outcome, BatchAbortedError)
    assert not calls.running


def test_a_batch_that_begins_while_the_loop_is_shut_down(asyncio_host: Host) -> None:
    done: list[int] = []

    async def background() -> None:
        try:
            await parallel_map(Calls().slow_to_end, range(20), concurrency=3)
        finally:
            await check_a_batch(20)
            done.append(20)

    async def main() -> None:
        beside.append(asyncio.create_task(background()))
        await passes(30)

    beside: list[Any] = []
    run_and_shut_down(asyncio_host, main)
    assert done == [20]


def test_an_async_generator_around_a_batch_is_left_to_the_end_of_the_loop(
    asyncio_host: Host,
) -> None:
    calls = Calls()
    kept: list[Any] = []
    left: list[int] = []

    async def stream() -> Any:
        async with iter_parallel_map(calls.only_first, range(20), concurrency=3) as batch:
            try:
                async for result in batch:
                    yield result.index
            finally:
                left.append(batch.in_flight)

    async def main() -> None:
        kept.append(stream())
        async for index in kept[0]:
            assert index == 0
            break

    run_and_shut_down(asyncio_host, main)
    assert left
    assert not calls.running


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 9, 15, 30])
@pytest.mark.parametrize("times", [1, 3])
def test_a_user_cancels_all_tasks_of_the_loop(asyncio_host: Host, count: int, times: int) -> None:
    async def main() -> None:
        calls = Calls()
        outcomes: list[type[BaseException] | None] = []

        async def background() -> None:
            try:
                await parallel_map(calls.slow_to_end, range(20), concurrency=3)
            except BaseException as exception:
                outcomes.append(type(exception))
                raise

        task = asyncio.create_task(background())
        await passes(count)
        for _ in range(times):
            for other in asyncio.all_tasks() - {asyncio.current_task()}:
                other.cancel()
            await passes(2)
        await asyncio.wait({task})
        assert task.cancelled()
        assert set(outcomes) <= {asyncio.CancelledError}
        assert not calls.running
        await guest_gone()
        await check_a_batch()
        assert_nothing_left()

    asyncio_host.run(main)


@pytest.mark.parametrize("form", ["list", "block", "plain"])
def test_a_user_cancels_all_tasks_but_the_consumer(asyncio_host: Host, form: str) -> None:
    """Nobody cancelled the consumer; its batch is gone all the same, and it is told so."""

    async def main() -> None:
        calls = Calls()

        def cancel_the_others() -> None:
            for other in asyncio.all_tasks() - {consumer}:
                other.cancel()

        def poll() -> None:
            if len(calls.running) < 3:
                after(1, poll)
            else:
                cancel_the_others()

        consumer = asyncio.current_task()
        after(1, poll)
        with pytest.raises(BatchAbortedError):
            if form == "list":
                await parallel_map(calls.slow_to_end, range(20), concurrency=3)
            elif form == "block":
                async with iter_parallel_map(calls.slow_to_end, range(20), concurrency=3) as batch:
                    async for _ in batch:
                        pass
            else:
                async for _ in iter_parallel_map(calls.slow_to_end, range(20), concurrency=3):
                    pass
        assert not calls.running
        assert consumer is not None
        assert consumer.cancelling() == 0
        assert_nothing_left()
        await check_a_batch()

    asyncio_host.run(main)
