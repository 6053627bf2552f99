"""Adaptive concurrency of a batch: rejected calls are sent again, and its slots come and go."""

from __future__ import annotations

import pytest
import trio
import trio.testing

import parallel_core
from helpers.engines import engine_of
from helpers.hosts import Host, in_virtual_time
from helpers.providers import OverloadedError, Provider, endless
from parallel_core import AdaptiveConcurrency, RequestTimeoutError, Retry


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
        results = await parallel_core.parallel_map(
            call, range(4), concurrency=one, preserve_order=False
        )
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


def test_a_limit_that_shrinks_by_one_starts_one_call_less() -> None:
    async def main() -> None:
        started: list[int] = []

        async def call(item: int) -> None:
            started.append(item)
            await trio.sleep(1)

        # A batch with a backlog, whose limit nobody else changes.
        async with parallel_core.iter_parallel_map(
            call, range(100), concurrency=4, fair_by=str, concurrency_per_key=4
        ) as batch:
            await trio.sleep(0.5)
            engine_of(batch).set_limit(3)
            await trio.sleep(1)
            assert batch.in_flight == 3
            assert len(started) == 7

    in_virtual_time(main)
