"""What do workers on Ray give, and what do they cost? ``python -m benchmarks.ray_scaling``.

**Throughput**: requests to a litellm Router over loopback HTTP, with a demo server in a process of
its own: in one process without Ray, with one worker, and with more. Each measurement is in a
process of its own, which starts, sends some requests to warm up, and then sends what counts: the
start (of Python, litellm, Ray and its workers, told beside it) is not in the figures. The sides are
measured in turn, round after round; told are the medians, and the median ratio to the side without
Ray in the same round, with its least and its greatest.

**No-op calls** (``--no-op``): calls that answer at once, so that what is measured is the way to the
workers and back: microseconds of the driver for each, and the memory of driver and workers as the
calls go on.

**Cancel latency** (``--cancel``): a call fails while all others are in flight: the time until the
exception is raised here, when all calls have ended in their workers, and until the workers have
ended, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import parallel_core
from parallel_core import ray_engine
from parallel_core.demo_server import DemoServerSettings, demo_server_process

MIB = 1024.0  # KiB, in which the system tells the memory of a process
WARM_UP = 400  # requests for each worker


class MakeRouter:
    """A Router of the demo server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self) -> Any:
        from litellm.router import Router

        parameters = {"model": "openai/fast", "api_base": self.url, "api_key": "none"}
        return Router(
            model_list=[{"model_name": "fast", "litellm_params": parameters}], num_retries=0
        )


class Scripted:
    """Answers at once, never, or with an error."""

    async def acompletion(self, *, model: str, messages: Any, **_: Any) -> Any:
        if model == "never":
            await asyncio.Event().wait()
        if model == "fail":
            await asyncio.sleep(1.0)
            raise LookupError
        return os.getpid()


def requests(count: int, model: str = "fast") -> Iterator[dict[str, Any]]:
    for number in range(count):
        yield {"model": model, "messages": [{"role": "user", "content": f"What is {number}?"}]}


@dataclass
class Measured:
    """What one process has measured.

    Attributes:
        start: seconds until the first call could be made.
        rate: calls for each second.
        driver: microseconds of the driver's processor for each call.
        memory: MiB, the greatest so far, of the driver and of each worker, at tenths of the calls.
    """

    start: float
    rate: float
    driver: float
    memory: list[list[float]]


@contextlib.asynccontextmanager
async def router_of(source: Any, workers: int, concurrency: int) -> Any:
    """A Router and the concurrency of its batches: of this process where there are no workers."""
    if not workers:
        yield source(), concurrency
        return
    async with ray_engine.open_ray_router(
        source, workers=workers, concurrency=concurrency
    ) as router:
        yield router, router.slots


