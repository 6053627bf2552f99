"""What a call may do to the asyncio task in which it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

import parallel_core
from helpers.bridge_checks import Calls, assert_nothing_left, passes, until
from helpers.bridge_scenarios import own_task
from helpers.hosts import Host
from parallel_core import CallCancelledError, iter_parallel_map, parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


def test_a_call_that_raises_cancelled_error_by_itself_has_failed(asyncio_host: Host) -> None:
    async def main() -> None:
        error = asyncio.CancelledError("own")

        async def call(item: int) -> int:
            await passes(item % 2)
            if item % 3 == 0:
                raise error
            await asyncio.sleep(0)
            return item

        results = await parallel_map(call, range(12), concurrency=2, preserve_order=True)
        assert [type(result.exception) for result in results] == [
            CallCancelledError,
            type(None),
            type(None),
        ] * 4
        failure = results[0].exception
        assert failure is not None
        assert failure.__cause__ is error
        assert_nothing_left()

    asyncio_host.run(main)


def started_more_than(batch: parallel_core.ParallelBatch[Any], count: int) -> bool:
    return batch.started > count


def test_a_call_that_awaits_something_cancelled_by_somebody_else(asyncio_host: Host) -> None:
    async def main() -> None:
        futures: dict[int, asyncio.Future[int]] = {
            n: asyncio.get_running_loop().create_future() for n in range(6)
        }

        async def call(item: int) -> int:
            return await futures[item]

        async with iter_parallel_map(call, range(6), concurrency=2) as batch:
            for item in range(6):
                await until(partial(started_more_than, batch, item))
                if item % 2:
                    futures[item].cancel("by somebody")
                else:
                    futures[item].set_result(item)
                result = await anext(batch)
                assert result.index == item
                if item % 2:
                    assert isinstance(result.exception, CallCancelledError)
                    assert isinstance(result.exception.__cause__, asyncio.CancelledError)
                else:
                    assert result.value == item
            assert (batch.succeeded, batch.failed) == (3, 3)
        assert_nothing_left()

    asyncio_host.run(main)


def test_a_fail_fast_batch_ends_in_the_cancellation_of_one_call(asyncio_host: Host) -> None:
    async def main() -> None:
        calls = Calls()

        async def call(item: int) -> int:
            if item == 2:
                raise asyncio.CancelledError("own")
            return await calls.slow_to_end(item)

        with pytest.raises(CallCancelledError) as caught:
            await parallel_map(call, range(9), concurrency=4, return_exceptions=False)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)
        assert sorted(calls.ended) == sorted(calls.started)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert_nothing_left()

    asyncio_host.run(main)


async def cancels_itself_and_waits() -> None:
    own_task().cancel()
    await asyncio.sleep(0)


async def cancels_itself_and_waits_for_long() -> None:
    own_task().cancel()
    await asyncio.Event().wait()


async def cancels_itself_thrice_and_waits() -> None:
    for _ in range(3):
        own_task().cancel()
    await asyncio.sleep(0)


async def raises_with_a_request_pending() -> None:
    own_task().cancel()
    raise asyncio.CancelledError


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize(
    "misdeed",
    [
        cancels_itself_and_waits,
        cancels_itself_and_waits_for_long,
        cancels_itself_thrice_and_waits,
        raises_with_a_request_pending,
    ],
)
def test_a_call_that_cancels_its_own_task_has_failed_and_the_batch_goes_on(
    asyncio_host: Host, misdeed: Callable[[], Awaitable[None]], concurrency: int
) -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            if item % 2:
                await misdeed()
            await passes(2)
            return item

        results = await parallel_map(call, range(20), concurrency=concurrency, preserve_order=True)
        assert [type(r.exception) for r in results] == [type(None), CallCancelledError] * 10
        assert_nothing_left()

    asyncio_host.run(main)


async def leaves_a_request_pending() -> None:
    own_task().cancel()


async def leaves_three_requests_pending() -> None:
    for _ in range(3):
        own_task().cancel()


async def swallows_its_own_cancellation() -> None:
    own_task().cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


async def cancels_and_uncancels_its_task() -> None:
    own_task().cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        own_task().uncancel()


async def takes_its_request_back_before_it_is_delivered() -> None:
    """Before 3.13 the CancelledError comes all the same, at the next await of the task."""
    own_task().cancel()
    own_task().uncancel()


async def has_its_task_cancelled_by_a_callback() -> None:
    asyncio.get_running_loop().call_soon(own_task().cancel)


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize(
    "misdeed",
    [
        leaves_a_request_pending,
        leaves_three_requests_pending,
        swallows_its_own_cancellation,
        cancels_and_uncancels_its_task,
        takes_its_request_back_before_it_is_delivered,
    ],
)
def test_what_a_call_leaves_on_its_task_does_not_reach_the_next_call(
    asyncio_host: Host, misdeed: Callable[[], Awaitable[None]], concurrency: int
) -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            await passes(2)
            if item % 2:
                await misdeed()
            return item

        for source in (range(20), iter(range(20))):
            results = await parallel_map(call, source, concurrency=concurrency, preserve_order=True)
            assert [result.exception for result in results] == [None] * 20
            assert [result.value for result in results] == list(range(20))
        assert own_task().cancelling() == 0
        assert_nothing_left()

    asyncio_host.run(main)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_batch_with_calls_cancelled_from_a_callback_loses_no_item(
    asyncio_host: Host, concurrency: int
) -> None:
    """Whichever call it hits has failed with it, or none; every item has its result."""

    async def main() -> None:
        async def call(item: int) -> int:
            await asyncio.sleep(0)
            if item % 2:
                await has_its_task_cancelled_by_a_callback()
            return item

        results = await parallel_map(call, range(20), concurrency=concurrency, preserve_order=True)
        assert [result.index for result in results] == list(range(20))
        assert {type(r.exception) for r in results} <= {type(None), CallCancelledError}
        assert_nothing_left()

    asyncio_host.run(main)


def test_a_slot_task_cancelled_from_outside_while_it_waits_for_room(asyncio_host: Host) -> None:
    async def main() -> None:
        tasks: set[asyncio.Task[Any]] = set()

        async def call(item: int) -> int:
            tasks.add(own_task())
            await asyncio.sleep(0)
            return item

        async with iter_parallel_map(call, iter(range(40)), concurrency=3) as batch:
            await until(lambda: batch.started == 6 and batch.in_flight == 0)
            for _ in range(3):
                await passes(3)
                for task in tasks:
                    task.cancel()
            results = [result async for result in batch]
        assert sorted(result.index for result in results) == list(range(40))
        assert all(result.ok for result in results)
        assert_nothing_left()

    asyncio_host.run(main)


@pytest.mark.parametrize("count", range(0, 16, 3))
def test_a_slot_task_cancelled_from_outside_at_any_time_loses_no_item(
    asyncio_host: Host, count: int
) -> None:
    async def main() -> None:
        tasks: list[asyncio.Task[Any]] = []

        async def source() -> Any:
            for number in range(40):
                await passes(number % 3)
                yield number

        async def call(item: int) -> int:
            tasks.append(own_task())
            await passes(item % 3)
            return item

        async with iter_parallel_map(call, source(), concurrency=3) as batch:
            results = []
            async for result in batch:
                results.append(result)
                await passes(count)
                tasks[-1].cancel()
        assert sorted(result.index for result in results) == list(range(40))
        assert {type(r.exception) for r in results} <= {type(None), CallCancelledError}
        assert_nothing_left()

    asyncio_host.run(main)


def test_a_call_that_swallows_the_cancellation_of_its_batch_is_awaited(asyncio_host: Host) -> None:
    async def main() -> None:
        log: list[str] = []

        async def call(item: int) -> str:
            log.append("begun")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.append("cancelled")
            await passes(10)
            log.append("returned")
            return "a result for nobody"

        async with iter_parallel_map(call, range(9), concurrency=2) as batch:
            await until(lambda: log == ["begun"] * 2)
        assert log[2:] == ["cancelled"] * 2 + ["returned"] * 2
        assert batch.started == 2  # no further call has been started
        assert_nothing_left()

    asyncio_host.run(main)


def test_a_call_that_answers_its_cancellation_with_an_error(asyncio_host: Host) -> None:
    async def main() -> None:
        first = LookupError("the first")
        running = 0

        async def call(item: int) -> None:
            nonlocal running
            if item == 3:
                await until(lambda: running == 3)
                raise first
            running += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise OSError("while cancelled") from None

        with pytest.raises(LookupError) as caught:
            await parallel_map(call, range(9), concurrency=4, return_exceptions=False)
        assert caught.value is first
        assert_nothing_left()

        running = 0
        async with iter_parallel_map(call, range(3)) as batch:
            await until(lambda: running == 3)
        assert batch.failed == 3
        assert_nothing_left()

    asyncio_host.run(main)
