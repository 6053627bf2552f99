"""Batches whose calls are made by workers on Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import litellm
import pytest

import parallel_core
from helpers.answering_server import answering_server
from helpers.hosts import HOSTS, Host
from helpers.ray_routers import HttpRouter, bare_callable, broken, deadly, exits_elsewhere, scripted
from helpers.ray_runtime import IGNORED_WARNINGS, ray_environment
from parallel_core import (
    AdaptiveConcurrency,
    Budget,
    Hedge,
    RateLimit,
    Usage,
    classify_failure,
    ray_engine,
)
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.errors import (
    BatchDeadlineError,
    BudgetExceededError,
    EmptyResponseError,
    InvalidRequestError,
    RemoteCallError,
    RequestTimeoutError,
    StreamInterruptedError,
    StreamStalledError,
    WorkerDiedError,
    WorkersLostError,
)
from parallel_core.ray_engine import (
    RayRouter,
    iter_parallel_acompletions,
    open_ray_router,
    parallel_acompletions,
)

PATIENCE = 60.0  # seconds for what must come

pytestmark = [
    pytest.mark.usefixtures("ray"),
    *(pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS),
]


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0, models={"fast": 1.0})) as running:
        yield running


@pytest.fixture(params=[host for host in HOSTS if not host.debug], ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """Each world; asyncio's debug mode adds nothing here, and each start of workers takes time."""
    value: Host = request.param
    return value


@pytest.fixture
def asyncio_only() -> Host:
    return Host("asyncio", "asyncio")


