"""From the first failure to the exception in the caller, and to the end of the last call."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .adapter import Target
from .peers import FLOOR, Peer
from .question import (
    Done,
    Parameters,
    Quantity,
    Question,
    Size,
    World,
    has_no_router,
    not_for_calls,
)
from .stopping import HangingCalls

FAILS_AFTER = 0.05  # seconds, by when all slots are taken
GRACE_OVER_HTTP = 1.0  # seconds that the connections have to close


class CallFailedError(Exception):
    """What the one call raises."""


def measure(peer: Peer, parameters: Parameters, done: Done) -> None:
    over_http = parameters["over"] == "HTTP"
    (measure_over_http if over_http else measure_calls)(peer, parameters, done)


def measure_calls(peer: Peer, parameters: Parameters, done: Done) -> None:
    world, adapter = World(peer), peer.adapter()
    in_flight = parameters["in_flight"]

    async def fail(requests: int) -> HangingCalls:
        calls = HangingCalls(world)
        # Not a request of a certain number: some peers begin with any.
        failing = min(requests, in_flight) // 2

        async def call(item: int) -> None:
            if calls.begin() == failing:
                await world.sleep(FAILS_AFTER)
                calls.stop()
                raise CallFailedError
            await calls.hang()

        try:
            await adapter.collect(call, range(requests), in_flight)
        except Exception:  # noqa: BLE001 - each peer raises in its own way
            return calls
        raise RuntimeError("the batch did not fail")

    async def main() -> None:
        done(await (await fail(parameters["requests"])).outcome())

    # The same on a smaller scale first, so that it is not the interpreter's first sight of it.
    world.run(lambda: fail(min(parameters["requests"], 2 * in_flight)))
    world.run(main)


def measure_over_http(peer: Peer, parameters: Parameters, done: Done) -> None:
    from parallel_core.demo_server import demo_server_process

    from .over_http import AT_ONCE, conversations, make_router, one_of_them_fails

    world, adapter = World(peer), peer.adapter()
    in_flight = parameters["in_flight"]
    # A Router takes some milliseconds of CPU to begin each call.
    settings = one_of_them_fails(in_flight, in_flight, after=0.1 + 0.007 * in_flight)

    async def main() -> None:
        target = Target(server.url, make_router(server.url))
        async with adapter.sender(target, in_flight) as send:
            await send(conversations(in_flight), AT_ONCE)
            try:
                await send(conversations(parameters["requests"]), {})
            except Exception:  # noqa: BLE001 - each peer raises in its own way
                raised_at = time.time()
            else:
                raise RuntimeError("the batch did not fail")
            stats = await world.in_thread(server.stats)
            failed_at, left_running = stats.last_finished_at, stats.in_flight
            while stats.in_flight and time.time() - raised_at < GRACE_OVER_HTTP:
                await world.sleep(0.01)
                stats = await world.in_thread(server.stats)
            closed_at = stats.last_disconnected_at
            done(
                {
                    "went_on": (raised_at - failed_at) * 1000,
                    "closed": None if stats.in_flight else (closed_at - failed_at) * 1000,
                    "left_running": left_running,
                    "begun_late": stats.accepted - 2 * in_flight,
                }
            )

    with demo_server_process(settings) as server:
        world.run(main)


def cells(size: Size) -> Iterator[Parameters]:
    if size == "smoke":
        yield {"over": "calls", "in_flight": 8, "requests": 100}
        yield {"over": "HTTP", "in_flight": 4, "requests": 20}
        return
    for in_flight in (64,) if size == "quick" else (8, 64, 1024):
        for requests in (100, 10_000) if size == "quick" else (100, 10_000, 100_000):
            yield {"over": "calls", "in_flight": in_flight, "requests": requests}
    if size == "full":
        yield {"over": "HTTP", "in_flight": 64, "requests": 1_000}


def refuses(peer: Peer, parameters: Parameters) -> str | None:
    if not peer.adapter().fails_fast:
        return "goes on after an error"
    if parameters["over"] == "HTTP":
        return has_no_router(peer, parameters)
    return not_for_calls(peer, parameters)


QUESTION = Question(
    name="cancel_latency",
    title="One call fails, the others are in flight: how long until the caller knows?",
    quantities=(
        Quantity("went_on", "failure to exception", "ms"),
        Quantity("ended", "to the end of the last call", "ms", absent="not within 0.2 s"),
        Quantity("closed", "to the last connection's close", "ms", absent="not within 1 s"),
        Quantity("left_running", "running when the caller knew", ""),
        Quantity("begun_late", "begun after the failure, within 0.2 s", ""),
    ),
    cells=cells,
    measure=measure,
    base=FLOOR,
    compared=("went_on",),
    timeout=10,
    refuses=refuses,
    uses_router=lambda parameters: bool(parameters["over"] == "HTTP"),
)
