"""What a batch on asyncio costs: tasks, threads, files, memory."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from helpers.bridge_checks import assert_nothing_left, open_files, passes, threads
from helpers.bridge_scenarios import twice
from helpers.hosts import ASYNCIO_HOSTS, Host
from parallel_core import iter_parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


def test_tasks_threads_and_files_stay_bounded(asyncio_host: Host) -> None:
    async def main() -> None:
        files, before = open_files(), threads()
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
        assert most_tasks <= 32 + 3  # the calls, the source, the keeper, and this one
        assert most_files <= files + 8
        assert most_threads <= all_threads + 1
        assert not threads() - before
        assert_nothing_left()
        assert open_files() <= files

    asyncio_host.run(main)


# A batch needs 0.2 MB, and 10,000 items of 50 bytes would need as much as this.
MEMORY = 2**19


def peak_of_memory(host: Host, count: int, order: str) -> int:
    """Bytes that a batch of so many requests needs at its worst."""

    async def main() -> int:
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
        return peak

    return host.run(main)


@pytest.mark.parametrize("order", ["completion", "input"])
def test_memory_does_not_grow_with_the_number_of_requests(asyncio_host: Host, order: str) -> None:
    if asyncio_host.debug:
        pytest.skip("debug mode remembers where every task and callback was made")
    peak = peak_of_memory(asyncio_host, 10_000, order)
    assert peak < MEMORY, peak


@pytest.mark.thorough
def test_memory_does_not_grow_with_very_many_requests() -> None:
    peak = peak_of_memory(ASYNCIO_HOSTS[0], 200_000, "completion")
    assert peak < MEMORY, peak


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
