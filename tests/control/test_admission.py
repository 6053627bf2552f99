from __future__ import annotations

import contextlib
from typing import Any

import anyio
import anyio.lowlevel
import litellm
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from litellm.types.router import RouterRateLimitError, RouterRateLimitErrorBasic

from helpers.hosts import Host, settle
from parallel_core.control.admission import Admission, costs_nothing
from parallel_core.control.budget import Budget
from parallel_core.control.call import Call, RetryLater
from parallel_core.control.metering import ItemMeter
from parallel_core.control.rate_limit import RateLimit
from parallel_core.errors import BudgetExceededError, CallCancelledError, RequestTimeoutError
from parallel_core.types import Usage

OF: Any = {"message": "x", "model": "m", "llm_provider": "openai"}


class Status(Exception):
    def __init__(self, status: Any) -> None:
        self.status_code = status


class Rejected(Exception):
    status_code = 429


FREE: list[BaseException] = [
    litellm.RateLimitError(**OF),
    litellm.BadRequestError(**OF),
    litellm.AuthenticationError(**OF),
    litellm.NotFoundError(**OF),
    litellm.ContextWindowExceededError(**OF),
    litellm.ContentPolicyViolationError(**OF),
    litellm.ServiceUnavailableError(**OF),
    RouterRateLimitError("m", 5.0, False, []),
    RouterRateLimitErrorBasic("m"),
    Status(400),
    RetryLater(Rejected(), 1.0),
]
UNKNOWN: list[BaseException] = [
    litellm.Timeout(**OF),
    litellm.Timeout(exception_status_code=504, **OF),
    litellm.Timeout(exception_status_code=429, **OF),
    type("Timeout", (Rejected,), {})(),  # whatever it is derived from
    litellm.APIConnectionError(**OF),
    litellm.exceptions.APIResponseValidationError(**OF),
    litellm.exceptions.MidStreamFallbackError(**OF),
    litellm.InternalServerError(**OF),  # without the provider's answer: litellm's word for anything
    litellm.APIError(status_code=500, **OF),
    litellm.APIError(status_code=408, **OF),
    litellm.APIError(status_code=499, **OF),
    TimeoutError(),
    RequestTimeoutError(0, "m", 1.0),
    CallCancelledError(),
    BudgetExceededError(0, "max_tokens of 1", 2, 1),  # of a batch inside of the call
    ConnectionError(),
    KeyboardInterrupt(),
    Status(399),
    Status(599),
    Status(600),
    Status("400"),
    Status(None),
    RetryLater(TimeoutError(), 1.0),
]


@pytest.mark.parametrize("error", FREE, ids=lambda error: type(error).__name__)
def test_costs_nothing(error: BaseException) -> None:
    assert costs_nothing(error)


@pytest.mark.parametrize("error", UNKNOWN, ids=lambda error: type(error).__name__)
def test_nobody_knows_what_it_costs(error: BaseException) -> None:
    assert not costs_nothing(error)


class ThirdsMeter:
    """Items and values are tokens, and cents."""

    def worst_case(self, item: int) -> Usage:
        return Usage(item, cost=item / 100)

    def usage(self, value: int) -> Usage:
        return Usage(value, cost=value / 100)


async def run(call: Call, index: int, item: int) -> None:
    await call(index, item)


def admission(budget: Budget | None, limit: Any = None) -> Admission:
    return Admission(
        budget=budget, rate_limit=limit, meter=ItemMeter(ThirdsMeter()), model_of=lambda item: "m"
    )


@given(
    st.lists(
        st.tuples(
            st.integers(1, 120),
            st.sampled_from(["ok", "free", "lost"]),
            st.none() | st.floats(0, 5),
        ),
        max_size=30,
    )
)
def test_nothing_stays_reserved(calls: list[tuple[int, str, float | None]]) -> None:
    budget = Budget(max_cost=1.0)
    limit = RateLimit(requests_per_minute=600, tokens_per_minute=6000)
    expected = 0
    ended = 0

    def check() -> None:
        assert budget.spent_cost + budget.reserved_cost <= 1.0

    async def call(index: int, item: int) -> Any:
        nonlocal expected
        check()
        expected += item  # until it is known to be less: cancelled from here on, it is unknown
        await trio.sleep(1)
        if calls[index][1] == "free":
            expected -= item
            raise Rejected
        if calls[index][1] == "lost":
            raise ConnectionError
        expected -= item - item // 3
        return item // 3

    wrapped = admission(budget, limit).wrap(call)

    async def one(index: int, item: int, cancelled_after: float | None) -> None:
        nonlocal ended
        with trio.move_on_after(float("inf") if cancelled_after is None else cancelled_after):
            with contextlib.suppress(Rejected, ConnectionError, BudgetExceededError):
                await wrapped(index, item)
        check()
        ended += 1

    async def main() -> None:
        with trio.fail_after(10_000):
            async with trio.open_nursery() as nursery:
                for index, (item, _, cancelled_after) in enumerate(calls):
                    nursery.start_soon(one, index, item, cancelled_after)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert ended == len(calls)
    assert budget.reserved_cost == 0
    assert budget.reserved_tokens == 0
    assert budget.spent_tokens == expected
    assert budget.spent_cost == pytest.approx(expected / 100)
    assert not budget._waiting


