"""A worker, without Ray: what it is given, and what it tells."""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.local_workers import (
    AT_ONCE,
    Router,
    new_worker,
    recipe,
    request,
    run,
    until,
    working,
)
from parallel_core.errors import RequestTimeoutError
from parallel_core.ray_engine.messages import Given, Kind, Pace
from parallel_core.ray_engine.remote_values import pack_request, unpack_outcome
from parallel_core.ray_engine.worker import Worker
from parallel_core.router import RETRIED
from parallel_core.router.call import INDEX, OPERATION, TIMEOUT


def test_a_worker_tells_each_outcome_once() -> None:
    async def main() -> None:
        async with working(new_worker(Router())) as told:
            pass
        assert told.messages == [(Kind.READY, os.getpid(), platform.node().encode())]
        worker = new_worker(Router())
        async with working(worker) as told:
            models = ["m", "raise", "exit", "cancel", "panic", "generator exit"]
            calls = [(n, request(n, model)) for n, model in enumerate(models)]
            await worker.give(0, Given(calls))
            await told.wait_for(6)
            await worker.give(1, Given([(6, request(6))]))
            await told.wait_for(7)
        outcomes = {number: unpack_outcome(packed) for _, number, packed in told.of_calls}
        assert len(told.of_calls) == 7
        assert outcomes[6].value == "answer 6"
        assert outcomes[0].value == "answer 0"
        errors = [type(outcomes[number].exception).__name__ for number in range(1, 6)]
        assert errors == ["ValueError", "RemoteCallError", "CallCancelledError"] + (
            ["RemoteCallError"] * 2
        )
        assert str(outcomes[1].exception) == "1"
        assert "SystemExit" in str(outcomes[2].exception)

    run(main)


def test_a_worker_whose_router_cannot_be_made_tells_why_and_ends() -> None:
    def make() -> object:
        raise LookupError("no such thing")

    async def main() -> None:
        worker = Worker(recipe(make), 1, AT_ONCE)
        blocks = [block async for block in worker.run()]
        ((kind, _, packed),) = blocks[0]
        assert kind is Kind.REFUSED
        assert repr(unpack_outcome(packed).exception) == "LookupError('no such thing')"

    run(main)


def test_outcomes_that_come_soon_after_another_go_together() -> None:
    async def main() -> None:
        router = Router()
        worker = new_worker(router, concurrency=50, pace=Pace(every=1000.0, many=10))
        async with working(worker) as told:
            await worker.give(0, Given([(n, request(n, "gate")) for n in range(25)]))
            while router.in_flight < 25:
                await asyncio.sleep(0)
            router.gate.set()
            await told.wait_for(20)
            # Ready was told, so nothing more is before a thousand seconds, or before there are ten.
            assert len(told.of_calls) == 25 or len(told.of_calls) % 10 < 10
            await worker.give(1, Given([(n, request(n, "gate")) for n in range(25, 35)]))
            await told.wait_for(30)
        assert sorted(number for _, number, _ in told.of_calls) == list(range(35))
        assert max(map(len, told.blocks)) >= 10

    run(main)


def test_a_cancellation_is_told_at_once_and_the_call_has_ended() -> None:
    async def main() -> None:
        router = Router()
        worker = new_worker(router, concurrency=1, pace=Pace(every=1000.0, many=1000))
        async with working(worker) as told:
            calls = [(n, request(name, "gate")) for n, name in enumerate(["runs", "waits"], 1)]
            await worker.give(0, Given(calls))
            while not router.in_flight:
                await asyncio.sleep(0)
            await worker.give(1, Given(recalled=[1, 2]))
            await told.wait_for(1)
            assert told.of_calls == [(Kind.CANCELLED, 2, b"")]
            assert (router.begun["waits"], router.in_flight) == (0, 1)
            await worker.give(2, Given(cancelled=[1]))
            await told.wait_for(2)
            assert told.of_calls[1] == (Kind.CANCELLED, 1, b"")
            assert router.ended == {"runs": 1}

    run(main)


def test_a_call_that_is_cancelled_before_its_first_step_does_not_begin() -> None:
    async def main() -> None:
        router = Router()
        worker = new_worker(router)
        async with working(worker):
            pass  # it has its Router
        worker._stopped = False
        await worker.give(0, Given([(1, request(1))]))
        drawing = worker._assignments()
        drawn = await anext(drawing)
        await worker.give(1, Given(cancelled=[1]))
        await worker._call(drawn)
        await asyncio.sleep(0)  # no cancellation is left to be raised here
        assert worker._messages == [(Kind.CANCELLED, 1, b"")]
        assert not router.begun
        await drawing.aclose()

    run(main)


