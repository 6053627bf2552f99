"""The algorithm of adaptive concurrency, in simulations."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.providers import Provider, answered_within
from parallel_core import AdaptiveConcurrency
from parallel_core.control.adaptive_limit import AdaptiveLimit


@pytest.mark.parametrize("capacity", [8, 16, 32, pytest.param(64, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_it_finds_a_hidden_capacity(capacity: int, seed: int) -> None:
    # The best fixed concurrency is the capacity itself: nothing is rejected and nothing idle.
    best = answered_within(60, Provider(lambda _: capacity, seed=seed), capacity)
    provider = Provider(lambda _: capacity, seed=seed)
    found = answered_within(60, provider, AdaptiveConcurrency())
    assert found >= 0.9 * best
    # A call that looks beyond the capacity is a larger share of eight than of sixteen.
    assert provider.rejected_share < (0.03 if capacity >= 16 else 0.04)


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in (2, 3))]
)
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
            limit.resume(now, len(flights))
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
