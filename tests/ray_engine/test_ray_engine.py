"""Batches whose calls are made by workers on Ray: the same as in one process, or refused.

``make test`` has one run, one kill, one cancellation and one cap with Ray. What the driver and a
worker do has tests without Ray (``test_fleet…``, ``test_worker``), and CI runs these as well.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import litellm
import pytest

import parallel_core
from helpers.answering_server import answering_server
from helpers.hosts import EACH_LIBRARY, HOSTS, TRIO, Host, name_of
from helpers.ray_requests import fast, is_there, request
from helpers.ray_routers import HttpRouter, bare_callable, broken, exits_elsewhere, scripted
from helpers.ray_runtime import IGNORED_WARNINGS
from helpers.thorough import thorough_but
from parallel_core import (
    classify_failure,
    ray_engine,
)
from parallel_core.demo_server import DemoServerThread
from parallel_core.errors import (
    EmptyResponseError,
    InvalidRequestError,
    RemoteCallError,
    RequestTimeoutError,
    StreamInterruptedError,
    StreamStalledError,
)
from parallel_core.ray_engine import (
    iter_parallel_acompletions,
    open_ray_router,
    parallel_acompletions,
)

pytestmark = [
    pytest.mark.usefixtures("ray"),
    *(pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS),
]


@pytest.mark.thorough  # needs Ray: see the head of this file
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


@pytest.mark.parametrize("host", thorough_but([TRIO], HOSTS, name_of))
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


@pytest.mark.parametrize("host", thorough_but([TRIO], EACH_LIBRARY, name_of))
def test_workers_call_other_operations_than_chat(host: Host, server: DemoServerThread) -> None:
    async def main() -> None:
        async with open_ray_router(HttpRouter(server.url), workers=1, concurrency=3) as router:
            requests = [{"model": "fast", "input": [f"text {n}"]} for n in range(10)]
            results = await parallel_core.parallel_calls(router, requests, concurrency=router.slots)
            assert [len(result.unwrap().data) for result in results] == [1] * 10
            assert [result.request.arguments for result in results] == requests
            given = {"input": "one"}
            mixed = [
                parallel_core.RouterParallelRequest("fast", (), given, operation="aembedding"),
                parallel_core.RouterParallelRequest("fast", [{"role": "user", "content": "one"}]),
                parallel_core.RouterParallelRequest("fast", (), given, operation="aresponses"),
            ]
            results = await parallel_core.parallel_acompletions(router, mixed)
            embedding, chat, response = (result.unwrap() for result in results)
            assert embedding.data[0]["embedding"]
            assert chat.choices[0].message.content
            assert response.output[0].content[0].text
            with pytest.raises(ValueError, match="did you mean 'aembedding'"):
                await parallel_core.parallel_calls(router, requests, operation="aembed")
            with pytest.raises(InvalidRequestError, match="no model 'none'"):
                await parallel_core.parallel_calls(router, [{"model": "none", "input": "x"}])

    finished = server.stats().finished
    host.run(main)
    assert server.stats().finished == finished + 13


@pytest.mark.parametrize("host", thorough_but([TRIO], HOSTS, name_of))
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


@pytest.mark.thorough
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
            await asyncio.to_thread(server.wait_idle, 30)

    asyncio.run(main())  # the Router of this process leaves a task of litellm's


@pytest.mark.thorough  # needs Ray: see the head of this file
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


def test_too_many_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at most 10,000"):
        open_ray_router(scripted, workers=10**9)


@pytest.mark.thorough  # needs Ray: see the head of this file
def test_a_batch_is_entered_once(asyncio_only: Host) -> None:
    async def main() -> None:
        batch = iter_parallel_acompletions(scripted, [request(1)], workers=1)
        async with batch:
            with pytest.raises(RuntimeError, match="a batch can be entered only once"):
                await batch.__aenter__()

    asyncio_only.run(main)


@pytest.mark.thorough  # needs Ray: see the head of this file
def test_a_router_of_another_loop_is_refused(asyncio_only: Host) -> None:
    async def main() -> None:
        async with open_ray_router(scripted, workers=1) as router:
            with pytest.raises(RuntimeError, match="on the event loop on which it was opened"):
                await asyncio.to_thread(asyncio.run, router.acompletion(**request(1)))

    asyncio_only.run(main)


@pytest.mark.thorough  # needs Ray: see the head of this file
def test_a_factory_that_exits_is_told(asyncio_only: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVER", str(os.getpid()))

    async def main() -> None:
        with pytest.raises(RemoteCallError, match="SystemExit"):
            await parallel_acompletions(exits_elsewhere, [request(1)], workers=1)

    asyncio_only.run(main)


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


@pytest.mark.thorough  # needs Ray: see the head of this file
def test_a_router_of_workers_is_opened_once_and_closed_once(asyncio_only: Host) -> None:
    async def main() -> None:
        async with open_ray_router(scripted, workers=1) as router:
            assert repr(router) == "<RayRouter workers=1 concurrency=8 open>"
            with pytest.raises(RuntimeError, match="opened only once"):
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
