"""A budget of batches: what calls may cost, what they have cost, and who is refused."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helpers.budgets import state
from helpers.hosts import Host, in_virtual_time
from parallel_core import (
    AdaptiveConcurrency,
    Budget,
    BudgetExceededError,
    Hedge,
    RouterParallelRequest,
    iter_parallel_acompletions,
    parallel_acompletions,
)
from parallel_core.control.metering import RouterMeter
from parallel_core.types import Usage


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


def test_adaptive_retries_are_free() -> None:
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

    in_virtual_time(main)


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
