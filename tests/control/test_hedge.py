"""A second attempt of a slow call: who answers, what is raised, what is paid, what is left."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import Host, in_virtual_time, settle
from parallel_core import CallCancelledError, Hedge
from parallel_core.control import hedge as hedge_module
from parallel_core.control.hedge import Durations, Hedging, SecondAttempt

T = TypeVar("T")

SOON = 1e-6  # seconds: the delay of a hedge that nobody waits for


class AttemptFailed(Exception):
    pass


class Ticket:
    """What a second attempt is granted, and what was told of it."""

    def __init__(self, admit: Callable[[], Awaitable[None]] | None = None) -> None:
        self.settled: list[BaseException | None] = []
        self.admitted = 0
        self._admit = admit

    async def admit(self) -> None:
        self.admitted += 1
        if self._admit is not None:
            await self._admit()

    def settle(self, loser: BaseException | None, /) -> None:
        self.settled.append(loser)


class Attempts:
    """A call whose attempts end when, and as, the test says."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.began = 0
        self.cancelled: list[int] = []
        self.ended: list[int] = []
        self.outcomes: dict[int, Any] = {}
        self.release: dict[int, anyio.Event] = {1: anyio.Event(), 2: anyio.Event()}
        self.has_begun: dict[int, anyio.Event] = {1: anyio.Event(), 2: anyio.Event()}
        self.stubborn = stubborn

    def let(self, attempt: int, outcome: object) -> None:
        self.outcomes[attempt] = outcome
        self.release[attempt].set()

    async def __call__(self, index: int, item: Any) -> Any:
        self.began += 1
        attempt = self.began
        self.has_begun[attempt].set()
        try:
            await self.release[attempt].wait()
            outcome = self.outcomes[attempt]
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(attempt)
            if self.stubborn:
                with anyio.CancelScope(shield=True):
                    await self.release[attempt].wait()
            raise
        finally:
            self.ended.append(attempt)
            outcome = None  # no cycle through the traceback


class Outcome:
    value: Any = None
    error: BaseException | None = None
    done = False


@asynccontextmanager
async def race(
    call: Callable[[int, Any], Awaitable[Any]], ticket: SecondAttempt | None = None
) -> AsyncIterator[Outcome]:
    """A hedged call beside the test, whose second attempt begins at once."""
    hedging = Hedging(Hedge(SOON, 1.0), None if ticket is None else lambda *_: ticket)
    hedged = hedging.wrap(call)
    outcome = Outcome()

    async def run() -> None:
        try:
            outcome.value = await hedged(7, "item")
        except (Exception, KeyboardInterrupt, SystemExit, asyncio.CancelledError) as error:
            outcome.error = error
        finally:
            outcome.done = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield outcome


async def both_run(attempts: Attempts) -> None:
    await attempts.has_begun[1].wait()
    await attempts.has_begun[2].wait()


@pytest.mark.parametrize("winner", [1, 2])
def test_the_first_answer_wins_and_the_loser_has_ended(host: Host, winner: int) -> None:
    async def main() -> None:
        attempts, ticket = Attempts(), Ticket()
        async with race(attempts, ticket) as outcome:
            await both_run(attempts)
            attempts.let(winner, "answer")
        assert (outcome.value, outcome.error) == ("answer", None)
        assert attempts.cancelled == [3 - winner]
        assert attempts.ended == [winner, 3 - winner]
        assert (ticket.admitted, ticket.settled) == (1, [None])

    host.run(main)


@pytest.mark.parametrize("winner", [1, 2])
def test_a_stubborn_loser_is_waited_for(host: Host, winner: int) -> None:
    async def main() -> None:
        attempts, ticket = Attempts(stubborn=True), Ticket()
        async with race(attempts, ticket) as outcome:
            await both_run(attempts)
            attempts.let(winner, "answer")
            await settle()
            assert attempts.cancelled == [3 - winner]
            assert not outcome.done
            assert ticket.settled == []
            attempts.release[3 - winner].set()
        assert outcome.value == "answer"
        assert ticket.settled == [None]

    host.run(main)


