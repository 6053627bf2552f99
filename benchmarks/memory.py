"""Memory, time to the first result, and how far a peer runs ahead of a slow consumer."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from .peers import GATHER, Peer
from .question import Done, Parameters, Quantity, Question, Size, World, not_for_calls, now

CONCURRENCY = 64
HOLDS = 0.2  # seconds that the consumer holds the first result


def measure(peer: Peer, parameters: Parameters, done: Done) -> None:
    world, adapter = World(peer), peer.adapter()
    requests = parameters["requests"]
    started = 0
    first_result: float | None = None
    ran_ahead: float | None = None

    async def call(item: int) -> int:
        nonlocal started
        started += 1
        await world.sleep(0)
        return item

    async def run(count: int, hold: float) -> None:
        nonlocal first_result, ran_ahead, started
        began = now()
        started = 0
        items = (number for number in range(count))
        if not adapter.streams:
            await adapter.collect(call, items, CONCURRENCY)
            first_result = (now() - began) * 1000
            return
        async with adapter.stream(call, items, CONCURRENCY) as results:
            first = True
            async for _ in results:
                if first:
                    first = False
                    first_result = (now() - began) * 1000
                    await world.sleep(hold)
                    ran_ahead = started - 1

    world.run(lambda: run(100, 0.0))
    gc.collect()
    forget_peak()
    before = resident_bytes()
    world.run(lambda: run(requests, HOLDS))
    most = peak_bytes()
    done(
        {
            "growth": max(0.0, (most - before) / 2**20),
            "first_result": first_result,
            "ran_ahead": ran_ahead,
        }
    )


def forget_peak() -> None:
    """Have the system count the most memory of this process anew, where it can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def resident_bytes() -> int:
    """Memory of this process now; where there is no /proc, the most that it ever had."""
    return _of_status("VmRSS") or _ever()


def peak_bytes() -> int:
    """The most memory of this process since :func:`forget_peak`."""
    return _of_status("VmHWM") or _ever()


def _of_status(name: str) -> int | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _ever() -> int:
    # In kilobytes, but for macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cells(size: Size) -> Iterator[Parameters]:
    counts = {"smoke": (2000,), "quick": (10_000,), "full": (1000, 100_000, 1_000_000)}
    for count in counts[size]:
        yield {"requests": count}


def rounds(parameters: Parameters, size: Size) -> int | None:
    return 1 if parameters["requests"] >= 1_000_000 else None


QUESTION = Question(
    name="memory",
    title="What does a long input from a generator cost, and who sets the pace?",
    quantities=(
        Quantity("growth", "most memory", "MiB"),
        Quantity("first_result", "to the first result", "ms"),
        Quantity("ran_ahead", "calls ahead of a consumer that holds the first result", ""),
    ),
    cells=cells,
    measure=measure,
    base=GATHER,
    compared=(),
    refuses=not_for_calls,
    size="requests",
    rounds=rounds,
)
