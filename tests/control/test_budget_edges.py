"""A budget's edges: copies of it, room given to somebody who leaves, exact caps, messages."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import anyio
import pytest

from helpers.hosts import Host, settle
from parallel_core import Budget
from parallel_core.control.budget import (
    Reservation,
    held_reservation,
    mark_as_held,
)
from parallel_core.control.metering import RouterMeter
from parallel_core.control.prices import UnpricedError
from parallel_core.types import RouterParallelRequest, Usage


def reserved(budget: Budget, usage: Usage) -> Reservation:
    reservation = budget.try_reserve(usage)
    assert reservation is not None
    return reservation


@pytest.mark.parametrize("copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.copy])
def test_a_copy_counts_for_itself(either_library: Host, copied: Any) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=10, max_cost=2, prices={"m": (1, 1)}, assume_output_tokens=3)
        reserved(budget, Usage(4, cost=0.5)).settle(Usage(3, cost=0.25))
        held = reserved(budget, Usage(5, cost=1))
        other: Budget = copied(budget)
        assert (other.max_tokens, other.max_cost, other.prices) == (10, 2, {"m": (1, 1)})
        assert other.assume_output_tokens == 3
        assert (other.spent_tokens, other.spent_cost) == (3, 0.25)
        assert (other.reserved_tokens, other.reserved_cost) == (5, 1)
        held.release()
        assert (budget.reserved_tokens, other.reserved_tokens) == (0, 5)
        # Somebody can wait for room in the copy, and in the copy alone.
        in_the_copy = reserved(other, Usage(2))
        got: list[Reservation] = []

        async def wait() -> None:
            got.append(await other.reserve(0, Usage(2)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await settle()
            assert not got
            assert budget.try_reserve(Usage(7)) is not None
            in_the_copy.release()
        assert other.reserved_tokens == 7

    either_library.run(main)


def test_room_that_was_given_to_somebody_who_leaves_goes_to_the_next(either_library: Host) -> None:
    """The second is served, and its turn to wake has not come, when it is cancelled."""

    async def main() -> None:
        budget = Budget(max_tokens=10)
        first = await budget.reserve(0, Usage(10))
        got: list[int] = []
        scopes = [anyio.CancelScope() for _ in range(3)]

        async def wait(index: int) -> None:
            with scopes[index]:
                await budget.reserve(index, Usage(5))
                got.append(index)

        async with anyio.create_task_group() as tasks:
            for index in range(3):
                tasks.start_soon(wait, index)
                await settle()
            first.release()
            assert budget.reserved_tokens == 10
            scopes[1].cancel()
        assert got == [0, 2]
        assert (budget.spent_tokens, budget.reserved_tokens) == (0, 10)
        assert not budget._waiting
        assert not budget._wake_queue._woken

    either_library.run(main)


def test_what_was_lost_adds_up() -> None:
    budget = Budget(max_tokens=20)
    reserved(budget, Usage(4)).settle(Usage(3))
    reservation = reserved(budget, Usage(5))
    assert reservation.attempt_again(0) is None
    assert reservation.attempt_again(0) is None
    assert (budget.spent_tokens, budget.reserved_tokens) == (13, 5)
    refusal = reservation.attempt_again(7)
    assert refusal is not None
    assert (refusal.index, refusal.limit, refusal.needed) == (7, "max_tokens of 20", 5)
    assert refusal.left == 2


def test_a_reservation_is_open_in_its_own_budget_alone() -> None:
    budget, other = Budget(max_tokens=5), Budget(max_tokens=5)
    reservation = reserved(budget, Usage(5))
    assert reservation.is_open_in(budget)
    assert not reservation.is_open_in(other)
    reservation.release()
    assert not reservation.is_open_in(budget)


def test_the_innermost_open_reservation_is_the_one_that_is_held() -> None:
    budget = Budget(max_tokens=5)
    assert held_reservation() is None
    outer, inner = reserved(budget, Usage(1)), reserved(budget, Usage(1))
    mark_as_held(outer)
    mark_as_held(inner)
    assert held_reservation() is inner
    inner.release()
    assert held_reservation() is outer
    outer.release()
    assert held_reservation() is None


def test_an_unknown_price_is_named() -> None:
    error = UnpricedError("'m'")
    assert str(error) == (
        "Budget.max_cost: the price of 'm' is unknown; give it as "
        "Budget(prices={model: (USD per prompt token, USD per answer token)})"
    )
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), copied.what, str(copied)) == (UnpricedError, "'m'", str(error))


def test_models_without_a_price_are_named_before_the_first_call() -> None:
    meter = RouterMeter(None, {"known": (1, 1)})
    requests = [
        RouterParallelRequest(model, [{"role": "user", "content": "x"}], {"max_tokens": 1})
        for model in ("a", "known", "a", "b")
    ]
    Budget(max_tokens=1).check(meter, requests)
    with pytest.raises(UnpricedError, match="price of 'a', 'b' is unknown"):
        Budget(max_cost=1).check(meter, requests)
    with pytest.raises(UnpricedError, match="price of 'a' is unknown"):
        Budget(max_cost=1).worst_case(meter, requests[0])


@pytest.mark.parametrize("limit", ["max_cost", "max_tokens"])
def test_a_cap_can_be_reached_and_not_exceeded(limit: str) -> None:
    options: Any = {limit: 3}
    budget = Budget(**options)

    def some(amount: int) -> Usage:
        return Usage(amount, cost=amount)

    held = reserved(budget, some(1))
    reserved(budget, some(1)).settle(some(1))
    assert budget.try_reserve(some(2)) is None
    reserved(budget, some(1)).settle_unknown()
    held.settle(some(1))
    assert (budget.spent_cost, budget.spent_tokens) == (3, 3)
    assert (budget.reserved_cost, budget.reserved_tokens) == (0, 0)
    assert budget.try_reserve(some(1)) is None


def test_sums_are_exact() -> None:
    budget = Budget(max_cost=1)
    for _ in range(10):
        reserved(budget, Usage(cost=0.1)).settle(Usage(cost=0.1))
    assert budget.spent_cost == 1
    assert budget.try_reserve(Usage(cost=1e-11)) is None


def test_an_unpriced_call_costs_at_least_the_estimate() -> None:
    budget = Budget(max_cost=10, max_tokens=100)
    reserved(budget, Usage(10, cost=1)).settle(Usage(3, cost=2, unpriced_calls=1))
    reserved(budget, Usage(10, cost=1)).settle(Usage(4, cost=0.5, unpriced_calls=1))
    reserved(budget, Usage(10, cost=1)).settle(Usage(5, cost=0.5))
    assert (budget.spent_cost, budget.spent_tokens) == (3.5, 12)


def test_values_are_kept() -> None:
    budget = Budget(max_cost=2, max_tokens=7, assume_output_tokens=3, prices={"m": (0, 1)})
    assert (budget.max_cost, budget.max_tokens, budget.assume_output_tokens) == (2, 7, 3)
    assert budget.prices == {"m": (0, 1)}
    assert repr(budget) == "Budget(max_cost=2, max_tokens=7)"
    assert Budget(max_cost=1).prices == {}
    for message, options in (
        ("Budget.max_cost must be a number", {"max_cost": "1"}),
        (r"Budget.max_tokens must be an integer", {"max_tokens": 1.5}),
        (
            r"Budget.assume_output_tokens must be an integer",
            {"max_tokens": 1, "assume_output_tokens": 0.5},
        ),
        (
            r"Budget.prices must be a mapping from model to prices, not list",
            {"max_cost": 1, "prices": [1]},
        ),
        (r"Budget.prices\['m'\]\[0\] must", {"max_cost": 1, "prices": {"m": ("1", 1)}}),
        (r"Budget.prices\['m'\]\[1\] must", {"max_cost": 1, "prices": {"m": (1, "1")}}),
    ):
        with pytest.raises(TypeError, match=f"^{message}"):
            Budget(**options)
    with pytest.raises(
        ValueError,
        match=r"^Budget.prices\['m'\] must be \(USD per prompt token, USD per answer token\)$",
    ):
        Budget(max_cost=1, prices={"m": (1, 2, 3)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"^Budget needs max_cost, max_tokens or both$"):
        Budget()
