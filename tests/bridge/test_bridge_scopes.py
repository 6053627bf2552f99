"""Batches on asyncio inside timeouts, task groups, shields and scopes of anyio."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, cast

import anyio
import pytest

from helpers.bridge_checks import Calls, after, assert_nothing_left, guest_gone, passes, until
from helpers.bridge_scenarios import CLOSING, as_list, in_a_block
from helpers.hosts import Host
from parallel_core import iter_parallel_map, parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


def test_asyncio_timeout_around_a_batch_after_any_number_of_passes(asyncio_host: Host) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        for scenario in CLOSING:
            timed_out = 0
            for count in range(30):
                calls = Calls()
                try:
                    async with asyncio.timeout(None) as timeout:
                        after(count, partial(reschedule, timeout))
                        assert await scenario(calls) == 12
                except TimeoutError:
                    timed_out += 1
                assert task.cancelling() == 0
                assert not calls.running
                assert_nothing_left()
                await passes(count)
                assert_nothing_left()
            assert timed_out

    def reschedule(timeout: asyncio.Timeout) -> None:
        try:
            timeout.reschedule(asyncio.get_running_loop().time())
        except RuntimeError:  # the batch was faster
            assert not timeout.expired()

    asyncio_host.run(main)


@pytest.mark.parametrize("form", ["list", "block", "plain"])
def test_asyncio_timeout_waits_for_the_calls(asyncio_host: Host, form: str) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        calls = Calls()

        async def call(item: int) -> int:
            if len(calls.started) == 7:  # the last one that there is a slot for
                deadline.reschedule(asyncio.get_running_loop().time())
            return await calls.slow_to_end(item)

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                if form == "list":
                    await parallel_map(call, range(20))
                elif form == "block":
                    async with iter_parallel_map(call, range(20)) as batch:
                        async for _ in batch:
                            pass
                else:
                    async for _ in iter_parallel_map(call, range(20)):
                        pass
        assert task.cancelling() == 0
        if form == "plain":
            await guest_gone()
        assert sorted(calls.ended) == sorted(calls.started) == list(range(8))
        assert_nothing_left()

    asyncio_host.run(main)


@pytest.mark.parametrize("seconds", [0, 0.01])
def test_wait_for_waits_for_the_calls(asyncio_host: Host, seconds: float) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        calls = Calls()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(parallel_map(calls.slow_to_end, range(20)), seconds)
        assert task.cancelling() == 0
        assert sorted(calls.ended) == sorted(calls.started)
        assert_nothing_left()
        assert await asyncio.wait_for(as_list(Calls()), 60) == 12
        assert_nothing_left()

    asyncio_host.run(main)


def test_wait_for_one_result_leaves_the_batch_running(asyncio_host: Host) -> None:
    async def main() -> None:
        calls = Calls()
        async with iter_parallel_map(calls.only_first, range(3), concurrency=3) as batch:
            assert (await asyncio.wait_for(anext(batch), 60)).index == 0
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(batch), 0.01)
            assert calls.running == {1, 2}
            assert batch.in_flight == 2
        assert not calls.running
        assert_nothing_left()

    asyncio_host.run(main)


@pytest.mark.parametrize("scenario", CLOSING)
def test_a_sibling_that_fails_in_a_task_group(
    asyncio_host: Host, scenario: Callable[[Calls], Awaitable[int]]
) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        error = LookupError("mine")

        async def sibling(count: int) -> None:
            await passes(count)
            raise error

        for count in range(30):
            calls = Calls()
            with pytest.raises(ExceptionGroup) as caught:
                async with asyncio.TaskGroup() as group:
                    group.create_task(cast("Coroutine[Any, Any, int]", scenario(calls)))
                    group.create_task(sibling(count))
            assert caught.value.exceptions == (error,)
            if sys.version_info >= (3, 13):  # an older TaskGroup forgets to uncancel, in __aexit__
                assert task.cancelling() == 0
            assert not calls.running
            assert_nothing_left()

    asyncio_host.run(main)


def test_a_batch_in_the_body_of_a_task_group_whose_child_fails(asyncio_host: Host) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        calls = Calls()
        error = LookupError("mine")

        async def child() -> None:
            await until(lambda: len(calls.running) == 8)
            raise error

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())
                await parallel_map(calls.slow_to_end, range(20))
        assert caught.value.exceptions == (error,)
        assert task.cancelling() == 0
        assert sorted(calls.ended) == list(range(8))
        assert_nothing_left()

    asyncio_host.run(main)


@pytest.mark.parametrize("scenario", CLOSING)
def test_an_anyio_scope_around_a_batch_cancelled_after_any_number_of_passes(
    asyncio_host: Host, scenario: Callable[[Calls], Awaitable[int]]
) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        caught = 0
        for count in range(30):
            calls = Calls()
            with anyio.CancelScope() as scope:
                after(count, scope.cancel)
                assert await scenario(calls) == 12
            caught += scope.cancelled_caught
            assert task.cancelling() == 0
            assert not calls.running
            await passes(3)  # the cancellation does not reach out of its scope
            assert_nothing_left()
        assert caught

    asyncio_host.run(main)


def test_an_anyio_scope_gives_calls_the_time_they_take_to_clean_up(asyncio_host: Host) -> None:
    async def main() -> None:
        async def slow_to_end(number: int) -> None:
            if number == 7:  # the last one of those that run at once
                asyncio.get_running_loop().call_soon(scope.cancel)
            await calls.slow_to_end(number)

        calls = Calls()
        with anyio.CancelScope() as scope:
            await parallel_map(slow_to_end, range(20))
        assert scope.cancelled_caught
        assert sorted(calls.ended) == list(range(8))
        assert_nothing_left()

        calls = Calls()

        # Not fail_after: from Python 3.12 on its TimeoutError keeps any iterator alive.
        with anyio.CancelScope() as scope:
            async for _ in iter_parallel_map(slow_to_end, range(20)):
                pass
        assert scope.cancelled_caught
        await guest_gone()
        assert sorted(calls.ended) == list(range(8))

    asyncio_host.run(main)


def test_a_shielded_batch_in_a_cancelled_anyio_scope_runs_to_its_end(asyncio_host: Host) -> None:
    async def main() -> None:
        with anyio.CancelScope() as outer:
            outer.cancel()
            with anyio.CancelScope(shield=True):
                assert await in_a_block(Calls()) == 12
            assert_nothing_left()
            await asyncio.sleep(0)
        assert outer.cancelled_caught

    asyncio_host.run(main)


def test_asyncio_shield_keeps_a_batch_running(asyncio_host: Host) -> None:
    async def main() -> None:
        calls = Calls()
        inner = asyncio.ensure_future(as_list(calls))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(inner), 0)
        assert await inner == 12
        assert_nothing_left()

    asyncio_host.run(main)
