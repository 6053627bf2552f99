"""Streams of a real Router over HTTP, against the demo server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anyio
import anyio.lowlevel
import msgspec
import pytest

import parallel_core
from helpers.hosts import EACH_LIBRARY, HOSTS, Host
from helpers.jumping_clocks import JumpingClock
from helpers.routers import make_router, run_with_routers
from helpers.streams import events_of
from parallel_core import (
    RouterParallelRequest,
    RouterParallelResult,
    StreamEnd,
    StreamInterruptedError,
    StreamStalledError,
    Usage,
)
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

SERVER_TIMEOUT = 60.0  # seconds


STALL_TIMEOUT = 60.0


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    settings = DemoServerSettings(
        time_to_first_token=0.02, latency_sigma=1.0, chunk_gap=0.001, latency_median=0.0
    )
    with DemoServerThread(settings) as server:
        parallel_core.parallel_completions(make_router(server), [asked(0)])
        yield server


def asked(index: int, **orders: Any) -> RouterParallelRequest:
    messages = [{"role": "user", "content": f"What is {index}?"}]
    return RouterParallelRequest("fast", messages, {"extra_body": {"demo": orders}})


def reply(index: int) -> str:
    return " ".join(f"{index}.{position}" for position in range(1 + index % 11))


@pytest.mark.parametrize(
    ("library", "direct"),
    [
        ("trio", True),
        ("asyncio", False),
        pytest.param("trio", False, marks=pytest.mark.thorough),
        pytest.param("asyncio", True, marks=pytest.mark.thorough),
    ],
)
def test_streams_over_http(
    library: Literal["trio", "asyncio"], server: DemoServerThread, direct: bool
) -> None:
    """Each byte once and in order; totals as the server has counted them."""
    router = make_router(
        server, parameters={"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    )

    def order(index: int) -> RouterParallelRequest:
        if index % 16 == 3:
            return asked(index, fault="truncated", reply=reply(index) + " and more")
        if index % 16 == 7:
            return asked(index, tool_arguments=reply(index))
        return asked(index, reply=reply(index))

    async def main() -> None:
        batch = parallel_core.iter_parallel_streams(
            router, [order(index) for index in range(64)], concurrency=64, direct=direct
        )
        texts, ends = await events_of(batch)
        assert sorted(ends) == list(range(64))
        usage = Usage()
        broken = 0
        for index, result in ends.items():
            kind = index % 16
            text = "".join(texts.get(index, []))
            if kind == 3:
                assert not result.ok
                assert f"{reply(index)} and more".startswith(text)
                # What comes together with the end of the connection may be lost on the way.
                if text:
                    assert isinstance(result.exception, StreamInterruptedError)
                    assert result.exception.text == text
                broken += bool(text)
                continue
            message = result.unwrap().choices[0].message
            if kind == 7:
                assert message.tool_calls[0].function.arguments == reply(index)
                assert result.response.choices[0].finish_reason == "tool_calls"
            else:
                assert message.content == text == reply(index)
            assert result.usage is not None
            assert result.usage.completion_tokens == 1 + index % 11
            assert result.usage.cost == pytest.approx(
                1e-6 * result.usage.prompt_tokens + 2e-6 * result.usage.completion_tokens
            )
            usage += result.usage
        await anyio.to_thread.run_sync(server.wait_idle, SERVER_TIMEOUT)
        stats = server.stats()
        assert (usage.prompt_tokens, usage.completion_tokens) == (
            stats.prompt_tokens,
            stats.completion_tokens,
        )
        assert usage.estimated_calls == usage.unpriced_calls == 0
        assert batch.usage.estimated_calls == broken
        assert stats.disconnected == 0
        assert batch.failed == 4
        # A stream is direct if one of its chunks is like another: of text, and not too few.
        assert (batch.direct_calls > 32) == direct

    run_with_routers(Host(library, library), main)


def test_a_stream_that_stalls_is_closed(clock: JumpingClock, server: DemoServerThread) -> None:
    """The others have their whole answers."""
    router = make_router(server)

    async def main() -> None:
        requests = [
            asked(index, reply="one two", **({} if index % 2 else {"chunk_gap": 3600.0}))
            for index in range(8)
        ]
        ends: dict[int, RouterParallelResult] = {}
        begun: set[int] = set()

        async def let_time_pass() -> None:
            # No step is so long that it looks like a loop that is held up.
            while len(ends) < 8:
                if len(begun) == 8 and len(ends) >= 4:
                    clock.jump(STALL_TIMEOUT / 20)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()

        async with (
            anyio.create_task_group() as tasks,
            parallel_core.iter_parallel_streams(
                router, requests, concurrency=8, stall_timeout=STALL_TIMEOUT
            ) as batch,
        ):
            tasks.start_soon(let_time_pass)
            async for event in batch:
                begun.add(event.index)
                if isinstance(event, StreamEnd):
                    ends[event.index] = event.result
        for index, result in ends.items():
            if index % 2:
                assert result.unwrap().choices[0].message.content == "one two"
            else:
                assert isinstance(result.exception, StreamStalledError), result.exception
                assert result.exception.text == "one"
        await anyio.to_thread.run_sync(server.wait_idle, SERVER_TIMEOUT)
        assert server.stats().disconnected == 4
        assert batch.usage.estimated_calls == 4

    run_with_routers(clock.host, main)


@pytest.mark.parametrize("library", ["trio", "asyncio"])
def test_a_stream_that_is_cut_off_is_no_answer(
    library: Literal["trio", "asyncio"], server: DemoServerThread
) -> None:
    """The server ends it in the way of one that is whole, but without a finish reason."""

    async def main() -> None:
        requests = [
            asked(index, reply=reply(10), **({} if index % 2 else {"cut_after": index}))
            for index in range(8)
        ]
        router = make_router(server, num_retries=None)  # retries and cooldowns as litellm has them
        texts, ends = await events_of(parallel_core.iter_parallel_streams(router, requests))
        streamed = [
            msgspec.structs.replace(one, kwargs={**(one.kwargs or {}), "stream": True})
            for one in requests
        ]
        plain = await parallel_core.parallel_acompletions(router, streamed, preserve_order=True)
        for index, result in [*ends.items(), *enumerate(plain)]:
            if index % 2:
                assert result.unwrap().choices[0].finish_reason == "stop"
                assert result.response.choices[0].message.content == reply(10)
                continue
            words = " ".join(reply(10).split()[:index])
            assert isinstance(result.exception, StreamInterruptedError)
            assert result.exception.text == words == "".join(texts.get(index, []))
            assert isinstance(result.exception.__cause__, Exception)
            assert result.usage is not None
            assert result.usage.estimated
            assert result.usage.prompt_tokens > 0
            assert (result.usage.completion_tokens > 0) == (index > 0)

    run_with_routers(Host(library, library), main)


@pytest.mark.parametrize(
    ("host", "direct"),
    # What the lane leaves open does not depend on the kind of loop.
    [*((host, False) for host in HOSTS), *((host, True) for host in EACH_LIBRARY)],
    ids=lambda value: value.name if isinstance(value, Host) else ("plain", "direct")[value],
)
@pytest.mark.parametrize("way", ["break", "fail fast", "cancel"])
def test_leaving_closes_every_connection(
    host: Host, server: DemoServerThread, way: str, direct: bool
) -> None:
    router = make_router(server)

    async def main() -> None:
        requests = [asked(index, reply="one two three", chunk_gap=3600.0) for index in range(16)]
        if way == "fail fast":
            requests[7] = asked(7, fault="server_error")
        batch = parallel_core.iter_parallel_streams(
            router,
            requests,
            concurrency=16,
            return_exceptions=way != "fail fast",
            direct=direct,
        )
        seen = 0
        raised: Any = None
        try:
            async with batch:
                async for _ in batch:
                    seen += 1
                    if seen == 16 and way == "break":
                        break
                    if seen == 16 and way == "cancel":
                        batch.cancel()
        except Exception as error:
            raised = error
        assert getattr(raised, "status_code", None) == (500 if way == "fail fast" else None)
        await anyio.to_thread.run_sync(server.wait_idle, SERVER_TIMEOUT)
        stats = server.stats()
        assert stats.in_flight == 0
        # A failure may come before the last request is sent.
        assert stats.accepted == 16 or way == "fail fast"
        assert stats.disconnected == stats.accepted - (way == "fail fast")

    run_with_routers(host, main)


def test_the_method_of_a_router(server: DemoServerThread) -> None:
    router = make_router(server)

    async def main() -> None:
        _, ends = await events_of(router.iter_parallel_streams([asked(1, reply="yes")]))
        assert ends[0].response.choices[0].message.content == "yes"
        # A provider that tells no usage.
        _, ends = await events_of(
            router.iter_parallel_streams([asked(1, reply="yes it is", usage=False)])
        )
        assert ends[0].usage is not None
        assert ends[0].usage.estimated_calls == 1
        assert ends[0].usage.completion_tokens > 0

    run_with_routers(Host("asyncio", "asyncio"), main)
