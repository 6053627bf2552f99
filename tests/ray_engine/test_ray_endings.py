"""How batches of workers on Ray end, and what becomes of what has died."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import parallel_core
from helpers.hosts import HOSTS, Host
from helpers.ray_requests import PATIENCE, fast, is_there, request, until
from helpers.ray_routers import HttpRouter, deadly, scripted
from helpers.ray_runtime import IGNORED_WARNINGS, ray_environment
from parallel_core.demo_server import DemoServerThread
from parallel_core.errors import (
    BatchTimeoutError,
    WorkerDiedError,
    WorkersLostError,
)
from parallel_core.ray_engine import (
    RayRouter,
    iter_parallel_acompletions,
    open_ray_router,
    parallel_acompletions,
)

SCRIPTS = Path(__file__).with_name("scripts")

pytestmark = [
    pytest.mark.usefixtures("ray"),
    *(pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS),
]


# Each library once; every way in every world takes half a minute.
DAILY = {("trio", "cancel"), ("asyncio", "break")}
WAYS_TO_LEAVE = [
    pytest.param(
        host,
        way,
        id=f"{host.name}-{way}",
        marks=() if (host.name, way) in DAILY else pytest.mark.thorough,
    )
    for host in HOSTS
    if not host.debug
    for way in ("fail-fast", "break", "total_timeout", "cancel", "aclose")
]


@pytest.mark.parametrize(("host", "way"), WAYS_TO_LEAVE)
def test_every_way_to_leave_ends_all_calls_and_workers(
    host: Host, tmp_path: Path, way: str
) -> None:
    def waiting() -> list[str]:
        return [path.name for path in tmp_path.iterdir()]

    def source() -> Iterator[dict[str, Any]]:
        yield from (request(n, "wait", folder=str(tmp_path)) for n in range(8))
        while len(waiting()) < 8:
            yield request("now")
        # Nothing after it: workers have queues, so calls that never end could keep it waiting.
        yield request("last", "raise" if way == "fail-fast" else "answer")

    async def main() -> None:
        batch = iter_parallel_acompletions(
            scripted,
            source(),
            workers=2,
            concurrency=6,
            return_exceptions=way != "fail-fast",
            total_timeout=2.5 if way == "total_timeout" else None,
        )
        processes: set[int] = set()
        errors: list[BaseException | None] = []
        try:
            with anyio.CancelScope() as scope:
                async with batch:
                    async for result in batch:
                        errors.append(result.exception)
                        if not result.ok or result.response[1] != "last":
                            continue
                        processes = {int(name.partition("-")[2]) for name in waiting()}
                        if way == "break":
                            break
                        if way == "cancel":
                            scope.cancel()
                        if way == "aclose":
                            await batch.aclose()
        except LookupError as error:
            errors.append(error)
        assert (str(errors[-1]) == "last") == (way == "fail-fast")
        assert waiting() == []
        assert not any(map(is_there, processes))
        if way == "total_timeout":
            assert BatchTimeoutError in {type(error) for error in errors}
            assert {type(error) for error in errors} <= {type(None), BatchTimeoutError}
        if way in ("break", "cancel", "aclose"):
            assert len(processes) == 2

    host.run(main)


def test_a_dropped_batch_ends_its_workers(asyncio_host: Host, tmp_path: Path) -> None:
    async def main() -> None:
        async for result in iter_parallel_acompletions(
            scripted,
            [*(request(n, "wait", folder=str(tmp_path)) for n in range(2)), request("end")],
            workers=1,
            concurrency=3,
        ):
            process = result.unwrap()[0]
            break
        await until(lambda: not is_there(process))
        await until(lambda: len(asyncio.all_tasks()) == 1)

    asyncio_host.run(main)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_replaced_and_only_what_it_had_is_sent_again(
    asyncio_only: Host, server: DemoServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    server.reset_stats()

    async def main() -> None:
        async with open_ray_router(HttpRouter(server.url), workers=2, concurrency=4) as router:
            pids = await parallel_core.parallel_map(_process_of_a_worker, _handles(router))
            batch = parallel_core.iter_parallel_acompletions(
                router,
                [fast(n, {"latency": 0.02}) for n in range(300)],
                concurrency=router.slots,
            )
            async with batch:
                results = []
                async for result in batch:
                    results.append(result)
                    if len(results) == 50:
                        os.kill(pids[0].unwrap(), signal.SIGKILL)
            assert sorted(result.index for result in results) == list(range(300))
            assert all(result.ok for result in results)
            assert router.lost_workers == 1
            assert 0 < router.resent_requests <= router.slots // 2
        accepted = server.stats().accepted
        assert 300 <= accepted <= 300 + router.resent_requests

    with caplog.at_level(logging.WARNING, "parallel_core"):
        asyncio_only.run(main)
    (said,) = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
    assert "a worker was lost (ActorDiedError)" in said


@pytest.mark.thorough
@pytest.mark.parametrize("end", ["terminate", "end the loop"])
def test_a_worker_that_ends_in_another_way_is_replaced_as_well(
    end: str, asyncio_only: Host
) -> None:
    async def main() -> None:
        batch = iter_parallel_acompletions(
            scripted, [request("bad", end), request("good")], workers=1, concurrency=1
        )
        async with batch:
            results = {result.index: result async for result in batch}
        assert isinstance(results[0].exception, WorkerDiedError)
        assert results[1].ok
        assert batch.lost_workers == 3

    asyncio_only.run(main)


@pytest.mark.thorough
def test_a_cluster_that_does_not_answer_can_be_given_up() -> None:
    with ray_environment():
        done = subprocess.run(
            [sys.executable, SCRIPTS / "silent_cluster.py"],
            env={**os.environ, "RAY_AUTH_TOKEN": "x" * 32},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert done.stdout == "given up\n"


def _handles(router: RayRouter) -> list[Any]:
    fleet: Any = router._fleet
    return [member.handle._actor for member in fleet._members]


async def _process_of_a_worker(actor: Any) -> int:
    function: Any = actor.__ray_call__
    return int(await function.remote(lambda _: os.getpid()))


@pytest.mark.thorough  # test_fleet_losses has it without Ray
def test_a_request_that_kills_its_workers_is_an_error_and_no_other_is(asyncio_only: Host) -> None:
    async def main() -> None:
        batch = iter_parallel_acompletions(
            scripted,
            [request(n, "die" if n == 5 else "answer") for n in range(60)],
            workers=2,
            concurrency=4,
        )
        async with batch:
            results = [result async for result in batch]
        failed = {result.index: type(result.exception) for result in results if not result.ok}
        assert failed == {5: WorkerDiedError}
        assert len(results) == 60
        assert batch.lost_workers == 3

    asyncio_only.run(main)


@pytest.mark.thorough
def test_a_worker_whose_call_blocks_is_killed_when_the_call_is_cancelled(
    asyncio_only: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parallel_core.ray_engine.fleet._PATIENCE_WITH_A_CANCELLATION", 0.5)
    blocks = request(1, "block", folder=str(tmp_path))

    async def main() -> None:
        async with open_ray_router(scripted, workers=1, concurrency=1) as router:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(parallel_core.parallel_acompletions, router, [blocks])
                await until(lambda: any(tmp_path.iterdir()))
                tasks.cancel_scope.cancel()
            (after,) = await parallel_core.parallel_acompletions(router, [request(2)])
            assert after.unwrap()[1] == "2"
            assert router.lost_workers == 1

    asyncio_only.run(main)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, id="SIGINT", marks=pytest.mark.thorough),
        pytest.param(signal.SIGKILL, id="SIGKILL", marks=pytest.mark.thorough),
        pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.thorough),
    ],
)
def test_a_driver_that_ends_leaves_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with (
        ray_environment(),
        subprocess.Popen(
            [sys.executable, "-W", "ignore", SCRIPTS / "driver.py", marks],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as driver,
    ):
        try:
            _wait(lambda: len(list(marks.iterdir())) == 8)
            processes = {int(path.name.partition("-")[2]) for path in marks.iterdir()}
            # As a terminal does it: all of the group get it.
            os.killpg(driver.pid, number)
            output, errors = driver.communicate(timeout=PATIENCE)
            _wait(lambda: not any(map(is_there, processes)))
        finally:
            driver.kill()
    assert len(processes) == 2
    if number == signal.SIGINT:
        assert output.split() == ["begins", "interrupted"]
        assert list(marks.iterdir()) == []  # each call was cancelled, and ended
        assert driver.returncode == 0
    else:
        assert driver.returncode == -number
    assert errors == ""


def _wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.thorough
def test_workers_that_die_while_they_start_are_given_up(
    asyncio_only: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVER", str(os.getpid()))

    async def main() -> None:
        with pytest.raises(WorkersLostError, match="no worker is left, and 3 could not be started"):
            await parallel_acompletions(deadly, [request(1)], workers=1)

    asyncio_only.run(main)
