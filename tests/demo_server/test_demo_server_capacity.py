"""Requests that the demo server has no room for, and those that it holds back."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from helpers.demo_clients import IMMEDIATE, cancel, post, post_stream, run
from parallel_core.demo_server import DemoServer, DemoServerSettings, DemoServerStats


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
