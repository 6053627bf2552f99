"""The demo server: what it answers, and what it breaks."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp
import pytest

from helpers import hosts
from helpers.demo_clients import (
    SECRET,
    body_for,
    cancel,
    close,
    connect,
    is_json,
    post,
    post_stream,
    raw_request,
    run,
)
from parallel_core.demo_server import (
    DemoModelStats,
    DemoServer,
    DemoServerSettings,
)


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
