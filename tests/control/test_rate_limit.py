"""Rate limits: how many calls begin in a minute, and who waits."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from helpers.hosts import Host, in_virtual_time, settle
from parallel_core import parallel_acompletions, parallel_map
from parallel_core.control.rate_limit import RateLimit, checked_rate_limit


def assert_windows(charges: list[tuple[float, float]], per_minute: float, size: float) -> None:
    """In no window that ends at a charge of more than 0 was more charged."""
    for first, (begin, _) in enumerate(charges):
        total = 0.0
        for at, amount in charges[first:]:
            if at > begin + 60:
                break
            total += amount
            if amount > 0:  # one that is larger than the bucket goes when that is full
                most = per_minute + max(size, amount)
                assert total <= most * (1 + 1e-6) + 1e-6


@given(
    rpm=st.floats(1, 600),
    tpm=st.floats(10, 10_000),
    burst=st.integers(1, 20),
    calls=st.lists(
        st.tuples(
            st.floats(0, 90),  # when it comes
            st.floats(0, 1) | st.floats(0, 3),  # tokens, as a share of the bucket
            st.none() | st.floats(0, 60),  # how long it is ready to wait
            st.none() | st.just("release") | st.floats(0, 1),  # corrected to this share of it
            st.floats(0, 90),  # ... after
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_no_window_sees_more(rpm: float, tpm: float, burst: int, calls: list[Any]) -> None:
    limit = RateLimit(requests_per_minute=rpm, tokens_per_minute=tpm, burst=burst)
    size = max(1.0, tpm * burst / rpm)
    requests: list[tuple[float, float]] = []
    tokens: list[tuple[float, float]] = []
    ended = 0

    async def one(at: float, share: float, patience: float | None, then: Any, after: float) -> None:
        nonlocal ended
        amount = int(share * size)
        await trio.sleep(at)
        with trio.move_on_after(float("inf") if patience is None else patience) as scope:
            await limit.acquire(amount)
            requests.append((trio.current_time(), 1))
            tokens.append((trio.current_time(), amount))
        ended += 1
        if scope.cancelled_caught or then is None:
            return
        await trio.sleep(after)
        if then == "release":
            limit.release(amount)
            requests.append((trio.current_time(), -1))
            tokens.append((trio.current_time(), -amount))
        else:
            actual = int(amount * then)
            limit.correct(amount, actual)
            tokens.append((trio.current_time(), actual - amount))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(one, *call)

    in_virtual_time(main)
    assert ended == len(calls)
    assert_windows(requests, rpm, burst)
    assert_windows(tokens, tpm, size)
    assert not limit._lines


async def times_of(limit: RateLimit, *tokens: int) -> list[float]:
    began = anyio.current_time()
    times: list[float] = []
    for amount in tokens:
        await limit.acquire(amount)
        times.append(anyio.current_time() - began)
    return times


@pytest.mark.parametrize(
    ("options", "tokens", "expected"),
    [
        ({"requests_per_minute": 60}, [0, 0, 0], [0, 1, 2]),
        ({"requests_per_minute": 60, "burst": 2}, [0, 0, 0, 0], [0, 0, 1, 2]),
        ({"requests_per_minute": 180}, [0] * 4, [0, 0, 0, 1 / 3]),
        ({"tokens_per_minute": 600}, [10, 5, 5], [0, 0.5, 1]),
        # Larger than the bucket (10): it goes when that is full, and leaves debt.
        ({"tokens_per_minute": 600}, [30, 0, 10], [0, 2, 3]),
        ({"requests_per_minute": 60, "tokens_per_minute": 60, "burst": 3}, [3, 3], [0, 3]),
    ],
)
def test_pace(options: Any, tokens: list[int], expected: list[float]) -> None:
    async def main() -> None:
        assert await times_of(RateLimit(**options), *tokens) == pytest.approx(expected)

    in_virtual_time(main)


def test_a_correction_is_not_made_good_by_the_time_before() -> None:
    async def main() -> None:
        limit = RateLimit(tokens_per_minute=600)
        await limit.acquire(10)
        await trio.sleep(100)
        limit.correct(10, 20)
        assert await times_of(limit, 10) == pytest.approx([1])

    in_virtual_time(main)


def test_what_is_given_back_wakes_the_first_and_fills_the_bucket_at_most() -> None:
    async def main() -> None:
        limit = RateLimit(requests_per_minute=1, tokens_per_minute=60, burst=2)
        assert await times_of(limit, 60, 60) == [0, 0]
        times: list[float] = []

        async def waiter() -> None:
            times.extend(await times_of(limit, 5))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waiter)
            await trio.sleep(3)
            limit.correct(60, 0)
            await trio.sleep(1)
            limit.release(60)
        assert times == pytest.approx([4])
        await trio.sleep(1000)
        limit.release(500)
        assert await times_of(limit, 120, 0, 0) == pytest.approx([0, 0, 60])

    in_virtual_time(main)


@pytest.mark.parametrize("rate", [3.3e-6, 7e-7, 3e-8, 7e-9, 1.7e-10])
def test_very_slow_rates_get_there(rate: float) -> None:
    async def main() -> None:
        limit = RateLimit(requests_per_minute=rate)
        times = [60 * number / rate for number in range(20)]
        assert await times_of(limit, *[0] * 20) == pytest.approx(times)

    in_virtual_time(main)


def test_first_come_first_served_and_a_cancelled_one_takes_nothing() -> None:
    limit = RateLimit(requests_per_minute=60, tokens_per_minute=60)
    order: list[tuple[int, float]] = []

    async def one(number: int, scope: trio.CancelScope, tokens: int) -> None:
        with scope:
            await limit.acquire(tokens)
            order.append((number, trio.current_time()))

    async def main() -> None:
        began = trio.current_time()
        scopes = [trio.CancelScope() for _ in range(6)]
        async with trio.open_nursery() as nursery:
            for number, scope in enumerate(scopes):
                nursery.start_soon(one, number, scope, int(number == 2))
                await trio.testing.wait_all_tasks_blocked()
            scopes[1].cancel()  # the first of the queue
            scopes[4].cancel()  # in the middle
        assert [number for number, _ in order] == [0, 2, 3, 5]
        assert [at - began for _, at in order] == pytest.approx([0, 1, 2, 3])

    in_virtual_time(main)


def test_a_cancelled_waiter_does_not_block_the_next(host: Host) -> None:
    async def main() -> None:
        limit = RateLimit(requests_per_minute=1)
        await limit.acquire(0)
        got: list[str] = []

        async def waiter(name: str, scope: anyio.CancelScope) -> None:
            with scope:
                await limit.acquire(0)
                got.append(name)

        first, second, third = (anyio.CancelScope() for _ in range(3))
        async with anyio.create_task_group() as tasks:
            for name, scope in (("first", first), ("second", second), ("third", third)):
                tasks.start_soon(waiter, name, scope)
                await settle()
            second.cancel()
            await settle()
            first.cancel()
            await settle()
            assert got == []
            limit.release(0)
        assert got == ["third"]
        assert not limit._lines

    host.run(main)


@pytest.mark.parametrize("second", ["trio", "asyncio"])
def test_levels_carry_over_to_the_next_loop(
    host: Host, second: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    limit = RateLimit(requests_per_minute=60, burst=10)

    async def use() -> None:
        for _ in range(10):
            await limit.acquire(0)

    async def level() -> float:
        await limit.acquire(0)
        assert limit._requests is not None
        return limit._requests.level

    if host.library == "asyncio":
        # Its clock is time.monotonic as well.
        host.run(use)
    else:
        trio.run(use, clock=trio.testing.MockClock())
    now += 4.5
    left = (
        trio.run(level, clock=trio.testing.MockClock())
        if second == "trio"
        else asyncio.run(level())
    )
    assert left == pytest.approx(3.5, abs=0.2)


def test_a_correction_of_the_last_loop_counts() -> None:
    limit = RateLimit(tokens_per_minute=600)

    async def acquire() -> None:
        await limit.acquire(4)

    async def correct() -> None:
        limit.correct(4, 9)

    trio.run(acquire, clock=trio.testing.MockClock())
    assert limit._tokens is not None
    assert limit._tokens.level == 6
    trio.run(correct, clock=trio.testing.MockClock())
    assert limit._tokens.level == 1


def test_several_batches_share_a_limit() -> None:
    limit = RateLimit(requests_per_minute=60)
    times: list[float] = []

    async def call(item: int) -> int:
        times.append(trio.current_time())
        await trio.sleep(5)
        return item

    async def batch() -> None:
        results = await parallel_map(call, range(4), concurrency=4, rate_limit=limit)
        assert [result.value for result in results] == [0, 1, 2, 3]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(batch)
            nursery.start_soon(batch)
        assert [at - times[0] for at in times] == pytest.approx(range(8))

    in_virtual_time(main)


def test_waits_by_model_before_the_call() -> None:
    times: dict[str, list[float]] = {"a": [], "b": []}

    async def fake(model: str, **_: Any) -> Any:
        times[model].append(trio.current_time())
        return {"usage": {"prompt_tokens": 5, "completion_tokens": 5}}

    async def main() -> None:
        began = trio.current_time()
        results = await parallel_acompletions(
            fake,
            [
                {"model": model, "messages": [{"role": "user", "content": "x"}]}
                for model in ("a", "a", "a", "b", "b")
            ],
            concurrency=5,
            rate_limit={"a": RateLimit(requests_per_minute=6)},
        )
        assert all(result.ok for result in results)
        assert [at - began for at in times["a"]] == pytest.approx([0, 10, 20])
        assert [at - began for at in times["b"]] == pytest.approx([0, 0])

    in_virtual_time(main)


def test_values() -> None:
    with pytest.raises(ValueError, match="requests_per_minute, tokens_per_minute or both"):
        RateLimit()
    with pytest.raises(ValueError, match="above 0"):
        RateLimit(requests_per_minute=0)
    with pytest.raises(TypeError, match="tokens_per_minute must be a number"):
        RateLimit(tokens_per_minute="1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        RateLimit(requests_per_minute=1, burst=0)
    with pytest.raises(ValueError, match="needs requests_per_minute"):
        RateLimit(tokens_per_minute=1, burst=1)
    limit = RateLimit(requests_per_minute=120)
    assert repr(limit) == "RateLimit(requests_per_minute=120, tokens_per_minute=None, burst=2)"
    checked_rate_limit(None)
    checked_rate_limit({"m": limit})
    with pytest.raises(TypeError, match="must be a RateLimit, or a mapping"):
        checked_rate_limit(5)
    with pytest.raises(TypeError, match=r"rate_limit\['m'\] must be a RateLimit, not int"):
        checked_rate_limit({"m": 5})