def request(text: object, model: str = "answer", **arguments: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": str(text)}], **arguments}


def fast(text: object, demo: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    return request(text, "fast", extra_body={"demo": {"latency": 0.0, **(demo or {})}}, **arguments)


def is_there(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.01)


# --- the same as in one process ---


def test_an_answer_without_choices_is_a_failure(asyncio_only: Host) -> None:
    """One is judged here, and a stream where it is read."""

    async def main() -> None:
        with answering_server() as answering:
            requests = [
                request("empty", "fast"),
                request("empty", "fast", stream=True),
                request("text", "fast"),
            ]
            batch = iter_parallel_acompletions(
                HttpRouter(answering.url), requests, workers=1, concurrency=4, preserve_order=True
            )
            async with batch:
                results = [result async for result in batch]
            assert answering.asked == {"empty": 2, "text": 1}
        for result in results[:2]:
            assert isinstance(result.exception, EmptyResponseError)
            assert classify_failure(result.exception).kind == "answer"
            assert result.usage is not None
            assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (5, 7)
        assert results[2].ok
        assert batch.usage.total_tokens == 3 * 12

    asyncio_only.run(main)


def test_every_result_comes_once_in_every_world(host: Host) -> None:
    async def main() -> list[int]:
        batch = iter_parallel_acompletions(
            scripted, [request(n) for n in range(200)], workers=2, concurrency=4
        )
        seen: list[int] = []
        processes: set[int] = set()
        async with batch:
            async for result in batch:
                process, text = result.unwrap()
                assert text == str(result.index)
                seen.append(result.index)
                processes.add(process)
        assert sorted(seen) == list(range(200))
        assert (batch.succeeded, batch.failed, batch.in_flight) == (200, 0, 0)
        assert (batch.lost_workers, batch.resent_requests) == (0, 0)
        assert len(processes) == 2
        assert os.getpid() not in processes
        assert not any(map(is_there, processes))
        ordered = await parallel_acompletions(
            scripted, (request(n) for n in range(20)), workers=1, preserve_order=True
        )
        return [result.index for result in ordered]

    assert host.run(main) == list(range(20))


def test_a_router_of_workers_serves_many_batches(host: Host) -> None:
    async def main() -> None:
        async with open_ray_router(scripted, workers=1, concurrency=3) as router:
            assert router.slots > router.concurrency * router.workers
            first = await parallel_core.parallel_acompletions(
                router, [request(n) for n in range(10)], concurrency=router.slots
            )
            async with parallel_core.iter_parallel_acompletions(
                router, [request("x", "raise"), request(1)], concurrency=router.slots
            ) as batch:
                second = [result async for result in batch]
        processes = {result.unwrap()[0] for result in [*first, *(r for r in second if r.ok)]}
        assert len(processes) == 1
        (error,) = (result.exception for result in second if not result.ok)
        assert repr(error) == "LookupError('x')"

    host.run(main)


def test_real_routers_over_http(server: DemoServerThread) -> None:
    server.reset_stats()
    requests = [
        fast("plain", {"reply": "well done"}, metadata={"own": "tag"}),
        fast("limited", {"fault": "rate_limited"}),
        fast("broken", {"fault": "server_error"}),
        fast("streamed", {"reply": "bit by bit"}, stream=True),
        fast("broken stream", {"reply": "one two three four", "fault": "reset"}, stream=True),
        fast("stalled", {"fault": "hang"}, stream=True),
        fast("late", {"fault": "hang"}),
        fast("cut", {"reply": "one two three four", "cut_after": 2}, stream=True),
    ]

    async def main() -> None:
        async with open_ray_router(HttpRouter(server.url), workers=2, concurrency=4) as router:
            # The first calls of a process import for a second, and hold its loop.
            warm_up = [fast(n, stream=n % 2 == 0) for n in range(16)]
            for one in (router, router.router):
                await parallel_core.parallel_acompletions(one, warm_up, concurrency=router.slots)
            batch = parallel_core.iter_parallel_acompletions(
                router,
                requests,
                concurrency=router.slots,
                preserve_order=True,
                stall_timeout=2.0,
                timeout=3.0,
            )
            async with batch:
                results = [result async for result in batch]
            local = await parallel_core.parallel_acompletions(
                router.router, requests, preserve_order=True, stall_timeout=2.0, timeout=3.0
            )
            for there, here in zip(results, local, strict=True):
                assert type(there.exception) is type(here.exception)
                if here.ok:
                    assert there.response.choices == here.response.choices
                    assert there.response.usage == here.response.usage
                    cost = there.response._hidden_params["response_cost"]
                    assert cost == pytest.approx(here.response._hidden_params["response_cost"])
                    assert there.usage == here.usage
            plain, limited, broken_, streamed, _, stalled, late, interrupted = results
            assert isinstance(interrupted.exception, StreamInterruptedError)
            assert interrupted.exception.text == "one two"
            assert plain.response.choices[0].message.content == "well done"
            assert streamed.response.choices[0].message.content == "bit by bit"
            assert streamed.time_to_first_chunk is not None
            assert isinstance(limited.exception, litellm.exceptions.RateLimitError)
            assert limited.exception.status_code == 429
            assert classify_failure(limited.exception).retry_after == 1.0
            assert isinstance(broken_.exception, litellm.exceptions.InternalServerError)
            assert isinstance(stalled.exception, StreamStalledError)
            assert stalled.exception.index == 5
            assert isinstance(late.exception, RequestTimeoutError)
            assert (late.exception.index, late.exception.limit) == (6, 3.0)
            assert batch.usage.cost > 0
            cut = [fast("cut off", {"reply": "one two three", "chunk_gap": 60.0}, stream=True)]
            for one in (router, router.router):
                (result,) = await parallel_core.parallel_acompletions(one, cut, timeout=1.0)
                assert isinstance(result.exception, RequestTimeoutError)
                assert result.exception.text.strip() == "one"
                assert result.exception.usage is not None
                assert result.exception.time_to_first_chunk is not None
            assert server.stats().in_flight == 0

    asyncio.run(main())  # the Router of this process leaves a task of litellm's


def test_a_bare_callable_gets_what_the_request_says(asyncio_only: Host) -> None:
    async def main() -> None:
        first, second = await parallel_acompletions(
            bare_callable,
            [request(1, temperature=0.5), request(2, metadata={"own": 1})],
            workers=1,
            preserve_order=True,
        )
        assert first.unwrap() == ([{"role": "user", "content": "1"}], {"temperature": 0.5})
        assert second.unwrap()[1] == {"metadata": {"own": 1}}

    asyncio_only.run(main)


def test_what_cannot_be_sent_is_an_error_of_its_request(asyncio_only: Host) -> None:
    async def main() -> None:
        bad, good = await parallel_acompletions(
            scripted,
            [request(1, user=(n for n in "secret")), request(2)],
            workers=1,
            preserve_order=True,
        )
        assert isinstance(bad.exception, TypeError)
        assert "user" in str(bad.exception)
        assert good.ok

    asyncio_only.run(main)


# --- the end ---


@pytest.mark.parametrize("way", ["fail-fast", "break", "deadline", "cancel", "aclose"])
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
            deadline=2.5 if way == "deadline" else None,
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
        if way == "deadline":
            assert {type(error) for error in errors} == {type(None), BatchDeadlineError}
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


# --- what dies ---


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


SILENT = """
import asyncio, socket
from parallel_core import ray_engine
from helpers.ray_routers import scripted

async def main():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with asyncio.timeout(1):
            async with ray_engine.open_ray_router(scripted, workers=1, address=f"127.0.0.1:{port}"):
                pass

try:
    asyncio.run(main())
except TimeoutError:
    print("given up")
"""


def test_a_cluster_that_does_not_answer_can_be_given_up() -> None:
    with ray_environment():
        done = subprocess.run(
            [sys.executable, "-c", SILENT],
            env={**os.environ, "RAY_AUTH_TOKEN": "x" * 32},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
    assert done.stdout == "given up\n"


@pytest.mark.parametrize(
    ("room", "attempts", "ends"), [(3, 3, WorkerDiedError), (2, 2, BudgetExceededError)]
)
def test_a_budget_counts_what_was_lost_with_workers(
    room: int, attempts: int, ends: type[Exception], asyncio_only: Host
) -> None:
    class Meter:
        def worst_case(self, item: Any) -> Usage:
            return Usage(cost=1.0)

        def usage(self, response: Any) -> Usage:
            return Usage(cost=0.0)

    async def main() -> None:
        budget = Budget(max_cost=room)
        batch = iter_parallel_acompletions(
            scripted, [request(1, "die")], workers=1, concurrency=1, budget=budget, meter=Meter()
        )
        async with batch:
            (result,) = [result async for result in batch]
        assert isinstance(result.exception, ends)
        assert batch.lost_workers == attempts
        assert (budget.spent_cost, budget.reserved_cost) == (attempts, 0)

    asyncio_only.run(main)


def test_no_hedged_call_waits_in_a_worker(asyncio_only: Host, tmp_path: Path) -> None:
    async def main() -> None:
        batch = iter_parallel_acompletions(
            scripted,
            [request(n, "wait", folder=str(tmp_path)) for n in range(20)],
            workers=2,
            concurrency=3,
            hedge=Hedge(after=60.0),
        )
        async with batch:
            taking = asyncio.ensure_future(anext(batch))
            await until(lambda: len(list(tmp_path.iterdir())) == 6)
            assert batch.in_flight == 6
            taking.cancel()

    asyncio_only.run(main)


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at most 10,000"):
        open_ray_router(scripted, workers=10**9)


def test_a_router_of_another_loop_is_refused(asyncio_only: Host) -> None:
    async def main() -> None:
        async with open_ray_router(scripted, workers=1) as router:
            with pytest.raises(RuntimeError, match="on the event loop that it was opened on"):
                await asyncio.to_thread(asyncio.run, router.acompletion(**request(1)))

    asyncio_only.run(main)


def test_a_factory_that_exits_is_told(asyncio_only: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVER", str(os.getpid()))

    async def main() -> None:
        with pytest.raises(RemoteCallError, match="SystemExit"):
            await parallel_acompletions(exits_elsewhere, [request(1)], workers=1)

    asyncio_only.run(main)


def test_streams_have_the_prices_of_the_budget_and_the_meter_of_the_batch(
    server: DemoServerThread,
) -> None:
    told = {"fault": "reset", "reply": "one two three four"}
    requests = [fast(1, {"reply": "one two"}, stream=True), fast(2, told, stream=True)]

    class Meter:
        def worst_case(self, item: Any) -> Usage:
            return Usage(cost=2.0)

        def usage(self, response: Any) -> Usage:
            return Usage(cost=2.0)

    async def main() -> None:
        async with open_ray_router(HttpRouter(server.url), workers=1, concurrency=4) as router:
            prices = {"fast": (1.0, 2.0)}
            whole, part = await parallel_core.parallel_acompletions(
                router,
                requests,
                preserve_order=True,
                budget=Budget(max_cost=1e6, prices=prices, assume_output_tokens=1000),
            )
            for usage in (whole.usage, part.usage):
                assert usage is not None
                assert usage.cost == usage.prompt_tokens + 2.0 * usage.completion_tokens > 0
            whole, part = await parallel_core.parallel_acompletions(
                router, requests, preserve_order=True, meter=Meter()
            )
            assert whole.usage == Usage(cost=2.0)
            assert (part.ok, part.usage) == (False, None)
            answer = await router.acompletion(**requests[0])
            assert answer.choices[0].message.content == "one two"

    asyncio.run(main())  # the Router of this process leaves a task of litellm's


def _handles(router: RayRouter) -> list[Any]:
    fleet: Any = router._fleet
    return [member.handle._actor for member in fleet._members]


async def _process_of_a_worker(actor: Any) -> int:
    function: Any = actor.__ray_call__
    return int(await function.remote(lambda _: os.getpid()))


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


def test_a_worker_whose_call_blocks_is_killed_when_the_call_is_cancelled(
    asyncio_only: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parallel_core._fleet._PATIENCE_WITH_A_CANCELLATION", 0.5)

    async def main() -> None:
        async with open_ray_router(scripted, workers=1, concurrency=1) as router:
            (blocked,) = await parallel_core.parallel_acompletions(
                router, [request(1, "block")], deadline=0.5
            )
            assert isinstance(blocked.exception, BatchDeadlineError)
            (after,) = await parallel_core.parallel_acompletions(router, [request(2)])
            assert after.unwrap()[1] == "2"
            assert router.lost_workers == 1

    asyncio_only.run(main)


DRIVER = """
import asyncio, os, signal, sys
import parallel_core
from parallel_core import ray_engine
from helpers.ray_routers import scripted

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off

async def main():
    folder = sys.argv[1]
    wait = [{"model": "wait", "messages": [{"role": "user", "content": str(n)}], "folder": folder}
            for n in range(100)]
    print("begins", flush=True)
    async with ray_engine.open_ray_router(scripted, workers=2, concurrency=4) as router:
        assert sys.excepthook is sys.__excepthook__
        await parallel_core.parallel_acompletions(router, wait, concurrency=router.slots)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_ends_leaves_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with (
        ray_environment(),
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DRIVER, str(marks)],
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


def test_logs_of_ray_hold_no_contents(server: DemoServerThread, ray: Any) -> None:
    async def main() -> None:
        requests = [
            fast("a very secret prompt", {"fault": "server_error"}),
            fast("a very secret prompt", {"fault": "server_error"}, stream=True),
            fast("a very secret prompt", {"reply": "a very secret answer"}),
        ]
        results = await parallel_acompletions(HttpRouter(server.url), requests, workers=1)
        assert sum(result.ok for result in results) == 1

    asyncio.run(main())
    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    logs = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("worker-") for path in logs)
    said = {path.name: path.read_text(errors="replace") for path in logs}
    assert [name for name, text in said.items() if "very secret" in text] == []
    # What litellm logs quotes errors of providers, who quote prompts.
    assert [name for name, text in said.items() if "LiteLLM" in text] == []


# --- one limit for all ---


def test_the_driver_stays_as_it_was(asyncio_only: Host) -> None:
    hooks = sys.excepthook, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    async def main() -> None:
        async with open_ray_router(scripted, workers=1):
            assert signal.getsignal(signal.SIGTERM) == hooks[1]

    asyncio_only.run(main)
    assert hooks == (
        sys.excepthook,
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
    )


def test_a_budget_is_a_hard_cap_of_all_workers(
    asyncio_only: Host, server: DemoServerThread
) -> None:
    server.reset_stats()

    async def main() -> None:
        batch = iter_parallel_acompletions(
            HttpRouter(server.url),
            [fast(n, {"reply": "one two three"}, max_tokens=10) for n in range(200)],
            workers=2,
            concurrency=8,
            budget=Budget(max_cost=3.0),
        )
        async with batch:
            results = [result async for result in batch]
        kinds = Counter(type(result.exception) for result in results)
        assert kinds.keys() == {type(None), BudgetExceededError}
        assert 0 < batch.usage.cost <= 3.0
        assert server.stats().accepted == kinds[type(None)]

    asyncio_only.run(main)


def test_an_adaptive_limit_and_a_rate_limit_are_of_all_workers(
    asyncio_only: Host, server: DemoServerThread
) -> None:
    server.reset_stats()

    async def main() -> None:
        results = await parallel_acompletions(
            HttpRouter(server.url),
            [fast(n, {"latency": 0.01}) for n in range(100)],
            workers=2,
            concurrency=AdaptiveConcurrency(initial=1, minimum=1, maximum=3),
            rate_limit=RateLimit(requests_per_minute=6e6, burst=1000),
        )
        assert all(result.ok for result in results)

    asyncio_only.run(main)
    assert server.stats().max_in_flight <= 3


# --- refused ---


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"workers": 0}, ValueError, "workers must be at least 1"),
        ({"workers": "2"}, TypeError, "workers must be"),
        ({"concurrency": 0}, ValueError, "concurrency must be at least 1"),
        ({"source": scripted()}, TypeError, "a Router .* cannot be sent to another process"),
        ({"requests": [{"model": "m"}]}, InvalidRequestError, "request 0: messages missing"),
        ({"on_chunk": print}, ValueError, "on_chunk: workers read the streams"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
def test_bad_arguments_are_refused_before_anything_starts(
    asyncio_only: Host, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    async def main() -> None:
        arguments: dict[str, Any] = {
            "source": scripted,
            "requests": [request(1)],
            "workers": 1,
            **change,
        }
        source, requests = arguments.pop("source"), arguments.pop("requests")
        with pytest.raises(error, match=says):
            iter_parallel_acompletions(source, requests, **arguments)

    asyncio_only.run(main)


def test_streams_cannot_be_merged_here(asyncio_only: Host) -> None:
    async def main() -> None:
        async with open_ray_router(scripted, workers=1) as router:
            with pytest.raises(ValueError, match="iter_parallel_streams: workers read the streams"):
                parallel_core.iter_parallel_streams(router, [request(1)])

    asyncio_only.run(main)


def test_a_router_that_cannot_be_made_is_told_on_starting(host: Host) -> None:
    async def main() -> None:
        with pytest.raises(LookupError, match="the Router cannot be made"):
            await parallel_acompletions(broken, [request(1)], workers=1)

    host.run(main)


def test_workers_that_die_while_they_start_are_given_up(
    asyncio_only: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRIVER", str(os.getpid()))

    async def main() -> None:
        with pytest.raises(WorkersLostError, match="no worker is left, and 3 could not be started"):
            await parallel_acompletions(deadly, [request(1)], workers=1)

    asyncio_only.run(main)


def test_a_router_of_workers_is_opened_once_and_closed_once(asyncio_only: Host) -> None:
    async def main() -> None:
        async with open_ray_router(scripted, workers=1) as router:
            assert repr(router) == "<RayRouter workers=1 concurrency=8 open>"
            with pytest.raises(RuntimeError, match="opened once"):
                await router.start()
        await router.aclose()
        with pytest.raises(RuntimeError, match="this RayRouter is closed"):
            await router.acompletion(**request(1))

    asyncio_only.run(main)


def test_without_ray_it_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'parallel_core\[ray\]'"):
        open_ray_router(scripted, workers=1)


def test_importing_it_imports_no_ray_and_no_litellm() -> None:
    code = (
        "import sys, parallel_core.ray_engine;"
        "print([name for name in ('ray', 'litellm', 'numpy', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert ray_engine.__all__
