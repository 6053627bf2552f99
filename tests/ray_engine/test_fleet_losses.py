"""Workers that die or hang while they have calls, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.local_workers import (
    LocalWorker,
    LocalWorkers,
    Router,
    fleet_of,
    request,
    run,
    until,
)
from parallel_core.errors import WorkerDiedError
from parallel_core.ray_engine import fleet as fleet_module
from parallel_core.ray_engine.fleet import Fleet
from parallel_core.ray_engine.messages import Given, Kind, Message, Pace


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


def test_a_worker_that_says_nothing_any_more_is_killed() -> None:
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
    monkeypatch.setattr(fleet_module, "_BETWEEN_TRIES", 0.0)

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


def test_a_worker_that_does_not_end_a_cancelled_call_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_module, "_PATIENCE_WITH_A_CANCELLATION", 0.01)

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


@settings(max_examples=max(60, settings().max_examples))
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
