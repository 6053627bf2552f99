"""From the moment a consumer leaves, or its task is cancelled, to the end of the last call."""

from __future__ import annotations

from collections.abc import Iterator

from .peers import FLOOR, Peer
from .question import Done, Parameters, Quantity, Question, Size, World, not_for_calls
from .stopping import HangingCalls

STOPS_AFTER = 0.05  # seconds, by when all slots are taken


def measure(peer: Peer, parameters: Parameters, done: Done) -> None:
    world, adapter = World(peer), peer.adapter()
    in_flight = parameters["in_flight"]

    async def leave_after_the_first(calls: HangingCalls, requests: int) -> None:
        async def call(item: int) -> None:
            await calls.hang(STOPS_AFTER if calls.begin() == 1 else 3600.0)

        async with adapter.stream(call, range(requests), in_flight) as results:
            async for _ in results:
                calls.stop()
                break

    async def cancel_the_task(calls: HangingCalls, requests: int) -> None:
        async def call(item: int) -> None:
            calls.begin()
            await calls.hang()

        await world.cancelled_after(
            STOPS_AFTER, calls.stop, lambda: adapter.collect(call, range(requests), in_flight)
        )

    stop = leave_after_the_first if parameters["how"] == "break" else cancel_the_task

    async def main() -> None:
        calls = HangingCalls(world)
        await stop(calls, parameters["requests"])
        done(await calls.outcome())

    # The same on a smaller scale first, so that it is not the interpreter's first sight of it.
    world.run(lambda: stop(HangingCalls(world), min(parameters["requests"], 2 * in_flight)))
    world.run(main)


def cells(size: Size) -> Iterator[Parameters]:
    requests = {"smoke": (100,), "quick": (10_000,), "full": (100, 10_000, 100_000)}
    for how in ("break", "cancel"):
        for count in requests[size]:
            yield {"how": how, "in_flight": 8 if size == "smoke" else 64, "requests": count}


def refuses(peer: Peer, parameters: Parameters) -> str | None:
    if parameters["how"] == "break" and not peer.adapter().streams:
        return "has no results before the end"
    return not_for_calls(peer, parameters)


QUESTION = Question(
    name="break_latency",
    title="The consumer leaves after the first result, or is cancelled: how long until it is over?",
    quantities=(
        Quantity("went_on", "leaving to going on", "ms"),
        Quantity("ended", "to the end of the last call", "ms", absent="not within 0.2 s"),
        Quantity("left_running", "running when the consumer went on", ""),
        Quantity("begun_late", "begun after leaving, within 0.2 s", ""),
    ),
    cells=cells,
    measure=measure,
    base=FLOOR,
    compared=("went_on",),
    timeout=5,
    refuses=refuses,
)
