"""Timers of a batch: they fire once, in a copy of its context, unless they are taken back."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

import pytest

from parallel_core.engine.timers import Timers

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


class Clock:
    """A host that fires when it is told to."""

    def __init__(self) -> None:
        self.pending: list[tuple[object, float, Callable[[], None]]] = []
        self.cancelled: list[float] = []

    def call_later(
        self, nursery: object, seconds: float, function: Callable[[], None]
    ) -> Callable[[], None]:
        self.pending.append((nursery, seconds, function))
        return lambda: self.cancelled.append(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


NURSERY: Any = object()


def timers_of(clock: Any, failures: list[BaseException]) -> Timers:
    return Timers(clock, failures.append)


def test_it_fires_once_in_a_copy_of_the_context(clock: Clock) -> None:
    failures: list[BaseException] = []
    timers = timers_of(clock, failures)
    context = contextvars.copy_context()
    context.run(variable.set, "of the batch")
    seen: list[str] = []

    def function() -> None:
        seen.append(variable.get())
        variable.set("of the timer")

    cancel = timers.call_later(NURSERY, context, 3.0, function)
    [(nursery, seconds, fire)] = clock.pending
    assert (nursery, seconds) == (NURSERY, 3.0)
    fire()
    fire()
    cancel()
    timers.cancel_all()
    assert seen == ["of the batch"]
    assert context.run(variable.get) == "of the batch"
    assert clock.cancelled == []
    assert failures == []


def test_it_can_be_taken_back_alone_or_with_all(clock: Clock) -> None:
    timers = timers_of(clock, [])
    seen: list[float] = []
    context = contextvars.copy_context()
    taken_back = [
        timers.call_later(NURSERY, context, seconds, lambda: seen.append(0.0))
        for seconds in (1.0, 2.0, 3.0)
    ]
    taken_back[1]()
    taken_back[1]()
    assert clock.cancelled == [2.0]
    timers.cancel_all()
    timers.cancel_all()
    assert sorted(clock.cancelled) == [1.0, 2.0, 3.0]
    for _, _, fire in clock.pending:
        fire()
    assert seen == []


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_what_it_raises_is_reported(clock: Clock, error: BaseException) -> None:
    failures: list[BaseException] = []
    timers = timers_of(clock, failures)

    def function() -> None:
        raise error

    timers.call_later(NURSERY, contextvars.copy_context(), 1.0, function)
    clock.pending[0][2]()
    assert failures == [error]
