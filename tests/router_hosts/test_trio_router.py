"""A real litellm Router in trio, over real HTTP, against the demo server. On each host."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.testing

import parallel_core
from helpers.hosts import thread_names
from helpers.routers import make_router
from helpers.thorough import thorough_but
from helpers.trio_routers import (
    SERVER_TIMEOUT,
    UNDER_TRIO_ASYNCIO,
    ask,
    names,
    open_files,
    run,
    seen_by,
    warm_up,
)
from parallel_core import ParallelRouter, RouterParallelRequest
from parallel_core.config.router_members import deployments
from parallel_core.demo_server import DemoServerSettings, DemoServerThread, demo_server_process
from parallel_core.litellm_patch import patch


@pytest.mark.parametrize("name", thorough_but(["thread"], names()))
def test_results(name: Any, server: DemoServerThread) -> None:
    router = make_router(server)

    async def main() -> None:
        for _ in range(3):
            results = await parallel_core.parallel_acompletions(
                router,
                [ask(index, reply=f"answer {index}") for index in range(40)],
                concurrency=10,
                preserve_order=True,
                router_host=name,
            )
            answers = [result.unwrap().choices[0].message.content for result in results]
            assert all(f"answer {index}" in answer for index, answer in enumerate(answers))
        stats = server.stats()
        assert (stats.finished, stats.in_flight) == (120, 0)
        assert stats.max_in_flight <= 10
        # The Router has kept its connections over the batches.
        assert 1 <= stats.open_connections <= 10

    run(name, server, main)


def test_the_methods_of_a_router(
    name: Any, server: DemoServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    router = make_router(server)
    monkeypatch.setenv(patch.FLAG, "1")
    parallel_core.install()
    plain: Any = litellm.Router(model_list=deployments(router), num_retries=0)

    async def main() -> None:
        results = await plain.parallel_acompletions([ask()] * 5)
        assert [result.ok for result in results] == [True] * 5
        results = await router.parallel_acompletions([ask()] * 5, router_host=name)
        assert [result.ok for result in results] == [True] * 5
        seen = []
        async with router.iter_parallel_acompletions([ask()] * 5, router_host=name) as batch:
            async for result in batch:
                seen.append(result.unwrap().choices[0].message.content)
        assert len(seen) == 5

    try:
        run(name, server, main)
    finally:
        parallel_core.uninstall()


async def one_that_fails_when_the_others_are_in_flight(
    server: DemoServerThread, concurrency: int
) -> AsyncIterator[RouterParallelRequest]:
    """500 requests. The server never answers them, but for one, when all slots are busy."""
    for index in range(concurrency - 1):
        yield ask(index, fault="hang")
    await trio.to_thread.run_sync(server.wait_in_flight, concurrency - 1, SERVER_TIMEOUT)
    yield ask(concurrency - 1, fault="server_error")
    for index in range(concurrency, 500):
        yield ask(index, fault="hang")


def test_fail_fast_leaves_no_request_open(name: Any, server: DemoServerThread) -> None:
    router = make_router(server)

    async def main() -> None:
        with pytest.raises(Exception, match="Internal") as caught:
            await parallel_core.parallel_acompletions(
                router,
                one_that_fails_when_the_others_are_in_flight(server, 64),
                concurrency=64,
                return_exceptions=False,
                router_host=name,
            )
        assert type(caught.value).__name__ == "InternalServerError"
        assert "parallel_core: raised by request 63 (model 'fast')" in caught.value.__notes__
        stats = await seen_by(server)
        assert stats.max_in_flight == 64
        assert (stats.accepted, stats.disconnected, stats.finished) == (64, 63, 1)
        # The connection of the call that was answered may be kept for the next one.
        assert stats.open_connections <= 1

    run(name, server, main)


@pytest.mark.parametrize(
    "way", ["break", "raise", "aclose", "cancel", "move_on_after", "cancelled around it"]
)
def test_leaving_early_leaves_no_request_open(
    way: str, name: Any, server: DemoServerThread
) -> None:
    router = make_router(server)

    async def source() -> AsyncIterator[RouterParallelRequest]:
        for index in range(15):
            yield ask(index, fault="hang")
        await trio.to_thread.run_sync(server.wait_in_flight, 15, SERVER_TIMEOUT)
        while True:
            yield ask(reply="quick")
            yield ask(fault="hang")

    async def consume(outside: trio.CancelScope) -> None:
        batch = parallel_core.iter_parallel_acompletions(
            router, source(), concurrency=16, router_host=name
        )
        async with batch:
            async for _ in batch:
                if way == "break":
                    break
                if way == "raise":
                    raise LookupError("mine")
                if way == "aclose":
                    await batch.aclose()
                elif way == "cancel":
                    batch.cancel()
                elif way == "move_on_after":
                    outside.deadline = trio.current_time()
                else:
                    outside.cancel()
        assert batch.in_flight == 0

    async def main() -> None:
        with trio.CancelScope() as outside:
            if way == "raise":
                with pytest.raises(LookupError, match="mine"):
                    await consume(outside)
            else:
                await consume(outside)
        assert outside.cancelled_caught == (way in ("move_on_after", "cancelled around it"))
        stats = await seen_by(server)
        assert stats.disconnected >= 15
        assert stats.accepted == stats.disconnected + stats.finished
        assert stats.open_connections <= stats.finished

    run(name, server, main)


def test_faults_of_a_provider_are_results(name: Any, server: DemoServerThread) -> None:
    router = make_router(server)
    faults = ["none", "rate_limited", "server_error", "reset", "truncated", "invalid_json"]

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            router,
            [ask(fault=fault) for fault in faults * 3],
            preserve_order=True,
            retry=None,
            router_host=name,
        )
        assert [result.ok for result in results] == [True, False, False, False, False, False] * 3
        assert type(results[1].exception).__name__ == "RateLimitError"
        assert type(results[2].exception).__name__ == "InternalServerError"

    run(name, server, main)


def test_metadata_reaches_litellm(name: Any, server: DemoServerThread) -> None:
    seen: list[dict[str, Any]] = []

    class Watched(ParallelRouter):
        async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(dict(kwargs["metadata"]))
            return await super().acompletion(*args, **kwargs)

    router = Watched(model_list=deployments(make_router(server)), num_retries=0)

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(router, [ask()] * 10, router_host=name)
        assert all(result.ok for result in results)

    run(name, server, main)
    assert sorted(metadata["parallel_index"] for metadata in seen) == list(range(10))
    assert len({metadata["parallel_batch_id"] for metadata in seen}) == 1


def test_callbacks_of_litellm_run_before_the_run_ends(
    name: Any, server: DemoServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trio application has no other chance to wait for them: the loop is not its own."""
    import litellm
    from litellm.integrations.custom_logger import CustomLogger

    logged: list[int] = []

    class Accounting(CustomLogger):
        async def async_log_success_event(
            self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
        ) -> None:
            for _ in range(300):
                await asyncio.sleep(0)
            logged.append(kwargs["litellm_params"]["metadata"]["parallel_index"])

    for callbacks in ("success_callback", "_async_success_callback"):
        monkeypatch.setattr(litellm, callbacks, [])
    monkeypatch.setattr(litellm, "callbacks", [Accounting()])
    router = make_router(server)

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            router, [ask()] * 20, concurrency=20, router_host=name
        )
        assert all(result.ok for result in results)

    run(name, server, main)
    assert sorted(logged) == list(range(20))


