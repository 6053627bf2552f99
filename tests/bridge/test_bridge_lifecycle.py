"""Batches on asyncio: many at once, many loops and threads, the end of a loop, what a run costs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from helpers.bridge_checks import (
    Calls,
    after,
    assert_nothing_left,
    guest_gone,
    in_a_thread_of_its_own,
    leaving_nothing,
    new_loop,
    open_files,
    passes,
    run_and_shut_down,
    threads,
    until,
)
from helpers.hosts import ASYNCIO_HOSTS, Host
from parallel_core import (
    BatchAbortedError,
    InvalidRequestError,
    RouterParallelRequest,
    bridge,
    iter_parallel_map,
    parallel_completions,
    parallel_map,
)

pytestmark = pytest.mark.filterwarnings("error")

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture(autouse=True)
def _leaving_nothing(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    with leaving_nothing(capfd, caplog):
        yield


async def twice(item: int) -> int:
    await passes(item % 3)
    return 2 * item


async def check_a_batch(count: int = 12) -> None:
    results = await parallel_map(twice, range(count), concurrency=4, preserve_order=True)
    assert [result.unwrap() for result in results] == [2 * number for number in range(count)]


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
        assert open_files() == files
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


@pytest.mark.parametrize("left_by", ["end", "aclose", "break"])
def test_a_batch_that_begins_while_the_last_guest_run_ends(
    asyncio_host: Host, left_by: str
) -> None:
    async def main() -> None:
        for count in range(31):
            for _ in range(3):
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
        assert open_files() == files

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


# --- several loops, several threads ---


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


# --- the end of asyncio.run ---


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


# --- what a run costs ---


def test_tasks_threads_and_files_stay_bounded(asyncio_host: Host) -> None:
    async def main() -> None:
        files, before = open_files(), len(threads())
        all_threads = threading.active_count()
        most_tasks = most_files = most_threads = most_in_flight = in_flight = 0

        async def call(item: int) -> int:
            nonlocal most_tasks, most_files, most_threads, most_in_flight, in_flight
            in_flight += 1
            most_in_flight = max(most_in_flight, in_flight)
            if item % 3 == 0:
                await asyncio.sleep(0)
            if item % 250 == 0:
                most_tasks = max(most_tasks, len(asyncio.all_tasks()))
                most_files = max(most_files, open_files())
                most_threads = max(most_threads, threading.active_count())
            in_flight -= 1
            return item

        seen = 0
        async for result in iter_parallel_map(call, iter(range(10_000)), concurrency=32):
            assert result.ok
            seen += 1
        assert seen == 10_000
        assert 1 < most_in_flight <= 32
        assert most_tasks <= 32 + 2  # slots, the keeper, and this one
        assert most_files <= files + 8
        assert most_threads <= all_threads + 1
        assert len(threads()) == before
        assert_nothing_left()
        assert open_files() == files

    asyncio_host.run(main)


@pytest.mark.parametrize("order", ["completion", "input"])
def test_memory_does_not_grow_with_the_number_of_requests(asyncio_host: Host, order: str) -> None:
    if asyncio_host.debug:
        pytest.skip("debug mode remembers where every task and callback was made")
    long = asyncio_host is ASYNCIO_HOSTS[0] and order == "completion"
    count = 200_000 if long else 20_000

    async def main() -> None:
        async def call(item: bytes) -> bytes:
            if item[-1] % 64 == 0:
                await asyncio.sleep(0)
            return b"response" + item

        source = (b"request" + bytes([number % 256]) for number in range(count))
        tracemalloc.start()
        try:
            seen = 0
            async with iter_parallel_map(
                call, source, concurrency=32, preserve_order=order == "input"
            ) as batch:
                async for _ in batch:
                    seen += 1
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert seen == count
        assert peak < 2 * 2**20, peak  # 20,000 remembered requests would be more

    asyncio_host.run(main)


def test_a_slow_reader_does_not_fill_the_memory(asyncio_host: Host) -> None:
    async def main() -> None:
        drawn = 0

        def source() -> Iterator[int]:
            nonlocal drawn
            while True:
                drawn += 1
                yield drawn

        async with iter_parallel_map(twice, source(), concurrency=16) as batch:
            for read in range(1, 40):
                await anext(batch)
                await passes(5)
                assert drawn <= read + 2 * 16
        assert_nothing_left()

    asyncio_host.run(main)


# --- from synchronous code ---


async def acompletion(*, model: str, messages: Any, **kwargs: Any) -> str:
    await asyncio.sleep(0)
    if model == "bad":
        raise LookupError("bad")
    return f"reply of {model}"


REQUESTS = [RouterParallelRequest(f"m{number}", MESSAGES) for number in range(20)]
REPLIES = [f"reply of m{number}" for number in range(20)]


def check_sync() -> None:
    results = parallel_completions(acompletion, REQUESTS, concurrency=4, preserve_order=True)
    assert [result.unwrap() for result in results] == REPLIES


def test_parallel_completions_from_plain_code() -> None:
    files, before = open_files(), threading.active_count()
    for _ in range(20):
        check_sync()
    assert open_files() == files
    # The guest run's idle thread may be kept by trio; the portal's thread is gone.
    assert threading.active_count() <= before + 2


def test_parallel_completions_in_the_thread_of_a_running_loop(asyncio_host: Host) -> None:
    """As in a notebook: the loop stands still meanwhile, and goes on as before."""

    async def main() -> None:
        check_sync()
        assert_nothing_left()
        async with iter_parallel_map(Calls().forever, range(9)) as batch:
            await until(lambda: batch.in_flight == 8)
            check_sync()  # beside a batch and its guest run, in this very thread
            assert batch.in_flight == 8
        assert_nothing_left()
        await check_a_batch()

    asyncio_host.run(main)


def test_parallel_completions_in_a_worker_thread_of_a_loop(asyncio_host: Host) -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(check_sync) for _ in range(4)))

        async def call(item: int) -> None:
            await asyncio.to_thread(check_sync)

        results = await parallel_map(call, range(4), concurrency=2)
        assert [result.exception for result in results] == [None] * 4
        assert_nothing_left()

    asyncio_host.run(main)


def test_parallel_completions_inside_a_call(asyncio_host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> None:
            check_sync()
            await asyncio.sleep(0)
            check_sync()

        results = await parallel_map(call, range(3), concurrency=2)
        assert [result.exception for result in results] == [None] * 3

    asyncio_host.run(main)


def test_parallel_completions_in_a_trio_run() -> None:
    async def main() -> None:
        check_sync()
        await trio.to_thread.run_sync(check_sync)

    trio.run(main)


def test_parallel_completions_in_ten_threads_at_once() -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(10)

    def work() -> None:
        try:
            together.wait(30)
            for _ in range(3):
                check_sync()
        except BaseException as exception:
            errors.append(exception)

    workers = [threading.Thread(target=work) for _ in range(10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, errors


def test_parallel_completions_raises_what_the_batch_raises() -> None:
    requests = [*REQUESTS, RouterParallelRequest("bad", MESSAGES)]
    results = parallel_completions(acompletion, requests, preserve_order=True)
    assert isinstance(results[20].exception, LookupError)
    with pytest.raises(LookupError, match="bad"):
        parallel_completions(acompletion, requests, return_exceptions=False)
    bad: Any = 17
    with pytest.raises(InvalidRequestError):
        parallel_completions(acompletion, [*requests, bad])

    def broken() -> Iterator[RouterParallelRequest]:
        yield REQUESTS[0]
        raise OSError("the file is broken")

    with pytest.raises(OSError, match="broken"):
        parallel_completions(acompletion, broken())


def test_parallel_completions_runs_on_a_loop_of_its_own_in_another_thread() -> None:
    seen: set[tuple[int, str]] = set()

    async def call(*, model: str, messages: Any) -> None:
        seen.add((threading.get_ident(), type(asyncio.get_running_loop()).__name__))

    parallel_completions(call, REQUESTS)
    ((thread, loop),) = seen
    assert thread != threading.get_ident()
    assert "Trio" not in loop


def test_an_iterator_made_outside_of_a_loop() -> None:
    """The bridge's own may be made anywhere, and begins on the loop that takes its first step."""
    batch = bridge.iter_parallel_map(twice, range(3))

    async def main() -> list[int]:
        return sorted([result.index async for result in batch])

    assert asyncio.run(main()) == [0, 1, 2]
