"""Calls per second of a real Router over HTTP, to the demo server in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .adapter import Target
from .peers import FLOOR, Peer
from .question import Measured, Parameters, Quantity, Question, Size, World, has_no_router, now

WARM_UP_CALLS = 64


def measure(peer: Peer, parameters: Parameters) -> Measured:
    from parallel_core.demo_server import DemoServerSettings, demo_server_process

    from .over_http import AT_ONCE, conversations, make_router

    world, adapter = World(peer), peer.adapter()
    calls, in_flight = parameters["calls"], parameters["in_flight"]

    async def main() -> Measured:
        target = Target(server.url, make_router(server.url))
        async with adapter.sender(target, in_flight) as send:
            await send(conversations(min(calls, WARM_UP_CALLS)), AT_ONCE)
            cpu, wall = time.process_time(), now()
            await send(conversations(calls), AT_ONCE)
            cpu, wall = time.process_time() - cpu, now() - wall
        return {"per_second": calls / wall, "cpu": cpu / calls * 1000}

    with demo_server_process(DemoServerSettings()) as server:
        measured: Measured = world.run(main)
    return measured


def cells(size: Size) -> Iterator[Parameters]:
    if size == "smoke":
        yield {"in_flight": 8, "calls": 16}
    elif size == "quick":
        yield {"in_flight": 64, "calls": 200}
    else:
        for in_flight, calls in ((1, 50), (8, 150), (64, 256), (256, 256)):
            yield {"in_flight": in_flight, "calls": calls}


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
    compared=("per_second", "cpu"),
    refuses=has_no_router,
    uses_router=lambda parameters: True,
)
