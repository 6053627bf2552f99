"""Batches through a real litellm Router, over real HTTP, against the demo server."""

from __future__ import annotations

import asyncio
import copy
import gc
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

import parallel_core
from helpers.hosts import ASYNCIO_HOSTS, Host, thread_names, threads_besides
from helpers.routers import make_router, run_with_routers
from parallel_core import ParallelRouter, RouterParallelRequest
from parallel_core.config.router_members import deployments
from parallel_core.demo_server import DemoServerThread
from parallel_core.router_hosts import litellm_loop

SERVER_TIMEOUT = 60.0  # seconds


def ask(index: int = 0, **orders: Any) -> RouterParallelRequest:
    messages = [{"role": "user", "content": f"secret prompt {index}"}]
    return RouterParallelRequest("fast", messages, {"extra_body": {"demo": orders}})


on_every_loop = pytest.mark.parametrize("host", ASYNCIO_HOSTS, ids=lambda host: host.name)


@on_every_loop
def test_a_batch(host: Host, server: DemoServerThread) -> None:
    router = make_router(server)

    async def main() -> None:
        requests = [ask(index, reply=f"answer {index}") for index in range(40)]
        results = await parallel_core.parallel_acompletions(
            router, requests, concurrency=10, preserve_order=True
        )
        answers = [result.unwrap().choices[0].message.content for result in results]
        assert all(f"answer {index}" in answer for index, answer in enumerate(answers)), answers

    run_with_routers(host, main)
    stats = server.stats()
    assert (stats.accepted, stats.finished, stats.in_flight) == (40, 40, 0)
    assert stats.max_in_flight <= 10


async def one_that_fails_when_the_others_are_in_flight(
    server: DemoServerThread, concurrency: int
) -> AsyncIterator[RouterParallelRequest]:
    """500 requests. The server never answers them, but for one, when all slots are busy."""
    for index in range(concurrency - 1):
        yield ask(index, fault="hang")
    await asyncio.to_thread(server.wait_in_flight, concurrency - 1, SERVER_TIMEOUT)
    yield ask(concurrency - 1, fault="server_error")
    for index in range(concurrency, 500):
        yield ask(index, fault="hang")


@on_every_loop
def test_fail_fast_leaves_no_request_open(host: Host, server: DemoServerThread) -> None:
    router = make_router(server)

    async def main() -> None:
        with pytest.raises(Exception, match="Internal") as caught:
            await parallel_core.parallel_acompletions(
                router,
                one_that_fails_when_the_others_are_in_flight(server, 64),
                concurrency=64,
                return_exceptions=False,
            )
        assert type(caught.value).__name__ == "InternalServerError"
        assert "parallel_core: raised by request 63 (model 'fast')" in caught.value.__notes__
        await asyncio.to_thread(server.wait_idle, SERVER_TIMEOUT)
        stats = server.stats()
        assert stats.max_in_flight == 64
        assert (stats.accepted, stats.disconnected, stats.finished) == (64, 63, 1)
        # The connection of the call that was answered may be kept for the next one.
        assert stats.open_connections <= 1

    run_with_routers(host, main)


async def end_of_all_batches() -> None:
    async with asyncio.timeout(SERVER_TIMEOUT):
        while any(task.get_name().startswith("parallel_core") for task in asyncio.all_tasks()):
            await asyncio.sleep(0)


