"""Workers and their driver, without Ray: workers are tasks of the test's own loop."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from types import SimpleNamespace

import pytest

from helpers.local_workers import (
    PATIENCE,
    LocalWorkers,
    Router,
    fleet_of,
    new_worker,
    request,
    run,
    until,
    working,
)
from parallel_core.ray_engine import cluster, dealing
from parallel_core.ray_engine.fleet import Fleet
from parallel_core.ray_engine.messages import Given, Pace
from parallel_core.uninterrupted import to_the_end


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
    monkeypatch.setattr(dealing, "time", SimpleNamespace(monotonic=lambda: now))

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

    def enter(address: str | None) -> cluster.Entered:
        assert address == "the address"
        assert gate.wait(PATIENCE)
        return cluster.Entered.CONNECTED

    def leave() -> None:
        left.append(None)
        has_left.set()

    monkeypatch.setattr(cluster, "enter_ray", enter)
    monkeypatch.setattr(cluster, "leave_ray", leave)

    async def main() -> None:
        entering = asyncio.create_task(cluster.enter_ray_async("the address"))
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
