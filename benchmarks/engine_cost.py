"""What the engine costs: CPU per call, time from failure to exception, and memory.

    python benchmarks/engine_cost.py            # everything
    python benchmarks/engine_cost.py --only cpu

The *original* is the algorithm of the proposal to litellm: a semaphore, a task per request, gather.
The *floor* is a pool of hand-written workers in an asyncio TaskGroup. Machines are noisy: all sides
run in turn, round after round, and what is reported is the median of the ratios, with the smallest
and the largest.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from parallel_core import bridge, nursery_engine

CPU_CALLS = 20_000
CONCURRENCY = 64
FAILURE_REQUESTS = 100_000
FAILURE_AFTER = 0.05  # seconds
MEMORY_CALLS = 1_000_000


@dataclass
class OriginalResult:
    """What the proposal hands out for each request."""

    index: int
    request: object
    response: object = None
    exception: Exception | None = None


async def no_op(item: object) -> object:
    return item


# --- the sides ---


async def original(
    call: Callable[[Any], Awaitable[Any]], items: Iterable[Any], return_exceptions: bool = True
) -> list[OriginalResult]:
    semaphore = asyncio.Semaphore(CONCURRENCY)

    async def run(index: int, item: object) -> OriginalResult:
        async with semaphore:
            try:
                return OriginalResult(index, item, response=await call(item))
            except Exception as exception:
                if not return_exceptions:
                    raise
                return OriginalResult(index, item, exception=exception)

    tasks = [asyncio.create_task(run(index, item)) for index, item in enumerate(items)]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def floor(
    call: Callable[[Any], Awaitable[Any]], items: Iterable[Any], return_exceptions: bool = True
) -> list[OriginalResult]:
    numbered = enumerate(items)
    results: list[OriginalResult] = []

    async def worker() -> None:
        for index, item in numbered:
            try:
                results.append(OriginalResult(index, item, response=await call(item)))
            except Exception as exception:
                if not return_exceptions:
                    raise
                results.append(OriginalResult(index, item, exception=exception))

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(worker())
    return results


async def through_bridge(
    call: Callable[[Any], Awaitable[Any]], items: Iterable[Any], return_exceptions: bool = True
) -> object:
    return await bridge.parallel_map(
        call, items, concurrency=CONCURRENCY, return_exceptions=return_exceptions
    )


async def through_trio(call: Callable[[Any], Awaitable[Any]], items: Iterable[Any]) -> object:
    return await nursery_engine.parallel_map(call, items, concurrency=CONCURRENCY)


# --- CPU per call ---


def cpu(rounds: int) -> None:
    items = list(range(CPU_CALLS))

    def in_asyncio(side: Callable[..., Awaitable[object]]) -> Callable[[], None]:
        return lambda: asyncio.run(_discard(side(no_op, items)))

    sides: dict[str, Callable[[], None]] = {
        "original": in_asyncio(original),
        "floor": in_asyncio(floor),
        "bridge": in_asyncio(through_bridge),
        "trio": lambda: trio.run(_discard_trio, items),
    }
    microseconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        for name, run in sides.items():
            gc.collect()
            began = time.process_time()
            run()
            took = time.process_time() - began
            if round_number:  # the first round warms up
                microseconds[name].append(took / CPU_CALLS * 1e6)
    print(
        f"CPU per call, {CPU_CALLS} calls that do nothing, concurrency {CONCURRENCY}, "
        f"{rounds} rounds"
    )
    for name, values in microseconds.items():
        ratios = [mine / base for mine, base in zip(values, microseconds["original"], strict=True)]
        print(f"  {name:<9}{statistics.median(values):6.2f} µs   {_spread(ratios)} x original")


async def _discard(running: Awaitable[object]) -> None:
    await running


async def _discard_trio(items: list[int]) -> None:
    await through_trio(no_op, items)


# --- from failure to exception ---


def failure(rounds: int) -> None:
    sides = {"floor": floor, "bridge": through_bridge}
    milliseconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        for name, side in sides.items():
            took = asyncio.run(_time_to_raise(side))
            if round_number:
                milliseconds[name].append(took * 1000)
    print(
        f"from failure to exception, {FAILURE_REQUESTS} requests, {CONCURRENCY} in flight, "
        f"{rounds} rounds"
    )
    for name, values in milliseconds.items():
        ratios = [mine / base for mine, base in zip(values, milliseconds["floor"], strict=True)]
        print(f"  {name:<9}{statistics.median(values):6.2f} ms   {_spread(ratios)} x floor")


async def _time_to_raise(side: Callable[..., Awaitable[object]]) -> float:
    failed_at = 0.0

    async def call(item: int) -> None:
        nonlocal failed_at
        if item == CONCURRENCY // 2:
            await asyncio.sleep(FAILURE_AFTER)
            failed_at = time.perf_counter()
            raise ConnectionError
        await asyncio.sleep(3600)

    try:
        await side(call, range(FAILURE_REQUESTS), return_exceptions=False)
    except (ConnectionError, ExceptionGroup):
        return time.perf_counter() - failed_at
    raise RuntimeError("the batch did not fail")


# --- memory ---


def memory() -> None:
    """In a process of its own for each world, so that one does not fill what the other left."""
    print(f"growth of the process over {MEMORY_CALLS} calls from a generator, read one by one")
    for world in ("bridge", "trio"):
        answer = subprocess.run(
            [sys.executable, __file__, "--memory-of", world],
            check=True,
            capture_output=True,
            text=True,
        )
        print(f"  {world:<9}{answer.stdout.strip()}")


def memory_of(world: str) -> None:
    engine: Any = bridge if world == "bridge" else nursery_engine
    largest = 0

    async def read(count: int) -> None:
        nonlocal largest
        items = (number for number in range(count))
        async with engine.iter_parallel_map(no_op, items, concurrency=CONCURRENCY) as batch:
            async for result in batch:
                if result.index % 10_000 == 0:
                    largest = max(largest, resident_bytes())

    run: Any = (lambda f, n: asyncio.run(f(n))) if world == "bridge" else trio.run
    run(read, 10_000)  # what stays for good is there from now on
    before = resident_bytes()
    largest = before
    run(read, MEMORY_CALLS)
    print(f"{(largest - before) / 2**20:.2f} MiB")


def resident_bytes() -> int:
    """Memory of this process now; where there is no /proc, the most that it ever had."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=["cpu", "failure", "memory"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory-of", choices=["bridge", "trio"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_of(options.memory_of)
        return
    print(f"Python {platform.python_version()}, trio {trio.__version__}")
    if options.only in (None, "cpu"):
        cpu(options.rounds)
    if options.only in (None, "failure"):
        failure(options.rounds)
    if options.only in (None, "memory"):
        memory()


if __name__ == "__main__":
    main()