@pytest.mark.parametrize("failing", [1, 2])
def test_one_fails_and_the_other_answers(host: Host, failing: int) -> None:
    async def main() -> None:
        attempts, ticket = Attempts(), Ticket()
        error = AttemptFailed()
        async with race(attempts, ticket) as outcome:
            await both_run(attempts)
            attempts.let(failing, error)
            await settle()
            assert not outcome.done
            attempts.let(3 - failing, "answer")
        assert outcome.value == "answer"
        assert attempts.cancelled == []
        assert ticket.settled == [error]

    host.run(main)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_both_fail(host: Host, order: tuple[int, int]) -> None:
    async def main() -> None:
        attempts, ticket = Attempts(), Ticket()
        errors = {1: AttemptFailed(1), 2: AttemptFailed(2)}
        async with race(attempts, ticket) as outcome:
            await both_run(attempts)
            for attempt in order:
                attempts.let(attempt, errors[attempt])
                await settle()
        assert outcome.error is errors[1]
        assert errors[1].__context__ is None
        assert errors[1].__cause__ is None
        frames = []
        traceback = errors[1].__traceback__
        while traceback is not None:
            frames.append(traceback.tb_frame.f_code.co_name)
            traceback = traceback.tb_next
        assert frames[-1] == "__call__"
        assert ticket.settled == [errors[2]]

    host.run(main)


def test_a_failure_before_the_delay_is_raised_as_it_is(host: Host) -> None:
    error = AttemptFailed()

    async def call(index: int, item: Any) -> Any:
        raise error

    async def main() -> None:
        hedging = Hedging(Hedge(60, 1.0), lambda *_: pytest.fail("granted"))
        with pytest.raises(AttemptFailed) as caught:
            await hedging.wrap(call)(0, None)
        assert caught.value is error
        assert error.__context__ is None
        assert hedging.extra_calls == 0

    host.run(main)


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_comes_out_as_itself(
    host: Host, attempt: int, kind: type[BaseException]
) -> None:
    async def main() -> None:
        attempts, ticket, interrupt = Attempts(), Ticket(), kind()
        async with race(attempts, ticket) as outcome:
            await both_run(attempts)
            attempts.let(attempt, interrupt)
        assert outcome.error is interrupt
        assert interrupt.__context__ is None
        assert attempts.ended == [attempt, 3 - attempt]
        assert attempts.cancelled == [3 - attempt]
        assert ticket.settled == [None]

    host.run(main)


# --- cancelled from outside ---


@contextmanager
def counted_group() -> Iterator[list[int]]:
    """How many task groups are opened."""
    opened: list[int] = []
    original = anyio.create_task_group

    def counted() -> Any:
        opened.append(1)
        return original()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anyio, "create_task_group", counted)
        yield opened


@pytest.mark.parametrize("where", ["delay", "admit", "both", "first failed", "loser"])
@pytest.mark.parametrize("how", ["scope", "task"])
def test_a_cancellation_ends_both(host: Host, where: str, how: str) -> None:
    if how == "task" and host.library == "trio":
        pytest.skip("trio has no task.cancel()")
    attempts: Attempts
    ticket = Ticket(anyio.sleep_forever if where == "admit" else None)
    delay = 3600.0 if where == "delay" else SOON
    came: list[BaseException] = []
    returned: list[Any] = []
    scope: anyio.CancelScope
    error = AttemptFailed()

    async def run() -> None:
        hedged = Hedging(Hedge(delay, 1.0), lambda *_: ticket).wrap(attempts)
        with scope:
            try:
                returned.append(await hedged(0, None))
            except BaseException as exception:
                came.append(exception)
                raise

    async def prepare() -> None:
        await attempts.has_begun[1].wait()
        if where in ("both", "first failed", "loser"):
            await attempts.has_begun[2].wait()
        if where == "admit":
            while not ticket.admitted:
                await anyio.lowlevel.checkpoint()
        if where == "first failed":
            attempts.let(1, error)
        if where == "loser":
            attempts.outcomes[1] = "answer"
            attempts.release[1].set()
        await settle()

    async def released() -> None:
        await settle()
        if attempts.stubborn:
            assert not came
            assert not returned
        for event in attempts.release.values():
            event.set()

    async def main() -> None:
        nonlocal attempts, scope
        # task.cancel() reaches the attempt that runs in the task; the other is cancelled when that
        # has ended.
        stubborn = where != "first failed" and (where, how) != ("both", "task")
        attempts, scope = Attempts(stubborn=stubborn), anyio.CancelScope()
        if how == "task":
            task = asyncio.create_task(run())
            await prepare()
            task.cancel()
            await released()
            await asyncio.wait([task])
            assert task.cancelled()
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await prepare()
                scope.cancel()
                await released()
        assert [type(one) for one in came] == [anyio.get_cancelled_exc_class()]
        assert sorted(attempts.ended) == list(range(1, attempts.began + 1))
        assert ticket.settled == ([] if where == "delay" else [None])

    host.run(main)


# --- cancellations that nobody asked for ---


