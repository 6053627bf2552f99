"""A demo server stops at once, leaves nothing, and logs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from typing import Any

import aiohttp
import pytest

from helpers import hosts
from helpers.demo_clients import (
    IMMEDIATE,
    PLAIN_HOST,
    SECRET,
    TIMEOUT,
    assert_consistent,
    assert_port_is_free,
    body_for,
    close,
    connect,
    port_of,
    post,
    raw_request,
    run,
)
from parallel_core.demo_server import (
    DemoServer,
    DemoServerThread,
    app,
)

AT_ONCE = 30.0  # seconds, on a machine that is busy; what is not ended takes an hour


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

    monkeypatch.setattr(app, "send_answer", fail)
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


def test_thread_stops_at_once_with_a_request_in_flight() -> None:
    before = hosts.thread_names()
    with DemoServerThread(IMMEDIATE) as server:
        client = socket.create_connection(("127.0.0.1", port_of(server.url)))
        client.sendall(raw_request(demo={"fault": "hang"}))
        server.wait_in_flight(1, timeout=TIMEOUT)
        begin = time.monotonic()
    assert time.monotonic() - begin < AT_ONCE
    client.close()
    assert hosts.threads_besides(before) == []
    assert server.stats().faults == {"hang": 1, "shutdown": 1}
