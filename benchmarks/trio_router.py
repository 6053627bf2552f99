"""What a Router call costs in trio, and how fast a failure ends 64 of them, host by host.

    python benchmarks/trio_router.py             # everything
    python benchmarks/trio_router.py --only cost --rounds 9

A real Router sends its calls over HTTP to the demo server, which runs in a process of its own. The
sides are *workers*, a pool of hand-written workers in an asyncio TaskGroup; *bridge*, a batch in
asyncio; and a batch in trio with each host of a Router. trio-asyncio changes asyncio for the whole
process, so every measurement is made in a process of its own. Machines are noisy: the sides run in
turn, round after round, and what is reported is the median of the ratios, with the smallest and
the largest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from importlib import metadata
from typing import Any

import trio

import parallel_core
from parallel_core.demo_server import DemoServerSettings, demo_server_process

CONCURRENCY = 64
WARM_UP_CALLS = 200
COST_CALLS = 1_500
FAILURES = 10
SIDES = ("workers", "bridge", "thread", "thread-uvloop", "trio-asyncio")


def requests(count: int, **orders: object) -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {
            "model": "fast",
            "messages": [{"role": "user", "content": f"Question {number}"}],
            "extra_body": {"demo": orders},
        }


def one_fails_when_all_are_in_flight() -> Iterator[dict[str, Any]]:
    yield from requests(CONCURRENCY - 1, fault="hang")
    yield from requests(1, fault="server_error", latency=0.5)
    yield from requests(10 * CONCURRENCY, fault="hang")


class WatchedRouter:
    """A Router that notes when a call of it has failed."""

    def __init__(self, router: Any) -> None:
        self._router = router
        self.failed_at = 0.0

    async def acompletion(self, **arguments: Any) -> Any:
        try:
            return await self._router.acompletion(**arguments)
        except Exception:
            self.failed_at = self.failed_at or time.perf_counter()
            raise


# --- the sides, each of them run in a process of its own ---


async def workers(router: Any, source: Iterator[dict[str, Any]]) -> None:
    async def work() -> None:
        for request in source:
            await router.acompletion(**request)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(work())


async def batch(router: Any, source: Iterator[dict[str, Any]]) -> None:
    results = await parallel_core.parallel_acompletions(
        router, source, concurrency=CONCURRENCY, return_exceptions=False
    )
    assert all(result.ok for result in results)


def run_side(side: str, main: Callable[[Callable[..., Awaitable[None]]], Awaitable[None]]) -> None:
    """Run ``main`` with the function that sends many requests, in the world of this side."""
    if side in ("workers", "bridge"):

        async def in_asyncio() -> None:
            await main(workers if side == "workers" else batch)

        asyncio.run(in_asyncio())
        return

    async def in_trio() -> None:
        if side == "trio-asyncio":
            async with parallel_core.open_trio_asyncio():
                await main(batch)
            return

        async def on_host(router: Any, source: Iterator[dict[str, Any]]) -> None:
            results = await parallel_core.parallel_acompletions(
                router,
                source,
                concurrency=CONCURRENCY,
                return_exceptions=False,
                router_host=side,  # type: ignore[arg-type]  # one of the names
            )
            assert all(result.ok for result in results)

        await main(on_host)

    trio.run(in_trio)


def make_router(url: str) -> Any:
    from litellm import Router

    return Router(
        model_list=[
            {
                "model_name": "fast",
                "litellm_params": {"model": "openai/fast", "api_base": url, "api_key": "none"},
            }
        ],
        num_retries=0,
    )


def measure_cost(side: str, url: str) -> dict[str, float]:
    """Microseconds for each call, of this process's CPU and of the clock."""
    took: dict[str, float] = {}

    async def main(send: Callable[..., Awaitable[None]]) -> None:
        router = make_router(url)
        await send(router, requests(WARM_UP_CALLS))
        cpu, wall = time.process_time(), time.perf_counter()
        await send(router, requests(COST_CALLS))
        took["cpu"] = (time.process_time() - cpu) / COST_CALLS * 1e6
        took["wall"] = (time.perf_counter() - wall) / COST_CALLS * 1e6

    run_side(side, main)
    return took


def measure_failure(side: str, url: str) -> dict[str, float]:
    """Milliseconds from a failure to the exception in the caller, 63 calls having been ended."""
    milliseconds: list[float] = []

    async def main(send: Callable[..., Awaitable[None]]) -> None:
        router = WatchedRouter(make_router(url))
        await send(router, requests(WARM_UP_CALLS))
        for _ in range(FAILURES):
            router.failed_at = 0.0
            try:
                await send(router, one_fails_when_all_are_in_flight())
            except Exception:  # noqa: BLE001 - what litellm makes of a 500
                milliseconds.append((time.perf_counter() - router.failed_at) * 1000)
            else:
                raise RuntimeError("the batch did not fail")

    run_side(side, main)
    return {"milliseconds": statistics.median(milliseconds)}


MEASUREMENTS = {"cost": measure_cost, "failure": measure_failure}


# --- the rounds ---


def in_a_process(what: str, side: str, url: str) -> dict[str, float]:
    answer = subprocess.run(
        [sys.executable, __file__, "--measure", what, side, url],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    values: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return values


def compare(what: str, rounds: int, url: str) -> None:
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            measured[side].append(in_a_process(what, side, url))
    for quantity in measured["workers"][0]:
        print(f"{TITLES[what, quantity]}, {CONCURRENCY} in flight, {rounds} rounds")
        base = "bridge" if what == "failure" else "workers"
        for side in SIDES:
            values = [values[quantity] for values in measured[side]]
            bases = [values[quantity] for values in measured[base]]
            ratios = [mine / theirs for mine, theirs in zip(values, bases, strict=True)]
            print(f"  {side:<14}{statistics.median(values):9.2f}   {_spread(ratios)} x {base}")


TITLES = {
    ("cost", "cpu"): f"CPU of the process, µs per call, {COST_CALLS} calls",
    ("cost", "wall"): f"time on the clock, µs per call, {COST_CALLS} calls",
    ("failure", "milliseconds"): f"from failure to exception, ms, median of {FAILURES} failures",
}


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):5.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=list(MEASUREMENTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, side, url = options.measure
        print(json.dumps(MEASUREMENTS[what](side, url)))
        return
    packages = ("litellm", "trio", "trio-asyncio", "uvloop")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    print(f"Python {platform.python_version()}, {versions}")
    with demo_server_process(DemoServerSettings(latency_median=0.0)) as server:
        for what in MEASUREMENTS:
            if options.only in (None, what):
                compare(what, options.rounds, server.url)


if __name__ == "__main__":
    main()
