"""Adaptive concurrency with a limit for each key: models, and tenants that share a capacity."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import trio
import trio.testing

import parallel_core
from helpers.hosts import in_virtual_time
from helpers.providers import Limited, OverloadedError, Provider, answered_within
from parallel_core import AdaptiveConcurrency, BatchTimeoutError, Retry, RouterParallelRequest
from parallel_core.control.adaptive import Adaptation


@pytest.mark.parametrize("by_model", [True, False])
def test_a_rate_limited_key_does_not_slow_down_the_others(by_model: bool) -> None:
    limit = Limited(5, retry_after=10)
    ended: dict[str, float] = {}

    async def answer(*, model: str, messages: object) -> str:
        await anyio.sleep(0.05)
        if model == "limited":
            limit.take()
        await anyio.sleep(1)
        ended[model] = anyio.current_time()
        return model

    async def main() -> list[parallel_core.LimitChange]:
        messages = [{"role": "user", "content": "Is it?"}]
        requests = [
            RouterParallelRequest(model, messages)
            for _ in range(60)
            for model in ("limited", "healthy")
        ]
        async with parallel_core.iter_parallel_acompletions(
            answer,
            requests,
            concurrency="auto",
            fair_by="model" if by_model else lambda request: request.model,
        ) as batch:
            results = [result async for result in batch]
        assert len(results) == 120
        assert all(result.ok for result in results)
        return batch.limit_changes

    began = 0.0

    async def timed() -> list[parallel_core.LimitChange]:
        nonlocal began
        began = anyio.current_time()
        return await main()

    changes = in_virtual_time(timed)
    # 60 calls of a second, 16 at a time and more and more: with one limit for both, which the
    # rejections bring down, it would be many minutes.
    assert ended["healthy"] - began < (5 if by_model else 12)
    assert ended["limited"] - began > 60 * 11
    assert min(c.limit for c in changes if c.key == "limited") == 0  # it has waited
    assert min(c.limit for c in changes if c.key == "healthy") >= 16
    assert max(c.rejected for c in changes if c.key == "healthy") == 0
    assert {c.key for c in changes} == {"limited", "healthy"} | (set() if by_model else {None})


@pytest.mark.parametrize("maximum", [1, 2, 4, 8])
@pytest.mark.parametrize(("dead", "by_model"), [(1, True), (2, True), (40, True), (2, False)])
def test_dead_keys_do_not_stand_in_the_way_of_a_healthy_one(
    maximum: int, dead: int, by_model: bool
) -> None:
    """Requests that wait for their Retry-After take no room from the others."""

    async def answer(*, model: str, messages: object) -> str:
        if model != "healthy":
            await anyio.sleep(0.05)
            raise OverloadedError(60)
        await anyio.sleep(1)
        return model

    async def main() -> None:
        messages = [{"role": "user", "content": "Is it?"}]
        models = [*(f"dead {number}" for number in range(dead)), "healthy"]
        requests = (RouterParallelRequest(m, messages) for _ in range(20) for m in models)
        began = anyio.current_time()
        healthy = 0
        async with parallel_core.iter_parallel_acompletions(
            answer,
            requests,
            concurrency=AdaptiveConcurrency(maximum=maximum),
            fair_by="model" if by_model else lambda request: request.model,
        ) as batch:
            async for result in batch:
                healthy += result.ok
                if healthy == 20:
                    break
        took = anyio.current_time() - began
        assert took < 20 * (1 + 0.05 * (dead + 1)) + 10  # one at a time, in turn

    in_virtual_time(main)


@pytest.mark.parametrize("fair", [True, False])
def test_what_is_to_be_sent_again_is_bounded(fair: bool) -> None:
    maximum = 2
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        for number in itertools.count():
            drawn += 1
            yield number

    async def call(number: int) -> None:
        await anyio.sleep(0.001)
        raise OverloadedError(10_000)

    async def main() -> None:
        async with parallel_core.iter_parallel_map(
            call,
            endless(),
            concurrency=AdaptiveConcurrency(initial=2, maximum=maximum),
            fair_by=(lambda number: number) if fair else None,
        ) as batch:
            await trio.sleep(9_000)
            waiting = 1024 if fair else 1
            assert drawn <= batch.started + waiting + 1
            # Keys by the thousand, of which each is tried once, are set apart up to a bound.
            assert batch.started <= 2 * maximum + (waiting if fair else 0)

    in_virtual_time(main)


@pytest.mark.parametrize(
    ("tenants", "capacity"),
    [
        pytest.param(2, 32, marks=pytest.mark.thorough),
        (100, 16),
        pytest.param(1000, 32, marks=pytest.mark.thorough),
    ],
)
def test_tenants_that_share_a_capacity_find_it_together(tenants: int, capacity: int) -> None:
    provider = Provider(lambda _: capacity)
    best = answered_within(60, Provider(lambda _: capacity), capacity)

    async def main() -> None:
        with trio.move_on_after(60):
            async with parallel_core.iter_parallel_map(
                provider.answer,
                itertools.count(),
                concurrency="auto",
                fair_by=lambda number: number % tenants,
            ) as batch:
                async for result in batch:
                    assert result.ok, result.exception

    in_virtual_time(main)
    assert provider.answered >= 0.85 * best
    assert provider.rejected_share < 0.06  # more tenants than places: each tries with one at least


@pytest.mark.parametrize("seconds", [0.5, 5.0, 20.0])
def test_tenants_that_are_always_rejected_cost_the_others_little(seconds: float) -> None:
    async def call(job: tuple[str, int]) -> None:
        if job[0].startswith("bad"):
            await anyio.sleep(0.01)
            raise OverloadedError
        await anyio.sleep(seconds)

    async def main() -> None:
        keys = ["bad 1", "bad 2", *(f"good {number}" for number in range(8))]
        began = anyio.current_time()
        good = 0
        async with parallel_core.iter_parallel_map(
            call,
            ((key, number) for number in range(10) for key in keys),
            concurrency="auto",
            fair_by=lambda job: job[0],
        ) as batch:
            async for result in batch:
                good += result.ok
                if good == 80:
                    break
        # Sixteen at a time: without the bad ones it is five times as long as a call.
        assert anyio.current_time() - began < 8 * seconds

    in_virtual_time(main)


@pytest.mark.parametrize("tenants", [50, 1_000_000])
def test_tenants_that_share_a_rate_limit_are_all_answered(tenants: int) -> None:
    limit = Limited(60, retry_after=10)

    async def call(number: int) -> None:
        await anyio.sleep(0.05)
        limit.take()
        await anyio.sleep(1)

    async def main() -> None:
        with trio.move_on_after(600):
            async with parallel_core.iter_parallel_map(
                call, itertools.count(), concurrency="auto", fair_by=lambda number: number % tenants
            ) as batch:
                async for result in batch:
                    assert result.ok, result.exception
        # Of 600; where the last pause ends late, a part of a minute is missing.
        assert batch.succeeded >= 510

    in_virtual_time(main)


def test_a_key_whose_calls_hang_leaves_the_others_to_grow() -> None:
    draw = random.Random(1)

    async def call(key: str) -> str:
        await anyio.sleep(draw.uniform(0.5, 1.5) if key == "fast" else 10_000)
        return key

    async def main() -> None:
        began = anyio.current_time()
        fast = 0
        async with parallel_core.iter_parallel_map(
            call,
            ["hung", "fast"] * 400,
            concurrency="auto",
            fair_by=lambda key: key,
        ) as batch:
            async for _ in batch:
                fast += 1
                if fast == 400:
                    break
        # At eight a second, half of the first limit, it would take 50 s.
        took = anyio.current_time() - began
        assert took < 15, took

    in_virtual_time(main)


def test_a_key_begins_again_after_its_wait_although_nothing_is_to_be_sent_again() -> None:
    async def call(item: int) -> int:
        await anyio.sleep(0.05)
        raise OverloadedError(retry_after=2)

    async def main() -> None:
        with trio.fail_after(10_000):
            results = await parallel_core.parallel_map(
                call,
                range(40),
                concurrency=AdaptiveConcurrency(initial=2),
                retry=Retry(max_attempts=1),
                fair_by=lambda number: number % 2,
            )
        assert [type(result.exception) for result in results] == [OverloadedError] * 40

    in_virtual_time(main)


def test_the_limit_for_all_goes_down_only_for_several_keys_that_do_get_through() -> None:
    class Keys:
        def key_of(self, index: int) -> int:
            return index

        def make_room(self, key: object) -> bool:
            return False

    async def call(index: int, item: bool) -> None:
        await anyio.sleep(0.1 if item else 1)
        if item:
            raise OverloadedError

    async def main() -> None:
        engine: Any = SimpleNamespace(
            current_time=trio.current_time, limit=16, call_later=lambda *_: lambda: None
        )
        engine.set_limit = lambda limit: setattr(engine, "limit", limit)
        adaptation = Adaptation(AdaptiveConcurrency(), Keys())
        adaptation.begin(engine)
        watched = adaptation.watch(call)

        async def rejected(key: int) -> int:
            with pytest.raises(OverloadedError):
                await watched(key, True)
            return int(engine.limit)

        await watched(0, False)
        assert await rejected(1) == 16  # one key alone
        assert await rejected(1) == 16
        await anyio.sleep(5)
        await watched(0, False)
        assert await rejected(2) == 16  # another one, but much later
        assert await rejected(1) == 16  # nothing of this one gets through
        assert await rejected(3) < 16

    in_virtual_time(main)


def test_the_total_timeout_ends_requests_whose_key_waits() -> None:
    async def call(item: int) -> int:
        await anyio.sleep(0.05)
        raise OverloadedError(retry_after=300)

    async def main() -> None:
        began = anyio.current_time()
        results = await parallel_core.parallel_map(
            call,
            range(40),
            concurrency="auto",
            total_timeout=5,
            fair_by=lambda number: number % 2,
        )
        assert anyio.current_time() - began == pytest.approx(5)
        assert [type(result.exception) for result in results] == [BatchTimeoutError] * 40

    in_virtual_time(main)


def test_limits_of_keys_without_end_are_forgotten() -> None:
    class Keys:
        def key_of(self, index: int) -> int:
            return index

        def make_room(self, key: object) -> bool:
            raise AssertionError("nothing was held")

    async def call(index: int, item: object) -> None:
        if index == 7:
            await anyio.sleep_forever()

    async def main() -> None:
        adaptation = Adaptation(AdaptiveConcurrency(), Keys(), apart=True)
        engine: Any = SimpleNamespace(current_time=trio.current_time)
        adaptation.begin(engine)
        watched = adaptation.watch(call)

        async def hang() -> None:
            await watched(7, None)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hang)
            await trio.testing.wait_all_tasks_blocked()
            for index in range(10, 10_000):
                await watched(index, None)
            assert len(vars(adaptation)["_of_key"]) < 2048
            assert 7 in vars(adaptation)["_of_key"]  # it is in flight
            tasks.cancel_scope.cancel()

    in_virtual_time(main)
