"""Batches on asyncio that are dropped without being closed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.bridge_checks import (
    Calls,
    assert_nothing_left,
    guest_gone,
    open_files,
    passes,
    run_and_shut_down,
    until,
)
from helpers.hosts import Host
from parallel_core import iter_parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


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
        assert open_files() <= files

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
        assert open_files() <= files

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
        await guest_gone()

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
