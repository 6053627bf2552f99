"""Why requests wait although their model answers others, as the snapshots of a batch say it."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import parallel_core
from helpers.budgets import ANSWER, REQUEST, WORST
from helpers.fake_router import FakeRouter, StatusError, requests
from helpers.hosts import in_virtual_time
from parallel_core import AdaptiveConcurrency, Budget, BudgetUse, Delay, Progress, RateLimit, Retry
from parallel_core.control.progress_texts import describe_delays


def snapshots(router: Any, items: list[Any], **options: Any) -> list[Progress]:
    """Run a batch in virtual time, and return its snapshots."""
    seen: list[Progress] = []

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            router, items, on_progress=seen.append, **options
        )
        assert all(result.ok for result in results)

    in_virtual_time(main)
    assert seen[-1].finished
    assert seen[-1].delays == ()
    return seen


def held(progress: Progress) -> int:
    return sum(delay.requests for delay in progress.delays)


async def slow_router(**_: Any) -> Any:
    await trio.sleep(1)
    return ANSWER


def test_calls_that_wait_for_a_rate_limit_hold_their_slots() -> None:
    limit = RateLimit(requests_per_minute=60)
    seen = snapshots(slow_router, [REQUEST] * 6, concurrency=4, rate_limit=limit)
    most = max(seen, key=held)
    assert most.in_flight == 4
    assert most.delays == (Delay("rate_limit", 3),)


def test_calls_that_wait_for_a_budget_hold_their_slots() -> None:
    budget = Budget(max_tokens=2 * WORST)
    seen = snapshots(slow_router, [REQUEST] * 4, concurrency=3, budget=budget)
    most = max(seen, key=held)
    assert most.in_flight == 3
    assert most.delays == (Delay("budget", 1),)
    assert most.budget == BudgetUse(None, 2 * WORST, 0.0, 0, 0.0, 2 * WORST)
    assert seen[-1].budget == BudgetUse(None, 2 * WORST, 0.0, 12, 0.0, 0)


def test_without_a_budget_there_is_no_state_of_one() -> None:
    assert snapshots(slow_router, [REQUEST])[-1].budget is None


def test_requests_that_are_sent_again_are_counted_by_their_reason() -> None:
    def answer(model: str, attempt: int) -> Exception | None:
        return StatusError(429, retry_after="3") if len(router.sent) <= 2 else None

    router = FakeRouter(answer, seconds=10.0)
    seen = snapshots(router.acompletion, list(requests(5)), concurrency=5, retry=Retry())
    most = max(seen, key=held)
    (delay,) = most.delays
    assert (delay.reason, delay.requests) == ("retry", 2)
    assert "429" in delay.cause
    assert delay.next_try is not None
    assert 3 <= most.elapsed + delay.next_try <= 3 * 1.25 + 0.1
    assert not most.waiting


def test_an_adaptive_limit_that_lets_no_call_begin() -> None:
    def answer(model: str, attempt: int) -> Exception | None:
        began = router.sent[0][0]
        return StatusError(429, retry_after="5") if trio.current_time() < began + 1 else None

    router = FakeRouter(answer)
    adaptive = AdaptiveConcurrency(initial=4)
    seen = snapshots(router.acompletion, list(requests(8)), concurrency=adaptive, retry=Retry())
    delays = [delay for progress in seen for delay in progress.delays]
    waits = [delay.next_try for delay in delays if delay.reason == "overload"]
    assert {delay.requests for delay in delays if delay.reason == "overload"} == {0}
    assert max(wait or 0.0 for wait in waits) > 4


@pytest.mark.parametrize(
    ("delays", "texts"),
    [
        ([Delay("rate_limit", 1)], ["1 call waits for the rate limit"]),
        ([Delay("rate_limit", 1200)], ["1,200 calls wait for the rate limit"]),
        ([Delay("budget", 2)], ["2 calls wait for room in the budget"]),
        (
            [Delay("overload", 0, next_try=2.2)],
            ["the provider is overloaded: no new calls for 3 s"],
        ),
        ([Delay("overload", 0, next_try=0.0)], ["the provider is overloaded: no new calls"]),
        (
            [Delay("retry", 1, "overloaded (529)", 7.0), Delay("retry", 5, "timeout", 0.0)],
            [
                "1 request to send again, the first in 7 s: overloaded (529)",
                "5 requests to send again: timeout",
            ],
        ),
        (
            [Delay("retry", 1, letter) for letter in "abcde"],
            [*(f"1 request to send again: {letter}" for letter in "abc"), "and 2 more"],
        ),
    ],
)
def test_texts(delays: list[Delay], texts: list[str]) -> None:
    assert describe_delays(delays) == texts