@pytest.mark.parametrize("attempt", [1, 2])
def test_a_foreign_cancellation_is_a_failure_of_that_attempt(
    asyncio_host: Host, attempt: int
) -> None:
    async def main() -> None:
        attempts, ticket = Attempts(), Ticket()
        async with race(attempts, ticket) as outcome:
            await both_run(attempts)
            attempts.let(attempt, asyncio.CancelledError())
            await settle()
            assert not outcome.done
            attempts.let(3 - attempt, "answer")
        assert (outcome.value, outcome.error) == ("answer", None)
        assert [type(loser) for loser in ticket.settled] == [asyncio.CancelledError]

    asyncio_host.run(main)


@pytest.mark.parametrize("after", [60.0, SOON])
def test_a_foreign_cancellation_is_the_calls_error(asyncio_host: Host, after: float) -> None:
    async def call(item: int) -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.005, future.cancel)
        await future

    async def main() -> None:
        results = await parallel_core.parallel_map(call, range(3), hedge=Hedge(after, 1.0))
        assert [type(result.exception) for result in results] == [CallCancelledError] * 3

    asyncio_host.run(main)


def test_a_second_attempt_whose_task_is_cancelled_leaves_the_first(asyncio_host: Host) -> None:
    tasks_seen: list[asyncio.Task[Any]] = []

    async def main() -> None:
        attempts = Attempts()

        async def call(index: int, item: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            tasks_seen.append(task)
            return await attempts(index, item)

        async with race(call) as outcome:
            await both_run(attempts)
            tasks_seen[1].cancel()
            await settle()
            assert not outcome.done
            attempts.let(1, "answer")
        assert outcome.value == "answer"

    asyncio_host.run(main)


@pytest.mark.parametrize("loser", [1, 2])
def test_a_loser_that_raises_a_group_with_its_cancellation(host: Host, loser: int) -> None:
    attempts: Attempts

    async def call(index: int, item: Any) -> Any:
        try:
            return await attempts(index, item)
        except anyio.get_cancelled_exc_class() as cancellation:
            raise BaseExceptionGroup("", [cancellation, AttemptFailed()]) from None

    async def main() -> None:
        nonlocal attempts
        attempts = Attempts()
        async with race(call) as outcome:
            await both_run(attempts)
            attempts.let(3 - loser, "answer")
        assert (outcome.value, outcome.error) == ("answer", None)

    host.run(main)


# --- what is granted ---


def test_a_grant_that_raises_leaves_the_first_attempt_alone(host: Host) -> None:
    async def main() -> None:
        attempts = Attempts()
        asked = anyio.Event()

        def grant(index: int, item: Any) -> SecondAttempt:
            asked.set()
            raise AttemptFailed

        async def one_call(hedging: Hedging) -> None:
            assert await hedging.wrap(attempts)(0, None) == "answer"

        hedging = Hedging(Hedge(SOON, 1.0), grant)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one_call, hedging)
            await asked.wait()
            await settle()
            assert attempts.ended == []
            attempts.let(1, "answer")
        assert (attempts.began, hedging.extra_calls) == (1, 0)

    host.run(main)


@given(st.lists(st.booleans(), max_size=80), st.sampled_from([0.01, 0.05, 0.07, 0.29, 0.5, 1.0]))
def test_extra_calls_are_capped(slow: list[bool], max_extra: float) -> None:
    hedging = Hedging(Hedge(1, max_extra))
    calls = 0

    async def call(index: int, item: bool) -> None:
        assert hedging.extra_calls <= max_extra * calls
        await trio.sleep(2 if item else 0.5)

    async def main() -> None:
        nonlocal calls
        async with trio.open_nursery() as nursery:
            for index, item in enumerate(slow):
                calls += 1
                nursery.start_soon(hedging.wrap(call), index, item)
                await trio.sleep(0.25)
        assert hedging.extra_calls <= max_extra * calls
        if all(slow) and slow:
            assert hedging.extra_calls == math.floor(max_extra * calls + 1e-9) or max_extra < 1

    in_virtual_time(main)


