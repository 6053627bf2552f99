"""Workers and their driver, without Ray: workers are tasks of the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import platform
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_core import _fleet, _ray_cluster
from parallel_core._fleet import Fleet
from parallel_core._remote_values import pack_request, unpack_outcome
from parallel_core._router_recipe import Recipe
from parallel_core._uninterrupted import to_the_end
from parallel_core._worker import Given, Kind, Message, Pace, Worker
from parallel_core.errors import RequestTimeoutError, WorkerDiedError, WorkersLostError
from parallel_core.router_call import INDEX, TIMEOUT

PATIENCE = 30.0  # seconds for what must come
AT_ONCE = Pace(every=0.0, many=1)


class Panic(BaseException):
    """As those of Rust are."""


class Router:
    """Answers as the test says, and counts."""

    def __init__(self) -> None:
        self.in_flight = self.most = 0
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.gate = asyncio.Event()

    async def acompletion(self, *, model: str, messages: Any, **arguments: Any) -> str:
        name = str(messages[0]["content"])
        self.begun[name] += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            if model == "gate":
                await self.gate.wait()
            elif model == "pause":
                await asyncio.sleep(0)
            elif model == "raise":
                raise ValueError(name)
            elif model == "exit":
                raise SystemExit(3)
            elif model == "panic":
                raise Panic("odd")
            elif model == "generator exit":
                raise GeneratorExit
            elif model == "cancel":
                raise asyncio.CancelledError
            return f"answer {name}"
        finally:
            self.in_flight -= 1
            self.ended[name] += 1


def request(name: object, model: str = "m", **arguments: Any) -> bytes:
    messages = [{"role": "user", "content": str(name)}]
    return pack_request({"model": model, "messages": messages, **arguments})


def recipe(make: Callable[[], Any]) -> Recipe:
    """One that never leaves this process."""
    return Recipe("a test", b"", make)


def run(function: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await function()
            while len(asyncio.all_tasks()) > 1:  # those of workers that were killed
                await asyncio.sleep(0)

    asyncio.run(main())


# --- a worker ---


@dataclass
class Told:
    """What a worker has told, by the number of the call."""

    blocks: list[list[Message]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def messages(self) -> list[Message]:
        return [message for block in self.blocks for message in block]

    @property
    def of_calls(self) -> list[Message]:
        return [m for m in self.messages if m[0] in (Kind.OUTCOME, Kind.CANCELLED)]

    async def wait_for(self, calls: int) -> None:
        while len(self.of_calls) < calls:
            self.changed.clear()
            await self.changed.wait()


@contextlib.asynccontextmanager
async def working(worker: Worker) -> AsyncGenerator[Told, None]:
    told = Told()

    async def take() -> None:
        async for block in worker.run():
            told.blocks.append(block)
            told.changed.set()

    taking = asyncio.create_task(take())
    try:
        yield told
    finally:
        await worker.stop()
        await taking


def new_worker(router: Any, concurrency: int = 4, pace: Pace = AT_ONCE) -> Worker:
    return Worker(recipe(lambda: router), concurrency, pace)


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


@settings(max_examples=60, deadline=None)
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


# --- the driver ---


class Killed(Exception):
    """What the driver sees of a worker whose process has gone."""


class LocalWorker:
    """A worker that is a task, and can be killed."""

    def __init__(self, source: LocalWorkers, worker: Worker, router: Any) -> None:
        self._source = source
        self._worker = worker
        self._tasks: set[asyncio.Task[Any]] = set()
        self._blocks: asyncio.Queue[list[Message] | None] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None
        self.router = router
        self.dead = False
        self.deaf = False

    async def messages(self) -> AsyncGenerator[list[Message], None]:
        if not self.dead:
            self._running = asyncio.create_task(self._run())
        while (block := await self._blocks.get()) is not None:
            yield block
        if self.dead:
            raise Killed

    async def _run(self) -> None:
        try:
            async for block in self._worker.run():
                self._blocks.put_nowait(block)
        except Exception:  # of a process, no more would be seen than its end
            self.dead = True
        finally:
            self._blocks.put_nowait(None)

    def give(self, sequence: int, given_: Given) -> None:
        if not (self.dead or self.deaf):
            self._do(self._worker.give(sequence, given_))

    def stop(self) -> None:
        if not (self.dead or self.deaf):
            self._do(self._worker.stop())

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            self._source.alive.discard(self)
            while not self._blocks.empty():  # what was on its way is lost
                self._blocks.get_nowait()
            self._blocks.put_nowait(None)
            self._do(self._worker.stop())

    async def gone(self) -> None:
        pass

    def _do(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class LocalWorkers:
    """Where they come from."""

    def __init__(self, make: Callable[[], Any] = Router) -> None:
        self.make = make
        self.alive: set[LocalWorker] = set()
        self.spawned: list[LocalWorker] = []

    def spawn(self, concurrency: int, pace: Pace) -> LocalWorker:
        router = self.make()
        worker = LocalWorker(self, Worker(recipe(lambda: router), concurrency, pace), router)
        self.alive.add(worker)
        self.spawned.append(worker)
        return worker

    def why_none_starts(self) -> str:
        return "nobody knows"

    @property
    def in_flight(self) -> int:
        return sum(worker.router.in_flight for worker in self.alive)


@contextlib.asynccontextmanager
async def fleet_of(
    source: LocalWorkers, workers: int = 2, concurrency: int = 2
) -> AsyncGenerator[Fleet, None]:
    fleet = Fleet(source, workers, concurrency)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def test_calls_are_shared_by_all_workers_and_bounded_in_each() -> None:
    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=3, concurrency=4) as fleet:
            calls = [asyncio.create_task(fleet.call(request(n, "gate"))) for n in range(100)]
            await until(lambda: source.in_flight == 12)
            assert [worker.router.in_flight for worker in source.alive] == [4, 4, 4]
            for worker in source.alive:
                worker.router.gate.set()
            assert await asyncio.gather(*calls) == [f"answer {n}" for n in range(100)]
        assert max(worker.router.most for worker in source.spawned) == 4
        assert fleet.lost_workers == fleet.resent_requests == 0

    run(main)


@pytest.mark.parametrize(
    ("ended", "seconds_ago", "waiting"), [(0, 0.0, 0), (10, 0.0, 2), (10, 5.0, 0), (500, 0.0, 20)]
)
def test_as_many_calls_wait_in_a_worker_as_it_ends_between_two_messages(
    ended: int, seconds_ago: float, waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(_fleet, "time", SimpleNamespace(monotonic=lambda: now))

    async def main() -> None:
        nonlocal now
        async with fleet_of(LocalWorkers(), workers=1, concurrency=20) as fleet:
            for _ in range(ended):
                await fleet.call(request("quick"))
            now += seconds_ago
            calls = [asyncio.create_task(fleet.call(request(n, "gate"))) for n in range(100)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            (worker,) = fleet._members
            assert len(worker.assignments) == 20 + waiting
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)

    run(main)


def test_an_exception_of_a_call_is_raised_here() -> None:
    async def main() -> None:
        async with fleet_of(LocalWorkers()) as fleet:
            with pytest.raises(ValueError, check=lambda error: str(error) == "7"):
                await fleet.call(request(7, "raise"))

    run(main)


def test_a_dead_worker_is_replaced_and_only_its_calls_are_sent_again() -> None:
    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=2, concurrency=2) as fleet:
            calls = [asyncio.create_task(fleet.call(request(n, "gate"))) for n in range(4)]
            await until(lambda: source.in_flight == 4)
            first, second = source.spawned
            first.kill()
            await until(lambda: len(source.spawned) == 3 and source.in_flight == 4)
            assert source.spawned[2].router.begun + second.router.begun == Counter("0123")
            for worker in source.alive:
                worker.router.gate.set()
            assert await asyncio.gather(*calls) == [f"answer {n}" for n in range(4)]
            assert (fleet.lost_workers, fleet.resent_requests) == (1, 2)

    run(main)


def test_a_worker_with_nothing_else_to_do_tells_at_once() -> None:
    async def main() -> None:
        worker = new_worker(Router(), pace=Pace(every=1000.0, many=100))
        async with working(worker) as told:
            for number in range(3):
                await worker.give(number, Given([(number, request(number))]))
                await told.wait_for(number + 1)

    run(main)


@pytest.mark.parametrize("is_there_already", [False, True])
def test_a_connection_that_is_given_up_is_undone_once(
    is_there_already: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[None] = []
    gate, has_left = threading.Event(), threading.Event()

    def enter(address: str | None) -> _ray_cluster.Entered:
        assert address == "the address"
        assert gate.wait(PATIENCE)
        return _ray_cluster.Entered.CONNECTED

    def leave() -> None:
        left.append(None)
        has_left.set()

    monkeypatch.setattr(_ray_cluster, "enter_ray", enter)
    monkeypatch.setattr(_ray_cluster, "leave_ray", leave)

    async def main() -> None:
        entering = asyncio.create_task(_ray_cluster.entered("the address"))
        await asyncio.sleep(0)
        if is_there_already:
            gate.set()
            # The outcome is there, and this loop, which is held up, has not been told of it.
            threading.Event().wait(0.05)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        gate.set()
        assert await asyncio.to_thread(has_left.wait, PATIENCE)

    run(main)
    assert len(left) == 1


def test_a_worker_that_says_nothing_any_more_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=2, concurrency=1) as fleet:
            calls = [asyncio.create_task(fleet.call(request(n, "gate"))) for n in range(2)]
            await until(lambda: source.in_flight == 2)
            silent, other = source.spawned
            for _ in range(6):
                fleet._look_for_silence()
                other._blocks.put_nowait([])  # it says that it is there
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert not silent.dead
            fleet._look_for_silence()
            assert silent.dead
            assert not other.dead
            await until(lambda: source.in_flight == 2)
            assert fleet.lost_workers == 1
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)

    run(main)


def test_a_worker_with_nothing_to_tell_says_that_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parallel_core._worker.BETWEEN_BEATS", 0.001)

    async def main() -> None:
        router = Router()
        worker = new_worker(router)
        async with working(worker) as told:
            await worker.give(0, Given([(1, request(1, "gate"))]))
            await until(lambda: told.blocks.count([]) > 3)
            router.gate.set()
            await told.wait_for(1)

    run(main)


def test_a_call_is_sent_again_only_if_it_may_be() -> None:
    class RefusalError(Exception):
        pass

    asked: list[str] = []

    def may() -> None:
        asked.append("may")

    def may_not() -> Exception:
        asked.append("may not")
        return RefusalError()

    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=1, concurrency=2) as fleet:
            first = asyncio.create_task(fleet.call(request(1, "gate"), may))
            second = asyncio.create_task(fleet.call(request(2, "gate"), may_not))
            await until(lambda: source.in_flight == 2)
            source.spawned[0].kill()
            with pytest.raises(RefusalError):
                await second
            await until(lambda: source.in_flight == 1)
            source.spawned[1].router.gate.set()
            assert await first == "answer 1"
            assert fleet.resent_requests == 1

    run(main)
    assert sorted(asked) == ["may", "may not"]


def test_a_cancellation_is_raised_when_what_was_waited_for_has_ended() -> None:
    async def main() -> None:
        gate, ended = asyncio.Event(), False

        async def wait() -> str:
            nonlocal ended
            await gate.wait()
            ended = True
            return "done"

        waiting = asyncio.create_task(to_the_end(wait()))
        for _ in range(3):
            await asyncio.sleep(0)
            waiting.cancel()
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert ended
        assert await to_the_end(wait()) == "done"

    run(main)


class Ready:
    """A worker that is there, and takes whatever it is given."""

    killed = False

    async def messages(self) -> AsyncGenerator[list[Message], None]:
        yield [(Kind.READY, 0, b"")]
        await asyncio.Event().wait()

    def give(self, sequence: int, given_: Given) -> None:
        pass

    def stop(self) -> None:
        pass

    def kill(self) -> None:
        self.killed = True

    async def gone(self) -> None:
        pass


def test_a_fleet_whose_loop_was_closed_is_abandoned_without_an_error() -> None:
    worker = Ready()
    source = SimpleNamespace(spawn=lambda *_: worker)
    fleet = Fleet(source, workers=1, concurrency=1)

    async def main() -> asyncio.Task[Any]:
        await fleet.start()
        call = asyncio.create_task(fleet.call(request("never")))
        await asyncio.sleep(0)
        return call

    loop = asyncio.new_event_loop()
    call = loop.run_until_complete(main())
    loop.close()
    fleet.abandon()
    assert worker.killed
    for task in (call, fleet._members[0].reading):  # nobody is to be told that they are pending
        task._log_destroy_pending = False  # type: ignore[union-attr]
        coroutine = task.get_coro()  # type: ignore[union-attr]
        with contextlib.suppress(RuntimeError):
            coroutine.close()


class Scarce(LocalWorkers):
    """There are no more for a while."""

    refusals = 0

    def spawn(self, concurrency: int, pace: Pace) -> LocalWorker:
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError
        return super().spawn(concurrency, pace)


def test_workers_that_cannot_be_replaced_at_once_are_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fleet, "_BETWEEN_TRIES", 0.0)

    async def main() -> None:
        source = Scarce()
        async with fleet_of(source, workers=3, concurrency=1) as fleet:
            source.refusals = 20
            for worker in source.spawned[:2]:
                worker.kill()
            await until(lambda: len(source.alive) == 3)
            assert source.refusals == 0
            calls = [asyncio.create_task(fleet.call(request(n, "gate"))) for n in range(3)]
            await until(lambda: source.in_flight == 3)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            source.refusals = 1000
            source.spawned[-1].kill()
            await until(lambda: len(source.alive) == 2)
        assert source.refusals  # and nothing is tried any more

    run(main)


class Deadly(Router):
    """Some requests kill its worker."""

    source: LocalWorkers

    async def acompletion(self, *, model: str, messages: Any, **arguments: Any) -> str:
        if model == "deadly":
            next(worker for worker in self.source.alive if worker.router is self).kill()
            await asyncio.Event().wait()
        return await super().acompletion(model=model, messages=messages, **arguments)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_that_kills_its_workers_is_an_error_and_no_other_is(workers: int) -> None:
    async def main() -> None:
        source = LocalWorkers()

        def make() -> Deadly:
            router = Deadly()
            router.source = source
            return router

        source.make = make
        async with fleet_of(source, workers, concurrency=4) as fleet:
            calls = [
                asyncio.create_task(fleet.call(request(n, "deadly" if n % 7 == 3 else "pause")))
                for n in range(40)
            ]
            results = await asyncio.gather(*calls, return_exceptions=True)
            for number, result in enumerate(results):
                if number % 7 == 3:
                    assert isinstance(result, WorkerDiedError)
                    assert result.deaths == 3
                else:
                    assert result == f"answer {number}"
            assert fleet.lost_workers <= 3 * 6

    run(main)


def test_a_cancelled_call_has_ended_in_its_worker_when_its_task_ends() -> None:
    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=1, concurrency=1) as fleet:
            runs = asyncio.create_task(fleet.call(request("runs", "gate")))
            await until(lambda: source.in_flight == 1)
            waits = [asyncio.create_task(fleet.call(request("waits", "gate"))) for _ in range(3)]
            await asyncio.sleep(0)
            for call in waits:
                call.cancel()
            await asyncio.wait(waits)
            runs.cancel()
            await asyncio.sleep(0)
            runs.cancel()  # in the middle of the waiting
            with pytest.raises(asyncio.CancelledError):
                await runs
            router = source.spawned[0].router
            assert (router.ended, router.in_flight) == (Counter({"runs": 1}), 0)
            assert await fleet.call(request("after")) == "answer after"

    run(main)


def test_an_answer_that_comes_before_its_cancellation_is_not_lost() -> None:
    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=1, concurrency=1) as fleet:
            call = asyncio.create_task(fleet.call(request("paid", "gate")))
            await until(lambda: source.in_flight == 1)
            router = source.spawned[0].router
            router.gate.set()
            await until(lambda: router.in_flight == 0)  # and the answer is on its way
            call.cancel()
            assert await call == "answer paid"

    run(main)


def test_a_worker_that_does_not_end_a_cancelled_call_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_fleet, "_PATIENCE_WITH_A_CANCELLATION", 0.01)

    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=1, concurrency=1) as fleet:
            call = asyncio.create_task(fleet.call(request("stuck", "gate")))
            await until(lambda: source.in_flight == 1)
            (stuck,) = source.alive
            stuck.deaf = True
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert stuck.dead
            assert await fleet.call(request("after")) == "answer after"
            assert (fleet.lost_workers, fleet.resent_requests) == (1, 0)

    run(main)


def test_a_router_that_cannot_be_made_is_told_on_starting() -> None:
    class NoRouter(LocalWorkers):
        def spawn(self, concurrency: int, pace: Pace) -> LocalWorker:
            def make() -> object:
                raise LookupError("no such thing")

            worker = LocalWorker(self, Worker(recipe(make), concurrency, pace), Router())
            self.alive.add(worker)
            return worker

    async def main() -> None:
        with pytest.raises(LookupError, match="no such thing"):
            async with fleet_of(NoRouter()):
                pass

    run(main)


def test_workers_that_die_before_they_are_ready_are_given_up() -> None:
    class StillBorn(LocalWorkers):
        def spawn(self, concurrency: int, pace: Pace) -> LocalWorker:
            worker = super().spawn(concurrency, pace)
            worker.kill()
            return worker

    source = StillBorn()

    async def main() -> None:
        with pytest.raises(WorkersLostError, match="nobody knows") as told:
            async with fleet_of(source):
                pass
        assert isinstance(told.value.__cause__, Killed)

    run(main)
    assert len(source.spawned) <= 8


def test_calls_fail_when_no_worker_can_be_had_any_more() -> None:
    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=2, concurrency=2) as fleet:
            calls = [asyncio.create_task(fleet.call(request(n, "gate"))) for n in range(20)]
            await until(lambda: source.in_flight == 4)
            spawn = source.spawn

            def still_born(concurrency: int, pace: Pace) -> LocalWorker:
                worker = spawn(concurrency, pace)
                worker.kill()
                return worker

            source.spawn = still_born  # type: ignore[method-assign]
            for worker in list(source.alive):
                worker.kill()
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {WorkersLostError}
            with pytest.raises(WorkersLostError):
                await fleet.call(request("after"))

    run(main)


def test_calls_fail_when_there_is_nothing_to_start_workers_with() -> None:
    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=1, concurrency=1) as fleet:
            call = asyncio.create_task(fleet.call(request(1, "gate")))
            await until(lambda: source.in_flight == 1)

            def spawn(concurrency: int, pace: Pace) -> LocalWorker:
                raise ConnectionError("it is shut down")

            source.spawn = spawn  # type: ignore[method-assign]
            source.spawned[0].kill()
            with pytest.raises(WorkersLostError) as told:
                await call
            assert isinstance(told.value.__cause__, ConnectionError)

    run(main)


def test_a_worker_that_breaks_down_has_its_calls_sent_again() -> None:
    """Whatever it is: its calls, which are cancelled then, must not be told as failed."""

    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source, workers=1, concurrency=3) as fleet:
            calls = [asyncio.create_task(fleet.call(request(n, "gate"))) for n in range(3)]
            await until(lambda: source.in_flight == 3)
            (broken,) = source.spawned
            worker: Any = broken._worker
            worker._answer.__self__._engine.fail(RuntimeError("broken"))
            await until(lambda: len(source.spawned) == 2 and source.in_flight == 3)
            source.spawned[1].router.gate.set()
            assert await asyncio.gather(*calls) == [f"answer {n}" for n in range(3)]
            assert (fleet.lost_workers, fleet.resent_requests) == (1, 3)

    run(main)


def test_a_worker_that_is_not_ready_is_not_waited_for() -> None:
    class Hanging(LocalWorkers):
        def spawn(self, concurrency: int, pace: Pace) -> LocalWorker:
            worker = super().spawn(concurrency, pace)
            worker.deaf = True
            worker._blocks.get = asyncio.Event().wait  # type: ignore[method-assign,assignment]
            return worker

    async def main() -> None:
        source = Hanging()
        fleet = Fleet(source, 2, 2)
        starting = asyncio.create_task(fleet.start())
        await until(lambda: len(source.spawned) == 2)
        starting.cancel()
        await asyncio.wait({starting})
        began = asyncio.get_running_loop().time()
        await fleet.close()
        assert asyncio.get_running_loop().time() - began < _fleet._PATIENCE_WITH_AN_END / 2
        assert not source.alive

    run(main)


def test_a_start_that_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fleet, "_PATIENCE_WITH_A_START", 0.01)

    class Slow(LocalWorker):
        async def messages(self) -> AsyncGenerator[list[Message], None]:
            await asyncio.Event().wait()
            yield []

    class SlowWorkers(LocalWorkers):
        def spawn(self, concurrency: int, pace: Pace) -> LocalWorker:
            return Slow(self, Worker(recipe(Router), concurrency, pace), Router())

    monkeypatch.setattr(_fleet, "_PATIENCE_WITH_AN_END", 0.01)

    async def main() -> None:
        with pytest.raises(WorkersLostError, match=r"none of 2 .* within 0.01 s: nobody knows"):
            async with fleet_of(SlowWorkers()):
                pass

    run(main)


def test_a_loop_that_is_shut_down_leaves_no_worker() -> None:
    source = LocalWorkers()

    async def main() -> None:
        fleet = Fleet(source, 2, 2)
        await fleet.start()
        calls = [asyncio.create_task(fleet.call(request(n, "gate"))) for n in range(3)]
        await until(lambda: source.in_flight == 3)
        del calls  # and nobody closes the fleet

    asyncio.run(main())
    assert not source.alive


def test_closing_ends_calls_that_are_in_flight_still() -> None:
    async def main() -> None:
        source = LocalWorkers()
        async with fleet_of(source) as fleet:
            call = asyncio.create_task(fleet.call(request("left", "gate")))
            await until(lambda: source.in_flight == 1)
        with pytest.raises(RuntimeError, match="the workers were ended"):
            await call
        with pytest.raises(RuntimeError, match="have been ended: open a new router"):
            await fleet.call(request("after"))
        assert sum(worker.router.in_flight for worker in source.spawned) == 0

    run(main)


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(1, 3),
    concurrency=st.integers(1, 3),
    calls=st.lists(st.sampled_from(["m", "pause", "gate", "raise"]), max_size=25),
    steps=st.lists(
        st.tuples(st.sampled_from(["kill", "cancel", "open", "pass"]), st.integers(0, 30)),
        max_size=12,
    ),
)
def test_every_call_ends_once_whatever_dies(
    workers: int, concurrency: int, calls: list[str], steps: list[tuple[str, int]]
) -> None:
    async def main() -> None:
        source = LocalWorkers()
        cancelled: set[int] = set()
        async with fleet_of(source, workers, concurrency) as fleet:
            tasks = [
                asyncio.create_task(fleet.call(request(n, model))) for n, model in enumerate(calls)
            ]
            for action, number in steps:
                alive = sorted(source.alive, key=source.spawned.index)
                if action == "kill" and alive:
                    alive[number % len(alive)].kill()
                elif action == "cancel" and number < len(tasks):
                    cancelled.add(number)
                    tasks[number].cancel()
                elif action == "open" and alive:
                    alive[number % len(alive)].router.gate.set()
                for _ in range(number):
                    await asyncio.sleep(0)

            async def open_all() -> None:
                while not all(task.done() for task in tasks):
                    for worker in source.alive:
                        worker.router.gate.set()
                    await asyncio.sleep(0)

            await open_all()
            for number, (task, model) in enumerate(zip(tasks, calls, strict=True)):
                if task.cancelled():
                    assert number in cancelled
                elif isinstance(task.exception(), WorkerDiedError):
                    assert fleet.lost_workers >= 3
                elif model == "raise":
                    assert repr(task.exception()) == f"ValueError('{number}')"
                else:
                    assert task.result() == f"answer {number}"
            assert source.in_flight == 0
            begun = Counter[str]()
            for worker in source.spawned:
                begun += worker.router.begun
                assert worker.router.most <= concurrency
            # Each is sent once, and once more for each time that its worker was lost.
            assert begun.total() <= len(calls) + fleet.resent_requests

    run(main)
