"""Clients of the demo server, without litellm."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import typer

from helpers import hosts
from parallel_core.demo_server import DemoServer, DemoServerSettings, DemoServerStats, command

SECRET = "the secret of the prompt"

IMMEDIATE = DemoServerSettings(latency_median=0.0, time_to_first_token=0.0, chunk_gap=0.0)

PLAIN_HOST = hosts.Host("asyncio", "asyncio", asyncio.SelectorEventLoop)

TIMEOUT = 60.0  # seconds until a test that hangs fails

Scenario = Callable[[DemoServer, aiohttp.ClientSession], Awaitable[None]]


def run(
    test: Scenario,
    settings: DemoServerSettings = IMMEDIATE,
    host: hosts.Host = PLAIN_HOST,
) -> DemoServerStats:
    """Run a test with a server and a client; neither may leave a task or an open socket behind."""

    async def main() -> DemoServerStats:
        server = DemoServer(settings)
        async with asyncio.timeout(TIMEOUT):
            async with server, aiohttp.ClientSession() as client:
                await test(server, client)
                assert_consistent(server.stats)
        assert_consistent(server.stats)
        return server.stats

    return host.run(main)


def assert_consistent(stats: DemoServerStats) -> None:
    for counts in (stats, *stats.models.values()):
        assert counts.accepted == counts.finished + counts.disconnected + counts.in_flight
        assert 0 <= counts.in_flight <= counts.max_in_flight
    for name in ("accepted", "finished", "disconnected", "in_flight"):
        assert getattr(stats, name) == sum(getattr(of, name) for of in stats.models.values())


def body_for(model: str = "fast", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": SECRET}], **fields}


async def post(
    server: DemoServer, client: aiohttp.ClientSession, model: str = "fast", **fields: Any
) -> tuple[int, Any]:
    url = f"{server.url}/chat/completions"
    async with client.post(url, json=body_for(model, **fields)) as response:
        return response.status, await response.json()


async def post_stream(
    server: DemoServer, client: aiohttp.ClientSession, **fields: Any
) -> list[str]:
    """The data of each event of a stream."""
    url = f"{server.url}/chat/completions"
    async with client.post(url, json=body_for(stream=True, **fields)) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        events = (await response.text()).split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith("data: ") for event in events)
    return [event.removeprefix("data: ") for event in events]


def stats_url(server: DemoServer) -> str:
    return server.url.removesuffix("/v1") + "/stats"


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results), results


async def connect(server: DemoServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port_of(server.url))


def port_of(url: str) -> int:
    return int(url.removesuffix("/v1").rpartition(":")[2])


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def raw_request(**fields: Any) -> bytes:
    body = json.dumps(body_for(**fields))
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def command_app() -> typer.Typer:
    app = typer.Typer()
    app.command("demo-server")(command.command)
    app.command("other")(lambda: None)
    return app


def assert_port_is_free(url: str) -> None:
    with socket.socket() as probe:
        # As servers do; connections that linger are none of this test's business.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port_of(url)))


async def status_of(
    server: DemoServer, client: aiohttp.ClientSession, key: str = "", model: str = "fast"
) -> int:
    """The status of one answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{server.url}/chat/completions"
    async with client.post(url, json=body_for(model), headers=headers) as response:
        await response.read()
        return response.status
