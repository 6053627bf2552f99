"""What a second attempt of stragglers does to the tail: ``python -m benchmarks.hedging``.

The demo server, in a process of its own, answers after log-normal times with a long tail. The same
number of requests is sent through a real Router without and with a hedge, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
from typing import Any

from parallel_core import Hedge, RouterParallelRequest, iter_parallel_acompletions
from parallel_core.demo_server import DemoServerSettings, demo_server_process

from .adapter import MODEL
from .over_http import make_router

LATENCY_MEDIAN = 0.2  # seconds
LATENCY_SIGMAS = (0.5, 1.0, 1.5)  # how long the tail is
CONCURRENCY = 24
MAX_EXTRA = 0.05


async def latencies(url: str, requests: int, hedge: Hedge | None) -> list[float]:
    source = (
        RouterParallelRequest(MODEL, [{"role": "user", "content": f"Question {number}"}])
        for number in range(requests)
    )
    async with iter_parallel_acompletions(
        make_router(url), source, concurrency=CONCURRENCY, hedge=hedge
    ) as batch:
        results = [result async for result in batch]
    assert all(result.ok for result in results), [r.exception for r in results if not r.ok][:1]
    return sorted(result.duration for result in results)


def percentile(values: list[float], percent: float) -> float:
    return values[min(len(values) - 1, int(len(values) * percent / 100))]


def measure(sigma: float, seed: int, requests: int, hedge: Hedge | None) -> dict[str, Any]:
    settings = DemoServerSettings(
        seed=seed,
        latency_median=LATENCY_MEDIAN,
        latency_sigma=sigma,
        models={MODEL: 1.0},
    )
    with demo_server_process(settings) as server:
        durations = asyncio.run(latencies(server.url, requests, hedge))
        sent = server.stats().accepted
    return {
        "p50": percentile(durations, 50),
        "p95": percentile(durations, 95),
        "p99": percentile(durations, 99),
        "extra": sent / requests - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hedging", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1000, help="of each run")
    parser.add_argument("--smoke", action="store_true", help="a few requests: does it run?")
    options = parser.parse_args()
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if options.smoke:
        compare(LATENCY_SIGMAS[0], 1, 40)
        return
    for sigma in LATENCY_SIGMAS:
        compare(sigma, options.rounds, options.requests)


def compare(sigma: float, rounds: int, requests: int) -> None:
    print(f"log-normal latency, median {LATENCY_MEDIAN} s, sigma {sigma}", flush=True)
    falls: list[float] = []
    for number in range(rounds):
        without = measure(sigma, number, requests, None)
        with_hedge = measure(sigma, number, requests, Hedge("p95", max_extra=MAX_EXTRA))
        falls.append(1 - with_hedge["p99"] / without["p99"])
        for name, run in (("without", without), ("with", with_hedge)):
            print(
                f"  {name:8} p50 {run['p50']:.2f} s  p95 {run['p95']:.2f} s  "
                f"p99 {run['p99']:.2f} s  "
                f"extra calls {run['extra']:.1%}",
                flush=True,
            )
    print(
        f"  p99 falls by {statistics.median(falls):.0%} ({min(falls):.0%} to {max(falls):.0%}), "
        f"median of {rounds} rounds in turn"
    )


if __name__ == "__main__":
    main()
