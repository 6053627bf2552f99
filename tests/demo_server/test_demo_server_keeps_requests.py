"""What the demo server keeps of requests, where that is asked for."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from helpers.demo_clients import SECRET, body_for, post, post_stream, run
from parallel_core.demo_server import (
    DemoServer,
    DemoServerSettings,
    DemoServerThread,
    demo_server_process,
)

RECORDING = DemoServerSettings(
    latency_median=0.0, time_to_first_token=0.0, chunk_gap=0.0, keep_requests=3
)


def test_requests_are_kept_only_where_asked_for() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        async with client.get(f"{server.url.removesuffix('/v1')}/requests") as response:
            assert response.status == 404
            assert "--keep-requests" in (await response.json())["error"]["message"]
        with pytest.raises(RuntimeError, match="keep_requests"):
            _ = server.requests

    run(test)


def test_the_newest_requests_are_kept_with_their_answers() -> None:
    odd = "\x00 \N{PARTY POPPER} \ud83d"

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        url = f"{server.url}/chat/completions"
        headers = {"Authorization": "Bearer sk-secret", "X-Plain": "yes"}
        for text in ("first", "second"):
            await post(server, client, user=text)
        async with client.post(url, json=body_for(user=odd), headers=headers) as response:
            answer = await response.json()
        await post_stream(server, client, demo={"reply": "one two"})
        assert [one.body["user"] for one in server.requests[:2]] == ["second", odd]
        second, third, stream = server.requests
        assert (second.method, second.path) == ("POST", "/v1/chat/completions")
        assert third.body == body_for(user=odd)
        assert third.answer == answer
        assert stream.answer["choices"][0]["message"]["content"] == "one two"
        assert third.headers["x-plain"] == "yes"
        assert third.headers["authorization"].startswith("sha256:")
        assert "authorization" not in second.headers
        assert SECRET not in repr(server.requests)
        async with client.post(url, data=b"{") as response:
            assert response.status == 400
        assert (server.requests[-1].body, server.requests[-1].answer) == (None, None)
        server.reset_stats()
        assert server.requests == []

    run(test, RECORDING)


def test_memory_of_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel_core.demo_server.recording._MOST_BYTES", 3000)

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        for number in range(3):
            await post(server, client, user=f"{number}" * 1000, demo={"reply": "a"})
        assert [one.body["user"][0] for one in server.requests] == ["2"]
        await post(server, client, user="3" * 4000)
        assert server.requests == []
        await post(server, client, user="4")
        assert len(server.requests) == 1

    run(test, RECORDING)


def test_requests_are_read_from_a_thread_and_from_a_process() -> None:
    async def send(url: str) -> None:
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{url}/chat/completions", json=body_for()) as response,
        ):
            await response.read()

    with DemoServerThread(RECORDING) as thread:
        asyncio.run(send(thread.url))
        (of_thread,) = thread.requests()
    assert thread.requests() == [of_thread]
    with demo_server_process(RECORDING) as process:
        asyncio.run(send(process.url))
        (of_process,) = process.requests()
    assert of_thread.body == of_process.body == body_for()
    for name in ("choices", "usage"):
        assert of_thread.answer[name] == of_process.answer[name]
