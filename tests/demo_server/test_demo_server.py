"""The demo server: what it answers, what it breaks, what it counts, and that it leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from helpers import hosts
from helpers.demo_clients import (
    IMMEDIATE,
    PLAIN_HOST,
    SECRET,
    TIMEOUT,
    assert_consistent,
    body_for,
    cancel,
    close,
    command_app,
    connect,
    is_json,
    port_of,
    post,
    post_stream,
    raw_request,
    run,
    stats_url,
)
from parallel_core import _demo_app, _demo_server_command
from parallel_core._litellm_loop import close_clients_of_this_loop
from parallel_core.demo_server import (
    DemoModelStats,
    DemoServer,
    DemoServerProcess,
    DemoServerSettings,
    DemoServerStats,
    DemoServerThread,
    demo_server_process,
)

SCRIPTS = Path(__file__).parent / "scripts"
REPOSITORY = Path(__file__).resolve().parents[2]
AT_ONCE = 5.0  # seconds, on a machine that is busy; what is not ended takes an hour


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call_and_an_answer_without_usage(stream: bool) -> None:
    demo = {"tool_arguments": "two words", "usage": False}

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        if not stream:
            _, answer = await post(server, client, demo=demo)
            assert "usage" not in answer
            (choice,) = answer["choices"]
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["content"] is None
            (call,) = choice["message"]["tool_calls"]
            assert call["function"] == {"name": "demo", "arguments": "two words"}
            return
        *chunks, done = await post_stream(
            server, client, demo=demo, stream_options={"include_usage": True}
        )
        assert done == "[DONE]"
        parsed = [json.loads(chunk)["choices"][0] for chunk in chunks]
        deltas = [choice["delta"]["tool_calls"][0] for choice in parsed[:-1]]
        assert deltas[0]["function"]["name"] == "demo"
        assert "".join(delta["function"]["arguments"] for delta in deltas) == "two words"
        assert parsed[-1]["finish_reason"] == "tool_calls"

    stats = run(test)
    assert (stats.prompt_tokens, stats.completion_tokens) == (9, 2)


def test_answer() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        status, answer = await post(server, client, demo={"reply": "two words"})
        assert status == 200
        assert answer["object"] == "chat.completion"
        assert answer["model"] == "fast"
        assert answer["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "two words", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert answer["usage"] == {
            "prompt_tokens": 9,
            "completion_tokens": 2,
            "total_tokens": 11,
        }

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.max_in_flight) == (1, 1, 1)
    assert stats.models["fast"] == DemoModelStats(
        1, 1, 0, 0, 1, {}, prompt_tokens=9, completion_tokens=2
    )
    assert stats.models["slow"] == DemoModelStats(0, 0, 0, 0, 0, {})


def test_answer_says_that_it_is_synthetic_and_quotes_no_prompt() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        _, answer = await post(server, client)
        assert answer["choices"][0]["message"]["content"].startswith("[synthetic] ")
        assert answer["system_fingerprint"] == "synthetic"
        assert SECRET not in json.dumps(answer)

    run(test)


def test_max_tokens_cuts_the_answer() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        _, answer = await post(server, client, max_tokens=2, demo={"reply": "one two three"})
        assert answer["choices"][0]["message"]["content"] == "one two"
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 2

    run(test)


def test_models() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        async with client.get(f"{server.url}/models") as response:
            answer = await response.json()
        assert answer["object"] == "list"
        assert [model["id"] for model in answer["data"]] == ["fast", "slow", "smart"]

    run(test)


@pytest.mark.parametrize("include_usage", [False, True])
def test_stream(include_usage: bool) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        options = {"stream_options": {"include_usage": True}} if include_usage else {}
        events = await post_stream(server, client, demo={"reply": "one two three"}, **options)
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        if include_usage:
            last = chunks.pop()
            assert last["choices"] == []
            assert last["usage"]["completion_tokens"] == 3
            assert all(chunk["usage"] is None for chunk in chunks)
        else:
            assert all("usage" not in chunk for chunk in chunks)
        choices = [chunk["choices"][0] for chunk in chunks]
        assert [choice["delta"] for choice in choices] == [
            {"role": "assistant", "content": "one"},
            {"content": " two"},
            {"content": " three"},
            {},
        ]
        assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]

    assert run(test).finished == 1


def test_latency_passes_before_the_answer_and_the_gap_between_tokens() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        begin = time.monotonic()
        await post(server, client, demo={"latency": 0.1})
        assert time.monotonic() - begin >= 0.1
        begin = time.monotonic()
        await post_stream(
            server, client, demo={"latency": 0.1, "chunk_gap": 0.05, "reply": "one two three"}
        )
        assert time.monotonic() - begin >= 0.2

    run(test)


@pytest.mark.parametrize("stream", [False, True])
def test_rate_limit_says_when_to_come_back(stream: bool) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        url = f"{server.url}/chat/completions"
        body = body_for(stream=stream, demo={"fault": "rate_limited"})
        async with client.post(url, json=body) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "2.5"
            assert (await response.json())["error"]["type"] == "rate_limit_error"

    stats = run(test, DemoServerSettings(retry_after=2.5))
    assert (stats.accepted, stats.finished, stats.max_in_flight) == (1, 1, 0)
    assert stats.faults == {"rate_limited": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_server_error(stream: bool) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        status, answer = await post(server, client, stream=stream, demo={"fault": "server_error"})
        assert status == 500
        assert answer["error"]["type"] == "server_error"

    stats = run(test)
    assert (stats.accepted, stats.finished) == (1, 1)
    assert stats.faults == stats.models["fast"].faults == {"server_error": 1}


def test_reset_connection() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)) as caught:
            await post(server, client, demo={"fault": "reset"})
        error: BaseException | None = caught.value
        assert isinstance(error, ConnectionResetError) or "reset" in str(error).lower(), error

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.faults) == (1, 1, {"reset": 1})


def test_reset_is_a_real_one(asyncio_host: hosts.Host) -> None:
    async def test(server: DemoServer, _: aiohttp.ClientSession) -> None:
        reader, writer = await connect(server)
        writer.write(raw_request(demo={"fault": "reset"}))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await close(writer)

    run(test, host=asyncio_host)


@pytest.mark.parametrize("fault", ["reset", "truncated"])
def test_stream_that_breaks_off(fault: str) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        url = f"{server.url}/chat/completions"
        body = body_for(stream=True, demo={"fault": fault, "chunk_gap": 0.01})
        async with client.post(url, json=body) as response:
            assert response.status == 200
            first = await response.content.readline()
            assert json.loads(first.removeprefix(b"data: "))["choices"][0]["delta"]["content"]
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                await response.read()

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.faults) == (1, 1, {fault: 1})


def test_truncated_body() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        url = f"{server.url}/chat/completions"
        async with client.post(url, json=body_for(demo={"fault": "truncated"})) as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.faults) == (1, 1, {"truncated": 1})


def test_invalid_json() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        with pytest.raises(json.JSONDecodeError):
            await post(server, client, demo={"fault": "invalid_json"})
        events = await post_stream(server, client, demo={"fault": "invalid_json"})
        assert events.pop() == "[DONE]"
        broken = [event for event in events if not is_json(event)]
        assert len(broken) == 1
        assert broken[0] != events[0]

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.faults) == (2, 2, {"invalid_json": 2})


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_request_ends_when_its_client_goes(stream: bool) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        request = asyncio.create_task(post(server, client, stream=stream, demo={"fault": "hang"}))
        await server.wait_in_flight(1)
        assert (server.stats.in_flight, server.stats.open_connections) == (1, 1)
        await cancel(request)
        await server.wait_idle()
        assert server.stats.open_connections == 0

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.disconnected) == (1, 0, 1)
    assert stats.faults == {"hang": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_fifty_clients_disconnect(asyncio_host: hosts.Host, stream: bool) -> None:
    """Half of them are in the middle of their answer (or wait for it), the others hang."""

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        slow = {"latency": 0.0, "chunk_gap": 3600.0} if stream else {"latency": 3600.0}
        demos = [{"fault": "hang"} if index % 2 else slow for index in range(50)]
        requests = [
            asyncio.create_task(post(server, client, stream=stream, demo=demo)) for demo in demos
        ]
        await server.wait_in_flight(50)
        assert server.stats.open_connections == 50
        await cancel(*requests)
        await server.wait_idle()
        assert server.stats.open_connections == 0
        assert (await post(server, client))[0] == 200

    stats = run(test, host=asyncio_host)
    assert (stats.accepted, stats.finished, stats.disconnected) == (51, 1, 50)
    assert (stats.in_flight, stats.max_in_flight) == (0, 50)


def test_client_that_goes_between_two_tokens() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        url = f"{server.url}/chat/completions"
        body = body_for(stream=True, demo={"chunk_gap": 3600.0, "reply": "one two"})
        async with client.post(url, json=body) as response:
            await response.content.readline()
        await server.wait_idle()

    stats = run(test)
    assert (stats.finished, stats.disconnected) == (0, 1)


def test_client_that_goes_while_it_sends_is_not_accepted() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        _, writer = await connect(server)
        request = raw_request()
        writer.write(request[:-10])
        await writer.drain()
        await close(writer)
        assert (await post(server, client))[0] == 200

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.rejected) == (1, 1, 0)


def test_above_its_capacity_it_answers_429() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        hanging = [
            asyncio.create_task(post(server, client, "slow", demo={"fault": "hang"}))
            for _ in range(3)
        ]
        await server.wait_in_flight(3)
        status, answer = await post(server, client)
        assert (status, answer["error"]["code"]) == (429, "over_capacity")
        await cancel(*hanging)
        await server.wait_idle()
        assert (await post(server, client))[0] == 200

    settings = DemoServerSettings(latency_median=0.0, capacity=3)
    stats = run(test, settings)
    assert stats.max_in_flight == 3
    assert stats.faults == {"hang": 3, "over_capacity": 1}
    assert stats.models["slow"].disconnected == 3


def test_its_capacity_can_be_changed() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        capacity_url = server.url.replace("/v1", "/capacity")
        hanging = asyncio.create_task(post(server, client, "slow", demo={"fault": "hang"}))
        await server.wait_in_flight(1)
        async with client.post(capacity_url, json={"capacity": 1}) as response:
            assert response.status == 200
        assert (await post(server, client))[0] == 429
        async with client.post(capacity_url, json={"capacity": None}) as response:
            assert response.status == 200
        assert (await post(server, client))[0] == 200
        for body in ({"capacity": 0}, {"capacity": "1"}, {}, [1]):
            async with client.post(capacity_url, json=body) as response:
                assert (response.status, "capacity" in await response.text()) == (400, True)
        assert (await post(server, client))[0] == 200
        await cancel(hanging)

    run(test, IMMEDIATE)


@pytest.mark.parametrize("stream", [False, True])
def test_it_holds_what_is_to_be_held(stream: bool) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        root = server.url.removesuffix("/v1")

        def held(**demo: Any) -> asyncio.Task[Any]:
            orders = {"held": True, **demo}
            if stream:
                return asyncio.create_task(post_stream(server, client, demo=orders))
            return asyncio.create_task(post(server, client, demo=orders))

        await held()  # nothing is held at first
        async with client.post(f"{root}/hold") as response:
            assert DemoServerStats.from_json(await response.json()).finished == 1
        one, other = held(latency=0.01), held(fault="none")
        await server.wait_in_flight(2)
        assert (await post(server, client))[0] == 200  # this one is not to be held
        assert (await post(server, client, demo={"held": False}))[0] == 200
        assert (await post(server, client, demo={"held": True, "fault": "rate_limited"}))[0] == 429
        assert (server.stats.in_flight, server.stats.finished) == (2, 4)
        async with client.post(f"{root}/release") as response:
            assert response.status == 200
        await asyncio.gather(one, other)
        await held()
        server.hold()
        late = held()
        await server.wait_in_flight(1)
        assert server.stats.finished == 7
        server.release()
        server.hold()  # what has been released is on its way
        await late

    stats = run(test)
    assert (stats.finished, stats.disconnected) == (8, 0)


def test_what_is_held_may_fail_in_the_end() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        server.hold()
        orders = {"held": True, "fault": "server_error"}
        failing = asyncio.create_task(post(server, client, demo=orders))
        await server.wait_in_flight(1)
        assert server.stats.faults == {}
        server.release()
        assert (await failing)[0] == 500

    assert run(test).faults == {"server_error": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_held_request_ends_when_its_client_goes(stream: bool) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        server.hold()
        held = asyncio.create_task(post(server, client, stream=stream, demo={"held": True}))
        await server.wait_in_flight(1)
        await cancel(held)
        await server.wait_idle()
        assert server.stats.open_connections == 0
        server.release()

    stats = run(test)
    assert (stats.accepted, stats.finished, stats.disconnected) == (1, 0, 1)
    assert stats.faults == {}


def test_stops_at_once_while_it_holds() -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as client:
            async with DemoServer(IMMEDIATE) as server:
                server.hold()
                held = asyncio.create_task(post(server, client, demo={"held": True}))
                await server.wait_in_flight(1)
            with pytest.raises(aiohttp.ClientError):
                await held
        assert server.stats.faults == {"shutdown": 1}

    PLAIN_HOST.run(main)


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

    monkeypatch.setattr(_demo_app, "_MAX_BODY_BYTES", 1000)
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


FAULTY = DemoServerSettings(
    latency_median=0.0,
    time_to_first_token=0.0,
    chunk_gap=0.0,
    rate_limited=0.2,
    server_error=0.2,
    invalid_json=0.2,
)


def outcomes_of(
    settings: DemoServerSettings, *, with_others: bool = False, reset_after: int | None = None
) -> list[str]:
    """What happens to thirty requests of one model."""
    outcomes: list[str] = []

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        for number in range(30):
            if number == reset_after:
                server.reset_stats()
            if with_others:
                await post(server, client, "slow", demo={"fault": "none"})
            url = f"{server.url}/chat/completions"
            async with client.post(url, json=body_for("smart")) as response:
                text = await response.text()
            if response.status == 200 and is_json(text):
                text = json.loads(text)["choices"][0]["message"]["content"]
            outcomes.append(f"{response.status} {text}")

    run(test, settings)
    return outcomes


def test_same_seed_same_outcomes() -> None:
    first = outcomes_of(FAULTY)
    assert {outcome.split()[0] for outcome in first} == {"200", "429", "500"}
    assert any(outcome.startswith("200 {") for outcome in first), "no invalid JSON"
    assert outcomes_of(FAULTY) == first
    assert outcomes_of(FAULTY, with_others=True) == first
    # A reset numbers the requests from 1 again.
    assert outcomes_of(FAULTY, reset_after=10) == first[:10] + first[:20]


def test_other_seed_other_outcomes() -> None:
    assert outcomes_of(dataclasses.replace(FAULTY, seed=1)) != outcomes_of(FAULTY)


def test_latencies_are_log_normal_around_their_median() -> None:
    settings = DemoServerSettings(latency_median=2.0, latency_sigma=0.5, models={"m": 3.0})
    plans = [plan(settings, "m", number) for number in range(1, 2001)]
    latencies = sorted(each.latency for each in plans)
    assert latencies[1000] == pytest.approx(6.0, rel=0.1)
    assert latencies[1682] / latencies[1000] == pytest.approx(2.718**0.5, rel=0.1)  # + 1 sigma
    steady = DemoServerSettings(latency_median=2.0, latency_sigma=0.0, models={"m": 3.0})
    assert {plan(steady, "m", number).latency for number in range(1, 10)} == {6.0}
    assert plan(steady, "m", 1).time_to_first_token == pytest.approx(0.15)


def test_rate_of_faults_changes_nothing_else() -> None:
    faulty = DemoServerSettings(hang=0.3, reset=0.3)
    plans = [plan(faulty, "fast", number) for number in range(1, 1001)]
    assert [each.fault for each in plans].count("hang") == pytest.approx(300, abs=50)
    assert [each.fault for each in plans].count(None) == pytest.approx(400, abs=50)
    sound = [plan(DemoServerSettings(), "fast", number) for number in range(1, 1001)]
    assert [each.latency for each in plans] == [each.latency for each in sound]


def plan(settings: DemoServerSettings, model: str, number: int) -> Any:
    from parallel_core import _demo_settings

    override = _demo_settings.RequestOverride()
    return _demo_settings.plan_request(settings, model, number, override)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"latency_median": -0.1}, "latency_median must be a finite number of at least 0"),
        ({"latency_sigma": float("nan")}, "latency_sigma"),
        ({"time_to_first_token": float("inf")}, "time_to_first_token"),
        ({"chunk_gap": "1"}, "chunk_gap"),
        ({"retry_after": -1}, "retry_after"),
        ({"hang": 1.5}, "hang must be a rate from 0 to 1, not 1.5"),
        ({"reset": -0.5}, "reset"),
        ({"hang": 0.6, "reset": 0.6}, "sum up to at most 1, not 1.2"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"capacity": 0}, "capacity must be None or at least 1, not 0"),
        ({"models": {}}, "at least one model"),
        ({"models": {"": 1.0}}, "must not be empty"),
        ({"models": {"fast": -1.0}}, "latency factor of model 'fast'"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DemoServerSettings(**wrong)


def test_rates_may_sum_up_to_one() -> None:
    rates = ("rate_limited", "server_error", "hang", "reset", "truncated", "invalid_json")
    settings = DemoServerSettings(**dict.fromkeys(rates, 1 / 6))  # type: ignore[arg-type]
    assert set(settings.rates()) == set(rates)
    settings = DemoServerSettings(hang=0.7, reset=0.2, truncated=0.1)
    assert sum(settings.rates().values()) == pytest.approx(1.0)


def test_settings_do_not_change_with_the_callers_mapping() -> None:
    models = {"fast": 1.0}
    settings = DemoServerSettings(models=models)
    models.clear()
    assert settings.models == {"fast": 1.0}


def test_stops_at_once_with_requests_in_flight(asyncio_host: hosts.Host) -> None:
    servers: list[DemoServer] = []

    async def main() -> None:
        async with aiohttp.ClientSession() as client:
            server = DemoServer(IMMEDIATE)
            servers.append(server)
            async with server:
                demos: list[dict[str, Any]] = [
                    {"fault": "hang"},
                    {"latency": 3600.0},
                    {"chunk_gap": 3600.0},
                ]
                requests = [
                    asyncio.create_task(post(server, client, stream=True, demo=demo))
                    for demo in demos
                ]
                await server.wait_in_flight(3)
                _, idle = await connect(server)
                _, sending = await connect(server)
                sending.write(raw_request()[:-1])
                await post(server, client)  # the server has seen the others, too
                begin = time.monotonic()
            assert time.monotonic() - begin < AT_ONCE
            results = await asyncio.gather(*requests, return_exceptions=True)
            assert all(isinstance(result, aiohttp.ClientError) for result in results), results
            await close(idle)
            await close(sending)
        assert_port_is_free(server.url)

    asyncio_host.run(main)
    (server,) = servers
    assert_consistent(server.stats)
    assert (server.stats.accepted, server.stats.finished, server.stats.in_flight) == (4, 4, 0)
    assert server.stats.faults == {"hang": 1, "shutdown": 3}
    assert server.stats.open_connections == 0


def assert_port_is_free(url: str) -> None:
    with socket.socket() as probe:
        # As servers do; connections that linger are none of this test's business.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port_of(url)))


def test_stops_at_once_though_a_client_does_not_read() -> None:
    size = 20_000_000  # more than all the buffers in between can hold

    async def main() -> None:
        server = DemoServer(IMMEDIATE)
        async with server:
            client = socket.create_connection(("127.0.0.1", port_of(server.url)))
            client.settimeout(TIMEOUT)
            await asyncio.to_thread(client.sendall, raw_request(demo={"reply": "x" * size}))
            # The answer has begun, and its handler is stuck.
            await asyncio.to_thread(client.recv, 1)
            begin = time.monotonic()
        assert time.monotonic() - begin < AT_ONCE
        with client:
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while data := await asyncio.to_thread(client.recv, 1_000_000):
                    received += len(data)
        assert received < size

    PLAIN_HOST.run(main)


@pytest.mark.parametrize("passes", range(6))
def test_connection_that_comes_while_the_server_stops(passes: int) -> None:
    async def main() -> None:
        async with DemoServer(IMMEDIATE) as server:
            client = socket.create_connection(("127.0.0.1", port_of(server.url)))
            for _ in range(passes):
                await asyncio.sleep(0)
        with client:
            client.settimeout(0)  # closed already, or it raises BlockingIOError
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""

    PLAIN_HOST.run(main)


def test_write_that_fails_is_a_disconnect(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        async with client.post(f"{server.url}/chat/completions", json=body_for()):
            pass

    monkeypatch.setattr(_demo_app, "send_answer", fail)
    stats = run(test)
    assert (stats.accepted, stats.finished, stats.disconnected) == (1, 0, 1)


def test_listens_on_loopback_only() -> None:
    async def test(server: DemoServer, _: aiohttp.ClientSession) -> None:
        assert server.url.startswith("http://127.0.0.1:")
        # Another of this machine's own addresses, which a server bound to all of them has, too.
        with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
            probe.connect(("127.0.0.2", port_of(server.url)))

    if sys.platform != "linux":
        pytest.skip("only Linux has the whole of 127.0.0.0/8")
    run(test)


def test_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        await post(server, client)
        await post(server, client, demo={"fault": "server_error"})
        await post(server, client, messages=[SECRET])
        reader, writer = await connect(server)
        writer.write(f"{SECRET}\r\n\r\n".encode())  # what is left of a body, where a head belongs
        assert b"400 Bad Request" in await reader.read()
        await close(writer)

    with caplog.at_level(logging.DEBUG):
        run(test)
    assert [record.name for record in caplog.records if record.name != "asyncio"] == []
    assert SECRET not in caplog.text


def test_thread() -> None:
    before = hosts.thread_names()
    with DemoServerThread(IMMEDIATE) as server:
        assert "demo-server" in hosts.thread_names()
        client = socket.create_connection(("127.0.0.1", port_of(server.url)))
        with client:
            client.sendall(raw_request(demo={"fault": "hang"}))
            server.wait_in_flight(1, timeout=TIMEOUT)
            with pytest.raises(TimeoutError):
                server.wait_idle(timeout=0)
            assert (server.stats().in_flight, server.stats().open_connections) == (1, 1)
        server.wait_idle(timeout=TIMEOUT)
        assert server.stats().disconnected == 1
        server.hold()
        with socket.create_connection(("127.0.0.1", port_of(server.url))) as client:
            client.sendall(raw_request(demo={"held": True}))
            server.wait_in_flight(1, timeout=TIMEOUT)
            with pytest.raises(TimeoutError):
                server.wait_finished(1, timeout=0)
            server.release()
            server.wait_finished(1, timeout=TIMEOUT)
        server.reset_stats()
        assert server.stats().accepted == 0
    assert hosts.thread_names() == before
    assert server.stats().accepted == 0
    with pytest.raises(RuntimeError):
        server.wait_idle()
    assert_port_is_free(server.url)


def test_thread_stops_at_once_with_a_request_in_flight() -> None:
    before = hosts.thread_names()
    with DemoServerThread(IMMEDIATE) as server:
        client = socket.create_connection(("127.0.0.1", port_of(server.url)))
        client.sendall(raw_request(demo={"fault": "hang"}))
        server.wait_in_flight(1, timeout=TIMEOUT)
        begin = time.monotonic()
    assert time.monotonic() - begin < AT_ONCE
    client.close()
    assert hosts.thread_names() == before
    assert server.stats().faults == {"hang": 1, "shutdown": 1}


def test_thread_that_cannot_listen() -> None:
    before = hosts.thread_names()
    with DemoServerThread(IMMEDIATE) as server:
        other = DemoServerThread(IMMEDIATE, port=port_of(server.url))
        with pytest.raises(OSError, match="in use"):
            other.__enter__()
    assert hosts.thread_names() == before


def test_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("no_proxy", "")
    settings = DemoServerSettings(
        seed=-7, latency_median=0.0, latency_sigma=1e-07, capacity=5, models={"my-model": 0.5}
    )
    with demo_server_process(settings) as server:
        assert os.getsid(server.pid) != os.getsid(0)  # no signal of this terminal reaches it
        assert ask(server, "my-model")["model"] == "my-model"
        assert server.stats().models["my-model"].finished == 1
        server.reset_stats()
        server.hold()
        held = threading.Thread(target=ask, args=(server, "my-model"), kwargs={"held": True})
        held.start()
        while not server.stats().in_flight:
            time.sleep(0.01)
        server.release()
        held.join()
        assert server.stats().finished == 1
        server.reset_stats()
        assert server.stats().accepted == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(server.url)))


def ask(server: DemoServerProcess, model: str, **demo: Any) -> Any:
    async def main() -> Any:
        async with aiohttp.ClientSession() as client:
            url = f"{server.url}/chat/completions"
            async with client.post(url, json=body_for(model, demo=demo)) as response:
                return await response.json()

    return asyncio.run(main())


def test_process_that_cannot_start(capfd: pytest.CaptureFixture[str]) -> None:
    with DemoServerThread(IMMEDIATE) as server:
        port = port_of(server.url)
        cannot_start = pytest.raises(RuntimeError, match="exit code 1")
        with cannot_start, demo_server_process(IMMEDIATE, port=port):
            pytest.fail("the port is taken")
    assert capfd.readouterr().err.startswith(f"Cannot listen on 127.0.0.1:{port}: ")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_process_quietly(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "parallel_core.demo_server", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    with process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port_of(address["url"]))):
            process.send_signal(number)
            rest, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, rest, errors) == (0, "", "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_process_ends_with_a_parent_that_is_killed() -> None:
    # The server has the parent's standard error: its end is that of both.
    with subprocess.Popen(
        [sys.executable, SCRIPTS / "parent_of_a_server.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    ) as process:
        assert process.stdout is not None
        port = port_of(process.stdout.readline().strip())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            process.kill()
            connection.settimeout(TIMEOUT)
            assert connection.recv(1) == b""
        _, errors = process.communicate(timeout=TIMEOUT)
    assert errors == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.skipif(sys.platform == "win32", reason="its pipes fail otherwise")
def test_process_whose_address_nobody_reads_says_so() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "parallel_core.demo_server"],
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            timeout=TIMEOUT,
        )
    finally:
        os.close(writing)
    told = "Nobody reads the address: standard output is closed.\n"
    assert (done.returncode, done.stderr) == (1, told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hang", "2"], "hang must be a rate"),
        (["--hang", "0.7", "--reset", "0.7"], "at most 1"),
        (["--latency-median", "nan"], "latency_median"),
        (["--capacity", "0"], "capacity"),
        (["--keep-requests", "-1"], "keep_requests"),
        (["--port", "70000"], "65535"),
        (["--model", "fast=quick"], "must be a number"),
        (["--model", "=1"], "must not be empty"),
    ],
)
def test_wrong_option_is_explained(options: list[str], words: str) -> None:
    result = CliRunner().invoke(command_app(), ["demo-server", *options])
    assert result.exit_code == 2
    assert words in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert isinstance(result.exception, SystemExit)


def test_options_mean_the_same_as_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[DemoServerSettings, int]] = []

    async def serve(settings: DemoServerSettings, port: int, until_stdin_closes: bool) -> None:
        assert not until_stdin_closes
        served.append((settings, port))

    monkeypatch.setattr(_demo_server_command, "_serve_until_told", serve)
    settings = DemoServerSettings(
        seed=-1,
        latency_median=1.5,
        latency_sigma=0.25,
        time_to_first_token=0.125,
        chunk_gap=0.001,
        rate_limited=0.01,
        server_error=0.02,
        hang=0.03,
        reset=0.04,
        truncated=0.05,
        invalid_json=0.06,
        retry_after=1e-07,
        capacity=9,
        keep_requests=7,
        models={"a b": 0.1, "c": 2.0},
    )
    for each in (settings, DemoServerSettings()):
        options = ["demo-server", "--port=8123", *each.to_arguments()]
        result = CliRunner().invoke(command_app(), options)
        assert result.exit_code == 0, result.output
        assert served.pop() == (each, 8123)
    assert CliRunner().invoke(command_app(), ["demo-server", "--model", "m"]).exit_code == 0
    assert served.pop() == (DemoServerSettings(models={"m": 1.0}), 0)


def test_litellm_router_gets_answers() -> None:
    litellm: Any = importlib.import_module("litellm")  # its annotations are no help here

    async def main(url: str) -> None:
        router = litellm.Router(
            model_list=[
                {
                    "model_name": "fast",
                    "litellm_params": {
                        "model": "openai/fast",
                        "api_base": url,
                        "api_key": "demo",
                    },
                }
            ],
            num_retries=0,
        )
        messages = [{"role": "user", "content": "Hello"}]
        extra: dict[str, Any] = {"extra_body": {"demo": {"reply": "one two", "fault": "none"}}}
        answer = await router.acompletion(model="fast", messages=messages, **extra)
        assert answer.choices[0].message.content == "one two"
        assert answer.usage.completion_tokens == 2
        stream = await router.acompletion(
            model="fast",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            **extra,
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == "one two"
        usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
        assert [usage.completion_tokens for usage in usages] == [2]
        for fault, error in {
            "rate_limited": litellm.RateLimitError,
            "server_error": litellm.InternalServerError,
        }.items():
            with pytest.raises(error):
                await router.acompletion(
                    model="fast", messages=messages, extra_body={"demo": {"fault": fault}}
                )
        await close_clients_of_this_loop()

    with DemoServerThread(DemoServerSettings(latency_median=0.0, hang=1.0)) as server:
        asyncio.run(asyncio.wait_for(main(server.url), TIMEOUT))
        stats = server.stats()
    assert (stats.accepted, stats.finished) == (4, 4)
    assert stats.faults == {"rate_limited": 1, "server_error": 1}


def test_module_needs_no_litellm() -> None:
    code = "import sys, parallel_core.demo_server; print('litellm' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert output.stdout == "False\n"


def test_example_requests_are_the_scripts_output() -> None:
    script = REPOSITORY / "examples" / "make_requests.py"
    written = (REPOSITORY / "examples" / "requests.jsonl").read_bytes()
    output = subprocess.run([sys.executable, script], capture_output=True, check=True).stdout
    assert output.replace(b"\r\n", b"\n") == written
    requests = [json.loads(line) for line in written.splitlines()]
    assert len(requests) == 240
    assert {request["model"] for request in requests} == set(DemoServerSettings().models)
    assert len({json.dumps(request["messages"]) for request in requests}) == 240


def test_example_script_writes_a_file(tmp_path: Path) -> None:
    script = REPOSITORY / "examples" / "make_requests.py"
    spec = importlib.util.spec_from_file_location("make_requests", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = tmp_path / "requests.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        options = ["--count", "3", "--seed", "1", "--output", str(target)]
        patch.setattr(sys, "argv", ["make_requests.py", *options])
        module.main()
    requests = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert requests == list(module.make_requests(3, 1))
