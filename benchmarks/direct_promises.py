"""What the direct lane must not cost, and what workers give: sides of ``benchmarks.direct``."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Iterator
from typing import Any

from parallel_core import iter_parallel_acompletions, parallel_acompletions
from parallel_core.demo_server import DemoServerProcess, demo_server_process

from . import ray_scaling
from .adapter import MODEL, Messages
from .memory import forget_peak, peak_bytes, resident_bytes
from .over_http import AT_ONCE, conversations, make_router, one_of_them_fails

SIDES = {"Router": False, "direct": True}
MIB = 2**20


def _requests(count: int, **arguments: Any) -> Iterator[dict[str, Any]]:
    for number in range(count):
        messages: Messages = [{"role": "user", "content": f"Question {number}"}]
        yield {"model": MODEL, "messages": messages, **arguments}


# --- memory ---


async def _growth(router: Any, calls: int, in_flight: int, *, direct: bool) -> float:
    """MiB that the process has had at most beyond what it had before these calls."""
    gc.collect()
    forget_peak()
    before = resident_bytes()
    async with iter_parallel_acompletions(
        router, _requests(calls), concurrency=in_flight, direct=direct
    ) as batch:
        async for result in batch:
            result.unwrap()
    return max(0.0, (peak_bytes() - before) / MIB)


async def memory(url: str, calls: int, in_flight: int) -> None:
    """Print by how much memory grows over some calls, and over four times as many."""
    router = make_router(url)
    for name, direct in SIDES.items():
        await _growth(router, calls, in_flight, direct=direct)  # first imports, connections
        few = await _growth(router, calls, in_flight, direct=direct)
        many = await _growth(router, 4 * calls, in_flight, direct=direct)
        print(
            f"  {name:14} memory grows by {few:.1f} MiB over {calls:,} calls, by {many:.1f} MiB "
            f"over {4 * calls:,}",
            flush=True,
        )


# --- failure to raise ---


async def _until_raised(
    server: DemoServerProcess, router: Any, in_flight: int, *, direct: bool
) -> float:
    """Milliseconds from the failure of one call, while the others hang, to the exception."""
    await asyncio.to_thread(server.reset_stats)
    at_once = _requests(in_flight, extra_body={"demo": AT_ONCE})
    await parallel_acompletions(
        router, at_once, concurrency=in_flight, return_exceptions=False, direct=direct
    )
    requests = ({"model": MODEL, "messages": one} for one in conversations(10 * in_flight))
    try:
        await parallel_acompletions(
            router, requests, concurrency=in_flight, return_exceptions=False, direct=direct
        )
    except Exception:  # noqa: BLE001 - it is the one that is waited for
        raised_at = time.time()
    else:
        raise RuntimeError("the batch did not fail")
    stats = await asyncio.to_thread(server.stats)
    assert stats.last_finished_at is not None
    return (raised_at - stats.last_finished_at) * 1000


def failures(rounds: int, in_flight: int) -> None:
    """Print how long it takes from the failure of a call to the exception of its batch."""
    found: dict[str, list[float]] = {name: [] for name in SIDES}
    settings = one_of_them_fails(in_flight, in_flight, after=0.1 + 0.02 * in_flight)

    async def measure() -> None:
        router = make_router(server.url)
        for _ in range(rounds):
            for name, direct in SIDES.items():
                took = await _until_raised(server, router, in_flight, direct=direct)
                found[name].append(took)

    with demo_server_process(settings) as server:
        asyncio.run(measure())
    for name, times in found.items():
        print(
            f"  {name:14} failure to exception, {in_flight} in flight: "
            f"{statistics.median(times):.1f} ms ({min(times):.1f} to {max(times):.1f})",
            flush=True,
        )


# --- workers on Ray ---


def workers(url: str, rounds: int, calls: int, in_flight: int) -> None:
    """Print the calls per second of one and of two workers on Ray that send directly."""
    found: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for number, rates in found.items():
            told = ray_scaling.child(
                *("--workers", number, "--concurrency", in_flight, "--calls", calls),
                *("--url", url, "--direct"),
            )
            rates.append(told["rate"])
    ratios = [two / one for one, two in zip(found[1], found[2], strict=True)]
    for number, rates in found.items():
        print(f"  {number} Ray, direct  {statistics.median(rates):8.0f} calls/s", flush=True)
    print(
        f"  two workers are {statistics.median(ratios):.2f} x one "
        f"({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )
