from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helpers.hosts import Host, settle
from parallel_core import (
    AdaptiveConcurrency,
    Budget,
    BudgetExceededError,
    Hedge,
    RouterParallelRequest,
    iter_parallel_acompletions,
    parallel_acompletions,
)
from parallel_core.control._metering import RouterMeter
from parallel_core.control.budget import Reservation, mark_as_held
from parallel_core.types import Usage


def state(budget: Budget) -> tuple[float, float, int, int]:
    return (
        budget.spent_cost,
        budget.reserved_cost,
        budget.spent_tokens,
        budget.reserved_tokens,
    )


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


# --- through the engine ---


def request(text: str = "x", **kwargs: Any) -> RouterParallelRequest:
    kwargs.setdefault("max_tokens", 100)
    return RouterParallelRequest("m", [{"role": "user", "content": text}], kwargs)


WORST = RouterMeter(None, {"m": (1, 1)}).worst_case(request()).total_tokens
PRICES = {"m": (1.0, 1.0)}


class Response:
    def __init__(self, prompt: int, completion: int) -> None:
        self.usage = {"prompt_tokens": prompt, "completion_tokens": completion}


def answer(kind: str) -> Any:
    return Response(10, 10) if kind == "object" else {"usage": Response(10, 10).usage}


def assert_within(budget: Budget) -> None:
    if budget.max_cost is not None:
        assert budget.spent_cost + budget.reserved_cost <= budget.max_cost
    if budget.max_tokens is not None:
        assert budget.spent_tokens + budget.reserved_tokens <= budget.max_tokens


@pytest.mark.parametrize("kind", ["object", "dict"])
@pytest.mark.parametrize("limit", ["max_cost", "max_tokens"])
def test_collect(host: Host, kind: str, limit: str) -> None:
    # Three worst cases at once, and each call turns out to use 20.
    cap = 3 * WORST

    async def main() -> None:
        options: dict[str, Any] = {limit: cap}
        budget = Budget(prices=PRICES, **options)
        sent = 0

        async def fake(**_: Any) -> Any:
            nonlocal sent
            sent += 1
            assert_within(budget)
            await anyio.lowlevel.checkpoint()
            assert_within(budget)
            return answer(kind)

        async with iter_parallel_acompletions(
            fake, [request()] * 40, concurrency=10, return_exceptions=True, budget=budget
        ) as batch:
            results = [result async for result in batch]
        # As long as a worst case fits into what 20 each have left.
        expected = (cap - WORST) // 20 + 1
        succeeded = [result for result in results if result.ok]
        assert len(results) == 40
        assert sent == len(succeeded) == expected
        for result in results:
            assert result.ok or isinstance(result.exception, BudgetExceededError)
            if isinstance(result.exception, BudgetExceededError):
                assert result.exception.index == result.index
        assert batch.usage == Usage(10 * sent, 10 * sent, cost=20.0 * sent)
        assert state(budget) == (20 * sent, 0, 20 * sent, 0)

    host.run(main)


def test_fail_fast(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=WORST + 25)
        sent = 0

        async def fake(**_: Any) -> Any:
            nonlocal sent
            sent += 1
            return answer("dict")

        with pytest.raises(BudgetExceededError) as refused:
            await parallel_acompletions(
                fake, [request()] * 10, concurrency=4, return_exceptions=False, budget=budget
            )
        assert sent == 2
        assert refused.value.index == 2
        assert (refused.value.needed, refused.value.left) == (WORST, WORST - 15)
        assert state(budget) == (0, 0, 40, 0)

    host.run(main)


def test_several_batches_share_one(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=4 * WORST)
        oks: list[bool] = []

        async def fake(**_: Any) -> Any:
            assert_within(budget)
            await anyio.lowlevel.checkpoint()
            return {"usage": {"prompt_tokens": WORST, "completion_tokens": 0}}

        async def batch() -> None:
            for result in await parallel_acompletions(
                fake, [request()] * 3, concurrency=3, return_exceptions=True, budget=budget
            ):
                oks.append(result.ok)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(batch)
        assert sorted(oks) == [False] * 5 + [True] * 4
        assert state(budget) == (0, 0, 4 * WORST, 0)

    host.run(main)


