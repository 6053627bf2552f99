"""Calls per second of a real Router over HTTP, to the demo server in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .adapter import Target
from .peers import FLOOR, Peer
from .question import (
    Done,
    Measured,
    Parameters,
    Quantity,
    Question,
    Size,
    World,
    has_no_router,
    now,
)

WARM_UP_CALLS = 64
IN_FLIGHT: dict[Size, str] = {"full": "1, 8, 64, 256", "quick": "64", "smoke": "8"}


def measure(peer: Peer, parameters: Parameters, done: Done) -> None:
    """All numbers in flight with one Router: a process with litellm takes seconds to begin."""
    from parallel_core.demo_server import DemoServerSettings, demo_server_process

    from .over_http import AT_ONCE, conversations, make_router

    world, adapter = World(peer), peer.adapter()
    measured: Measured = {}

    async def main() -> None:
        target = Target(server.url, make_router(server.url))
        for in_flight in map(int, parameters["in_flight"].split(",")):
            calls = min(160, 40 + 8 * in_flight)
            if calls > in_flight and not adapter.limits:
                continue  # all of them would be in flight
            async with adapter.sender(target, in_flight) as send:
                await send(conversations(min(2 * in_flight, WARM_UP_CALLS)), AT_ONCE)
                cpu, wall = time.process_time(), now()
                await send(conversations(calls), AT_ONCE)
                cpu, wall = time.process_time() - cpu, now() - wall
            measured[f"per_second_{in_flight}"] = calls / wall
            measured[f"cpu_{in_flight}"] = cpu / calls * 1000

    with demo_server_process(DemoServerSettings()) as server:
        world.run(main)
    done(measured)


def cells(size: Size) -> Iterator[Parameters]:
    yield {"in_flight": IN_FLIGHT[size]}


QUESTION = Question(
    name="router_throughput",
    title="How many calls of a real Router are made in a second?",
    quantities=(
        *(
            Quantity(f"per_second_{in_flight}", f"calls per second, {in_flight} in flight", "")
            for in_flight in (1, 8, 64, 256)
        ),
        *(
            Quantity(f"cpu_{in_flight}", f"CPU per call, {in_flight} in flight", "ms")
            for in_flight in (1, 8, 64, 256)
        ),
    ),
    cells=cells,
    measure=measure,
    base=FLOOR,
    compared=("per_second_1", "per_second_8", "per_second_64", "per_second_256", "cpu_64"),
    refuses=has_no_router,
    uses_router=lambda parameters: True,
    rounds=lambda parameters, size: 1 if size == "quick" else None,
)
