"""Batches in several threads, of trio and of asyncio, that share a control."""

from __future__ import annotations

import asyncio
import copy
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trio.testing

from helpers.budgets import ANSWER, REQUEST, WORST, fake_router
from helpers.hosts import Host
from helpers.threads import PATIENCE, Together
from parallel_core import (
    Budget,
    BudgetExceededError,
    RateLimit,
    iter_parallel_map,
    parallel_acompletions,
    parallel_completions,
    parallel_map,
)
from parallel_core.control.budget import Reservation
from parallel_core.types import Usage


def test_one_budget_in_batches_of_many_threads(threads: Together) -> None:
    # Room for one call at a time at last: all others wait, most of them for another thread.
    budget = Budget(max_tokens=3 * 71 + WORST)
    results: list[Any] = []

    async def batch() -> None:
        results.extend(
            await parallel_acompletions(fake_router, [REQUEST] * 12, concurrency=4, budget=budget)
        )

    for _ in range(2):
        threads.start(lambda: trio.run(batch))
        threads.start(lambda: asyncio.run(batch()))
        threads.start(
            lambda: results.extend(
                parallel_completions(fake_router, [REQUEST] * 12, concurrency=4, budget=budget)
            )
        )
    threads.join()
    assert [result.exception for result in results] == [None] * 72
    assert (budget.spent_tokens, budget.reserved_tokens) == (3 * 72, 0)


def test_one_rate_limit_in_batches_of_many_threads(threads: Together) -> None:
    limit = RateLimit(requests_per_minute=6000, burst=1)
    results: list[Any] = []

    async def batch() -> None:
        results.extend(await parallel_map(anyio.sleep, [0] * 3, rate_limit=limit))

    for _ in range(2):
        threads.start(lambda: trio.run(batch))
        threads.start(lambda: asyncio.run(batch()))
        threads.start(
            lambda: results.extend(
                parallel_completions(fake_router, [REQUEST] * 3, rate_limit=limit)
            )
        )
    threads.join()
    assert [result.exception for result in results] == [None] * 18
    assert not limit._lines
    assert not limit._wake_queue._woken


def test_a_batch_in_a_call_that_blocks_its_loop() -> None:
    budget = Budget(max_tokens=1000)
    limit = RateLimit(requests_per_minute=6000, burst=1)

    async def blocking(**_: Any) -> Any:
        # The others of the outer batch wait for their turn, and their loop does not run.
        inner = parallel_completions(fake_router, [REQUEST] * 2, budget=budget, rate_limit=limit)
        assert [result.exception for result in inner] == [None, None]
        return ANSWER

    results = parallel_completions(
        blocking, [REQUEST] * 3, concurrency=3, budget=budget, rate_limit=limit
    )
    assert [result.exception for result in results] == [None] * 3
    assert (budget.spent_tokens, budget.reserved_tokens) == (27, 0)


def test_inside_of_a_call_of_another_thread_it_does_not_wait() -> None:
    budget = Budget(max_tokens=WORST + 10)

    async def blocking(**_: Any) -> Any:
        (inner,) = parallel_completions(fake_router, [REQUEST], budget=budget)
        assert isinstance(inner.exception, BudgetExceededError)
        return ANSWER

    (result,) = parallel_completions(blocking, [REQUEST], budget=budget)
    assert result.exception is None


def test_batches_that_are_cancelled_at_random_leave_nothing(threads: Together) -> None:
    budget = Budget(max_tokens=20)
    limit = RateLimit(requests_per_minute=60_000, burst=2)
    start = threading.Barrier(6)

    async def one(rolls: random.Random) -> None:
        reservation: Reservation | None = None
        with anyio.move_on_after(rolls.choice((0, 0.0005, 0.002, PATIENCE))):
            reservation = await budget.reserve(0, Usage(rolls.randint(5, 15)))
        if reservation is None:
            return
        with anyio.move_on_after(rolls.choice((0, 0.001, PATIENCE))):
            await limit.acquire(0)
        assert budget.spent_tokens + budget.reserved_tokens <= 20
        reservation.release()

    async def main(seed: int) -> None:
        rolls = random.Random(seed)
        for _ in range(15):
            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(one, rolls)

    def run(seed: int) -> None:
        start.wait(PATIENCE)
        if seed % 2:
            trio.run(main, seed)
        else:
            asyncio.run(main(seed))

    for seed in range(6):
        threads.start(lambda seed=seed: run(seed))  # type: ignore[misc]
    threads.join()
    assert (budget.spent_tokens, budget.reserved_tokens) == (0, 0)
    assert not budget._waiting
    assert not budget._wake_queue._woken
    assert not limit._lines
    assert not limit._wake_queue._woken


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_count_for_themselves(
    how: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)

    async def main() -> None:
        budget = Budget(max_tokens=10, prices={"m": (1, 2)})
        (await budget.reserve(0, Usage(3))).settle_unknown()
        limit = RateLimit(requests_per_minute=60, tokens_per_minute=600, burst=2)
        await limit.acquire(5)
        budget_copy, limit_copy = how(budget), how(limit)
        await budget.reserve(1, Usage(7))
        await limit.acquire(5)
        await budget_copy.reserve(1, Usage(7))
        assert (budget_copy.spent_tokens, budget_copy.reserved_tokens) == (3, 7)
        assert budget_copy.prices == budget.prices
        began = trio.current_time()
        await limit_copy.acquire(5)
        assert trio.current_time() == began
        await limit_copy.acquire(0)
        assert trio.current_time() - began == pytest.approx(1)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_batch_is_cancelled_and_read_in_its_own_thread_alone(host: Host) -> None:
    async def read(batch: Any) -> None:
        await anext(batch)

    async def main() -> None:
        began = anyio.Event()

        async def work(_: int) -> None:
            began.set()
            await anyio.sleep_forever()

        async with iter_parallel_map(work, [1]) as batch:
            await began.wait()
            with pytest.raises(RuntimeError, match="runs in another thread"):
                await anyio.to_thread.run_sync(batch.cancel)
            with pytest.raises(RuntimeError, match=r"another (thread|event loop)"):
                if host.library == "trio":
                    await anyio.to_thread.run_sync(trio.run, read, batch)
                else:
                    await anyio.to_thread.run_sync(lambda: asyncio.run(read(batch)))
            batch.cancel()

    host.run(main)