def memory_of(process: int) -> float:
    """MiB that a process has at most had in memory."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / MIB
    raise LookupError(process)


async def throughput(
    source: Any, workers: int, concurrency: int, calls: int, *, direct: bool = False
) -> Measured:
    began = time.perf_counter()
    async with router_of(source, workers, concurrency) as (router, slots):
        start = time.perf_counter() - began
        warm_up = WARM_UP * max(1, workers)
        processes: set[int] = set()
        for result in await parallel_core.parallel_acompletions(
            router, list(requests(warm_up)), concurrency=slots, direct=direct
        ):
            if isinstance(result.unwrap(), int):
                processes.add(result.response)
        memory: list[list[float]] = []
        began, began_cpu = time.perf_counter(), time.process_time()
        async with parallel_core.iter_parallel_acompletions(
            router, requests(calls), concurrency=slots, direct=direct
        ) as batch:
            done = 0
            async for result in batch:
                result.unwrap()
                done += 1
                if processes and done % (calls // 10) == 0:
                    memory.append([memory_of(pid) for pid in (os.getpid(), *sorted(processes))])
        clock, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return Measured(start, calls / clock, 1e6 * cpu / calls, memory)


async def cancel_latency(workers: int, concurrency: int) -> tuple[float, float]:
    """Seconds from a failure until it is raised, and until nothing of the workers is there."""
    async with contextlib.AsyncExitStack() as stack:
        router, slots = await stack.enter_async_context(router_of(Scripted, workers, concurrency))
        never = list(requests(100 * slots, "never"))
        never[0]["model"] = "fail"
        began = time.perf_counter()
        try:
            await parallel_core.parallel_acompletions(
                router, never, concurrency=slots, return_exceptions=False
            )
        except LookupError:
            raised = time.perf_counter() - began - 1.0
        began = time.perf_counter()
        fleet: Any = router._fleet
        await fleet.close()
        return raised, time.perf_counter() - began


def child(*arguments: object) -> Any:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ray_scaling", "--child", *map(str, arguments)]
    with tempfile.TemporaryDirectory(prefix="pc", ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ,
            "HOME": folder,
            "RAY_TMPDIR": folder,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def run_child(options: argparse.Namespace) -> Any:
    source = MakeRouter(options.url) if options.url else Scripted
    if options.cancel:
        return asyncio.run(cancel_latency(options.workers[0], options.concurrency))
    measured = asyncio.run(
        throughput(
            source,
            options.workers[0],
            options.concurrency,
            options.calls,
            direct=options.direct,
        )
    )
    return asdict(measured)


def scaling(options: argparse.Namespace) -> None:
    settings = DemoServerSettings(latency_median=options.latency, models={"fast": 1.0})
    sides = [0, *options.workers]
    found: dict[int, list[Measured]] = {side: [] for side in sides}
    with demo_server_process(settings) as server:
        for _ in range(options.rounds):
            for side in sides:
                told = child(
                    *("--workers", side, "--concurrency", options.concurrency),
                    *("--calls", options.calls, "--url", server.url),
                    *(["--direct"] if options.direct else []),
                )
                found[side].append(Measured(**told))
    print(
        f"{options.calls:,} calls of a Router to a server that answers after {options.latency} s, "
        f"{options.concurrency} in flight in each process; {os.cpu_count()} cores; "
        f"medians of {options.rounds} rounds"
    )
    for side in sides:
        rate = statistics.median(one.rate for one in found[side])
        start = statistics.median(one.start for one in found[side])
        driver = statistics.median(one.driver for one in found[side])
        ratios = [one.rate / base.rate for one, base in zip(found[side], found[0], strict=True)]
        name = f"{side} worker{'s' if side > 1 else ''}" if side else "without Ray"
        ratio = f"{statistics.median(ratios):.2f} x ({min(ratios):.2f}-{max(ratios):.2f})"
        print(
            f"  {name:<12} {rate:7.0f} calls/s   {ratio:<20} "
            f"{driver:6.0f} us of this process for each   started in {start:.1f} s"
        )


def no_op(options: argparse.Namespace) -> None:
    for workers in options.workers:
        told = Measured(
            **child(
                *("--workers", workers, "--concurrency", options.concurrency),
                *("--calls", options.calls),
            )
        )
        print(
            f"{options.calls:,} no-op calls, {workers} workers: {told.rate:,.0f} calls/s, "
            f"{told.driver:.0f} us of the driver for each"
        )
        for what, column in zip(
            ["driver", *(f"worker {n}" for n in range(1, workers + 1))],
            zip(*told.memory, strict=True),
            strict=True,
        ):
            print(f"  {what:<9} MiB at each tenth: {' '.join(f'{one:.0f}' for one in column)}")


def cancel(options: argparse.Namespace) -> None:
    for workers in options.workers:
        found = [
            child("--cancel", "--workers", workers, "--concurrency", options.concurrency)
            for _ in range(options.rounds)
        ]
        for what, times in zip(
            ("raised, all calls ended", "then workers ended"), zip(*found, strict=True), strict=True
        ):
            in_ms = [1000 * one for one in times]
            print(
                f"{workers} workers x {options.concurrency} calls in flight, {what}: "
                f"{statistics.median(in_ms):.0f} ms ({min(in_ms):.0f}-{max(in_ms):.0f})"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--concurrency", type=int, default=64, help="in each worker")
    parser.add_argument("--calls", type=int)
    parser.add_argument("--latency", type=float, default=0.1, help="of the server, in seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--direct", action="store_true", help="calls are sent directly")
    parser.add_argument("--no-op", action="store_true", help="the way to the workers and back")
    parser.add_argument("--cancel", action="store_true", help="how soon all calls have ended")
    parser.add_argument("--smoke", action="store_true", help="does it run?")
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        result = run_child(options)
        print(json.dumps(result))
        return
    if options.smoke:
        options.workers, options.concurrency, options.rounds, options.calls = [1], 4, 1, 40
        scaling(options)
        return
    if options.no_op:
        options.calls = options.calls or 100_000
        no_op(options)
    elif options.cancel:
        cancel(options)
    else:
        options.calls = options.calls or 6_000
        scaling(options)


if __name__ == "__main__":
    main()
