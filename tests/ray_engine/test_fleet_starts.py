"""Workers that cannot be started, or no longer, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from helpers.local_workers import (
    PATIENCE,
    Killed,
    LocalWorker,
    LocalWorkers,
    Router,
    fleet_of,
    recipe,
    request,
    run,
    until,
)
from parallel_core.errors import WorkersLostError
from parallel_core.ray_engine import fleet as fleet_module
from parallel_core.ray_engine.fleet import Fleet
from parallel_core.ray_engine.messages import Message, Pace
from parallel_core.ray_engine.worker import Worker


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


def test_a_worker_that_is_not_ready_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_PATIENCE_WITH_AN_END", 10 * PATIENCE)

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
        await fleet.close()
        assert not source.alive

    run(main)


def test_a_start_that_takes_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "_PATIENCE_WITH_A_START", 0.01)

    class Slow(LocalWorker):
        async def messages(self) -> AsyncGenerator[list[Message], None]:
            await asyncio.Event().wait()
            yield []

    class SlowWorkers(LocalWorkers):
        def spawn(self, concurrency: int, pace: Pace) -> LocalWorker:
            return Slow(self, Worker(recipe(Router), concurrency, pace), Router())

    monkeypatch.setattr(fleet_module, "_PATIENCE_WITH_AN_END", 0.01)

    async def main() -> None:
        with pytest.raises(WorkersLostError, match=r"none of 2 .* within 0.01 s: nobody knows"):
            async with fleet_of(SlowWorkers()):
                pass

    run(main)