@pytest.mark.parametrize("way", ["async with", "plain async for", "aclose", "cancelled"])
@on_every_loop
def test_leaving_early_leaves_no_request_open(
    host: Host, way: str, server: DemoServerThread
) -> None:
    router = make_router(server)

    async def source() -> AsyncIterator[RouterParallelRequest]:
        for index in range(15):
            yield ask(index, fault="hang")
        await asyncio.to_thread(server.wait_in_flight, 15, SERVER_TIMEOUT)
        while True:
            yield ask(reply="quick")
            yield ask(fault="hang")

    async def consume() -> None:
        batch = parallel_core.iter_parallel_acompletions(router, source(), concurrency=16)
        if way == "plain async for":
            async for _ in batch:
                break
            del batch
        elif way == "aclose":
            await anext(batch)
            await batch.aclose()
        elif way == "async with":
            async with batch:
                async for _ in batch:
                    break
        else:
            async with batch:
                task = asyncio.current_task()
                assert task is not None
                await anext(batch)
                task.cancel()
                await anext(batch)
                await anext(batch)

    async def main() -> None:
        task = asyncio.create_task(consume())
        await asyncio.wait([task])
        assert task.cancelled() == (way == "cancelled")
        await asyncio.to_thread(server.wait_idle, SERVER_TIMEOUT)
        if way == "plain async for":
            await end_of_all_batches()  # the one way in which nobody has waited for it
        stats = server.stats()
        assert stats.disconnected >= 15
        assert stats.accepted == stats.disconnected + stats.finished
        assert stats.open_connections <= stats.finished

    run_with_routers(host, main)


@on_every_loop
def test_faults_of_a_provider_are_results(host: Host, server: DemoServerThread) -> None:
    router = make_router(server)
    faults = ["none", "rate_limited", "server_error", "reset", "truncated", "invalid_json"]

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            router, [ask(fault=fault) for fault in faults * 3], preserve_order=True, retry=None
        )
        assert [result.ok for result in results] == [True, False, False, False, False, False] * 3
        assert type(results[1].exception).__name__ == "RateLimitError"
        assert type(results[2].exception).__name__ == "InternalServerError"

    run_with_routers(host, main)


def test_fallbacks_and_retries_stay_the_routers(server: DemoServerThread) -> None:
    router = make_router(server, fallbacks=[{"broken": ["fast"]}], num_retries=1)
    router.add_deployment(
        parallel_core_deployment("broken", "http://127.0.0.1:9/v1")  # the discard port: refused
    )

    async def main() -> None:
        request = RouterParallelRequest("broken", ask().messages)
        (result,) = await parallel_core.parallel_acompletions(router, [request])
        assert result.unwrap().choices[0].message.content
        assert result.request is request

    run_with_routers(ASYNCIO_HOSTS[0], main)
    assert server.stats().models["fast"].finished == 1


def parallel_core_deployment(name: str, address: str) -> Any:
    from litellm.types.router import Deployment, LiteLLM_Params

    return Deployment(
        model_name=name,
        litellm_params=LiteLLM_Params(model=f"openai/{name}", api_base=address, api_key="none"),
    )


def test_metadata_reaches_litellm_and_the_users_objects_are_left_alone(
    server: DemoServerThread,
) -> None:
    seen: list[dict[str, Any]] = []

    class Watched(ParallelRouter):
        async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
            response = await super().acompletion(*args, **kwargs)
            seen.append(kwargs["metadata"])  # after the call: with what litellm wrote into it
            return response

    shared = {"tenant": "mine", "tags": ["a"]}
    messages = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    requests = [
        RouterParallelRequest(model, messages, {"metadata": shared})
        for model in ("fast", "slow") * 10
    ]
    before = copy.deepcopy((requests, shared, messages))
    base = make_router(server)
    router = Watched(model_list=deployments(base), num_retries=0)

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(router, requests)
        assert all(result.ok for result in results)

    run_with_routers(ASYNCIO_HOSTS[0], main)
    assert (requests, shared, messages) == before
    assert sorted(metadata["parallel_index"] for metadata in seen) == list(range(20))
    assert len({metadata["parallel_batch_id"] for metadata in seen}) == 1
    for metadata in seen:
        assert metadata["tenant"] == "mine"
        assert metadata["model_group"] == ("fast", "slow")[metadata["parallel_index"] % 2]


def test_the_synchronous_form_leaves_nothing_behind(server: DemoServerThread) -> None:
    router = make_router(server)
    threads = thread_names()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for _ in range(2):
            results = parallel_core.parallel_completions(
                router, [ask(index) for index in range(20)], preserve_order=True
            )
            assert [result.index for result in results] == list(range(20))
            assert all(result.ok for result in results)
        gc.collect()
    assert [w for w in caught if issubclass(w.category, ResourceWarning)] == []
    assert threads_besides(threads) == []
    server.wait_idle(SERVER_TIMEOUT)
    assert server.stats().finished == 40


