"""A demo server that goes away and comes back."""

from __future__ import annotations

import asyncio
import socket
import time

import aiohttp
import pytest

from helpers.demo_clients import (
    IMMEDIATE,
    TIMEOUT,
    body_for,
    port_of,
    post,
    run,
    status_of,
)
from parallel_core.demo_server import (
    DemoServer,
    DemoServerSettings,
    DemoServerThread,
    Trouble,
    demo_server_process,
)


def is_refused(url: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(TIMEOUT)
        return probe.connect_ex(("127.0.0.1", port_of(url))) != 0


def wait_until_back(url: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while is_refused(url):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_server_goes_away_and_comes_back() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        hanging = asyncio.create_task(post(server, client, "slow", demo={"fault": "hang"}))
        await server.wait_in_flight(1)
        url = server.url
        await server.go_away()
        with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
            await hanging
        assert is_refused(url)
        with pytest.raises(aiohttp.ClientConnectorError):
            await post(server, client)
        await server.go_away(0.001)  # it is away, and stays away
        assert is_refused(url)
        await server.come_back()
        await server.come_back()
        assert server.url == url
        assert await status_of(server, client) == 200
        await server.go_away(0.001)  # so short that nobody may see it
        await asyncio.to_thread(wait_until_back, url)
        assert await status_of(server, client) == 200

    stats = run(test)
    assert stats.faults == {"hang": 1, "away": 1}
    assert (stats.accepted, stats.finished, stats.disconnected) == (3, 3, 0)


def test_a_server_that_is_away_can_be_stopped() -> None:
    async def test(server: DemoServer, _: aiohttp.ClientSession) -> None:
        await server.go_away()

    run(test)


def test_it_goes_away_when_it_is_due() -> None:
    trouble = [Trouble("away", after=2, seconds=3600.0)]

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        assert [await status_of(server, client) for _ in range(2)] == [200, 200]
        with pytest.raises((aiohttp.ClientOSError, aiohttp.ServerDisconnectedError)):
            await status_of(server, client)
        assert is_refused(server.url)
        await server.come_back()
        assert [await status_of(server, client) for _ in range(3)] == [200] * 3

    stats = run(test, DemoServerSettings(latency_median=0.0, trouble=trouble))
    assert stats.faults == {"away": 1}


def test_a_server_in_a_thread_goes_away() -> None:
    with DemoServerThread(IMMEDIATE) as server:
        server.set_trouble([Trouble("quota")])
        server.go_away()
        assert is_refused(server.url)
        server.come_back()
        assert not is_refused(server.url)
        with pytest.raises(ValueError, match="seconds must be a finite number above 0, not 0"):
            server.go_away(0)


def test_a_server_in_a_process_makes_trouble_and_goes_away() -> None:
    async def status(url: str, key: str) -> int:
        async with aiohttp.ClientSession() as client:
            headers = {"Authorization": f"Bearer {key}"}
            url = f"{url}/chat/completions"
            async with client.post(url, json=body_for(), headers=headers) as response:
                return response.status

    settings = DemoServerSettings(latency_median=0.0, trouble=[Trouble("bad_key", key="sk-a")])
    with demo_server_process(settings) as server:
        assert asyncio.run(status(server.url, "sk-a")) == 401
        server.set_trouble([Trouble("unavailable")])
        assert asyncio.run(status(server.url, "sk-b")) == 503
        server.set_trouble(())
        assert asyncio.run(status(server.url, "sk-a")) == 200
        assert server.stats().of_key("sk-a").accepted == 2
        with pytest.raises(OSError, match="400"):
            server.set_trouble([Trouble("quota", model="none")])
        with pytest.raises(ValueError, match="seconds"):
            server.go_away(-1)
        with socket.create_connection(("127.0.0.1", port_of(server.url)), TIMEOUT) as connection:
            server.go_away(0.02)
            assert connection.recv(1) == b""
        wait_until_back(server.url)
        assert server.stats().accepted == 3