@given(st.lists(st.integers(0, 50), max_size=1300), st.integers(1, 99))
def test_the_percentile_is_the_nearest_rank(values: list[int], percent: int) -> None:
    durations = Durations()
    for value in values:
        durations.add(value)
    last = sorted(values[-1000:])
    expected = None if len(last) < 20 else last[-(-percent * len(last) // 100) - 1]
    assert durations.percentile(percent) == expected


def test_a_percentile_that_floats_miss() -> None:
    durations = Durations()
    for value in range(1, 1001):
        durations.add(value)
    assert (durations.percentile(7), durations.percentile(99.9)) == (70, 999)
    durations.add(5000)  # and 1 is forgotten
    assert durations.percentile(0.1) == 2


@pytest.mark.parametrize("known", [19, 20])
def test_too_few_durations_open_no_task_group(host: Host, known: int) -> None:
    async def call(index: int, item: Any) -> None:
        await anyio.lowlevel.checkpoint()

    async def main() -> None:
        hedged = Hedging(Hedge("p95", 1.0)).wrap(call)
        for index in range(known):
            await hedged(index, None)
        with counted_group() as opened:
            await hedged(known, None)
        assert len(opened) == (known == 20)

    host.run(main)


def test_the_first_attempt_runs_in_the_context_of_the_call(host: Host) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")
    seen: list[str] = []

    async def call(index: int, item: Any) -> None:
        seen.append(variable.get())
        variable.set("set by the first")

    async def main() -> None:
        variable.set("outside")
        await Hedging(Hedge(60, 1.0)).wrap(call)(0, None)
        assert (seen, variable.get()) == (["outside"], "set by the first")

    host.run(main)


def test_no_reference_cycle_is_left(host: Host) -> None:
    async def main() -> None:
        attempts = Attempts()
        async with race(attempts) as outcome:
            await both_run(attempts)
            gc.collect()
            gc.disable()  # a cycle would stay
            attempts.let(2, AttemptFailed())
            await settle()
            attempts.let(1, "answer")
        gc.enable()
        assert outcome.value == "answer"
        attempts.outcomes.clear()  # it is in the frames of the error's traceback
        left = [one for one in gc.get_objects() if isinstance(one, hedge_module._Race)]
        assert not left, [gc.get_referrers(one) for one in left]

    host.run(main)


# --- through the engine ---


@pytest.mark.parametrize("way", ["fail fast", "break"])
def test_a_batch_that_ends_while_both_attempts_run(host: Host, way: str) -> None:
    ended: list[object] = []
    running = 0

    async def main() -> None:
        both = anyio.Event()
        error = AttemptFailed()

        async def call(item: str) -> str:
            nonlocal running
            if item == "ends":
                await both.wait()
                if way == "fail fast":
                    raise error
                return "answer"
            running += 1
            if running == 2:
                both.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(item)
            return item

        async def batch_of() -> None:
            async with parallel_core.iter_parallel_map(
                call,
                ["hangs", "ends"],
                return_exceptions=way != "fail fast",
                hedge=Hedge(0.001, 1.0),
            ) as batch:
                async for result in batch:
                    assert result.value == "answer"
                    break

        if way == "fail fast":
            with pytest.raises(AttemptFailed) as caught:
                await batch_of()
            assert caught.value is error
        else:
            await batch_of()
        assert ended == ["hangs", "hangs"]

    host.run(main)


def test_a_straggler_is_answered_by_its_second_attempt() -> None:
    attempts = 0

    async def call(item: int) -> int:
        nonlocal attempts
        attempts += 1
        await trio.sleep(1000 if attempts == 30 else 1)
        return item

    async def main() -> float:
        began = trio.current_time()
        results = await parallel_core.parallel_map(call, range(30), concurrency=1, hedge=Hedge(2))
        assert [result.value for result in results] == list(range(30))
        return trio.current_time() - began

    assert in_virtual_time(main) == 29 + 2 + 1
    assert attempts == 31


def test_a_straggler_waits_for_its_share_of_second_attempts() -> None:
    """The share is used up when it comes to its second attempt, and grows while it waits."""
    attempts: list[str] = []

    async def call(index: int, item: str) -> str:
        attempts.append(item)
        if item.startswith("slow") and attempts.count(item) == 1:
            await trio.sleep_forever()
        return item

    async def main() -> None:
        hedging = Hedging(Hedge(1.0, max_extra=0.25))
        hedged = hedging.wrap(call)
        async with trio.open_nursery() as nursery:
            began = trio.current_time()

            async def straggle(item: str) -> None:
                assert await hedged(0, item) == item

            nursery.start_soon(straggle, "slow 1")
            await trio.sleep(0.1)
            nursery.start_soon(straggle, "slow 2")
            await trio.sleep(10)
            for number in range(6):  # with the fourth call there may be one, with the eighth two
                assert hedging.extra_calls == (0 if number < 2 else 1)
                await hedged(0, f"quick {number}")
                await trio.testing.wait_all_tasks_blocked()
        assert attempts == [
            *("slow 1", "slow 2", "quick 0", "quick 1", "slow 1"),
            *("quick 2", "quick 3", "quick 4", "quick 5", "slow 2"),
        ]
        assert trio.current_time() - began == pytest.approx(10.1)
        assert hedging.extra_calls == 2

    in_virtual_time(main)
