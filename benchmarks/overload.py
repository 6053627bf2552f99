"""What a share of 429 costs a batch: ``python -m benchmarks.overload``.

The demo server, in a process of its own, answers a share of the attempts with 429. The requests go
through a Router as it comes, with its own retries and cooldowns, and one, two or three deployments
of the model. Each round first sends them through one deployment without a 429; the figures are
answers per second, as a ratio to that.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import time
from typing import Any, Literal

from parallel_core import RouterParallelRequest, iter_parallel_acompletions
from parallel_core.demo_server import DemoServerSettings, demo_server_process

from .adapter import MODEL

LATENCY = 0.4  # seconds, the median
IN_FLIGHT = 16
SHARES = (0.03, 0.2)
DEPLOYMENTS = (1, 2, 3)


def make_router(url: str, deployments: int) -> Any:
    from litellm import Router

    def deployment(number: int) -> dict[str, str]:
        return {"model": f"openai/{MODEL}", "api_base": url, "api_key": f"sk-{number}"}

    return Router(
        model_list=[
            {"model_name": MODEL, "litellm_params": deployment(number)}
            for number in range(deployments)
        ]
    )


async def send(
    url: str, deployments: int, requests: int, concurrency: int | Literal["auto"]
) -> tuple[float, int]:
    """Return answers per second, and how many requests failed."""
    source = (
        RouterParallelRequest(MODEL, [{"role": "user", "content": f"Question {number}"}])
        for number in range(requests)
    )
    failed = 0
    began = time.perf_counter()
    async with iter_parallel_acompletions(
        make_router(url, deployments), source, concurrency=concurrency
    ) as batch:
        async for result in batch:
            failed += not result.ok
    return (requests - failed) / (time.perf_counter() - began), failed


def measure(
    share: float,
    deployments: int,
    seed: int,
    requests: int,
    concurrency: int | Literal["auto"] = IN_FLIGHT,
) -> float:
    settings = DemoServerSettings(
        seed=seed, latency_median=LATENCY, rate_limited=share, models={MODEL: 1.0}
    )
    with demo_server_process(settings) as server:
        rate, failed = asyncio.run(send(server.url, deployments, requests, concurrency))
        attempts = server.stats().accepted
    print(
        f"  {share:4.0%} of 429, {deployments} deployments, concurrency {concurrency}: "
        f"{rate:.1f} answers/s, {failed} failed, {attempts / requests:.3f} attempts each",
        flush=True,
    )
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=3000, help="of each run")
    parser.add_argument("--auto", action="store_true", help='with concurrency="auto", too')
    parser.add_argument("--smoke", action="store_true", help="a few requests: does it run?")
    options = parser.parse_args()
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    logging.disable(logging.ERROR)  # litellm tells each 429
    if options.smoke:
        measure(SHARES[0], 2, 0, 50)
        return
    asyncio.run(import_all_of_litellm())
    ratios: dict[tuple[float, int], list[float]] = {}
    for number in range(options.rounds):
        clean = measure(0.0, 1, number, options.requests)
        for share in SHARES:
            for deployments in DEPLOYMENTS:
                rate = measure(share, deployments, number, options.requests)
                ratios.setdefault((share, deployments), []).append(rate / clean)
    print(f"answers per second, as a ratio to no 429; median of {options.rounds} rounds (min, max)")
    for (share, deployments), found in ratios.items():
        print(
            f"  {share:4.0%} of 429, {deployments} deployments: {statistics.median(found):.2f} "
            f"({min(found):.2f}, {max(found):.2f})"
        )


async def import_all_of_litellm() -> None:
    """The first call of a process imports much."""
    with demo_server_process() as server:
        await send(server.url, 1, 1, 1)


if __name__ == "__main__":
    main()
