"""The demo server: bad requests, and what it counts."""

from __future__ import annotations

import asyncio
import io
import json
import time
from typing import Any

import aiohttp
import pytest

from helpers.demo_clients import (
    IMMEDIATE,
    PLAIN_HOST,
    SECRET,
    TIMEOUT,
    body_for,
    cancel,
    post,
    run,
    stats_url,
)
from parallel_core.demo_server import (
    DemoModelStats,
    DemoServer,
    DemoServerStats,
    app,
)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("{", 400, "not valid JSON"),
        ("[]", 400, "JSON object"),
        ({"messages": []}, 400, "'model'"),
        (body_for("unknown"), 404, "'unknown' does not exist"),
        ({"model": "fast"}, 400, "'messages'"),
        ({"model": "fast", "messages": []}, 400, "'messages'"),
        ({"model": "fast", "messages": [SECRET]}, 400, "message must be an object"),
        ({"model": "fast", "messages": [{"content": SECRET}]}, 400, "'role'"),
        ({"model": "fast", "messages": [{"role": "user", "content": 1}]}, 400, "'content'"),
        ({"model": "fast", "messages": [{"role": "user", "content": [1]}]}, 400, "part"),
        (body_for(stream="yes"), 400, "'stream'"),
        (body_for(stream_options=[]), 400, "'stream_options'"),
        (body_for(n=0), 400, "'n'"),
        (body_for(max_tokens=0), 400, "'max_tokens'"),
        (body_for(demo=SECRET), 400, "'demo'"),
        (body_for(demo={SECRET: 1}), 400, "chunk_gap, cut_after, fault, held, latency, reply"),
        (body_for(demo={"fault": SECRET}), 400, "'demo.fault'"),
        (body_for(demo={"cut_after": -1}), 400, "'demo.cut_after'"),
        (body_for(demo={"fault": []}), 400, "'demo.fault'"),
        (body_for(demo={"latency": -1}), 400, "'demo.latency'"),
        (body_for(demo={"chunk_gap": "1"}), 400, "'demo.chunk_gap'"),
        (body_for(demo={"reply": 1}), 400, "'demo.reply'"),
        (body_for(demo={"held": 1}), 400, "'demo.held'"),
        (body_for(demo={"tool_arguments": 1}), 400, "'demo.tool_arguments'"),
        (body_for(demo={"usage": 1}), 400, "'demo.usage'"),
    ],
)
def test_bad_request(body: Any, status: int, words: str) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        data = body if isinstance(body, str) else json.dumps(body)
        async with client.post(f"{server.url}/chat/completions", data=data) as response:
            assert response.status == status
            error = (await response.json())["error"]
        assert error["type"] == "invalid_request_error"
        assert words in error["message"]
        assert SECRET not in json.dumps(error)

    stats = run(test)
    assert (stats.accepted, stats.rejected) == (0, 1)


def test_long_prompt_is_no_bad_request() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        messages = [{"role": "user", "content": [{"type": "text", "text": "word " * 500_000}]}]
        body = io.BytesIO(json.dumps(body_for(messages=messages)).encode())
        async with client.post(f"{server.url}/chat/completions", data=body) as response:
            assert (await response.json())["usage"]["prompt_tokens"] == 500_004

    run(test)


def test_body_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        status, answer = await post(server, client, padding="x" * 1000)
        assert status == 413
        assert answer["error"]["type"] == "invalid_request_error"

    monkeypatch.setattr(app, "_MAX_BODY_BYTES", 1000)
    assert run(test).rejected == 1


def test_stats_over_http() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        await post(server, client, "smart")
        async with client.get(stats_url(server)) as response:
            stats = DemoServerStats.from_json(await response.json())
        assert stats == server.stats
        assert stats.models["smart"].finished == 1

    run(test)


def test_reset_of_the_stats_keeps_what_is_in_flight() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        await post(server, client)
        await post(server, client, "unknown")
        await post(server, client, demo={"fault": "server_error"})
        hanging = asyncio.create_task(post(server, client, demo={"fault": "hang"}))
        await server.wait_in_flight(1)
        async with client.post(f"{stats_url(server)}/reset") as response:
            stats = DemoServerStats.from_json(await response.json())
        assert stats.models["fast"] == DemoModelStats(1, 0, 0, 1, 1, {})
        assert (stats.accepted, stats.in_flight, stats.rejected) == (1, 1, 0)
        assert (stats.last_finished_at, stats.last_disconnected_at) == (None, None)
        await cancel(hanging)
        await server.wait_idle()

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.disconnected) == (1, 0, 1)


def test_stats_tell_when_the_last_request_ended() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        began = time.time()
        await post(server, client)
        stats = server.stats
        finished_at = stats.last_finished_at
        assert finished_at is not None
        assert began <= finished_at <= time.time()
        assert stats.last_disconnected_at is None
        hanging = asyncio.create_task(post(server, client, demo={"fault": "hang"}))
        await server.wait_in_flight(1)
        await cancel(hanging)
        await server.wait_idle()
        stats = server.stats
        assert stats.last_finished_at == finished_at
        assert stats.last_disconnected_at is not None
        assert finished_at <= stats.last_disconnected_at <= time.time()
        assert stats.models["fast"].last_disconnected_at is not None
        assert stats.models["slow"].last_finished_at is None

    run(test)


def test_wait_in_flight_fails_when_the_server_stops() -> None:
    async def main() -> None:
        async with DemoServer() as server:
            waiting = asyncio.create_task(server.wait_in_flight(1))
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="stopped"):
            await asyncio.wait_for(waiting, TIMEOUT)
        with pytest.raises(RuntimeError, match="stopped"):
            await server.wait_in_flight(1)
        await server.wait_idle()
        with pytest.raises(RuntimeError, match="once"):
            await server.__aenter__()

    PLAIN_HOST.run(main)


def test_wait_finished_counts_refused_requests_and_no_disconnects() -> None:
    async def main() -> None:
        async with DemoServer(IMMEDIATE) as server, aiohttp.ClientSession() as client:
            hanging = asyncio.create_task(post(server, client, demo={"fault": "hang"}))
            await server.wait_in_flight(1)
            await cancel(hanging)
            await server.wait_idle()
            waiting = asyncio.create_task(server.wait_finished(2))
            await post(server, client)
            assert not waiting.done()
            await post(server, client, demo={"fault": "rate_limited"})
            await waiting
            await server.wait_finished(2)
            never = asyncio.create_task(server.wait_finished(3))
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="stopped"):
            await asyncio.wait_for(never, TIMEOUT)
        await server.wait_finished(2)
        with pytest.raises(RuntimeError, match="stopped"):
            await server.wait_finished(3)

    PLAIN_HOST.run(main)
