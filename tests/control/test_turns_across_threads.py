"""Who waits for a budget in several threads, and whose turn it is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trio.testing

from helpers.hosts import Host, settle
from helpers.threads import PATIENCE, Together, WaitingThread, outcome_of
from parallel_core import Budget, BudgetExceededError, RateLimit
from parallel_core.control.turns import SerialLock
from parallel_core.types import Usage

LIBRARIES = ["trio", "asyncio"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_thread_without_a_loop_wakes_who_waits_for_a_budget(
    threads: Together, library: str
) -> None:
    budget = Budget(max_tokens=10)
    held = trio.run(budget.reserve, 0, Usage(10))
    waiting = WaitingThread(threads, library, lambda: budget.reserve(1, Usage(4)))
    refused = WaitingThread(threads, library, lambda: outcome_of(budget.reserve(2, Usage(9))))
    held.settle(Usage(5))
    threads.join()
    (reservation,) = waiting.got
    (error,) = refused.got
    assert isinstance(error, BudgetExceededError)
    assert error.index == 2
    assert (budget.spent_tokens, budget.reserved_tokens) == (5, 4)
    reservation.release()


@pytest.mark.parametrize("libraries", [("trio", "asyncio"), ("asyncio", "trio")])
def test_threads_are_served_in_the_order_in_which_they_came(
    threads: Together, libraries: tuple[str, str]
) -> None:
    budget, limit = Budget(max_tokens=10), RateLimit(requests_per_minute=1)
    held = trio.run(budget.reserve, 0, Usage(10))
    trio.run(limit.acquire, 0)
    order: list[tuple[str, int]] = []
    moves = threading.Semaphore(0)

    async def wait_for(number: int) -> None:
        reservation = await budget.reserve(number, Usage(10))
        order.append(("budget", number))
        reservation.release()
        moves.release()

    async def wait_for_limit(number: int) -> None:
        await limit.acquire(0)
        order.append(("limit", number))
        moves.release()

    for number in range(6):
        library = libraries[number % 2]
        WaitingThread(threads, library, lambda number=number: wait_for(number))  # type: ignore[misc]
        WaitingThread(threads, library, lambda number=number: wait_for_limit(number))  # type: ignore[misc]
    held.release()
    for _ in range(6):
        assert moves.acquire(timeout=PATIENCE)
    for _ in range(6):
        limit.release(0)
        assert moves.acquire(timeout=PATIENCE)
    threads.join()
    assert order == [(kind, number) for kind in ("budget", "limit") for number in range(6)]
    assert not budget._waiting


@pytest.mark.parametrize("library", LIBRARIES)
def test_cancelled_just_when_another_thread_gives_it_its_turn(
    threads: Together, host: Host, library: str
) -> None:
    budget, limit = Budget(max_tokens=10), RateLimit(requests_per_minute=1)
    held = trio.run(budget.reserve, 0, Usage(10))
    trio.run(limit.acquire, 0)
    got: list[str] = []

    async def main() -> None:
        async def wait(name: str, function: Callable[[], Awaitable[Any]]) -> None:
            await function()
            got.append(name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, "budget", lambda: budget.reserve(1, Usage(10)))
            tasks.start_soon(wait, "limit", lambda: limit.acquire(0))
            await settle()
            others = [
                WaitingThread(threads, library, lambda: budget.reserve(2, Usage(10))),
                WaitingThread(threads, library, lambda: limit.acquire(0)),
            ]
            giving = Together()
            giving.start(held.release)
            giving.start(lambda: limit.release(0))
            giving.join()
            # Both have their turns, and do not know it yet.
            assert budget.reserved_tokens == 10
            tasks.cancel_scope.cancel()
        # What came with the cancellation is not lost: those in the other threads have it.
        threads.join()
        assert [len(other.got) for other in others] == [1, 1]
        others[0].got[0].release()

    host.run(main)
    assert got == []
    assert (budget.spent_tokens, budget.reserved_tokens) == (0, 0)
    assert not budget._waiting
    assert not limit._lines
    assert not budget._wake_queue._woken
    assert not limit._wake_queue._woken


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_next_thread_goes_on_when_one_is_cancelled(threads: Together, library: str) -> None:
    budget = Budget(max_tokens=10)
    held = trio.run(budget.reserve, 0, Usage(5))
    first = WaitingThread(threads, library, lambda: budget.reserve(1, Usage(6)))
    second = WaitingThread(threads, library, lambda: budget.reserve(2, Usage(5)))
    first.cancel()
    threads.join()
    assert first.got == []
    assert budget.reserved_tokens == 10
    second.got[0].release()
    held.release()
    assert budget.reserved_tokens == 0


def test_who_waits_on_a_loop_that_was_closed_is_passed_over(threads: Together) -> None:
    budget, limit = Budget(max_tokens=10), RateLimit(requests_per_minute=1)
    held = trio.run(budget.reserve, 0, Usage(10))
    trio.run(limit.acquire, 0)
    loop = asyncio.SelectorEventLoop()
    left: list[Any] = []
    for waiter in (budget.reserve(1, Usage(10)), limit.acquire(0)):
        left.append(loop.create_task(waiter))
        left[-1]._log_destroy_pending = False
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    following = [
        WaitingThread(threads, "asyncio", lambda: budget.reserve(2, Usage(10))),
        WaitingThread(threads, "trio", lambda: limit.acquire(0)),
    ]
    held.release()
    limit.release(0)
    threads.join()
    assert [len(waiting.got) for waiting in following] == [1, 1]
    assert budget.reserved_tokens == 10
    following[0].got[0].release()
    # What becomes of the tasks changes nothing.
    left.clear()
    gc.collect()
    assert budget.reserved_tokens == 0
    assert not budget._waiting
    assert not limit._lines


def test_a_turn_is_given_again_to_a_loop_that_was_blocked_too_long(threads: Together) -> None:
    limit = RateLimit(requests_per_minute=60, burst=1)
    began = 0
    blocked, go_on = threading.Event(), threading.Event()
    clock = trio.testing.MockClock()

    async def begin() -> None:
        nonlocal began
        await limit.acquire(0)
        began += 1

    async def slow() -> None:
        await limit.acquire(0)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(begin)
            await settle()
            blocked.set()
            assert go_on.wait(PATIENCE)
            await settle()
            # Its five turns have come, one in a second. It may not use them all now.
            assert began == 0
            for number in range(1, 6):
                clock.jump(1)
                await settle()
                assert began == number

    async def quick() -> None:
        for _ in range(3):
            await limit.acquire(0)

    threads.start(lambda: trio.run(slow, clock=clock))
    assert blocked.wait(PATIENCE)
    # Not held up by the thread that is blocked, whose callers came first.
    trio.run(quick, clock=trio.testing.MockClock(autojump_threshold=0))
    assert limit._now >= 8
    go_on.set()


def test_a_clock_that_runs_ahead_in_another_thread_does_not_stop_the_others() -> None:
    limit = RateLimit(requests_per_minute=60, burst=1)

    async def hour() -> None:
        await limit.acquire(0)
        await trio.sleep(3600)
        await limit.acquire(0)

    async def main() -> None:
        await limit.acquire(0)
        await trio.to_thread.run_sync(
            lambda: trio.run(hour, clock=trio.testing.MockClock(autojump_threshold=0))
        )
        began = trio.current_time()
        for _ in range(3):
            await limit.acquire(0)
        assert trio.current_time() - began == pytest.approx(3)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_clean_up_that_interrupts_a_function_runs_after_it() -> None:
    serial = SerialLock()
    done: list[str] = []

    def interrupted() -> str:
        serial.run_soon(lambda: done.append("clean-up"))  # as the garbage collector may
        done.append("function")
        return "value"

    assert serial.run(interrupted) == "value"
    assert done == ["function", "clean-up"]

    def failing() -> None:
        serial.run_soon(lambda: done.append("again"))
        raise ZeroDivisionError

    with contextlib.suppress(ZeroDivisionError):
        serial.run(failing)
    assert done[2:] == ["again"]
