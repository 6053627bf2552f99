"""Batches on asyncio: being dropped, being cancelled, and what calls may do to their task."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, cast

import anyio
import pytest

import parallel_core
from helpers.bridge_checks import (
    Calls,
    after,
    assert_nothing_left,
    guest_gone,
    leaving_nothing,
    open_files,
    passes,
    run_and_shut_down,
    until,
)
from helpers.hosts import Host
from parallel_core import CallCancelledError, iter_parallel_map, parallel_map

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def _leaving_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    with leaving_nothing(capfd, caplog):
        yield


# --- dropped without being closed ---


def test_break_out_of_a_plain_loop_cancels_the_batch_without_help(asyncio_host: Host) -> None:
    async def main() -> None:
        files = open_files()
        calls = Calls()
        async for result in iter_parallel_map(calls.only_first, range(50), concurrency=5):
            assert result.index == 0
            break
        assert calls.running
        await guest_gone()
        assert not calls.running
        assert sorted(calls.cancelled) == sorted(set(calls.started) - {0})
        assert open_files() == files

    asyncio_host.run(main)


def test_break_waits_for_slow_cleanup_of_calls_before_the_guest_run_ends(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        calls = Calls()

        async def call(item: int) -> int:
            return item if item == 0 else await calls.slow_to_end(item)

        async for _ in iter_parallel_map(call, range(50), concurrency=5):
            break
        await guest_gone()
        assert calls.started
        assert sorted(calls.ended) == sorted(calls.started)

    asyncio_host.run(main)


def test_a_hundred_breaks_in_a_row_leave_nothing(asyncio_host: Host) -> None:
    async def main() -> None:
        calls = Calls()
        files = open_files()
        for count in range(100):
            async for _ in iter_parallel_map(calls.brief, iter(range(50)), concurrency=5):
                break
            await passes(count % 7)
        await guest_gone()
        assert not calls.running
        assert open_files() == files

    asyncio_host.run(main)


def test_an_exception_in_the_body_of_a_plain_loop_cancels_the_batch(asyncio_host: Host) -> None:
    async def main() -> None:
        calls = Calls()
        error = LookupError("mine")
        with pytest.raises(LookupError) as caught:
            async for _ in iter_parallel_map(calls.only_first, range(50), concurrency=5):
                raise error
        assert caught.value is error
        await guest_gone()
        assert not calls.running

    asyncio_host.run(main)


def test_an_iterator_that_was_never_started_is_dropped_without_a_word(asyncio_host: Host) -> None:
    async def main() -> None:
        calls = Calls()
        closed: list[str] = []

        def source() -> Iterator[int]:
            try:
                yield from range(9)
            finally:
                closed.append("closed")

        async def async_source() -> Any:
            yield 1

        iter_parallel_map(calls.forever, range(9))
        aiter(iter_parallel_map(calls.forever, source()))
        iter_parallel_map(calls.forever, async_source())
        gc.collect()
        await passes(3)
        assert calls.started == []
        assert closed == []  # a generator that has not begun has nothing to close
        assert_nothing_left()

    asyncio_host.run(main)


def test_an_iterator_in_a_reference_cycle_is_noticed_by_the_garbage_collector(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        calls = Calls()
        batch = iter_parallel_map(calls.only_first, range(50), concurrency=5)
        await anext(batch)
        cycle: list[Any] = [batch]
        cycle.append(cycle)
        del batch, cycle
        gc.collect()
        await guest_gone()
        assert calls.cancelled
        assert not calls.running

    asyncio_host.run(main)


def test_an_iterator_dropped_in_another_thread(asyncio_host: Host) -> None:
    async def main() -> None:
        calls = Calls()
        held = [iter_parallel_map(calls.only_first, range(50), concurrency=5)]
        await anext(held[0])
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
        await guest_gone()
        assert calls.cancelled
        assert not calls.running

    asyncio_host.run(main)


@pytest.mark.parametrize("after", range(0, 12, 3))
def test_a_batch_dropped_while_another_runs_ends_alone(asyncio_host: Host, after: int) -> None:
    async def main() -> None:
        dropped, kept = Calls(), Calls()
        go_on = asyncio.Event()

        async def call(item: int) -> int:
            await go_on.wait()
            return await kept.brief(item)

        async with iter_parallel_map(call, range(20), concurrency=3) as batch:
            async for _ in iter_parallel_map(dropped.only_first, range(50), concurrency=5):
                await passes(after)
                break
            await until(lambda: not dropped.running)
            assert dropped.cancelled
            go_on.set()
            assert len([result async for result in batch if result.ok]) == 20
        assert_nothing_left()

    asyncio_host.run(main)


def test_an_iterator_alive_when_the_loop_is_shut_down(asyncio_host: Host) -> None:
    calls = Calls()
    kept: list[Any] = []

    async def main() -> None:
        batch = iter_parallel_map(calls.only_first, range(50), concurrency=5)
        kept.append(batch)
        async for _ in batch:
            break

    run_and_shut_down(asyncio_host, main)
    assert calls.cancelled
    assert not calls.running
    assert kept[0].in_flight == 0
    kept.clear()
    gc.collect()


def test_an_iterator_dropped_in_the_last_pass_of_the_loop(asyncio_host: Host) -> None:
    calls = Calls()

    async def main() -> None:
        async for _ in iter_parallel_map(calls.slow_to_end_except_first, range(50), concurrency=5):
            break

    run_and_shut_down(asyncio_host, main)
    assert calls.cancelled
    assert not calls.running


@pytest.mark.parametrize("kind", ["break", "close", "drop in a cycle"])
def test_nothing_of_a_dropped_batch_stays_in_memory(asyncio_host: Host, kind: str) -> None:
    class Item:
        pass

    async def main() -> None:
        calls = Calls()

        async def call(item: tuple[int, Item]) -> Item:
            await calls.only_first(item[0])
            return item[1]

        batch = iter_parallel_map(call, ((n, Item()) for n in range(50)), concurrency=5)
        result = await anext(batch)
        if kind == "close":
            await batch.aclose()
        elif kind == "drop in a cycle":
            cycle: list[Any] = [batch]
            cycle.append(cycle)
            del cycle
        del batch, result
        gc.collect()
        await guest_gone()
        gc.collect()
        assert [thing for thing in gc.get_objects() if isinstance(thing, Item)] == []

    asyncio_host.run(main)


# --- cancellation of the awaiting task ---


async def as_list(calls: Calls) -> int:
    results = await parallel_map(calls.brief, range(12), concurrency=4)
    return len([result for result in results if result.ok])


async def in_a_block(calls: Calls) -> int:
    async with iter_parallel_map(calls.brief, range(12), concurrency=4) as batch:
        return len([result async for result in batch if result.ok])


async def with_aclose(calls: Calls) -> int:
    batch = iter_parallel_map(calls.brief, range(12), concurrency=4)
    try:
        return len([result async for result in batch if result.ok])
    finally:
        await batch.aclose()


async def from_an_async_source(calls: Calls) -> int:
    async def source() -> Any:
        try:
            for number in range(12):
                await passes(number % 2)
                yield number
        finally:
            calls.ended.append(-1)
            await asyncio.sleep(0)

    results = await parallel_map(calls.brief, source(), concurrency=4)
    return len([result for result in results if result.ok])


CLOSING = [as_list, in_a_block, with_aclose, from_an_async_source]


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


@pytest.mark.parametrize("times", [1, 2, 3])
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
        assert open_files() == files

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


# --- what a call may do to the task in which it runs ---


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


def own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


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
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                log.append("cancelled")
            await passes(10)
            log.append("returned")
            return "a result for nobody"

        async with iter_parallel_map(call, range(9), concurrency=2) as batch:
            await until(lambda: batch.in_flight == 2)
        assert log == ["cancelled"] * 2 + ["returned"] * 2
        assert batch.started == 2  # a slot that survived its cancellation starts no further call
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


# --- contexts, and structured things inside calls ---

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_calls_see_the_context_of_the_task_that_began_the_batch(asyncio_host: Host) -> None:
    async def main() -> None:
        async def one(name: str) -> None:
            variable.set(name)
            seen: list[tuple[str, str]] = []

            async def call(item: int) -> None:
                before = variable.get()
                variable.set(f"call {item} of {name}")
                await passes(2)
                seen.append((before, variable.get()))

            await parallel_map(call, range(10), concurrency=2)
            assert sorted(seen) == sorted((name, f"call {n} of {name}") for n in range(10))
            assert variable.get() == name

        await asyncio.gather(*(one(f"caller {number}") for number in range(5)))
        assert variable.get() == "unset"
        assert_nothing_left()

    asyncio_host.run(main)


def test_a_source_sees_the_context_of_the_caller_and_does_not_change_it(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        seen: list[str] = []

        async def async_source() -> Any:
            for number in range(3):
                seen.append(variable.get())
                await asyncio.sleep(0)
                yield number

        def sync_source() -> Iterator[int]:
            for number in range(3):
                seen.append(variable.get())
                yield number

        async def call(item: int) -> str:
            return variable.get()

        variable.set("caller")
        for source in (async_source(), sync_source()):
            results = await parallel_map(call, source, concurrency=1)
            assert [result.value for result in results] == ["caller"] * 3
        assert seen == ["caller"] * 6
        variable.set("unset")

    asyncio_host.run(main)


def test_the_current_task_of_a_call_is_a_task_of_the_loop(asyncio_host: Host) -> None:
    async def main() -> None:
        outside = asyncio.current_task()

        async def call(item: int) -> None:
            task = asyncio.current_task()
            assert task is not None
            assert task is not outside
            assert task in asyncio.all_tasks()
            assert task.get_loop() is asyncio.get_running_loop()
            await asyncio.sleep(0)
            assert asyncio.current_task() is task
            assert task.cancelling() == 0

        results = await parallel_map(call, range(20), concurrency=3)
        assert [result.exception for result in results] == [None] * 20

    asyncio_host.run(main)


async def timeout_that_fires() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    assert own_task().cancelling() == 0
    await asyncio.sleep(0)


async def timeouts_in_timeouts() -> None:
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                async with asyncio.timeout(60):
                    await asyncio.Event().wait()
        await asyncio.sleep(0)


async def wait_for_that_fires() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0)
    await asyncio.sleep(0)


async def task_group() -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(0, number)) for number in range(3)]
    assert [task.result() for task in tasks] == [0, 1, 2]


async def failing_task_group() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("mine")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(asyncio.Event().wait())
            await asyncio.Event().wait()
    assert own_task().cancelling() == 0
    await asyncio.sleep(0)


async def in_a_thread() -> None:
    variable.set("of the call")
    assert await asyncio.to_thread(variable.get) == "of the call"
    assert await asyncio.to_thread(threading.current_thread) is not threading.current_thread()


async def gathering() -> None:
    assert await asyncio.gather(*(asyncio.sleep(0, number) for number in range(3))) == [0, 1, 2]
    results = await asyncio.gather(asyncio.sleep(0, 1), failing(), return_exceptions=True)
    assert results[0] == 1
    assert isinstance(results[1], LookupError)


async def failing() -> None:
    raise LookupError("mine")


async def shielding() -> None:
    inner = asyncio.ensure_future(passes(5))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(inner), 0)
    await inner


async def anyio_scopes() -> None:
    with anyio.move_on_after(0) as scope:
        await asyncio.Event().wait()
    assert scope.cancelled_caught
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(threading.current_thread)
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "body",
    [
        timeout_that_fires,
        timeouts_in_timeouts,
        wait_for_that_fires,
        task_group,
        failing_task_group,
        in_a_thread,
        gathering,
        shielding,
        anyio_scopes,
    ],
)
def test_structured_asyncio_code_works_inside_calls(
    asyncio_host: Host, body: Callable[[], Awaitable[None]]
) -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            assert variable.get() == "unset"
            await body()
            return item

        results = await parallel_map(call, range(12), concurrency=3)
        assert [result.exception for result in results] == [None] * 12
        assert len(results) == 12
        assert own_task().cancelling() == 0

    asyncio_host.run(main)


@pytest.mark.parametrize(
    "body",
    [task_group, failing_task_group, gathering, shielding, anyio_scopes, timeouts_in_timeouts],
)
def test_structured_code_inside_calls_cancelled_at_any_pass_leaves_nothing(
    asyncio_host: Host, body: Callable[[], Awaitable[None]]
) -> None:
    async def main() -> None:
        async def run(calls: list[int]) -> int:
            async def call(item: int) -> None:
                calls.append(item)
                try:
                    await body()
                finally:
                    calls.remove(item)

            return len([r for r in await parallel_map(call, range(6), concurrency=3) if r.ok])

        for count in range(25):
            calls: list[int] = []
            task = asyncio.create_task(run(calls))
            await passes(count)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or task.result() == 6
            assert calls == []
            if body is shielding:  # what is shielded goes on; it is not the batch's
                await passes(8)
            await guest_gone()

    asyncio_host.run(main)


def test_bridge_functions_and_top_level_functions_are_the_same_in_asyncio(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        from parallel_core import bridge

        async def echo(*, model: str, messages: Any) -> str:
            await asyncio.sleep(0)
            return model

        requests = [
            {"model": f"m{number}", "messages": [{"role": "user", "content": "x"}]}
            for number in range(5)
        ]
        for module in (bridge, parallel_core):
            results = await module.parallel_acompletions(echo, requests, preserve_order=True)
            assert [result.unwrap() for result in results] == [f"m{n}" for n in range(5)]
            batch = module.iter_parallel_acompletions(echo, requests)
            assert isinstance(batch, bridge.AsyncioParallelBatch)
            assert len([result async for result in batch]) == 5
            assert_nothing_left()

    asyncio_host.run(main)
