"""Batches on several loops, in several threads, and on loops that end under them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from typing import Any

import pytest
import trio

from helpers.bridge_checks import Calls, guest_gone, in_a_thread_of_its_own, new_loop, passes, until
from helpers.bridge_scenarios import check_a_batch, twice
from helpers.hosts import Host
from parallel_core import BatchAbortedError, iter_parallel_map, parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


def test_twenty_threads_with_loops_of_their_own(asyncio_host: Host) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(20)

    async def main() -> None:
        together.wait(30)
        calls = Calls()
        for _ in range(3):
            await check_a_batch(30)
            async for _ in iter_parallel_map(calls.only_first, range(20), concurrency=4):
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await parallel_map(calls.slow_to_end, range(9))
        await guest_gone()
        assert not calls.running

    def work() -> None:
        try:
            with asyncio.Runner(
                loop_factory=asyncio_host.loop_factory, debug=asyncio_host.debug
            ) as runner:
                runner.run(main())
            assert not trio.lowlevel.in_trio_run()
        except BaseException as exception:
            errors.append(exception)

    workers = [threading.Thread(target=work) for _ in range(20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, errors


def test_batches_on_two_loops_of_one_thread_by_turns(asyncio_host: Host) -> None:
    def test() -> None:
        complaints: list[Any] = []
        loops = [new_loop(asyncio_host, complaints) for _ in range(2)]
        try:
            for _ in range(3):
                batches = [
                    iter_parallel_map_on(loop, twice, range(10), concurrency=3) for loop in loops
                ]
                got: list[list[int]] = [[], []]
                for _ in range(10):
                    for loop, batch, indexes in zip(loops, batches, got, strict=True):
                        indexes.append(loop.run_until_complete(anext(batch)).index)
                assert [sorted(indexes) for indexes in got] == [list(range(10))] * 2
                for loop, batch in zip(loops, batches, strict=True):
                    assert loop.run_until_complete(anext(batch, None)) is None
                for loop in reversed(loops):
                    loop.run_until_complete(passes(20))
            assert not trio.lowlevel.in_trio_run()
        finally:
            for loop in loops:
                loop.close()
        assert not complaints

    in_a_thread_of_its_own(test)


def iter_parallel_map_on(
    loop: asyncio.AbstractEventLoop, function: Any, source: Any, **options: Any
) -> Any:
    async def begin() -> Any:
        return iter_parallel_map(function, source, **options)

    return loop.run_until_complete(begin())


def test_a_loop_that_is_run_in_pieces(asyncio_host: Host) -> None:
    def test() -> None:
        complaints: list[Any] = []
        loop = new_loop(asyncio_host, complaints)
        calls = Calls()
        try:
            batch = iter_parallel_map_on(loop, calls.brief, range(20), concurrency=3)
            indexes = []
            for number in range(20):
                indexes.append(loop.run_until_complete(anext(batch)).index)
                loop.run_until_complete(passes(number % 3))
            assert sorted(indexes) == list(range(20))
            assert loop.run_until_complete(anext(batch, None)) is None
            assert not trio.lowlevel.in_trio_run()

            batch = iter_parallel_map_on(loop, calls.slow_to_end, range(20), concurrency=3)
            task = loop.create_task(anext(batch))
            loop.run_until_complete(until(lambda: len(calls.running) == 3))
            task.cancel()
            loop.run_until_complete(batch.aclose())
            assert not calls.running
            assert not trio.lowlevel.in_trio_run()
            loop.run_until_complete(asyncio.wait({task}))
        finally:
            loop.close()
        assert not complaints

    in_a_thread_of_its_own(test)


@pytest.mark.parametrize("shut_down", [True, False], ids=["cancelling its tasks", "just closing"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "dropped"])
def test_a_loop_closed_under_a_batch_and_a_new_loop_in_the_same_thread(
    asyncio_host: Host, kept: bool, shut_down: bool
) -> None:
    def test() -> None:
        complaints: list[Any] = []
        calls = Calls()
        loop = new_loop(asyncio_host, complaints)
        batch = iter_parallel_map_on(loop, calls.only_first, range(20), concurrency=3)
        assert loop.run_until_complete(anext(batch)).index == 0
        assert calls.running
        if shut_down:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
            assert not calls.running
            assert not trio.lowlevel.in_trio_run()
        loop.close()
        if not kept:
            batch = None
            gc.collect()

        for _ in range(2):
            loop = new_loop(asyncio_host, complaints)
            try:
                loop.run_until_complete(check_a_batch())
                loop.run_until_complete(guest_gone())
                if kept:
                    with pytest.raises((BatchAbortedError, StopAsyncIteration)):
                        loop.run_until_complete(next_step(batch))
                    loop.run_until_complete(batch.aclose())
            finally:
                loop.close()
            assert not calls.running  # their `finally` blocks ran, at the latest now
        assert not complaints

    in_a_thread_of_its_own(test)


async def next_step(batch: Any) -> Any:
    try:
        return await anext(batch)
    except StopAsyncIteration:
        # Not out of run_until_complete, which cannot put it into a future.
        raise BatchAbortedError("exhausted") from None


@pytest.mark.parametrize("closed_after", [0, 1, 2, 3, 5, 8, 20])
def test_a_loop_closed_some_passes_after_a_batch_was_dropped(
    asyncio_host: Host, closed_after: int
) -> None:
    def test() -> None:
        complaints: list[Any] = []
        calls = Calls()

        async def drop() -> None:
            async for _ in iter_parallel_map(calls.only_first, range(9), concurrency=3):
                break
            await passes(closed_after)

        for _ in range(3):
            loop = new_loop(asyncio_host, complaints)
            loop.run_until_complete(drop())
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks))
            loop.close()
            assert not calls.running
            assert not trio.lowlevel.in_trio_run()
        assert not complaints

    in_a_thread_of_its_own(test)


@pytest.mark.parametrize("passes_before", [0, 1, 2, 3, 4, 6, 9, 14])
def test_a_loop_closed_on_the_first_passes_of_a_batch_with_controls(
    asyncio_host: Host, passes_before: int
) -> None:
    def test() -> None:
        complaints: list[Any] = []
        calls = Calls()
        batches: list[Any] = []

        async def begin() -> None:
            batch = iter_parallel_map(calls.only_first, range(9), timeout=60, total_timeout=60)
            batches.append(batch)
            waiting = asyncio.ensure_future(anext(batch))
            await passes(passes_before)
            waiting.cancel()

        loop = new_loop(asyncio_host, complaints)
        loop.run_until_complete(begin())
        loop.close()
        batches.clear()
        gc.collect()
        loop = new_loop(asyncio_host, complaints)
        loop.run_until_complete(check_a_batch())
        loop.run_until_complete(guest_gone())
        loop.close()
        assert not calls.running

    in_a_thread_of_its_own(test)


def test_trio_in_the_thread_of_a_loop_that_was_closed_under_a_batch(asyncio_host: Host) -> None:
    """trio.run is refused until a batch on another loop has ended the run (docs/batch.md)."""

    def test() -> None:
        complaints: list[Any] = []
        calls = Calls()

        async def drop() -> None:
            async for _ in iter_parallel_map(calls.only_first, range(9), concurrency=3):
                break

        async def one() -> int:
            return 1

        loop = new_loop(asyncio_host, complaints)
        loop.run_until_complete(drop())
        loop.close()
        gc.collect()
        with pytest.raises(RuntimeError, match="run"):
            trio.run(one)
        loop = new_loop(asyncio_host, complaints)
        loop.run_until_complete(check_a_batch())
        loop.run_until_complete(guest_gone())
        loop.close()
        assert trio.run(one) == 1
        assert not calls.running
        assert not complaints

    in_a_thread_of_its_own(test)
