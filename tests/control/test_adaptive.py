"""Adaptive concurrency: the algorithm in a simulation, and through the engine in virtual time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import Host, in_virtual_time
from parallel_core import (
    AdaptiveConcurrency,
    BatchDeadlineError,
    RequestTimeoutError,
    Retry,
    RouterParallelRequest,
)
from parallel_core.control.adaptive import Adaptation, AdaptiveLimit

T = TypeVar("T")


class OverloadedError(Exception):
    """What a provider answers above its capacity."""

    def __init__(self, retry_after: float | None = 1.0, status_code: int = 429) -> None:
        super().__init__("too many requests")
        self.status_code = status_code
        self.litellm_response_headers = (
            {} if retry_after is None else {"Retry-After": str(retry_after)}
        )


class Provider:
    """Answers after a log-normal time, or rejects at once what is above its capacity."""

    def __init__(self, capacity: Callable[[float], float], *, seed: int = 1) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self.most_in_flight = 0
        self.answered = 0
        self.attempts = 0
        self.late_attempts = 0  # after the first second
        self.late_rejections = 0
        self._random = random.Random(seed)
        self._began: float | None = None

    async def answer(self, item: int) -> int:
        if self._began is None:
            self._began = anyio.current_time()
        now = anyio.current_time() - self._began
        self.attempts += 1
        self.late_attempts += now > 1
        await anyio.sleep(0.004)  # there and back
        if self.in_flight >= self.capacity(now):
            self.late_rejections += now > 1
            raise OverloadedError
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await anyio.sleep(math.exp(0.5 * self._random.gauss(0, 1)))
        finally:
            self.in_flight -= 1
        self.answered += 1
        return item

    @property
    def rejected_share(self) -> float:
        return self.late_rejections / self.late_attempts


def answered_within(
    seconds: float,
    provider: Provider,
    concurrency: int | AdaptiveConcurrency,
) -> int:
    """Calls answered by a provider in a time, of an endless batch."""

    def items() -> Iterator[int]:
        index = 0
        while True:
            yield index
            index += 1

    async def main() -> None:
        with trio.move_on_after(seconds):
            async with parallel_core.iter_parallel_map(
                provider.answer, items(), concurrency=concurrency
            ) as batch:
                async for result in batch:
                    assert result.ok, result.exception

    in_virtual_time(main)
    return provider.answered


@pytest.mark.parametrize("capacity", [8, 16, 32, 64])
@pytest.mark.parametrize("seed", [1, 2])
def test_it_finds_a_hidden_capacity(capacity: int, seed: int) -> None:
    # The best fixed concurrency is the capacity itself: nothing is rejected and nothing idle.
    best = answered_within(60, Provider(lambda _: capacity, seed=seed), capacity)
    provider = Provider(lambda _: capacity, seed=seed)
    found = answered_within(60, provider, AdaptiveConcurrency())
    assert found >= 0.9 * best
    # A call that looks beyond the capacity is a larger share of eight than of sixteen.
    assert provider.rejected_share < (0.03 if capacity >= 16 else 0.04)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_follows_a_capacity_that_changes(seed: int) -> None:
    def capacity(seconds: float) -> int:
        return 16 if 40 <= seconds < 80 else 64

    def best_with(size: int, seconds: float) -> int:
        return answered_within(seconds, Provider(lambda _: size, seed=seed), size)

    best = best_with(64, 80) + best_with(16, 40)
    provider = Provider(capacity, seed=seed)
    found = answered_within(120, provider, AdaptiveConcurrency())
    assert found >= 0.9 * best  # which knows the capacity, and when it changes
    assert provider.rejected_share < 0.03


# --- the algorithm ---


@dataclass(order=True)
class Flight:
    ends: float
    began: float


@given(
    capacity=st.integers(1, 80),
    wait=st.floats(0.01, 5),
    seed=st.integers(0, 1000),
    minimum=st.integers(1, 5),
)
def test_the_limit_stays_in_its_range_and_a_hold_ends(
    capacity: int, wait: float, seed: int, minimum: int
) -> None:
    """A simulation of discrete events; the limit is never left stuck."""
    settings = AdaptiveConcurrency(initial=8, minimum=minimum, maximum=64)
    limit = AdaptiveLimit(settings)
    draw = random.Random(seed)
    flights: list[Flight] = []
    now, answered = 0.0, 0
    while now < 60:
        until = limit.holding_until
        if until is not None and (not flights or until <= flights[0].ends):
            now = max(now, until)
            limit.go_on(now, len(flights))
            assert limit.holding_until is None
        elif until is None and len(flights) < limit.limit:
            if len(flights) < capacity:
                heapq.heappush(flights, Flight(now + draw.uniform(0.5, 1.5), now))
                continue
            began, now = now, now + 0.01
            limit.overloaded(began, now, len(flights), wait)
        else:
            flight = heapq.heappop(flights)
            now = max(now, flight.ends)
            limit.succeeded(flight.began, now, len(flights) + 1)
            answered += 1
        assert settings.minimum <= limit.limit <= settings.maximum
    assert answered > 0


def test_it_doubles_or_triples_in_each_round_trip_until_something_is_rejected() -> None:
    limit = AdaptiveLimit(AdaptiveConcurrency(initial=4))
    for _ in range(4):
        limit.succeeded(0.0, 1.0, in_flight=limit.limit)
    assert limit.limit == 8
    limit = AdaptiveLimit(AdaptiveConcurrency(initial=16))
    for _ in range(16):
        limit.succeeded(0.0, 1.0, in_flight=limit.limit)
    assert limit.limit == 48
    limit.overloaded(1.0, 1.1, in_flight=48, wait=1.0)
    assert limit.limit == int(48 * 0.9)
    assert limit.holding_until is None


def test_one_decrease_for_each_round_trip() -> None:
    limit = AdaptiveLimit(AdaptiveConcurrency(initial=100))
    for _ in range(10):  # begun before the first of them was rejected
        limit.overloaded(1.0, 1.1, in_flight=100, wait=1.0)
    assert limit.limit == 90
    assert limit.holding_until is None
    # Begun since, while none gets through: all wait, and the latest time counts.
    limit.overloaded(1.2, 1.3, in_flight=80, wait=3.0)
    assert limit.holding_until == pytest.approx(4.3)
    limit.overloaded(1.0, 1.4, in_flight=80, wait=10.0)
    assert limit.holding_until == pytest.approx(11.4)
    limit.overloaded(1.0, 1.4, in_flight=80, wait=1.0)
    assert limit.holding_until == pytest.approx(11.4)


def test_a_rejection_after_an_answer_holds_nobody() -> None:
    limit = AdaptiveLimit(AdaptiveConcurrency(initial=100))
    limit.overloaded(1.0, 1.1, in_flight=100, wait=1.0)
    limit.succeeded(1.2, 1.5, in_flight=80)
    limit.overloaded(1.6, 1.7, in_flight=80, wait=1.0)
    assert limit.holding_until is None
    assert limit.limit == int(80 * 0.9)


def test_a_limit_that_holds_nobody_back_does_not_grow() -> None:
    limit = AdaptiveLimit(AdaptiveConcurrency(initial=8))
    for second in range(100):
        limit.succeeded(second, second + 1, in_flight=3)
    assert limit.limit == 8


# --- through the engine ---


async def endless() -> AsyncIterator[int]:
    index = 0
    while True:
        yield index
        index += 1


def test_a_rejected_request_is_sent_again_and_its_slot_is_used_meanwhile() -> None:
    log: list[tuple[float, int]] = []

    async def call(item: int) -> int:
        log.append((trio.current_time() - began, item))
        if item == 0 and len(log) == 1:
            raise OverloadedError(retry_after=10)
        await trio.sleep(1)
        return item

    began = 0.0

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        one = AdaptiveConcurrency(initial=1, maximum=1)
        results = await parallel_core.parallel_map(call, range(4), concurrency=one)
        assert [result.value for result in results] == [1, 2, 3, 0]
        again = log[-1]
        assert again[1] == 0
        assert 10 <= again[0] <= 12.5  # with jitter
        assert log[1:4] == [(0, 1), (1, 2), (2, 3)]
        # The time of a request is that of all its attempts.
        assert results[-1].duration >= 0
        assert results[-1].started_at <= results[0].started_at

    in_virtual_time(main)


def test_a_provider_that_says_at_once_does_not_use_up_all_attempts() -> None:
    running = 0

    async def call(item: int) -> int:
        nonlocal running
        if running == 2:
            await trio.sleep(0.01)
            raise OverloadedError(retry_after=0)
        running += 1
        await trio.sleep(10)
        running -= 1
        return item

    async def main() -> None:
        results = await parallel_core.parallel_map(call, range(100), concurrency="auto")
        assert [result.exception for result in results if not result.ok] == []

    in_virtual_time(main)


def test_a_timeout_that_comes_from_within_the_call_is_counted_once() -> None:
    """As workers raise it, who keep the time of their calls."""

    async def call(item: int) -> int:
        if item % 2:
            raise RequestTimeoutError(item, None, 1.0)
        return item

    async def main() -> None:
        batch = parallel_core.iter_parallel_map(call, range(10), concurrency="auto")
        async with batch:
            failed = [result.index async for result in batch if not result.ok]
        assert sorted(failed) == [1, 3, 5, 7, 9]
        assert batch.limit_changes[-1].rejected == 5

    in_virtual_time(main)


def test_rejections_that_go_on_hold_all_calls() -> None:
    """A rate limit: nothing gets through for a minute, and almost nobody tries."""
    attempts: list[float] = []

    async def call(item: int) -> int:
        now = trio.current_time() - began
        attempts.append(now)
        await trio.sleep(0.01)
        if 5 <= now < 65:
            raise OverloadedError(retry_after=65 - now)
        await trio.sleep(0.5)
        return item

    began = 0.0

    async def main() -> None:
        nonlocal began
        began = trio.current_time()
        results = await parallel_core.parallel_map(call, range(2000), concurrency="auto")
        assert all(result.ok for result in results)
        assert len(results) == 2000

    in_virtual_time(main)
    futile = [when for when in attempts if 5 <= when < 65]
    # Those in the air when it began, and no storm.
    assert len(futile) < 300
    assert not [when for when in futile if when > 6]


def test_the_limit_is_recorded() -> None:
    async def main() -> None:
        provider = Provider(lambda _: 16)
        async with parallel_core.iter_parallel_map(
            provider.answer, range(300), concurrency="auto"
        ) as batch:
            async for result in batch:
                assert result.ok
            changes = batch.limit_changes
        assert changes[0].limit == 16
        assert changes[0].elapsed == 0
        assert max(change.limit for change in changes) >= 16
        assert [change.elapsed for change in changes] == sorted(c.elapsed for c in changes)
        assert changes[-1].rejected == provider.attempts - provider.answered
        fixed: parallel_core.ParallelBatch[object] = parallel_core.iter_parallel_map(
            provider.answer, [], concurrency=3
        )
        assert (fixed.limit, fixed.limit_changes) == (3, [])

    in_virtual_time(main)


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_request_is_given_up_after_its_last_attempt(attempts: int) -> None:
    seen: list[int] = []
    error = OverloadedError(retry_after=0.001)

    async def call(item: int) -> None:
        seen.append(item)
        raise error

    async def main() -> None:
        results = await parallel_core.parallel_map(
            call, range(3), concurrency="auto", retry=Retry(max_attempts=attempts)
        )
        assert [result.exception for result in results] == [error] * 3
        assert sorted(seen) == sorted([0, 1, 2] * attempts)

    in_virtual_time(main)


def test_fail_fast_does_not_count_an_attempt_that_is_made_again(host: Host) -> None:
    rejected: set[int] = set()

    async def call(item: int) -> int:
        if item not in rejected:
            rejected.add(item)
            raise OverloadedError(retry_after=0.001)
        if item == 5:
            raise LookupError(item)
        return item

    async def main() -> None:
        with pytest.raises(LookupError):
            await parallel_core.parallel_map(
                call, range(6), concurrency="auto", return_exceptions=False
            )

    host.run(main)


@pytest.mark.parametrize("how", ["break", "cancel", "aclose"])
def test_leaving_forgets_what_was_to_be_sent_again(how: str, host: Host) -> None:
    async def call(item: int) -> int:
        if item:
            raise OverloadedError(retry_after=300)
        return item

    async def main() -> None:
        batch = parallel_core.iter_parallel_map(call, endless(), concurrency="auto")
        async with batch:
            async for result in batch:
                assert result.index == 0
                if how == "cancel":
                    batch.cancel()
                elif how == "aclose":
                    await batch.aclose()
                else:
                    break
        assert batch.in_flight == 0

    host.run(main)


def test_slots_that_wait_for_the_last_request_end_with_it() -> None:
    """Five slots have nothing to do while the sixth request waits to be sent again."""
    attempts: list[int] = []

    async def call(item: int) -> int:
        attempts.append(item)
        await trio.sleep(0.1)
        if item == 0 and attempts.count(0) == 1:
            raise OverloadedError(retry_after=100)
        return item

    async def main() -> None:
        six = AdaptiveConcurrency(initial=6, minimum=6, maximum=6)
        with trio.fail_after(200):
            results = await parallel_core.parallel_map(call, range(6), concurrency=six)
        assert sorted(result.unwrap() for result in results) == list(range(6))

    in_virtual_time(main)


def test_a_limit_that_shrinks_by_one_ends_one_slot() -> None:
    async def main() -> None:
        started: list[int] = []

        async def call(item: int) -> None:
            started.append(item)
            await trio.sleep(1)

        # A batch with an agenda, whose limit nobody else changes.
        async with parallel_core.iter_parallel_map(
            call, range(100), concurrency=4, fair_by=str, concurrency_per_key=4
        ) as batch:
            await trio.sleep(0.5)
            batch._core.set_limit(3)  # pyright: ignore[reportPrivateUsage]
            await trio.sleep(1)
            assert batch.in_flight == 3
            assert batch._core._open_slots == 3  # pyright: ignore[reportPrivateUsage]
            assert len(started) == 7

    in_virtual_time(main)


# --- a limit for each key ---


class Limited:
    """A rate limit: what is too much for a minute is rejected at once."""

    def __init__(self, per_minute: int, retry_after: float) -> None:
        self._per_minute = per_minute
        self._retry_after = retry_after
        self._answered: list[float] = []

    def take(self) -> None:
        now = anyio.current_time()
        self._answered = [at for at in self._answered if at > now - 60]
        if len(self._answered) >= self._per_minute:
            raise OverloadedError(self._retry_after)
        self._answered.append(now)


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


@pytest.mark.parametrize(("tenants", "capacity"), [(2, 32), (100, 16), (1000, 32)])
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


def test_the_deadline_ends_requests_whose_key_waits() -> None:
    async def call(item: int) -> int:
        await anyio.sleep(0.05)
        raise OverloadedError(retry_after=300)

    async def main() -> None:
        began = anyio.current_time()
        results = await parallel_core.parallel_map(
            call,
            range(40),
            concurrency="auto",
            deadline=5,
            fair_by=lambda number: number % 2,
        )
        assert anyio.current_time() - began == pytest.approx(5)
        assert [type(result.exception) for result in results] == [BatchDeadlineError] * 40

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
