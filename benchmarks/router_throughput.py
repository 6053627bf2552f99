"""Calls per second of a real Router over HTTP, to the demo server in a process of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from .peers import FLOOR, Peer
from .question import Measured, Parameters, Quantity, Question, Size, World, make_adapter, now

WARM_UP_CALLS = 64


def measure(peer: Peer, parameters: Parameters) -> Measured:
    from parallel_core.demo_server import DemoServerSettings, demo_server_process

    world, adapter = World(peer), make_adapter(peer)
    calls, in_flight = parameters["calls"], parameters["in_flight"]
    took: Measured = {}

    async def main() -> None:
        async with router_call(peer, server.url) as acompletion:

            async def call(item: int) -> object:
                messages = [{"role": "user", "content": f"Question {item}"}]
                return await acompletion(model="fast", messages=messages)

            await adapter.collect(call, range(WARM_UP_CALLS), in_flight)
            cpu, wall = time.process_time(), now()
            await adapter.collect(call, range(calls), in_flight)
            wall = now() - wall
            took["per_second"] = calls / wall
            took["cpu"] = (time.process_time() - cpu) / calls * 1000

    with demo_server_process(DemoServerSettings(latency_median=0.0)) as server:
        world.run(main)
    return took


@asynccontextmanager
async def router_call(peer: Peer, url: str) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """A Router's ``acompletion`` in the world of a peer."""
    from litellm import Router

    import parallel_core

    deployment = {"model": "openai/fast", "api_base": url, "api_key": "none"}
    router = Router(
        model_list=[{"model_name": "fast", "litellm_params": deployment}], num_retries=0
    )
    if peer.world == "asyncio":
        yield router.acompletion
        return
    async with parallel_core.open_router_host(router) as host:
        yield host.acompletion


def cells(size: Size) -> Iterator[Parameters]:
    if size == "smoke":
        yield {"in_flight": 8, "calls": 16}
        return
    for in_flight in (64,) if size == "quick" else (1, 8, 64, 256):
        yield {"in_flight": in_flight, "calls": 300 if size == "quick" else 400}


QUESTION = Question(
    name="router_throughput",
    title="How many calls of a real Router are made in a second?",
    quantities=(
        Quantity("per_second", "calls per second", ""),
        Quantity("cpu", "CPU per call", "ms"),
    ),
    cells=cells,
    measure=measure,
    base=FLOOR,
)