# --- many calls ---
@pytest.mark.thorough  # every test here asserts what is left
@pytest.mark.parametrize("calls", [300, pytest.param(1_000, marks=pytest.mark.thorough)])
def test_many_calls_leave_tasks_threads_and_files_flat(
    calls: int, server: DemoServerThread
) -> None:
    name: Any = names()[0]
    counts: list[tuple[int, int, int, int]] = []

    async def main(router: ParallelRouter) -> None:
        requests = (ask(index) for index in range(calls))
        async with (
            parallel_core.open_router_host(router, name) as host,
            parallel_core.iter_parallel_acompletions(host, requests, concurrency=32) as batch,
        ):

            async def tasks_of_the_loop() -> int:
                return len(asyncio.all_tasks())

            async for result in batch:
                assert result.ok, result.exception
                if batch.delivered % (calls // 10) == 0:
                    counts.append(
                        (
                            trio.lowlevel.current_statistics().tasks_living,
                            await host.run(tasks_of_the_loop),
                            # litellm starts threads for its logging as it sees fit.
                            len([n for n in thread_names() if not n.startswith("litellm")]),
                            open_files(),
                        )
                    )

    warm_up(name, server)
    # In another process: its connections are not to be counted here.
    with demo_server_process(DemoServerSettings(latency_median=0.0)) as elsewhere:
        run(name, None, functools.partial(main, make_router(elsewhere)))
        stats = elsewhere.stats()
        assert (stats.finished, stats.in_flight) == (calls, 0)
    assert len(counts) == 10
    # The first tenth is where it settles. From then on there may be a task for each slot, one on
    # the loop for its call and one of the connection, the threads of one executor, a connection.
    # Measured: the tasks of the loop go up and down by up to 60, of a busy machine by more, the
    # others by 3. So 1,000 calls are enough to see what one call in 6 leaves behind, and 300 calls
    # what every second one does; more of them only take longer.
    for kind, allowance in enumerate((32, 160, 8, 32)):
        first, *later = (count[kind] for count in counts)
        assert max(later) <= first + allowance, counts


def test_the_process_is_what_it_was() -> None:
    """The helper thread never brings in trio-asyncio."""
    assert ("trio_asyncio" in sys.modules) == UNDER_TRIO_ASYNCIO
