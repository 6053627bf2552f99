"""Controls in every combination, with calls that fail, hang and are rejected: the promises hold."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import Host, in_virtual_time
from parallel_core import AdaptiveConcurrency, Budget, Hedge, Progress, RateLimit, Retry, Usage


class RejectedError(Exception):
    status_code = 429

    def __init__(self, seconds: float) -> None:
        super().__init__("too many")
        self.litellm_response_headers = {"retry-after": str(seconds)}


class RefusedError(Exception):
    status_code = 400


class Meter:
    def worst_case(self, item: Any) -> Usage:
        return Usage(10, 20, cost=0.03)

    def usage(self, value: Any) -> Usage:
        return Usage(10, value % 20, cost=0.01)


@dataclass(frozen=True)
class Case:
    """A batch: its controls, its source, how its calls end, and what its consumer does."""

    seed: int
    items: int
    source: str
    adaptive: bool
    retried: bool
    concurrency: int
    preserve_order: bool
    fail_fast: bool
    timeout: bool
    total_timeout: bool
    rate_limit: bool
    budget: float | None
    fair: bool
    per_key: int | None
    hedge: bool
    progress: bool
    leave: str
    failures: float
    unit: float  # seconds


cases = st.builds(
    Case,
    seed=st.integers(0, 10_000),
    items=st.integers(0, 60),
    source=st.sampled_from(["list", "generator", "async"]),
    adaptive=st.booleans(),
    retried=st.booleans(),
    concurrency=st.integers(1, 9),
    preserve_order=st.booleans(),
    fail_fast=st.booleans(),
    timeout=st.booleans(),
    total_timeout=st.booleans(),
    rate_limit=st.booleans(),
    budget=st.none() | st.floats(0.05, 2.0),
    fair=st.booleans(),
    per_key=st.none() | st.integers(1, 4),
    hedge=st.booleans(),
    progress=st.booleans(),
    leave=st.sampled_from(["", "", "", "break", "cancel", "aclose", "scope", "list"]),
    failures=st.sampled_from([0.0, 0.1, 0.5]),
    unit=st.just(1.0),
)


class Run:
    """One batch, watched."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.draw = random.Random(case.seed)
        self.in_flight = 0
        self.results: list[Any] = []
        self.snapshots: list[Progress] = []
        self.budget = None if case.budget is None else Budget(max_cost=case.budget)
        self.left = False

    async def call(self, item: int) -> int:
        case = self.case
        self.in_flight += 1
        most = 30 if case.adaptive else case.concurrency
        assert self.in_flight <= most * (2 if case.hedge else 1)
        if self.budget is not None:
            assert case.budget is not None
            assert self.budget.spent_cost + self.budget.reserved_cost <= case.budget + 1e-9
        try:
            await anyio.sleep(self.draw.choice((0.0, 0.5, 1.0, 5.0)) * case.unit)
            if self.draw.random() < case.failures:
                how = self.draw.choice(("rejected", "refused", "error", "timeout", "hang"))
                if how == "rejected":
                    raise RejectedError(self.draw.choice((0.0, 1.0, 7.0)) * case.unit)
                if how == "refused":
                    raise RefusedError
                if how == "timeout" and case.unit == 1:  # it is sent again after a real second
                    raise TimeoutError
                if how == "hang" and case.timeout:
                    await anyio.sleep_forever()
                raise LookupError(item)
        finally:
            self.in_flight -= 1
        return item

    def options(self) -> dict[str, Any]:
        case = self.case
        options: dict[str, Any] = {
            "concurrency": case.concurrency,
            "preserve_order": case.preserve_order,
            "return_exceptions": not case.fail_fast,
            "meter": Meter(),
        }
        if case.adaptive:
            options["concurrency"] = AdaptiveConcurrency(initial=case.concurrency, maximum=30)
        if case.adaptive or (case.retried and case.unit == 1):  # its gate waits for seconds
            options["retry"] = Retry(max_attempts=4 if case.unit == 1 else 2)
        if case.timeout:
            options["timeout"] = 8 * case.unit
        if case.total_timeout:
            options["total_timeout"] = 30 * case.unit
        if case.rate_limit:
            options["rate_limit"] = RateLimit(requests_per_minute=300 / case.unit, burst=3)
        if self.budget is not None:
            options["budget"] = self.budget
        if case.fair:
            options["fair_by"] = lambda item: item % 3
            options["concurrency_per_key"] = case.per_key
        if case.hedge:
            options["hedge"] = Hedge(after=2 * case.unit, max_extra=0.5)
        if case.progress:
            options["on_progress"] = self.snapshots.append
        return options

    def items(self) -> Any:
        items = range(self.case.items)
        if self.case.source == "list":
            return list(items)
        return iter(items) if self.case.source == "generator" else self._drawn(items)

    async def _drawn(self, items: range) -> AsyncIterator[int]:
        for item in items:
            await anyio.sleep(0.01 * self.case.unit)
            yield item

    async def main(self) -> None:
        if self.case.leave == "list":
            try:
                self.results = await parallel_core.parallel_map(
                    self.call, self.items(), **self.options()
                )
            except Exception:
                if not self.case.fail_fast:
                    raise
                self.left = True
            self.check(None)
            return
        batch = parallel_core.iter_parallel_map(self.call, self.items(), **self.options())
        try:
            with anyio.CancelScope() as scope:
                async with batch:
                    async for result in batch:
                        self.results.append(result)
                        if len(self.results) == 5 and self.case.leave:
                            self.left = True
                            if self.case.leave == "break":
                                break
                            if self.case.leave == "cancel":
                                batch.cancel()
                            elif self.case.leave == "aclose":
                                await batch.aclose()
                            else:
                                scope.cancel()
        except Exception:
            if not self.case.fail_fast:
                raise
            self.left = True
        self.check(batch)

    def check(self, batch: parallel_core.ParallelBatch[Any] | None) -> None:
        case, results = self.case, self.results
        indexes = [result.index for result in results]
        assert self.in_flight == 0
        assert len(set(indexes)) == len(indexes)
        if case.preserve_order:
            assert indexes == sorted(indexes)
        if not self.left and not (case.total_timeout and case.source != "list"):
            assert sorted(indexes) == list(range(case.items))
        assert all(result.value == result.item for result in results if result.ok)
        if self.budget is not None:
            assert self.budget.reserved_cost == 0
            assert case.budget is not None
            assert self.budget.spent_cost <= case.budget + 1e-9
        if case.progress:
            assert [snapshot.finished for snapshot in self.snapshots].count(True) == 1
            assert self.snapshots[-1].in_flight == 0
        if batch is not None:
            assert batch.in_flight == 0
            assert batch.delivered == len(results)
            if not self.left:
                assert batch.succeeded == sum(result.ok for result in results)
                assert batch.failed == len(results) - batch.succeeded
                assert batch.usage.prompt_tokens == 10 * batch.succeeded


@given(cases)
@settings(max_examples=4 * settings().max_examples)
def test_in_virtual_time(case: Case) -> None:
    run = Run(case)

    async def main() -> None:
        with trio.fail_after(20_000):  # virtual seconds: it ends at all
            await run.main()

    in_virtual_time(main)


def test_on_every_host(host: Host) -> None:
    @given(cases)
    @settings(max_examples=settings().max_examples * 2 // 3)
    def try_it(case: Case) -> None:
        run = Run(dataclasses.replace(case, unit=0.001))

        async def main() -> None:
            with anyio.fail_after(100):
                await run.main()

        host.run(main)

    try_it()