def test_the_time_of_a_call_begins_with_its_slot() -> None:
    async def main() -> None:
        def limited(name: str, model: str, timeout: float, index: int) -> bytes:
            return request(name, model, **{TIMEOUT: timeout, INDEX: index})

        first = limited("first", "gate", 0.04, 6)
        second = limited("second", "m", 0.02, 7)
        third = limited("third", "gate", 0.01, 8)
        router = Router()
        worker = new_worker(router, concurrency=1)
        async with working(worker) as told:
            await worker.give(0, Given(list(enumerate([first, second, third]))))
            await told.wait_for(3)
        outcomes = {number: unpack_outcome(packed) for _, number, packed in told.of_calls}
        assert isinstance(outcomes[0].exception, RequestTimeoutError)
        assert outcomes[1].value == "answer second"  # it has waited for longer
        of_third = outcomes[2].exception
        assert isinstance(of_third, RequestTimeoutError)
        assert (of_third.index, of_third.model, of_third.limit) == (8, "gate", 0.01)
        assert router.begun == router.ended

    run(main)


def test_messages_may_overtake_each_other() -> None:
    async def main() -> None:
        router = Router()
        worker = new_worker(router)
        async with working(worker) as told:
            await worker.give(1, Given(cancelled=[7]))
            await worker.give(2, Given([(8, request(8))]))
            assert not told.of_calls
            await worker.give(0, Given([(7, request(7, "gate"))]))
            await told.wait_for(2)
        assert {number: kind for kind, number, _ in told.of_calls} == {
            7: Kind.CANCELLED,
            8: Kind.OUTCOME,
        }

    run(main)


@settings(max_examples=max(60, settings().max_examples))
@given(
    concurrency=st.integers(1, 4),
    every=st.sampled_from([0.0, 0.001]),
    many=st.integers(1, 5),
    steps=st.lists(
        st.tuples(
            st.lists(st.sampled_from(["m", "pause", "gate", "raise"]), max_size=4),
            st.lists(st.integers(0, 40), max_size=3),
            st.lists(st.integers(0, 40), max_size=3),
            st.integers(0, 5),
        ),
        max_size=10,
    ),
    order=st.randoms(use_true_random=False),
)
def test_every_call_is_told_once_whatever_is_cancelled(
    concurrency: int, every: float, many: int, steps: list[Any], order: Any
) -> None:
    async def main() -> None:
        router = Router()
        worker = new_worker(router, concurrency, Pace(every, many))
        numbers = itertools.count()
        cancelled: set[int] = set()
        messages: list[tuple[int, Given]] = []
        for sequence, (models, to_cancel, to_recall, _) in enumerate(steps):
            calls = [(n := next(numbers), request(n, model)) for model in models]
            messages.append((sequence, Given(calls, to_cancel, to_recall)))
            cancelled |= {*to_cancel, *to_recall}
        total = next(numbers)
        # Neighbours may change places on their way.
        for place in range(len(messages) - 1):
            if order.random() < 0.3:
                messages[place : place + 2] = reversed(messages[place : place + 2])
        async with working(worker) as told:
            for (sequence, given_), (*_, passes) in zip(messages, steps, strict=True):
                await worker.give(sequence, given_)
                for _ in range(passes):
                    await asyncio.sleep(0)
            router.gate.set()
            await told.wait_for(total)
        told_of = Counter(number for _, number, _ in told.of_calls)
        assert told_of == dict.fromkeys(range(total), 1)
        for kind, number, packed in told.of_calls:
            if kind is Kind.CANCELLED:
                assert number in cancelled
            else:
                outcome = unpack_outcome(packed)
                assert outcome.value == f"answer {number}" or str(outcome.exception) == str(number)
        assert router.most <= concurrency
        assert router.in_flight == 0
        assert router.begun == router.ended
        assert max(router.begun.values(), default=1) == 1

    run(main)


def test_a_worker_with_nothing_to_tell_says_that_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parallel_core.ray_engine.worker.BETWEEN_BEATS", 0.001)

    async def main() -> None:
        router = Router()
        worker = new_worker(router)
        async with working(worker) as told:
            await worker.give(0, Given([(1, request(1, "gate"))]))
            await until(lambda: told.blocks.count([]) > 3)
            router.gate.set()
            await told.wait_for(1)

    run(main)


def test_a_worker_calls_the_operation_of_its_router() -> None:
    class WithEmbeddings(Router):
        async def aembedding(self, **arguments: Any) -> dict[str, Any]:
            return arguments

    async def main() -> None:
        worker = new_worker(WithEmbeddings())
        async with working(worker) as told:
            options = {OPERATION: "aembedding", INDEX: 0, RETRIED: True}
            call = {"model": "m", "input": ["text"], "litellm_metadata": {"parallel_index": 0}}
            await worker.give(0, Given([(0, pack_request({**call, **options}))]))
            await told.wait_for(1)
        (outcome,) = [unpack_outcome(packed) for _, _, packed in told.of_calls]
        assert outcome.value == call

    run(main)
