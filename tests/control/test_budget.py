"""Reservations of a budget: who waits, who is refused, and what is spent."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from helpers.budgets import state
from helpers.hosts import Host, settle
from parallel_core import Budget, BudgetExceededError
from parallel_core.control.budget import Reservation, mark_as_held
from parallel_core.types import Usage


def test_waits_for_others_and_is_refused_when_it_never_fits(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_cost=1.0)
        first = await budget.reserve(0, Usage(cost=0.6))
        got: list[Reservation] = []

        async def second() -> None:
            got.append(await budget.reserve(1, Usage(cost=0.5)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second)
            await settle()
            assert not got
            assert budget.try_reserve(Usage(cost=0.1)) is None  # one waits before it
            first.settle(Usage(cost=0.2))
        assert (budget.spent_cost, budget.reserved_cost) == (0.2, 0.5)
        with pytest.raises(BudgetExceededError) as refused:
            await budget.reserve(2, Usage(cost=0.9))
        error = refused.value
        assert (error.index, error.limit, error.needed) == (2, "max_cost of 1 USD", 0.9)
        assert error.left == 0.3
        got[0].settle_unknown()
        got[0].release()
        assert (budget.spent_cost, budget.reserved_cost) == (0.7, 0)

    host.run(main)


def test_what_never_fits_does_not_wait_in_the_queue(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=10)
        first = await budget.reserve(0, Usage(10))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(budget.reserve, 1, Usage(5))
            await settle()
            with anyio.fail_after(60), pytest.raises(BudgetExceededError):
                await budget.reserve(2, Usage(11))
            first.release()
        assert state(budget) == (0, 0, 0, 5)

    host.run(main)


def test_the_cap_can_be_used_up(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_cost=0.3)
        for index in range(3):
            (await budget.reserve(index, Usage(cost=0.1))).settle_unknown()
        assert state(budget) == (0.3, 0, 0, 0)
        with pytest.raises(BudgetExceededError, match="max_cost"):
            await budget.reserve(3, Usage(cost=1e-9))
        await budget.reserve(4, Usage(5))

    host.run(main)


def test_first_come_first_served(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=10)
        first = await budget.reserve(0, Usage(4, 5))
        order: list[int] = []

        async def one(index: int, tokens: int) -> None:
            try:
                reservation = await budget.reserve(index, Usage(tokens))
            except BudgetExceededError:
                order.append(-index)
                return
            order.append(index)
            await anyio.lowlevel.checkpoint()
            reservation.settle_unknown()

        async with anyio.create_task_group() as tasks:
            for index, tokens in ((1, 8), (2, 1), (3, 7), (4, 1)):
                tasks.start_soon(one, index, tokens)
                await settle()
            assert order == []  # also the small ones, that would fit
            first.release()
        assert order == [1, 2, -3, 4]
        assert state(budget) == (0, 0, 10, 0)

    host.run(main)


@pytest.mark.parametrize("cancelled", [0, 1])
def test_the_next_goes_on_when_one_is_cancelled(host: Host, cancelled: int) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=10)
        first = await budget.reserve(0, Usage(5))
        got: list[int] = []

        async def one(index: int, tokens: int, scope: anyio.CancelScope) -> None:
            with scope:
                await budget.reserve(index, Usage(tokens))
                got.append(index)

        scopes = [anyio.CancelScope() for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for index, scope in enumerate(scopes):
                tasks.start_soon(one, index, 6 if index == 0 else 2, scope)
                await settle()
            scopes[cancelled].cancel()
            await settle()
            assert got == ([1, 2] if cancelled == 0 else [])
            first.release()
        assert got == ([1, 2] if cancelled == 0 else [0, 2])
        assert budget.reserved_tokens == (4 if cancelled == 0 else 8)
        assert not budget._waiting

    host.run(main)


def test_a_cancellation_that_comes_with_the_room_gives_it_to_the_next(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=10)
        first = await budget.reserve(0, Usage(10))
        scope = anyio.CancelScope()
        got: list[str] = []

        async def cancelled() -> None:
            with scope:
                (await budget.reserve(1, Usage(10))).release()
                got.append("cancelled")

        async def following() -> None:
            (await budget.reserve(2, Usage(10))).release()
            got.append("following")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancelled)
            await settle()
            tasks.start_soon(following)
            await settle()
            first.release()
            scope.cancel()
        assert got[-1] == "following"
        assert state(budget) == (0, 0, 0, 0)
        assert not budget._waiting

    host.run(main)


def test_inside_of_a_call_it_does_not_wait(host: Host) -> None:
    async def main() -> None:
        budget, other = Budget(max_tokens=10), Budget(max_tokens=10)
        around = await budget.reserve(0, Usage(6))
        mark_as_held(around)
        with pytest.raises(BudgetExceededError):
            await budget.reserve(1, Usage(5))
        blocker = await other.reserve(0, Usage(10))  # another one is waited for

        async def release() -> None:
            await settle()
            blocker.release()
            blocking.release()

        async with anyio.create_task_group() as tasks:
            around.settle(Usage(1))  # it is outside again
            blocking = await budget.reserve(2, Usage(9))
            tasks.start_soon(release)
            (await other.reserve(3, Usage(10))).release()
            (await budget.reserve(4, Usage(9))).release()
        assert state(budget) == (0, 0, 1, 0)

    host.run(main)


def test_unpriced_usage_counts_with_the_worst_case(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_cost=1, max_tokens=100)
        (await budget.reserve(0, Usage(10, cost=0.5))).settle(Usage(3, unpriced_calls=1))
        assert state(budget) == (0.5, 0, 3, 0)

    host.run(main)


def test_values() -> None:
    assert Budget(max_cost=1e300).spent_cost == 0
    with pytest.raises(ValueError, match="max_cost, max_tokens or both"):
        Budget()
    with pytest.raises(ValueError, match="above 0"):
        Budget(max_cost=0)
    with pytest.raises(TypeError, match="max_tokens must be an integer"):
        Budget(max_tokens=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="assume_output_tokens"):
        Budget(max_tokens=1, assume_output_tokens=0)
    with pytest.raises(TypeError, match=r"Budget\.prices must be a mapping"):
        Budget(max_cost=1, prices=[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prices\['m'\] must be \(USD"):
        Budget(max_cost=1, prices={"m": 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"prices\['m'\]\[1\].*at least 0"):
        Budget(max_cost=1, prices={"m": (0, -1)})
    assert repr(Budget(max_cost=1)) == "Budget(max_cost=1, max_tokens=None)"


def test_an_attempt_that_was_lost_counts_with_its_worst_case() -> None:
    budget = Budget(max_cost=2.5)
    reservation = budget.try_reserve(Usage(cost=1.0))
    assert reservation is not None
    assert reservation.attempt_again(3) is None
    assert (budget.spent_cost, budget.reserved_cost) == (1.0, 1.0)
    refusal = reservation.attempt_again(3)
    assert isinstance(refusal, BudgetExceededError)
    assert refusal.index == 3
    assert (budget.spent_cost, budget.reserved_cost) == (1.0, 1.0)
    reservation.release()
    assert reservation.attempt_again(3) is None  # it has ended: there is nothing to count
    assert (budget.spent_cost, budget.reserved_cost) == (1.0, 0.0)