@pytest.mark.parametrize(
    ("outcome", "spent", "level"),
    [
        (4, 4, 56),
        (10, 10, 50),
        (Rejected(), 0, 60),
        (ConnectionError(), 10, 50),
        (TimeoutError(), 10, 50),
        (litellm.APIConnectionError(**OF), 10, 50),
    ],
)
def test_both_are_corrected(host: Host, outcome: Any, spent: int, level: int) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=20)
        # 60 tokens at once: so slow that nothing comes while the test runs.
        limit = RateLimit(requests_per_minute=1e-3, tokens_per_minute=0.02, burst=3)
        assert limit._tokens is not None
        assert limit._requests is not None

        async def call(index: int, item: int) -> Any:
            assert (budget.spent_tokens, budget.reserved_tokens) == (0, 10)
            assert limit._tokens is not None
            assert limit._tokens.level == pytest.approx(50, abs=0.01)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        wrapped = admission(budget, {"m": limit}).wrap(call)
        if isinstance(outcome, Exception):
            with pytest.raises(type(outcome)):
                await wrapped(0, 10)
        else:
            assert await wrapped(0, 10) == outcome
        assert (budget.spent_tokens, budget.reserved_tokens) == (spent, 0)
        assert limit._tokens.level == pytest.approx(level, abs=0.01)
        assert limit._requests.level == pytest.approx(2, abs=0.01)  # also where it is rejected

    host.run(main)


def test_more_than_expected_is_counted_where_nothing_was_expected(host: Host) -> None:
    async def main() -> None:
        limit = RateLimit(requests_per_minute=1e-3, tokens_per_minute=0.02, burst=3)

        async def call(index: int, item: int) -> int:
            return 7

        await admission(None, limit).wrap(call)(0, 0)
        assert limit._tokens is not None
        assert limit._tokens.level == pytest.approx(53, abs=0.01)

    host.run(main)


@pytest.mark.parametrize(
    ("stage", "spent"), [("budget", 0), ("rate limit", 0), ("call", 10), ("second step", 10)]
)
def test_cancelled_at_every_await(host: Host, stage: str, spent: int) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=20)
        limit = RateLimit(requests_per_minute=1e-3)
        blocker = await budget.reserve(9, Usage(15)) if stage == "budget" else None
        if stage == "rate limit":
            await limit.acquire(0)
        sent = False

        async def call(index: int, item: int) -> Any:
            nonlocal sent
            sent = True
            if stage == "second step":
                await anyio.lowlevel.checkpoint()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, admission(budget, limit).wrap(call), 0, 10)
            await settle()
            assert sent == (spent > 0)
            tasks.cancel_scope.cancel()
        if blocker is not None:
            blocker.release()
        assert (budget.spent_tokens, budget.reserved_tokens) == (spent, 0)
        assert not budget._waiting
        assert not limit._lines

    host.run(main)


def test_a_batch_inside_of_a_call_does_not_wait_and_one_after_it_does(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=20)
        refused = 0

        async def inner(index: int, item: int) -> int:
            return item

        inside = admission(budget).wrap(inner)

        async def outer(index: int, item: int) -> int:
            nonlocal refused
            try:
                await inside(0, 10)
            except BudgetExceededError:
                refused += 1
            return item

        await admission(budget).wrap(outer)(0, 15)
        assert refused == 1
        assert (budget.spent_tokens, budget.reserved_tokens) == (15, 0)
        blocker = await budget.reserve(1, Usage(5))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, inside, 2, 5)  # this task has made a call, and is outside again
            await settle()
            assert budget._waiting
            blocker.release()
        assert (budget.spent_tokens, budget.reserved_tokens) == (20, 0)

    host.run(main)


@pytest.mark.parametrize(
    ("loser", "spent"),
    [(None, 10), (Rejected(), 0), (ConnectionError(), 10)],
)
def test_the_second_attempt(host: Host, loser: BaseException | None, spent: int) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=20)
        made = admission(budget, RateLimit(requests_per_minute=60))
        ticket = made.try_extra(0, 10)
        assert ticket is not None
        assert made.try_extra(0, 11) is None
        assert budget.reserved_tokens == 10
        await ticket.admit()
        ticket.settle(loser)
        assert (budget.spent_tokens, budget.reserved_tokens) == (spent, 0)

    host.run(main)


def test_a_second_attempt_that_was_not_sent_is_free(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=20)
        limit = RateLimit(requests_per_minute=1e-3)
        await limit.acquire(0)
        ticket = admission(budget, limit).try_extra(0, 10)
        assert ticket is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ticket.admit)
            await settle()
            tasks.cancel_scope.cancel()
        ticket.settle(None)
        assert (budget.spent_tokens, budget.reserved_tokens) == (0, 0)

    host.run(main)


class BrokenMeter(ThirdsMeter):
    def usage(self, value: int) -> Usage:
        raise KeyError("broken")


class SilentMeter(ThirdsMeter):
    def usage(self, value: int) -> Any:
        return None


class NanMeter(ThirdsMeter):
    def usage(self, value: int) -> Usage:
        return Usage(1, cost=float("nan"))


@pytest.mark.parametrize("meter", [BrokenMeter(), NanMeter(), SilentMeter()])
def test_what_a_meter_does_not_tell_is_the_worst_case(host: Host, meter: Any) -> None:
    async def main() -> None:
        budget = Budget(max_cost=1)
        made = Admission(
            budget=budget, rate_limit=None, meter=ItemMeter(meter), model_of=lambda item: None
        )

        async def call(index: int, item: int) -> int:
            return 1

        assert await made.wrap(call)(0, 10) == 1  # whatever the meter does, the answer is there
        assert (budget.spent_cost, budget.reserved_cost) == (0.1, 0)

    host.run(main)


def test_a_model_without_a_limit_does_not_wait(host: Host) -> None:
    async def main() -> None:
        limit = RateLimit(requests_per_minute=1e-3)
        await limit.acquire(0)

        async def call(index: int, item: int) -> int:
            return item

        assert await admission(None, {"other": limit}).wrap(call)(0, 3) == 3

    host.run(main)
