"""Batches in several threads, of trio and of asyncio, that share a control."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import random
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
from parallel_core import (
    Budget,
    BudgetExceededError,
    RateLimit,
    RouterParallelRequest,
    iter_parallel_map,
    parallel_acompletions,
    parallel_completions,
    parallel_map,
)
from parallel_core.control._metering import RouterMeter
from parallel_core.control._turns import Serial
from parallel_core.control.budget import Reservation
from parallel_core.types import Usage

PATIENCE = 60.0  # seconds after which a thread is taken to hang

REQUEST = RouterParallelRequest("m", [{"role": "user", "content": "x"}], {"max_tokens": 20})
WORST = RouterMeter(None).worst_case(REQUEST).total_tokens
ANSWER = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}


async def fake_router(**_: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return ANSWER


class Together:
    """Threads of a test. A hang and an error in one of them fail the test."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, function: Callable[[], object]) -> None:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                self._errors.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
        hung = [thread for thread in self._threads if thread.is_alive()]
        if self._errors:
            raise self._errors[0]
        assert not hung, "a thread hangs"


class Waiting:
    """A thread with a loop in which one caller waits for something, and its answer."""

    def __init__(
        self, threads: Together, library: str, function: Callable[[], Awaitable[Any]]
    ) -> None:
        self.got: list[Any] = []
        self._function = function
        self._ready = threading.Event()
        self._scope: anyio.CancelScope
        self._cancel: Callable[[], None]
        runner = {
            "trio": lambda: trio.run(self._main),
            "asyncio": lambda: asyncio.run(self._main()),
        }
        threads.start(runner[library])
        assert self._ready.wait(PATIENCE)

    async def _main(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._scope = tasks.cancel_scope
            token = anyio.lowlevel.current_token()
            self._cancel = lambda: anyio.from_thread.run_sync(self._scope.cancel, token=token)
            tasks.start_soon(self._wait)
            await settle()
            self._ready.set()

    async def _wait(self) -> None:
        self.got.append(await self._function())

    def cancel(self) -> None:
        self._cancel()


LIBRARIES = ["trio", "asyncio"]


@pytest.fixture
def threads() -> Any:
    together = Together()
    yield together
    together.join()


def test_one_budget_in_batches_of_many_threads(threads: Together) -> None:
    # Room for one call at a time at last: all others wait, most of them for another thread.
    budget = Budget(max_tokens=3 * 71 + WORST)
    results: list[Any] = []

    async def batch() -> None:
        results.extend(
            await parallel_acompletions(fake_router, [REQUEST] * 12, concurrency=4, budget=budget)
        )

    for _ in range(2):
        threads.start(lambda: trio.run(batch))
        threads.start(lambda: asyncio.run(batch()))
        threads.start(
            lambda: results.extend(
                parallel_completions(fake_router, [REQUEST] * 12, concurrency=4, budget=budget)
            )
        )
    threads.join()
    assert [result.exception for result in results] == [None] * 72
    assert (budget.spent_tokens, budget.reserved_tokens) == (3 * 72, 0)


def test_one_rate_limit_in_batches_of_many_threads(threads: Together) -> None:
    limit = RateLimit(requests_per_minute=6000, burst=1)
    results: list[Any] = []

    async def batch() -> None:
        results.extend(await parallel_map(anyio.sleep, [0] * 3, rate_limit=limit))

    for _ in range(2):
        threads.start(lambda: trio.run(batch))
        threads.start(lambda: asyncio.run(batch()))
        threads.start(
            lambda: results.extend(
                parallel_completions(fake_router, [REQUEST] * 3, rate_limit=limit)
            )
        )
    threads.join()
    assert [result.exception for result in results] == [None] * 18
    assert not limit._lines
    assert not limit._in_order._woken


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_thread_without_a_loop_wakes_who_waits_for_a_budget(
    threads: Together, library: str
) -> None:
    budget = Budget(max_tokens=10)
    held = trio.run(budget.reserve, 0, Usage(10))
    waiting = Waiting(threads, library, lambda: budget.reserve(1, Usage(4)))
    refused = Waiting(threads, library, lambda: outcome_of(budget.reserve(2, Usage(9))))
    held.settle(Usage(5))
    threads.join()
    (reservation,) = waiting.got
    (error,) = refused.got
    assert isinstance(error, BudgetExceededError)
    assert error.index == 2
    assert (budget.spent_tokens, budget.reserved_tokens) == (5, 4)
    reservation.release()


async def outcome_of(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except BudgetExceededError as error:
        return error


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
        Waiting(threads, library, lambda number=number: wait_for(number))  # type: ignore[misc]
        Waiting(threads, library, lambda number=number: wait_for_limit(number))  # type: ignore[misc]
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
                Waiting(threads, library, lambda: budget.reserve(2, Usage(10))),
                Waiting(threads, library, lambda: limit.acquire(0)),
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
    assert not budget._in_order._woken
    assert not limit._in_order._woken


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_next_thread_goes_on_when_one_is_cancelled(threads: Together, library: str) -> None:
    budget = Budget(max_tokens=10)
    held = trio.run(budget.reserve, 0, Usage(5))
    first = Waiting(threads, library, lambda: budget.reserve(1, Usage(6)))
    second = Waiting(threads, library, lambda: budget.reserve(2, Usage(5)))
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
        Waiting(threads, "asyncio", lambda: budget.reserve(2, Usage(10))),
        Waiting(threads, "trio", lambda: limit.acquire(0)),
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


def test_a_batch_in_a_call_that_blocks_its_loop() -> None:
    budget = Budget(max_tokens=1000)
    limit = RateLimit(requests_per_minute=6000, burst=1)

    async def blocking(**_: Any) -> Any:
        # The others of the outer batch wait for their turn, and their loop does not run.
        inner = parallel_completions(fake_router, [REQUEST] * 2, budget=budget, rate_limit=limit)
        assert [result.exception for result in inner] == [None, None]
        return ANSWER

    results = parallel_completions(
        blocking, [REQUEST] * 3, concurrency=3, budget=budget, rate_limit=limit
    )
    assert [result.exception for result in results] == [None] * 3
    assert (budget.spent_tokens, budget.reserved_tokens) == (27, 0)


def test_inside_of_a_call_of_another_thread_it_does_not_wait() -> None:
    budget = Budget(max_tokens=WORST + 10)

    async def blocking(**_: Any) -> Any:
        (inner,) = parallel_completions(fake_router, [REQUEST], budget=budget)
        assert isinstance(inner.exception, BudgetExceededError)
        return ANSWER

    (result,) = parallel_completions(blocking, [REQUEST], budget=budget)
    assert result.exception is None


def test_batches_that_are_cancelled_at_random_leave_nothing(threads: Together) -> None:
    budget = Budget(max_tokens=20)
    limit = RateLimit(requests_per_minute=60_000, burst=2)
    start = threading.Barrier(6)

    async def one(rolls: random.Random) -> None:
        reservation: Reservation | None = None
        with anyio.move_on_after(rolls.choice((0, 0.0005, 0.002, PATIENCE))):
            reservation = await budget.reserve(0, Usage(rolls.randint(5, 15)))
        if reservation is None:
            return
        with anyio.move_on_after(rolls.choice((0, 0.001, PATIENCE))):
            await limit.acquire(0)
        assert budget.spent_tokens + budget.reserved_tokens <= 20
        reservation.release()

    async def main(seed: int) -> None:
        rolls = random.Random(seed)
        for _ in range(15):
            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(one, rolls)

    def run(seed: int) -> None:
        start.wait(PATIENCE)
        if seed % 2:
            trio.run(main, seed)
        else:
            asyncio.run(main(seed))

    for seed in range(6):
        threads.start(lambda seed=seed: run(seed))  # type: ignore[misc]
    threads.join()
    assert (budget.spent_tokens, budget.reserved_tokens) == (0, 0)
    assert not budget._waiting
    assert not budget._in_order._woken
    assert not limit._lines
    assert not limit._in_order._woken


def test_clean_up_that_interrupts_a_function_runs_after_it() -> None:
    serial = Serial()
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


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_count_for_themselves(
    how: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)

    async def main() -> None:
        budget = Budget(max_tokens=10, prices={"m": (1, 2)})
        (await budget.reserve(0, Usage(3))).settle_unknown()
        limit = RateLimit(requests_per_minute=60, tokens_per_minute=600, burst=2)
        await limit.acquire(5)
        budget_copy, limit_copy = how(budget), how(limit)
        await budget.reserve(1, Usage(7))
        await limit.acquire(5)
        await budget_copy.reserve(1, Usage(7))
        assert (budget_copy.spent_tokens, budget_copy.reserved_tokens) == (3, 7)
        assert budget_copy.prices == budget.prices
        began = trio.current_time()
        await limit_copy.acquire(5)
        assert trio.current_time() == began
        await limit_copy.acquire(0)
        assert trio.current_time() - began == pytest.approx(1)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_batch_is_cancelled_and_read_in_its_own_thread_alone(host: Host) -> None:
    async def read(batch: Any) -> None:
        await anext(batch)

    async def main() -> None:
        began = anyio.Event()

        async def work(_: int) -> None:
            began.set()
            await anyio.sleep_forever()

        async with iter_parallel_map(work, [1]) as batch:
            await began.wait()
            with pytest.raises(RuntimeError, match="runs in another thread"):
                await anyio.to_thread.run_sync(batch.cancel)
            with pytest.raises(RuntimeError, match=r"another (thread|event loop)"):
                if host.library == "trio":
                    await anyio.to_thread.run_sync(trio.run, read, batch)
                else:
                    await anyio.to_thread.run_sync(lambda: asyncio.run(read(batch)))
            batch.cancel()

    host.run(main)
