"""From the moment a consumer leaves, or its task is cancelled, to the end of the last call."""

from __future__ import annotations

from collections.abc import Iterator

from .peers import FLOOR, Peer
from .question import Measured, Parameters, Quantity, Question, Size, World, make_adapter, now

GRACE = 0.3  # seconds that calls have to end after the consumer has gone on


def measure(peer: Peer, parameters: Parameters) -> Measured:
    world, adapter = World(peer), make_adapter(peer)
    requests, in_flight = parameters["requests"], parameters["in_flight"]
    left_at = last_end = 0.0
    begun = running = started_late = 0

    async def call(item: int) -> int:
        nonlocal begun, last_end, running, started_late
        begun += 1
        first = begun == 1
        started_late += left_at > 0
        running += 1
        try:
            await world.sleep(0.05 if first and parameters["how"] == "break" else 3600)
        finally:
            running -= 1
            last_end = now()
        return item

    def leave() -> None:
        nonlocal left_at
        left_at = now()

    async def stop() -> None:
        if parameters["how"] == "break":
            async with adapter.stream(call, range(requests), in_flight) as results:
                async for _ in results:
                    leave()
                    break
        else:
            await world.cancelled_after(
                0.05, leave, lambda: adapter.collect(call, range(requests), in_flight)
            )

    async def main() -> Measured:
        await stop()
        gone_at = now()
        left_running = running
        while running and now() - gone_at < GRACE:
            await world.sleep(0.001)
        return {
            "gone": (gone_at - left_at) * 1000,
            "ended": None if running else max(last_end - left_at, 0.0) * 1000,
            "left_running": left_running,
            "started_late": started_late,
        }

    async def warm_up() -> None:
        await adapter.collect(return_at_once, range(10), 4)

    world.run(warm_up)
    measured: Measured = world.run(main)
    return measured


async def return_at_once(item: int) -> int:
    return item


def cells(size: Size) -> Iterator[Parameters]:
    requests = {"smoke": (100,), "quick": (10_000,), "full": (100, 10_000, 100_000)}
    for how in ("break", "cancel"):
        for count in requests[size]:
            yield {"how": how, "requests": count, "in_flight": 8 if size == "smoke" else 64}


def asks(peer: Peer, parameters: Parameters) -> bool:
    return bool(parameters["how"] == "cancel" or peer.adapter.streams)


QUESTION = Question(
    name="break_latency",
    title="The consumer leaves after the first result, or is cancelled: how long until it is over?",
    quantities=(
        Quantity("gone", "leaving to going on", "ms"),
        Quantity("ended", "leaving to the end of the last call", "ms", absent="never"),
        Quantity("left_running", "calls running when the consumer went on", ""),
        Quantity("started_late", "calls begun after leaving", ""),
    ),
    cells=cells,
    measure=measure,
    base=FLOOR,
    asks=asks,
)
