"""Which host a Router's calls in trio run on, and where trio code is called from."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.lowlevel
import trio.testing

import parallel_core
from helpers.hosts import thread_names, threads_besides
from helpers.router_stands import REQUEST, Stand, at_once, forever, run
from parallel_core import nursery_engine, open_router_host, parallel_acompletions


def test_all_batches_of_a_run_share_a_thread_and_every_run_has_its_own() -> None:
    stands = [Stand(at_once) for _ in range(2)]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for stand in stands:
                for _ in range(3):
                    nursery.start_soon(parallel_acompletions, stand, [REQUEST] * 20)
        assert thread_names().count("parallel_core router host") == 1

    for runs in range(1, 4):
        run(main)
        assert stands[0].loops == stands[1].loops
        assert len(stands[0].loops) == runs
    assert all(loop.is_closed() for loop in stands[0].loops)


def test_a_run_that_needs_no_host_has_none() -> None:
    async def main() -> None:
        async def acompletion(**arguments: Any) -> str:
            await trio.lowlevel.checkpoint()
            return "native"

        (result,) = await parallel_acompletions(acompletion, [REQUEST])
        assert result.unwrap() == "native"
        assert "parallel_core router host" not in thread_names()

    run(main)


def test_two_runs_in_two_threads_share_nothing() -> None:
    stands = [Stand(forever), Stand(at_once)]
    both_run, second_done = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    async def first() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: parallel_acompletions(stands[0], [REQUEST] * 8))
                await stands[0].have_started(8)
                both_run.set()
                await trio.to_thread.run_sync(second_done.wait)
                assert len(stands[0].running) == 8
                scope.cancel()
        assert scope.cancelled_caught

    async def second() -> None:
        results = await parallel_acompletions(stands[1], [REQUEST] * 50)
        assert all(result.ok for result in results)

    def in_a_thread(main: Callable[[], Awaitable[None]]) -> None:
        try:
            trio.run(main)
        except BaseException as error:
            errors.append(error)

    threads = thread_names()
    other = threading.Thread(target=in_a_thread, args=(first,))
    other.start()
    both_run.wait()
    try:
        in_a_thread(second)
    finally:
        second_done.set()
        other.join()
    assert not errors
    assert threads_besides(threads) == []
    assert stands[0].loops.isdisjoint(stands[1].loops)
    assert stands[0].threads.isdisjoint(stands[1].threads)


def test_an_opened_host_is_used_by_batches_of_its_router_in_any_task() -> None:
    mine, other = Stand(at_once), Stand(at_once)
    begin = trio.Event()

    async def later() -> None:
        await begin.wait()
        await parallel_acompletions(mine, [REQUEST] * 3)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            async with open_router_host(mine) as host:
                await nursery_engine.parallel_acompletions(mine, [REQUEST] * 3)
                await parallel_acompletions(mine, [REQUEST] * 3, router_host="thread")
                await parallel_acompletions(host, [REQUEST] * 3)
                await parallel_acompletions(host, [REQUEST] * 3, router_host=host)
                begin.set()
                await trio.testing.wait_all_tasks_blocked()
                assert await host.run(at_once, 3) == 3
                (loop,) = mine.loops
                await parallel_acompletions(other, [REQUEST] * 3)
                assert loop not in other.loops
                await parallel_acompletions(other, [REQUEST] * 3, router_host=host)
                await parallel_acompletions(host.with_router(other), [REQUEST] * 3)
                assert len(other.loops) == 2
                assert loop in other.loops
                assert repr(host) == "<RouterHost thread open>"
                # A host inside a host: the inner one, for as long as it is there.
                async with open_router_host(mine):
                    await parallel_acompletions(mine, [REQUEST])
                assert len(mine.loops) == 2
                await parallel_acompletions(mine, [REQUEST])
                assert len(mine.loops) == 2
            assert repr(host) == "<RouterHost thread closed>"
            assert loop.is_closed()
            await parallel_acompletions(mine, [REQUEST])
            assert len(mine.loops) == 3

    run(main)


# --- where trio code is called from ---
def test_threads_guests_and_nested_batches() -> None:
    stand = Stand(at_once)

    async def main() -> None:
        async def fan_out(number: int) -> int:
            results = await parallel_acompletions(stand, [REQUEST] * number)
            return len([result for result in results if result.ok])

        def in_a_worker_thread() -> int:
            return trio.from_thread.run(fan_out, 5)

        assert await trio.to_thread.run_sync(in_a_worker_thread) == 5
        nested = await parallel_core.parallel_map(fan_out, [1, 2, 3], preserve_order=True)
        assert [result.value for result in nested] == [1, 2, 3]
        # The synchronous form, in a worker thread, has a loop of its own.
        results = await trio.to_thread.run_sync(
            parallel_core.parallel_completions, stand, [REQUEST] * 4
        )
        assert len(results) == 4
        assert len(stand.loops) == 2

    run(main)

    async def in_asyncio() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        (await done).unwrap()

    stand.loops.clear()
    threads = thread_names()
    asyncio.run(in_asyncio())
    assert threads_besides(threads) == []


def test_an_asyncio_batch_in_a_call_of_a_trio_batch() -> None:
    """A Router that fans out itself: its loop carries a guest run of trio in the helper thread."""

    async def fan_out(index: int) -> int:
        async def call(item: int) -> int:
            await asyncio.sleep(0)
            return item

        results = await parallel_core.parallel_map(call, range(10), concurrency=3)
        return sum(result.unwrap() for result in results)

    async def main() -> None:
        results = await parallel_acompletions(Stand(fan_out), [REQUEST] * 5, concurrency=2)
        assert [result.unwrap() for result in results] == [45] * 5

    run(main)


def test_results_are_not_kept_alive() -> None:
    class Answer:
        pass

    answers: list[weakref.ref[Answer]] = []

    async def answer(index: int) -> Answer:
        made = Answer()
        answers.append(weakref.ref(made))
        return made

    async def main() -> None:
        stand = Stand(answer)
        results = await parallel_acompletions(stand, [REQUEST] * 5)
        assert all(reference() is not None for reference in answers)
        del results
        # The other thread has turned to something else, and so has trio.
        await parallel_acompletions(Stand(at_once), [REQUEST])
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert all(reference() is None for reference in answers)

    run(main)
