"""Many batches on one asyncio loop: at once, nested, and one right after the other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers.bridge_checks import Calls, assert_nothing_left, guest_gone, open_files, passes
from helpers.bridge_scenarios import check_a_batch, twice
from helpers.hosts import Host
from parallel_core import iter_parallel_map, parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


# --- many batches on one loop ---


def test_many_batches_at_once_on_one_loop(asyncio_host: Host) -> None:
    async def main() -> None:
        files = open_files()
        most = 0

        async def one(number: int) -> None:
            nonlocal most
            await passes(number)
            await check_a_batch(number)
            most = max(most, open_files())

        await asyncio.gather(*(one(number) for number in range(50)))
        assert_nothing_left()
        assert open_files() <= files
        assert most <= files + 8  # one guest run, not fifty

    asyncio_host.run(main)


def test_batches_that_end_in_many_ways_at_once_do_not_disturb_each_other(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        calls = Calls()

        async def fails(item: int) -> int:
            await passes(3)
            raise LookupError(item)

        async def broken() -> None:
            async for _ in iter_parallel_map(calls.only_first, range(9), concurrency=3):
                break

        async def failing() -> None:
            with pytest.raises(LookupError):
                await parallel_map(fails, range(9), return_exceptions=False)

        async def late() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await parallel_map(calls.slow_to_end, range(9))

        async def cancelled() -> None:
            task = asyncio.create_task(check_cancelled())
            await passes(4)
            task.cancel()
            await asyncio.wait({task})

        async def check_cancelled() -> None:
            await parallel_map(calls.slow_to_end, range(9))

        ways = [check_a_batch, broken, failing, late, cancelled] * 8
        await asyncio.gather(*(way() for way in ways))
        await guest_gone()
        assert not calls.running

    asyncio_host.run(main)


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_batches_inside_calls_of_batches(asyncio_host: Host, levels: int) -> None:
    async def main() -> None:
        async def count(level: int) -> int:
            if level == 0:
                await asyncio.sleep(0)
                return 1
            results = await parallel_map(count, [level - 1] * 3, concurrency=2)
            return sum(result.unwrap() for result in results)

        assert await count(levels) == 3**levels
        assert_nothing_left()

    asyncio_host.run(main)


def test_a_nested_batch_is_cancelled_with_the_outer_one_at_any_pass(asyncio_host: Host) -> None:
    async def main() -> None:
        async def run(calls: Calls) -> None:
            async def outer(item: int) -> None:
                async def middle(item: int) -> None:
                    await parallel_map(calls.slow_to_end, range(3), concurrency=2)

                await parallel_map(middle, range(3), concurrency=2)

            try:
                await parallel_map(outer, range(3), concurrency=2)
            finally:
                assert not calls.running

        for count in range(30):
            calls = Calls()
            task = asyncio.create_task(run(calls))
            await passes(count)
            task.cancel()
            await passes(count % 4)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled()
            assert sorted(calls.ended) == sorted(calls.started)
            assert_nothing_left()

    asyncio_host.run(main)


def test_an_error_deep_in_nested_batches_comes_out_as_itself(asyncio_host: Host) -> None:
    async def main() -> None:
        error = LookupError("deep")
        calls = Calls()

        async def inner(item: int) -> int:
            if item == 2:
                await passes(3)
                raise error
            return await calls.slow_to_end(item)

        async def outer(item: int) -> None:
            await parallel_map(inner, range(3), return_exceptions=False)

        with pytest.raises(LookupError) as caught:
            await parallel_map(outer, range(1), return_exceptions=False)
        assert caught.value is error
        assert not calls.running
        assert_nothing_left()

    asyncio_host.run(main)


# --- a batch begins while the guest run of the last one ends ---


# The end of a guest run depends on a thread too, so more than once is not the same again.
@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("left_by", ["end", "aclose", "break"])
def test_a_batch_that_begins_while_the_last_guest_run_ends(
    asyncio_host: Host, left_by: str, times: int
) -> None:
    async def main() -> None:
        for count in range(31):
            for _ in range(times):
                ended = asyncio.Event()

                async def call(item: int, ended: asyncio.Event = ended) -> int:
                    await asyncio.sleep(0)
                    if item == 3:
                        ended.set()
                    return item

                async def first(call: Any = call, ended: asyncio.Event = ended) -> None:
                    if left_by == "end":
                        assert len(await parallel_map(call, range(4))) == 4
                    elif left_by == "aclose":
                        async with iter_parallel_map(call, range(9), concurrency=4):
                            await ended.wait()
                    else:
                        async for _ in iter_parallel_map(call, range(9), concurrency=4):
                            break
                        ended.set()

                task = asyncio.create_task(first())
                await ended.wait()
                await passes(count)
                await check_a_batch(6)
                await task
                await guest_gone()

    asyncio_host.run(main)


def test_batches_right_after_each_other_hundreds_of_times(asyncio_host: Host) -> None:
    async def main() -> None:
        files = open_files()
        for _ in range(200):
            (result,) = await parallel_map(twice, [21])
            assert result.value == 42
            assert_nothing_left()
        assert open_files() <= files

    asyncio_host.run(main)


def test_a_crowd_that_joins_while_the_guest_run_ends(asyncio_host: Host) -> None:
    async def main() -> None:
        async def one(number: int) -> None:
            for count in range(6):
                await check_a_batch(3)
                await passes((number + count) % 7)

        await asyncio.gather(*(one(number) for number in range(12)))
        assert_nothing_left()

    asyncio_host.run(main)


def test_cancelled_while_it_waits_for_the_last_guest_run_to_end(asyncio_host: Host) -> None:
    """The batch was never taken in: none of its calls begins, and its source is not drawn."""

    async def main() -> None:
        for count in range(31):
            first = asyncio.create_task(check_a_batch(3))
            await passes(count)
            calls = Calls()
            second = asyncio.create_task(_results(calls))
            await passes(count % 3)
            second.cancel()
            await asyncio.wait({first, second})
            await first
            assert not calls.running
            assert_nothing_left()

    asyncio_host.run(main)


async def _results(calls: Calls) -> None:
    await parallel_map(calls.brief, range(5))
