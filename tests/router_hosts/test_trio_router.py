"""A real litellm Router in trio, over real HTTP, against the demo server.

In this process its calls run in a helper thread. With ``PARALLEL_CORE_ROUTER_HOST=trio-asyncio``
the same tests run on a loop of trio-asyncio: ``test_trio_router_processes.py`` does that, in a
process of its own, since the import of trio-asyncio changes asyncio for the whole process.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib
import os
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import parallel_core
from helpers.hosts import thread_names
from helpers.routers import make_router
from parallel_core import ParallelRouter, RouterParallelRequest, StreamEnd, router_api
from parallel_core._router_members import deployments
from parallel_core.demo_server import (
    DemoServerSettings,
    DemoServerThread,
    demo_server_process,
)

SERVER_TIMEOUT = 60.0  # seconds
UNDER_TRIO_ASYNCIO = os.environ.get("PARALLEL_CORE_ROUTER_HOST") == "trio-asyncio"

if UNDER_TRIO_ASYNCIO:
    with warnings.catch_warnings():  # it uses what Python 3.12 has deprecated
        warnings.simplefilter("ignore")
        importlib.import_module("trio_asyncio")


def names() -> list[Any]:
    if UNDER_TRIO_ASYNCIO:
        return ["trio-asyncio"]
    try:
        importlib.import_module("uvloop")
    except ImportError:
        return ["thread"]
    return ["thread", "thread-uvloop"]


@pytest.fixture(params=names())
def name(request: pytest.FixtureRequest) -> Any:
    """Of a host of a Router."""
    return request.param


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as server:
        yield server


@pytest.fixture
def server(running_server: DemoServerThread) -> DemoServerThread:
    running_server.wait_idle(SERVER_TIMEOUT)
    running_server.reset_stats()
    return running_server


def ask(index: int = 0, **orders: Any) -> RouterParallelRequest:
    messages = [{"role": "user", "content": f"secret prompt {index}"}]
    return RouterParallelRequest("fast", messages, {"extra_body": {"demo": orders}})


def arguments(index: int = 0, **orders: Any) -> dict[str, Any]:
    request = ask(index, **orders)
    return {"model": request.model, "messages": request.messages, **(request.kwargs or {})}


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


_warm: set[str] = set()  # filled by the first call of a Router in this process


def run(
    name: Any,
    server: DemoServerThread | None,
    function: Callable[[], Awaitable[None]],
) -> None:
    """Run in trio, and fail when the run leaves connections, threads, files or warnings behind."""

    def run_here(function: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            if name == "trio-asyncio":
                async with parallel_core.open_trio_asyncio():
                    await function()
            else:
                await function()

        trio.run(main)

    async def warm_up() -> None:  # what is opened once in the life of a process
        async with parallel_core.open_router_host(StandIn(), name) as host:
            await host.run(asyncio.sleep, 0)
        if server is not None and not _warm:
            _warm.add(name)
            router = make_router(server)
            await parallel_core.parallel_acompletions(router, [ask()], router_host=name)
            await seen_by(server)
            server.reset_stats()

    run_here(warm_up)
    gc.collect()
    threads, files = thread_names(), open_files()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        run_here(function)
        gc.collect()
    deadline = time.monotonic() + SERVER_TIMEOUT
    while server is not None and server.stats().open_connections:
        # It may need a moment to notice that they are closed.
        assert time.monotonic() < deadline, server.stats()
    while thread_names() != threads:  # anyio's workers are told to end, and need a moment
        assert time.monotonic() < deadline, thread_names()
        time.sleep(0)
    assert open_files() <= files
    assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []


class StandIn:
    """Takes the place of a Router."""

    async def acompletion(self, **arguments: Any) -> Any:
        return arguments


async def seen_by(server: DemoServerThread) -> Any:
    """What the server has counted, now that nothing is in flight there any more."""
    await trio.to_thread.run_sync(server.wait_idle, SERVER_TIMEOUT)
    return server.stats()


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
    monkeypatch.setenv(router_api.FLAG, "1")
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


# --- streams ---


@pytest.mark.parametrize(
    "way",
    [
        "to its end",
        "break",
        "aclose",
        "aclose before it is read",
        "cancelled before it is read",
        "cancelled between chunks",
        "cancelled awaiting a chunk",
        "dropped",
        "left to the host",
        "read while the host closes",
    ],
)
def test_a_stream_is_closed(way: str, name: Any, server: DemoServerThread) -> None:
    router = make_router(server)
    slow: dict[str, Any] = {} if way == "to its end" else {"chunk_gap": 3600.0}

    async def first_chunk(stream: parallel_core.RouterStream) -> None:
        assert (await anext(stream)).choices

    async def use(nursery: trio.Nursery) -> None:
        async with parallel_core.open_router_host(router, name) as host:
            stream = await host.acompletion(**arguments(reply="one two", **slow), stream=True)
            assert isinstance(stream, parallel_core.RouterStream)
            if way == "to its end":
                async with stream:
                    texts = [chunk.choices[0].delta.content or "" async for chunk in stream]
                assert "one two" in "".join(texts)
            elif way == "break":
                async with stream:
                    async for _ in stream:
                        break
            elif way == "aclose":
                await first_chunk(stream)
                await stream.aclose()
                await stream.aclose()
            elif way == "aclose before it is read":
                await stream.aclose()
            elif way == "cancelled before it is read":
                with trio.CancelScope() as scope:
                    scope.cancel()
                    async with stream:
                        await first_chunk(stream)
                assert scope.cancelled_caught
            elif way == "cancelled between chunks":
                with trio.CancelScope() as scope:
                    async with stream:
                        await first_chunk(stream)
                        scope.cancel()
                        await trio.lowlevel.checkpoint()
                assert scope.cancelled_caught
            elif way == "cancelled awaiting a chunk":
                await first_chunk(stream)
                with trio.move_on_after(0.05) as scope:
                    await anext(stream)
                    await anext(stream)
                assert scope.cancelled_caught
            elif way == "dropped":
                await first_chunk(stream)
                del stream
                gc.collect()
            elif way == "left to the host":
                await first_chunk(stream)
            else:
                await first_chunk(stream)

                async def read() -> None:
                    with pytest.raises(parallel_core.RouterHostClosedError):
                        async for _ in stream:
                            pass

                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
            if way not in ("left to the host", "read while the host closes"):
                stats = await seen_by(server)
                assert stats.disconnected == 1 or way == "to its end"
                assert stats.open_connections <= stats.finished
                if way != "dropped":
                    with pytest.raises(StopAsyncIteration):
                        await anext(stream)
        stats = await seen_by(server)
        assert stats.accepted == 1
        assert stats.finished + stats.disconnected == 1
        if way != "to its end" and name != "trio-asyncio":
            assert stats.open_connections == 0

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await use(nursery)

    run(name, server, main)


def test_many_streams_through_a_map(name: Any, server: DemoServerThread) -> None:
    """stream=True in a trio callable of one's own, and a failure in the middle of the others."""
    router = make_router(server)

    async def main() -> None:
        async with parallel_core.open_router_host(router, name) as host:

            async def read(index: int) -> int:
                if index == 7:
                    await trio.to_thread.run_sync(server.wait_in_flight, 7, SERVER_TIMEOUT)
                    raise LookupError("mine")
                stream = await host.acompletion(**arguments(chunk_gap=3600.0), stream=True)
                async with stream:
                    return len([chunk async for chunk in stream])

            with pytest.raises(LookupError, match="mine"):
                await parallel_core.parallel_map(
                    read, range(100), concurrency=8, return_exceptions=False
                )
            stats = await seen_by(server)
            assert stats.accepted == stats.disconnected == 7
            assert stats.open_connections == 0

    run(name, server, main)


