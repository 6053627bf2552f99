"""Second attempts in a batch: how many, after how long, and what is left of them."""

from __future__ import annotations

import math

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.engines import begun
from helpers.hedging import AttemptFailed
from helpers.hosts import Host, in_virtual_time
from parallel_core import Hedge
from parallel_core.control.hedge import Durations, Hedging


@given(st.lists(st.booleans(), max_size=80), st.sampled_from([0.01, 0.05, 0.07, 0.29, 0.5, 1.0]))
def test_extra_calls_are_capped(slow: list[bool], max_extra: float) -> None:
    hedging = Hedging(Hedge(1, max_extra))
    calls = 0

    async def call(index: int, item: bool) -> None:
        assert hedging.extra_calls <= max_extra * calls
        await trio.sleep(2 if item else 0.5)

    async def main() -> None:
        nonlocal calls
        begun(hedging)
        async with trio.open_nursery() as nursery:
            for index, item in enumerate(slow):
                calls += 1
                nursery.start_soon(hedging.wrap(call), index, item)
                await trio.sleep(0.25)
        assert hedging.extra_calls <= max_extra * calls
        if all(slow) and slow:
            assert hedging.extra_calls == math.floor(max_extra * calls + 1e-9) or max_extra < 1

    in_virtual_time(main)


@given(st.lists(st.integers(0, 50), max_size=1300), st.integers(1, 99))
def test_the_percentile_is_the_nearest_rank(values: list[int], percent: int) -> None:
    durations = Durations()
    for value in values:
        durations.add(value)
    last = sorted(values[-1000:])
    expected = None if len(last) < 20 else last[-(-percent * len(last) // 100) - 1]
    assert durations.percentile(percent) == expected


def test_a_percentile_that_floats_miss() -> None:
    durations = Durations()
    for value in range(1, 1001):
        durations.add(value)
    assert (durations.percentile(7), durations.percentile(99.9)) == (70, 999)
    durations.add(5000)  # and 1 is forgotten
    assert durations.percentile(0.1) == 2


@pytest.mark.parametrize("way", ["fail fast", "break"])
def test_a_batch_that_ends_while_both_attempts_run(host: Host, way: str) -> None:
    ended: list[object] = []
    running = 0

    async def main() -> None:
        both = anyio.Event()
        error = AttemptFailed()

        async def call(item: str) -> str:
            nonlocal running
            if item == "ends":
                await both.wait()
                if way == "fail fast":
                    raise error
                return "answer"
            running += 1
            if running == 2:
                both.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(item)
            return item

        async def batch_of() -> None:
            async with parallel_core.iter_parallel_map(
                call,
                ["hangs", "ends"],
                return_exceptions=way != "fail fast",
                hedge=Hedge(0.001, 1.0),
            ) as batch:
                async for result in batch:
                    assert result.value == "answer"
                    break

        if way == "fail fast":
            with pytest.raises(AttemptFailed) as caught:
                await batch_of()
            assert caught.value is error
        else:
            await batch_of()
        assert ended == ["hangs", "hangs"]

    host.run(main)


def test_a_straggler_is_answered_by_its_second_attempt() -> None:
    attempts = 0

    async def call(item: int) -> int:
        nonlocal attempts
        attempts += 1
        await trio.sleep(1000 if attempts == 30 else 1)
        return item

    async def main() -> float:
        began = trio.current_time()
        results = await parallel_core.parallel_map(call, range(30), concurrency=1, hedge=Hedge(2))
        assert [result.value for result in results] == list(range(30))
        return trio.current_time() - began

    assert in_virtual_time(main) == 29 + 2 + 1
    assert attempts == 31


def test_a_straggler_waits_for_its_share_of_second_attempts() -> None:
    """The share is used up when it comes to its second attempt, and grows while it waits."""
    attempts: list[str] = []

    async def call(index: int, item: str) -> str:
        attempts.append(item)
        if item.startswith("slow") and attempts.count(item) == 1:
            await trio.sleep_forever()
        return item

    async def main() -> None:
        hedging = begun(Hedging(Hedge(1.0, max_extra=0.25)))
        hedged = hedging.wrap(call)
        async with trio.open_nursery() as nursery:
            began = trio.current_time()

            async def straggle(item: str) -> None:
                assert await hedged(0, item) == item

            nursery.start_soon(straggle, "slow 1")
            await trio.sleep(0.1)
            nursery.start_soon(straggle, "slow 2")
            await trio.sleep(10)
            for number in range(6):  # with the fourth call there may be one, with the eighth two
                assert hedging.extra_calls == (0 if number < 2 else 1)
                await hedged(0, f"quick {number}")
                await trio.testing.wait_all_tasks_blocked()
        assert attempts == [
            *("slow 1", "slow 2", "quick 0", "quick 1", "slow 1"),
            *("quick 2", "quick 3", "quick 4", "quick 5", "slow 2"),
        ]
        assert trio.current_time() - began == pytest.approx(10.1)
        assert hedging.extra_calls == 2

    in_virtual_time(main)