def test_nested_batches_do_not_deadlock(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=2 * WORST + 10)
        inner_ok: list[bool] = []

        async def inner(**_: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            return answer("dict")

        async def outer(**_: Any) -> Any:
            results = await parallel_acompletions(
                inner, [request()] * 2, concurrency=2, return_exceptions=True, budget=budget
            )
            inner_ok.extend(result.ok for result in results)
            return answer("dict")

        with anyio.fail_after(60):
            results = await parallel_acompletions(
                outer, [request()] * 4, concurrency=4, return_exceptions=True, budget=budget
            )
        assert len(results) == 4
        assert any(result.ok for result in results)
        assert budget.reserved_tokens == 0
        used = 20 * (sum(inner_ok) + sum(result.ok for result in results))
        assert budget.spent_tokens == used

    host.run(main)


@pytest.mark.parametrize(
    ("options", "kwargs", "message"),
    [
        ({"max_cost": 1}, {}, "price of 'm'"),
        ({"max_tokens": 1000}, {"max_tokens": None}, "how many tokens an answer of model 'm'"),
        ({"max_cost": 1, "prices": PRICES}, {"fallbacks": ["unknown"]}, "price of"),
    ],
)
def test_unknown_worst_case(host: Host, options: Any, kwargs: Any, message: str) -> None:
    async def main() -> None:
        async def fake(**_: Any) -> Any:
            raise AssertionError

        requests = [request(**kwargs)]
        with pytest.raises(ValueError, match=message):
            await parallel_acompletions(fake, requests, concurrency=2, budget=Budget(**options))
        (result,) = await parallel_acompletions(
            fake, iter(requests), concurrency=2, return_exceptions=True, budget=Budget(**options)
        )
        with pytest.raises(ValueError, match=message):
            result.unwrap()

    host.run(main)


class Rejected(Exception):
    status_code = 429
    litellm_response_headers = {"retry-after-ms": "1"}  # noqa: RUF012


def test_adaptive_retries_are_free(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=10 * WORST)
        attempts = 0

        async def fake(**_: Any) -> Any:
            nonlocal attempts
            attempts += 1
            assert_within(budget)
            if attempts in (1, 2, 4):
                raise Rejected
            await anyio.lowlevel.checkpoint()
            return answer("object")

        results = await parallel_acompletions(
            fake,
            [request()] * 5,
            concurrency=AdaptiveConcurrency(initial=2, maximum=4),
            return_exceptions=True,
            budget=budget,
        )
        assert [result.ok for result in results] == [True] * 5
        assert attempts == 8
        assert state(budget) == (0, 0, 100, 0)
        # With less room it waits, and with none it is not sent.
        results = await parallel_acompletions(
            fake, [request()] * 2, concurrency="auto", return_exceptions=True,
            budget=Budget(max_tokens=WORST),
        )  # fmt: skip
        assert sorted(result.ok for result in results) == [False, True]
        assert attempts == 9

    host.run(main)


@pytest.mark.parametrize(
    ("winner", "spent", "room"),
    [(2, 20 + WORST, 2), (1, 20 + WORST, 2), (1, 20, 1)],
)
def test_hedge(host: Host, winner: int, spent: int, room: int) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=room * WORST)
        attempts = 0
        second_began = anyio.Event()

        async def fake(**_: Any) -> Any:
            nonlocal attempts
            attempts += 1
            assert budget.reserved_tokens == attempts * WORST
            if attempts == 2:
                second_began.set()
            if attempts != winner:
                await anyio.sleep_forever()
            elif winner == 1:
                if room == 1:
                    await anyio.sleep(0.05)
                else:
                    await second_began.wait()
            return answer("dict")

        (result,) = await parallel_acompletions(
            fake, [request()], concurrency=1, return_exceptions=True, budget=budget,
            hedge=Hedge(after=0.001, max_extra=1.0),
        )  # fmt: skip
        assert result.ok
        assert attempts == room
        assert state(budget) == (0, 0, spent, 0)

    host.run(main)


def test_leaving_a_batch_leaves_nothing_reserved(host: Host) -> None:
    async def main() -> None:
        budget = Budget(max_tokens=3 * WORST)
        hanging = 0
        all_hang = anyio.Event()

        async def fake(messages: Any, **_: Any) -> Any:
            nonlocal hanging
            if messages[0]["content"] == "a":
                return answer("dict")
            hanging += 1
            if hanging == 2:
                all_hang.set()
            await anyio.sleep_forever()
            raise AssertionError

        async with iter_parallel_acompletions(
            fake, [request("a"), *[request("b")] * 8], concurrency=6, budget=budget
        ) as batch:
            async for result in batch:
                assert result.ok
                await all_hang.wait()
                break
        # Two were sent, and nobody knows their bill; the others waited for room.
        assert hanging == 2
        assert state(budget) == (0, 0, 20 + 2 * WORST, 0)
        assert not budget._waiting

    host.run(main)


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
