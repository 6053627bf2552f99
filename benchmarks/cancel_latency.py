"""From the first failure to the exception in the caller, and to the end of the last call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from .peers import FLOOR, Peer
from .question import Measured, Parameters, Quantity, Question, Size, World, make_adapter, now

FAILS_AFTER = 0.05  # seconds, by when all slots are taken
GRACE = 0.3  # seconds that calls have to end after the caller has got the exception


class CallFailedError(Exception):
    """What the one call raises."""


def measure(peer: Peer, parameters: Parameters) -> Measured:
    world, adapter = World(peer), make_adapter(peer)
    requests, in_flight = parameters["requests"], parameters["in_flight"]
    # Not a request of a certain number: some peers begin with any.
    failing = min(requests, in_flight) // 2
    failed_at = last_end = 0.0
    begun = running = started_late = 0

    async def call(item: int) -> None:
        nonlocal begun, failed_at, last_end, running, started_late
        begun += 1
        if begun == failing:
            await world.sleep(FAILS_AFTER)
            failed_at = now()
            raise CallFailedError
        started_late += failed_at > 0
        running += 1
        try:
            await world.sleep(3600)
        finally:
            running -= 1
            last_end = now()

    async def main() -> Measured:
        try:
            await adapter.collect(call, range(requests), in_flight)
        except Exception:  # noqa: BLE001 - each peer raises in its own way
            raised_at = now()
        else:
            raise RuntimeError("the batch did not fail")
        left_running = running
        while running and now() - raised_at < GRACE:
            await world.sleep(0.001)
        return {
            "raised": (raised_at - failed_at) * 1000,
            "ended": None if running else max(last_end - failed_at, 0.0) * 1000,
            "left_running": left_running,
            "started_late": started_late,
        }

    async def warm_up() -> None:
        with contextlib.suppress(Exception):
            await adapter.collect(fail_at_once, range(10), 4)

    world.run(warm_up)
    measured: Measured = world.run(main)
    return measured


async def fail_at_once(item: int) -> None:
    raise CallFailedError


def cells(size: Size) -> Iterator[Parameters]:
    if size == "smoke":
        yield {"requests": 100, "in_flight": 8}
        return
    for in_flight in (64,) if size == "quick" else (8, 64, 1024):
        for requests in (100, 10_000) if size == "quick" else (100, 10_000, 100_000):
            yield {"requests": requests, "in_flight": in_flight}


QUESTION = Question(
    name="cancel_latency",
    title="One call fails, the others are in flight: how long until the caller knows?",
    quantities=(
        Quantity("raised", "failure to exception", "ms"),
        Quantity("ended", "failure to the end of the last call", "ms", absent="never"),
        Quantity("left_running", "calls running when the caller knew", ""),
        Quantity("started_late", "calls begun after the failure", ""),
    ),
    cells=cells,
    measure=measure,
    base=FLOOR,
)
