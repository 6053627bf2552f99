"""Streams of a real litellm Router in trio, over HTTP. On each host."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import trio
import trio.testing

import parallel_core
from helpers.routers import make_router
from helpers.trio_routers import SERVER_TIMEOUT, arguments, ask, run, seen_by
from parallel_core import StreamEnd
from parallel_core.demo_server import DemoServerThread


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
