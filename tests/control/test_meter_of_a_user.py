"""A meter of the user's own: what calls use, and a meter that raises or gives nonsense."""

from __future__ import annotations

from typing import Any

import pytest

import parallel_core
from helpers.calls import sleep
from helpers.hosts import Host
from parallel_core import Budget, Usage


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf"), "1", True])
def test_a_meter_that_tells_nonsense_ends_the_batch(host: Host, number: Any) -> None:
    class Nonsense(Meter):
        def usage(self, value: Any) -> Usage | None:
            return Usage(number, 3)

    async def main() -> None:
        budget = Budget(max_tokens=1000)
        with pytest.raises(ValueError, match=r"meter\.usage must return a Usage of finite numbers"):
            await parallel_core.parallel_map(sleep, [0, 0], meter=Nonsense(), budget=budget)
        assert budget.reserved_tokens == 0
        assert budget.spent_tokens >= 0

    host.run(main)


def test_a_meter_that_reports_no_usage_object_ends_the_batch(host: Host) -> None:
    class Wrong(Meter):
        def usage(self, value: Any) -> Any:
            return 3

    async def main() -> None:
        with pytest.raises(TypeError, match=r"meter\.usage must return a Usage, not int"):
            await parallel_core.parallel_map(sleep, [0], meter=Wrong())

    host.run(main)


class Meter:
    """Each call uses as many tokens as its value says."""

    def worst_case(self, item: Any) -> Usage:
        return Usage(10, 10)

    def usage(self, value: Any) -> Usage | None:
        return None if value is None else Usage(1, int(value), cost=0.5)


def test_a_meter_of_the_user_counts_what_calls_use(host: Host) -> None:
    async def call(item: int) -> int | None:
        return item if item < 3 else None

    async def main() -> None:
        async with parallel_core.iter_parallel_map(call, range(5), meter=Meter()) as batch:
            async for _ in batch:
                pass
        assert batch.usage == Usage(3, 3, cost=1.5, unpriced_calls=2)
        assert batch.usage.total_tokens == 6

    host.run(main)


def test_a_meter_that_raises_ends_the_batch_and_loses_no_result(host: Host) -> None:
    error = LookupError("the meter")

    class Raising(Meter):
        def usage(self, value: Any) -> Usage | None:
            raise error

    async def main() -> None:
        seen: list[object] = []
        budget = Budget(max_tokens=100)  # which asks the meter as well
        with pytest.raises(LookupError) as caught:
            async with parallel_core.iter_parallel_map(
                sleep, [0], meter=Raising(), budget=budget
            ) as batch:
                async for result in batch:
                    seen.append(result.value)
        assert seen == [0]
        assert caught.value is error

    host.run(main)