@pytest.mark.parametrize("way", ["to its end", "break", "fail fast"])
def test_streams_are_merged(way: str, name: Any, server: DemoServerThread) -> None:
    router = make_router(server)
    reply = "one two three"

    async def main() -> None:
        orders: list[dict[str, Any]] = [{"reply": f"{reply} {index}"} for index in range(16)]
        if way != "to its end":
            orders = [{"reply": reply, "chunk_gap": 3600.0} for _ in range(16)]
        if way == "fail fast":
            orders[3] = {"fault": "server_error"}
        texts: dict[int, str] = {}
        raised: Any = None
        try:
            async with parallel_core.iter_parallel_streams(
                router,
                [ask(index, **order) for index, order in enumerate(orders)],
                concurrency=16,
                return_exceptions=way != "fail fast",
                router_host=name,
            ) as batch:
                async for event in batch:
                    if isinstance(event, StreamEnd):
                        content = event.result.unwrap().choices[0].message.content
                        assert content == texts[event.index] == f"{reply} {event.index}"
                    else:
                        texts[event.index] = texts.get(event.index, "") + event.text
                        if len(texts) == 16 and way == "break":
                            break
        except Exception as error:
            raised = error
        assert getattr(raised, "status_code", None) == (500 if way == "fail fast" else None)
        stats = await seen_by(server)
        left = {"to its end": 0, "break": 16}.get(way)
        assert left is None or stats.disconnected == left
        assert stats.in_flight == 0
        if way == "to its end":
            assert batch.usage.completion_tokens == stats.completion_tokens == 16 * 4
            assert batch.usage.prompt_tokens == stats.prompt_tokens
            assert not batch.usage.estimated

    run(name, server, main)


# --- many calls ---


def test_a_thousand_calls_leave_tasks_threads_and_files_flat() -> None:
    name: Any = names()[0]
    counts: list[tuple[int, int, int, int]] = []

    async def main(router: ParallelRouter) -> None:
        requests = (ask(index) for index in range(1_000))
        async with (
            parallel_core.open_router_host(router, name) as host,
            parallel_core.iter_parallel_acompletions(host, requests, concurrency=32) as batch,
        ):

            async def tasks_of_the_loop() -> int:
                return len(asyncio.all_tasks())

            async for result in batch:
                assert result.ok, result.exception
                if batch.delivered % 100 == 0:
                    counts.append(
                        (
                            trio.lowlevel.current_statistics().tasks_living,
                            await host.run(tasks_of_the_loop),
                            # litellm starts threads for its logging as it sees fit.
                            len([n for n in thread_names() if not n.startswith("litellm")]),
                            open_files(),
                        )
                    )

    # In another process: its connections are not to be counted here.
    with demo_server_process(DemoServerSettings(latency_median=0.0)) as server:
        run(name, None, functools.partial(main, make_router(server)))
        stats = server.stats()
        assert (stats.finished, stats.in_flight) == (1_000, 0)
    assert len(counts) == 10
    # The first tenth is where it settles. From then on there may be a task for each slot, one on
    # the loop for its call and one of the connection, the threads of one executor, a connection.
    # Measured: the tasks of the loop go up and down by up to 60, of a busy machine by more, the
    # others by 3. So 1,000 calls are enough to see what one call in 6 leaves behind; more of them
    # only take longer.
    for kind, allowance in enumerate((32, 160, 8, 32)):
        first, *later = (count[kind] for count in counts)
        assert max(later) <= first + allowance, counts


def test_the_process_is_what_it_was() -> None:
    """The helper thread never brings in trio-asyncio."""
    assert ("trio_asyncio" in sys.modules) == UNDER_TRIO_ASYNCIO
