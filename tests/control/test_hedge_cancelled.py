"""A call and its second attempt when they are cancelled, from outside or by themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import parallel_core
from helpers.engines import engine_here
from helpers.hedging import SOON, AttemptFailed, Attempts, Ticket, both_run, race
from helpers.hosts import Host, settle
from parallel_core import CallCancelledError, Hedge
from parallel_core.control.hedge import Hedging


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
    engine: Any
    scope: Any
    error = AttemptFailed()

    async def run() -> None:
        hedging = Hedging(Hedge(delay, 1.0), lambda *_: ticket)
        hedging.begin(engine)
        hedged = hedging.wrap(attempts)
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
        nonlocal attempts, engine, scope
        engine = engine_here()
        # task.cancel() reaches the attempt that runs in the task; the other is cancelled when that
        # has ended.
        stubborn = where != "first failed" and (where, how) != ("both", "task")
        attempts, scope = Attempts(stubborn=stubborn), engine.new_scope()
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