def test_the_synchronous_form_where_a_loop_is_running(server: DemoServerThread) -> None:
    """As in a notebook."""
    router = make_router(server)

    async def main() -> None:
        (result,) = parallel_core.parallel_completions(router, [ask(reply="here")])
        assert "here" in result.unwrap().choices[0].message.content

    asyncio.run(main())


def test_litellms_callbacks_stay_on_the_loops_of_their_calls(
    server: DemoServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    """litellm has one worker for callbacks and moves it to each loop that makes a call: pending
    tasks of the others were destroyed, and callbacks run twice."""
    import litellm
    from litellm.integrations.custom_logger import CustomLogger

    seen: dict[str, list[object]] = {}
    before = set(litellm_loop._workers)  # of loops that other tests have broken

    class Watch(CustomLogger):
        async def async_log_success_event(
            self, kwargs: Any, response_obj: object, start_time: object, end_time: object
        ) -> None:
            content = kwargs["messages"][0]["content"]
            seen.setdefault(content, []).append(asyncio.get_running_loop())

    router = make_router(server)
    litellm.callbacks = [watch := Watch()]

    def several_times(start: int) -> None:
        for index in range(start, start + 8, 4):
            parallel_core.parallel_completions(router, [ask(index + n) for n in range(4)])

    async def in_trio() -> None:
        await parallel_core.parallel_acompletions(router, [ask(200 + n) for n in range(4)])

    async def main() -> None:
        mine = asyncio.get_running_loop()
        for index in range(100, 103):
            await router.acompletion(**vars_of(ask(index)))
            several_times(10 * (index - 100))
        async with asyncio.TaskGroup() as tasks:
            for start in (40, 50, 60):
                tasks.create_task(asyncio.to_thread(several_times, start))
            tasks.create_task(asyncio.to_thread(trio.run, in_trio))
            for index in range(103, 106):
                tasks.create_task(router.acompletion(**vars_of(ask(index))))
        async with asyncio.timeout(60):
            while len(seen) < 6 + 6 * 8 + 4:
                await asyncio.sleep(0)
        loops = {content: loops for content, loops in seen.items() if loops != [mine]}
        assert sorted(seen.keys() - loops.keys()) == [f"secret prompt {n}" for n in range(100, 106)]
        assert all(len(loops) == 1 for loops in loops.values())

    try:
        run_with_routers(ASYNCIO_HOSTS[0], main)
    finally:
        # litellm copies it into the lists for each kind of event.
        for callbacks in [value for value in vars(litellm).values() if isinstance(value, list)]:
            while watch in callbacks:
                callbacks.remove(watch)
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.levelno >= 30] == []
    assert set(litellm_loop._workers) <= before


def vars_of(request: RouterParallelRequest) -> dict[str, Any]:
    return {"model": request.model, "messages": request.messages, **(request.kwargs or {})}


def test_neither_keys_nor_prompts_are_logged(
    server: DemoServerThread, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one thing that is logged on our own account is a call that ignores its cancellation."""
    monkeypatch.setattr("parallel_core.nursery_engine.STUBBORN_CALL_FIRST_WARNING", 0.0)
    router = make_router(server)

    async def stubborn(**arguments: Any) -> None:
        try:
            await router.acompletion(**arguments)
        except asyncio.CancelledError:
            while "was cancelled and still runs" not in caplog.text:
                await asyncio.sleep(0)
            raise

    async def main() -> None:
        orders = {"demo": {"fault": "hang"}}
        request = RouterParallelRequest(
            "fast", ask().messages, {"extra_body": orders, "api_key": "sk-secret-key"}
        )
        async with parallel_core.iter_parallel_acompletions(stubborn, [request]):
            await asyncio.to_thread(server.wait_in_flight, 1, SERVER_TIMEOUT)

    run_with_routers(ASYNCIO_HOSTS[0], main)
    assert "request 0 (model 'fast') was cancelled" in caplog.text
    assert "secret" not in caplog.text
