"""How a batch fills its slots, in which order results come, and how far it runs ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import trio
import trio.testing

import parallel_core
from helpers.batch_calls import Gate, double
from helpers.bridge_checks import open_files
from helpers.hosts import Host, settle


def test_list_holds_one_result_for_every_item(host: Host) -> None:
    async def main() -> None:
        results = await parallel_core.parallel_map(double, range(50), concurrency=7)
        assert sorted(result.index for result in results) == list(range(50))
        for result in results:
            assert result.ok
            assert result.item == result.index
            assert result.unwrap() == 2 * result.index
            assert result.duration >= 0
            assert result.started_at > 1.7e9

    host.run(main)


def test_ten_thousand_requests_need_no_more_tasks_than_slots_in_trio() -> None:
    """The asyncio side is measured with its loops, in test_bridge_costs."""

    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        threads, files = threading.active_count(), open_files()
        most = 0

        async def call(item: int) -> int:
            nonlocal most
            await anyio.lowlevel.checkpoint()
            most = max(most, trio.lowlevel.current_statistics().tasks_living)
            # A thread of another test may end meanwhile.
            assert threading.active_count() <= threads
            return item

        seen = 0
        async with parallel_core.iter_parallel_map(
            call, iter(range(10_000)), concurrency=32
        ) as batch:
            async for result in batch:
                assert result.ok
                seen += 1
                if seen % 100 == 0:
                    assert open_files() <= files
        assert seen == 10_000
        # The calls, the batch itself, the source, and one task each that notices a cancellation
        # and that keeps the nurseries of the calls and of the source open.
        assert most <= before + 32 + 5
        assert trio.lowlevel.current_statistics().tasks_living == before

    trio.run(main)


@pytest.mark.parametrize(
    "source", [[], (), iter([]), range(0)], ids=lambda source: type(source).__name__
)
def test_empty_source(host: Host, source: Any) -> None:
    async def main() -> None:
        assert await parallel_core.parallel_map(double, list(source)) == []
        async with parallel_core.iter_parallel_map(double, iter(source)) as batch:
            assert [result async for result in batch] == []
            assert (batch.started, batch.in_flight, batch.delivered) == (0, 0, 0)

    host.run(main)


def test_concurrency_is_full_and_never_exceeded(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(
            gate.call, iter(range(20)), concurrency=5
        ) as batch:
            await settle()
            for done in range(20):
                assert len(gate.waiting) == batch.in_flight == min(5, 20 - done)
                await gate.let_go(max(gate.waiting))
                await anext(batch)
                await settle()

    host.run(main)


def test_results_come_in_completion_order(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(gate.call, range(4), concurrency=4) as batch:
            await settle()
            await gate.let_go(2, 0, 3, 1)
            assert [result.index async for result in batch] == [2, 0, 3, 1]

    host.run(main)


def test_input_order_waits_for_the_first_and_holds_a_bounded_number_of_results(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(
            gate.call, iter(range(1000)), concurrency=2, preserve_order=True
        ) as batch:
            await settle()
            while len(gate.waiting) > 1:
                await gate.let_go(max(gate.waiting))
            assert list(gate.waiting) == [0]
            assert batch.started == 16  # eight times the concurrency
            await gate.let_go(0)
            got = [(await anext(batch)).index for _ in range(16)]
            assert got == list(range(16))

    host.run(main)


def test_list_in_input_order_keeps_all_slots_busy_behind_a_slow_first_call(host: Host) -> None:
    async def main() -> None:
        gate = Gate()

        async def run() -> None:
            results = await parallel_core.parallel_map(
                gate.call, range(40), concurrency=2, preserve_order=True
            )
            assert [result.index for result in results] == list(range(40))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await settle()
            while len(gate.waiting) > 1:
                await gate.let_go(max(gate.waiting))
            assert len(gate.ended) == 39
            await gate.let_go(0)

    host.run(main)


def test_a_consumer_that_does_not_read_holds_calls_back(host: Host) -> None:
    async def main() -> None:
        started: list[int] = []

        async def call(item: int) -> int:
            started.append(item)
            return item

        async with parallel_core.iter_parallel_map(
            call, iter(range(10_000)), concurrency=3
        ) as batch:
            await settle()
            assert len(started) == 6
            await anext(batch)
            await settle()
            assert len(started) == 7
            assert batch.started - batch.delivered == 6

    host.run(main)


def test_an_endless_source_is_drawn_only_as_far_as_needed(host: Host) -> None:
    async def main() -> None:
        drawn = 0

        def endless() -> Iterator[int]:
            nonlocal drawn
            while True:
                drawn += 1
                yield drawn

        seen = 0
        async with parallel_core.iter_parallel_map(double, endless(), concurrency=4) as batch:
            async for _ in batch:
                seen += 1
                if seen == 100:
                    break
        assert drawn <= 100 + 2 * 4

    host.run(main)
