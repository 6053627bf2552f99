"""CPU and time on the clock for each call, the background work of a peer included."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

from .peers import GATHER, Peer
from .question import (
    Done,
    Measured,
    Parameters,
    Quantity,
    Question,
    Size,
    World,
    not_for_calls,
    now,
)


def measure(peer: Peer, parameters: Parameters, done: Done) -> None:
    done(cost_of_a_call(peer, parameters))


def cost_of_a_call(peer: Peer, parameters: Parameters) -> Measured:
    world, adapter = World(peer), peer.adapter()
    calls, concurrency = parameters["calls"], parameters["concurrency"]

    async def no_op(item: int) -> int:
        return item

    async def sleep(item: int) -> int:
        await world.sleep(0.001)
        return item

    call = no_op if parameters["call"] == "no-op" else sleep

    async def run(count: int) -> None:
        if parameters["results"] == "as a list":
            await adapter.collect(call, range(count), concurrency)
            return
        async with adapter.stream(call, range(count), concurrency) as results:
            async for _ in results:
                pass

    world.run(lambda: run(min(calls, 500)))
    gc.collect()
    cpu, wall = time.process_time(), now()
    world.run(lambda: run(calls))
    cpu, wall = time.process_time() - cpu, now() - wall
    return {"cpu": cpu / calls * 1e6, "wall": wall / calls * 1e6}


def cells(size: Size) -> Iterator[Parameters]:
    if size == "smoke":
        for results in ("as a list", "one by one"):
            yield {"call": "no-op", "results": results, "concurrency": 8, "calls": 200}
        return
    most = 10_000 if size == "full" else 4_000
    for call in ("no-op", "1 ms"):
        for concurrency in (64,) if size == "quick" else (1, 8, 64, 1024):
            # A call that sleeps takes its time whatever it costs.
            calls = most if call == "no-op" else min(most, 250 * concurrency)
            yield {
                "call": call,
                "results": "as a list",
                "concurrency": concurrency,
                "calls": calls,
            }
    if size == "full":
        yield {"call": "no-op", "results": "one by one", "concurrency": 64, "calls": most}


def refuses(peer: Peer, parameters: Parameters) -> str | None:
    if parameters["results"] == "one by one" and not peer.adapter().streams:
        return "has no results before the end"
    return not_for_calls(peer, parameters)


QUESTION = Question(
    name="overhead",
    title="What does a call cost beside itself?",
    quantities=(
        Quantity("cpu", "CPU per call", "µs"),
        Quantity("wall", "time per call", "µs"),
    ),
    cells=cells,
    measure=measure,
    base=GATHER,
    compared=("cpu", "wall"),
    refuses=refuses,
)
