"""A model of a batch, driven step by step beside the real one.

Hypothesis chooses a batch (size, concurrency, order, mode) and a list of steps: this call returns,
that one fails, the consumer reads, somebody cancels, the block is left. After each step both are
compared: which calls are in flight, what is counted, which result comes next, which error ends it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import HOSTS, Host, settle


class CallFailed(Exception):
    pass


class BodyFailed(Exception):
    pass


@dataclass(frozen=True)
class Batch:
    size: int
    concurrency: int
    return_exceptions: bool
    preserve_order: bool
    source: str
    steps: list[tuple[str, int]]
    leave_by: str


BATCHES = st.builds(
    Batch,
    size=st.integers(0, 40),
    concurrency=st.integers(1, 6),
    return_exceptions=st.booleans(),
    preserve_order=st.booleans(),
    source=st.sampled_from(["list", "iterator", "generator", "async generator"]),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("return"), st.integers(0, 5)),
            st.tuples(st.just("read"), st.just(0)),
            st.tuples(st.just("fail"), st.integers(0, 5)),
            # Now and then, so that most batches live for a while.
            st.tuples(st.sampled_from(["cancel", "read", "read", "read"]), st.just(0)),
        ),
        max_size=60,
    ),
    leave_by=st.sampled_from(["drain", "break", "raise", "aclose", "cancel scope"]),
)


@dataclass
class Model:
    """What the real batch must look like whenever nothing can happen without outside help."""

    batch: Batch
    started: int = 0
    delivered: int = 0
    succeeded: int = 0
    failed: int = 0
    in_flight: list[int] = field(default_factory=list[int])
    ready: deque[int] = field(default_factory=deque[int])
    early: dict[int, None] = field(default_factory=dict[int, None])
    next_index: int = 0
    stopped: bool = False
    first_error: int | None = None

    def settle(self) -> None:
        window = self.batch.concurrency * (8 if self.batch.preserve_order else 2)
        while (
            not self.stopped
            and len(self.in_flight) < self.batch.concurrency
            and self.started < self.batch.size
            and self.started - self.delivered < window
        ):
            self.in_flight.append(self.started)
            self.started += 1

    def end(self, index: int, *, failed: bool) -> None:
        self.in_flight.remove(index)
        if failed:
            self.failed += 1
        else:
            self.succeeded += 1
        if failed and not self.batch.return_exceptions:
            self.first_error = index
            self.stop()
        elif self.batch.preserve_order:
            self.early[index] = None
            while self.next_index in self.early:
                self.ready.append(self.next_index)
                del self.early[self.next_index]
                self.next_index += 1
        else:
            self.ready.append(index)

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.in_flight.clear()
            self.ready.extend(sorted(self.early))
            self.early.clear()

    @property
    def over(self) -> bool:
        return not self.in_flight and (self.stopped or self.started == self.batch.size)


class Calls:
    """The calls of the real batch: each waits until the test lets it return or fail."""

    def __init__(self) -> None:
        self.waiting: dict[int, anyio.Event] = {}
        self.failing: set[int] = set()
        self.errors: dict[int, CallFailed] = {}

    async def __call__(self, item: int) -> int:
        event = self.waiting[item] = anyio.Event()
        try:
            await event.wait()
        finally:
            del self.waiting[item]
        if item in self.failing:
            self.errors[item] = CallFailed(item)
            raise self.errors[item]
        return -item

    def let_go(self, item: int, *, fail: bool) -> None:
        if fail:
            self.failing.add(item)
        self.waiting[item].set()


def make_source(batch: Batch, closed: list[str]) -> Any:
    numbers = range(batch.size)

    def generator() -> Any:
        try:
            yield from numbers
        finally:
            closed.append("closed")

    async def async_generator() -> Any:
        try:
            for number in numbers:
                yield number
        finally:
            closed.append("closed")

    if batch.source == "generator":
        return generator()
    if batch.source == "async generator":
        return async_generator()
    return list(numbers) if batch.source == "list" else iter(numbers)


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
@given(batch=BATCHES)
def test_a_batch_behaves_like_its_model(host: Host, batch: Batch) -> None:
    closed: list[str] = []
    calls = Calls()
    model = Model(batch)

    def compare(real: parallel_core.ParallelBatch[Any]) -> None:
        model.settle()
        assert sorted(calls.waiting) == sorted(model.in_flight)
        assert real.in_flight == len(model.in_flight)
        assert real.started == model.started
        assert real.delivered == model.delivered
        assert real.succeeded == model.succeeded
        assert real.failed == model.failed

    async def read(real: parallel_core.ParallelBatch[Any]) -> None:
        index = model.ready.popleft()
        model.delivered += 1
        result = await anext(real)
        assert result.index == result.item == index
        if index in calls.errors:
            assert result.exception is calls.errors[index]
            assert result.value is None
        else:
            assert result.exception is None
            assert result.value == -index

    async def read_the_end(real: parallel_core.ParallelBatch[Any]) -> None:
        if model.first_error is not None:
            with pytest.raises(CallFailed) as caught:
                await anext(real)
            assert caught.value is calls.errors[model.first_error]
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(real)

    async def step(real: parallel_core.ParallelBatch[Any], name: str, number: int) -> None:
        if name in ("return", "fail") and model.in_flight:
            index = model.in_flight[number % len(model.in_flight)]
            calls.let_go(index, fail=name == "fail")
            model.end(index, failed=name == "fail")
        elif name == "read" and model.ready:
            await read(real)
        elif name == "cancel":
            real.cancel()
            model.stop()
        await settle()
        compare(real)

    async def drain(real: parallel_core.ParallelBatch[Any]) -> None:
        while not model.over:
            if model.in_flight:
                await step(real, "return", 0)
            while model.ready:
                await read(real)
            await settle()
            compare(real)
        while model.ready:
            await read(real)
        await read_the_end(real)
        compare(real)

    async def main() -> None:
        scope = anyio.CancelScope()
        real = parallel_core.iter_parallel_map(
            calls,
            make_source(batch, closed),
            concurrency=batch.concurrency,
            return_exceptions=batch.return_exceptions,
            preserve_order=batch.preserve_order,
        )
        try:
            with scope:
                async with real:
                    await settle()
                    compare(real)
                    for name, number in batch.steps:
                        await step(real, name, number)
                    if batch.leave_by == "drain":
                        await drain(real)
                    elif batch.leave_by == "raise":
                        raise BodyFailed
                    elif batch.leave_by == "aclose":
                        await real.aclose()
                    elif batch.leave_by == "cancel scope":
                        scope.cancel()
        except BodyFailed:
            assert batch.leave_by == "raise"
        assert not calls.waiting
        assert real.in_flight == 0
        with pytest.raises(StopAsyncIteration):
            await anext(real)
        if "generator" in batch.source:
            assert closed == ["closed"]

    host.run(main)
