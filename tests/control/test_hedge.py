"""A second attempt of a slow call: who answers, what is raised, and what is left."""

from __future__ import annotations

import contextvars
import gc
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helpers.engines import begun
from helpers.hedging import SOON, AttemptFailed, Attempts, Ticket, both_run, counted_group, race
from helpers.hosts import Host, settle
from parallel_core import Hedge
from parallel_core.control import hedge as hedge_module
from parallel_core.control.hedge import Hedging, SecondAttempt


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
        hedging = begun(Hedging(Hedge(60, 1.0), lambda *_: pytest.fail("granted")))
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


def test_a_grant_that_raises_leaves_the_first_attempt_alone(host: Host) -> None:
    async def main() -> None:
        attempts = Attempts()
        asked = anyio.Event()

        def grant(index: int, item: Any) -> SecondAttempt:
            asked.set()
            raise AttemptFailed

        async def one_call(hedging: Hedging) -> None:
            assert await hedging.wrap(attempts)(0, None) == "answer"

        hedging = begun(Hedging(Hedge(SOON, 1.0), grant))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one_call, hedging)
            await asked.wait()
            await settle()
            assert attempts.ended == []
            attempts.let(1, "answer")
        assert (attempts.began, hedging.extra_calls) == (1, 0)

    host.run(main)


@pytest.mark.parametrize("known", [19, 20])
def test_too_few_durations_open_no_task_group(host: Host, known: int) -> None:
    async def call(index: int, item: Any) -> None:
        await anyio.lowlevel.checkpoint()

    async def main() -> None:
        hedged = begun(Hedging(Hedge("p95", 1.0))).wrap(call)
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
        await begun(Hedging(Hedge(60, 1.0))).wrap(call)(0, None)
        assert (seen, variable.get()) == (["outside"], "set by the first")

    host.run(main)


def test_no_reference_cycle_is_left(host: Host) -> None:
    async def main() -> None:
        attempts = Attempts()
        async with race(attempts) as outcome:
            await both_run(attempts)
            gc.collect()
            attempts.let(2, AttemptFailed())
            await settle()
            attempts.let(1, "answer")
        assert outcome.value == "answer"
        attempts.outcomes.clear()  # it is in the frames of the error's traceback
        left = [one for one in gc.get_objects() if isinstance(one, hedge_module._Race)]
        assert not left, [gc.get_referrers(one) for one in left]

    gc.disable()  # a cycle would stay
    try:
        host.run(main)
    finally:
        gc.enable()
