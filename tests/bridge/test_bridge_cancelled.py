"""Batches on asyncio whose awaiting task is cancelled, at any time and several times."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from helpers.bridge_checks import Calls, assert_nothing_left, guest_gone, open_files, passes, until
from helpers.bridge_scenarios import CLOSING, as_list, in_a_block
from helpers.hosts import Host
from parallel_core import iter_parallel_map, parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


async def finished(
    task: asyncio.Task[int], calls: Calls, *, complete: int = 12, cancelled: bool = True
) -> None:
    """Wait for a task that was cancelled; its outcome is all or nothing."""
    await asyncio.wait({task})
    if task.cancelled():
        assert cancelled
    else:
        assert task.result() == complete
    assert not calls.running


async def watched(scenario: Callable[[Calls], Awaitable[int]], calls: Calls) -> int:
    """Run a scenario, and look at what is left in the very step in which it ends."""
    beside = asyncio.all_tasks() - {asyncio.current_task()}
    try:
        return await scenario(calls)
    finally:
        assert not calls.running
        assert asyncio.all_tasks() - {asyncio.current_task()} <= beside


def all_ended(calls: Calls) -> bool:
    return len([number for number in calls.ended if number >= 0]) == 12


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.thorough), 3])
@pytest.mark.parametrize("scenario", CLOSING)
def test_cancelled_after_any_number_of_passes(
    asyncio_host: Host, scenario: Callable[[Calls], Awaitable[int]], times: int
) -> None:
    async def main() -> None:
        files = open_files()
        outcomes = set()
        for count in range(40):
            calls = Calls()
            task = asyncio.create_task(watched(scenario, calls))
            await passes(count)
            for _ in range(times):
                task.cancel()
                await passes(count % 3)
            await finished(task, calls)
            outcomes.add(task.cancelled())
            assert_nothing_left()
        assert True in outcomes
        assert open_files() <= files

    asyncio_host.run(main)


@pytest.mark.parametrize("scenario", CLOSING)
def test_cancelled_some_passes_after_the_last_call(
    asyncio_host: Host, scenario: Callable[[Calls], Awaitable[int]]
) -> None:
    """Also in the very pass in which the batch, and then its guest run, ends."""

    async def main() -> None:
        for count in range(40):
            calls = Calls()
            task = asyncio.create_task(watched(scenario, calls))
            await until(partial(all_ended, calls))
            await passes(count)
            task.cancel()
            await finished(task, calls)
            assert_nothing_left()

    asyncio_host.run(main)


def test_a_plain_loop_cancelled_after_any_number_of_passes(asyncio_host: Host) -> None:
    async def plain(calls: Calls) -> int:
        return len(
            [r async for r in iter_parallel_map(calls.brief, range(12), concurrency=4) if r.ok]
        )

    async def main() -> None:
        for count in range(40):
            calls = Calls()
            task = asyncio.create_task(plain(calls))
            await passes(count)
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                assert task.result() == 12
            del task
            await guest_gone()
            assert not calls.running

    asyncio_host.run(main)


@pytest.mark.parametrize("gap", [*range(8), 15, 30])
@pytest.mark.parametrize("form", ["list", "block", "anext"])
def test_cancelled_again_and_again_while_calls_clean_up(
    asyncio_host: Host, form: str, gap: int
) -> None:
    """Every call gets the time that it takes to clean up, however impatient the caller is."""

    async def main() -> None:
        calls = Calls()

        async def run() -> int:
            try:
                if form == "list":
                    await parallel_map(calls.slow_to_end, range(20), concurrency=6)
                else:
                    async with iter_parallel_map(
                        calls.slow_to_end, range(20), concurrency=6
                    ) as batch:
                        if form == "block":
                            await asyncio.Event().wait()
                        await anext(batch)
            finally:
                assert sorted(calls.ended) == sorted(calls.started) == list(range(6))
                assert_nothing_left_beside_the_test()
            return 0

        beside = asyncio.all_tasks()

        def assert_nothing_left_beside_the_test() -> None:
            assert asyncio.all_tasks() - beside == {asyncio.current_task()}

        task = asyncio.create_task(run())
        await until(lambda: len(calls.running) == 6)
        for _ in range(3):
            task.cancel()
            await passes(gap)
        await asyncio.wait({task})
        assert task.cancelled()
        assert calls.cancelled == calls.ended
        assert_nothing_left()

    asyncio_host.run(main)


def test_cancelled_before_the_first_step_of_its_task(asyncio_host: Host) -> None:
    async def main() -> None:
        calls = Calls()
        # Past an eager factory: the task must not have begun.
        task = asyncio.Task(as_list(calls), loop=asyncio.get_running_loop())
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert calls.started == []
        assert_nothing_left()

    asyncio_host.run(main)


@pytest.mark.parametrize("scenario", CLOSING)
def test_a_cancellation_that_waits_when_the_batch_begins(
    asyncio_host: Host, scenario: Callable[[Calls], Awaitable[int]]
) -> None:
    async def main() -> None:
        calls = Calls()

        async def run() -> int:
            task = asyncio.current_task()
            assert task is not None
            await asyncio.sleep(0)
            task.cancel()
            return await watched(scenario, calls)

        task = asyncio.create_task(run())
        await finished(task, calls)
        assert task.cancelled()
        assert_nothing_left()

    asyncio_host.run(main)


def test_a_task_that_outlived_its_cancellation_can_run_the_next_batch(asyncio_host: Host) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for kept in (False, True):
            calls = Calls()
            loop.call_soon(task.cancel)
            with pytest.raises(asyncio.CancelledError):
                await parallel_map(calls.forever, range(9))
            assert not calls.running
            assert task.cancelling() == 1
            if not kept:
                assert task.uncancel() == 0
            await passes(3)  # no second CancelledError for one request
            assert await in_a_block(Calls()) == 12
            assert_nothing_left()
        assert task.uncancel() == 0

    asyncio_host.run(main)


def test_a_result_is_not_lost_to_a_cancelled_anext(asyncio_host: Host) -> None:
    async def main() -> None:
        for count in range(12):
            async with iter_parallel_map(Calls().brief, range(12), concurrency=4) as batch:
                got = []
                while True:
                    step = asyncio.ensure_future(anext(batch, None))
                    await passes(count)
                    step.cancel()
                    await asyncio.wait({step})
                    if step.cancelled():
                        got.append(await anext(batch, None))
                    else:
                        got.append(step.result())
                    if got[-1] is None:
                        break
                assert sorted(result.index for result in got if result) == list(range(12))
            assert_nothing_left()

    asyncio_host.run(main)


@pytest.mark.parametrize("order", ["cancel first", "end first"])
def test_cancelled_in_the_pass_in_which_the_last_call_returns(
    asyncio_host: Host, order: str
) -> None:
    async def main() -> None:
        for count in range(10):
            last = asyncio.Event()

            async def call(item: int, last: asyncio.Event = last) -> int:
                await last.wait()
                return item

            async def run(
                call: Callable[[int], Awaitable[int]] = call,
            ) -> int:
                return len(await parallel_map(call, range(3)))

            task = asyncio.create_task(run())
            await passes(20)
            if order == "end first":
                last.set()
                await passes(count)
                task.cancel()
            else:
                task.cancel()
                await passes(count)
                last.set()
            await asyncio.wait({task})
            assert task.cancelled() or task.result() == 3
            assert_nothing_left()

    asyncio_host.run(main)
