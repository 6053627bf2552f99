"""Does adaptive concurrency find a capacity that nobody tells? ``python -m benchmarks.adaptive``.

The demo server, in a process of its own, answers 429 above a hidden capacity: one that stays (32),
and one that changes (64, then 16, then 64). For so many seconds requests without end are sent
through a real Router with a fixed concurrency, where the Router retries what is rejected and keeps
its place meanwhile; with ``concurrency="auto"``; and with async-batch-llm, whose pauses are set to
the server's Retry-After. Goodput is answers per second.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import importlib.util
import itertools
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from parallel_core import (
    RouterParallelRequest,
    iter_parallel_acompletions,
    parallel_completions,
)
from parallel_core.demo_server import (
    DemoServerProcess,
    DemoServerSettings,
    demo_server_process,
)
from parallel_core.report.png import matplotlib_style, save

from .adapter import MODEL

LATENCY = 1.0  # seconds, median
RETRIES = 8


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Capacities of the server, each for some seconds, and the concurrencies of the sweep."""

    name: str
    capacities: tuple[int, ...]
    seconds: float  # each
    sweep: tuple[int, ...]


SCENARIOS = (
    Scenario("capacity 32", (32,), 40, (8, 24, 32, 40, 128)),
    Scenario("capacity 64, 16, 64", (64, 16, 64), 25, (16, 32, 48, 64, 128)),
)


@dataclasses.dataclass
class Run:
    """What came of one way to send requests."""

    name: str
    goodput: float  # answers per second
    rejected: float  # share of attempts, after the first second
    failed: int  # requests that got no answer
    limits: list[tuple[float, int]]  # seconds, calls in flight at most
    rejections: list[tuple[float, int]]  # seconds, number so far


class Observer:
    """Changes the capacity when it is time, and counts what the server rejects."""

    def __init__(self, server: DemoServerProcess, scenario: Scenario) -> None:
        self._server = server
        self._scenario = scenario
        self.began = time.monotonic()
        self.rejections: list[tuple[float, int]] = []
        self.first_second = (0, 0)  # attempts, rejections
        self.last = (0, 0)

    async def run(self) -> None:
        """Until the last capacity has had its time."""
        for number, capacity in enumerate(self._scenario.capacities):
            await asyncio.to_thread(self._server.set_capacity, capacity)
            ends = (number + 1) * self._scenario.seconds
            while (elapsed := time.monotonic() - self.began) < ends:
                stats = await asyncio.to_thread(self._server.stats)
                self.last = (stats.accepted, stats.faults.get("over_capacity", 0))
                if elapsed <= 1:
                    self.first_second = self.last
                self.rejections.append((elapsed, self.last[1]))
                await asyncio.sleep(0.25)


def requests() -> Iterator[RouterParallelRequest]:
    for number in itertools.count():
        yield RouterParallelRequest(MODEL, [{"role": "user", "content": f"Question {number}"}])


def make_router(url: str, retries: int) -> Any:
    from litellm import Router

    deployment = {"model": f"openai/{MODEL}", "api_base": url, "api_key": "none"}
    return Router(
        model_list=[{"model_name": MODEL, "litellm_params": deployment}], num_retries=retries
    )


async def measure(
    name: str,
    server: DemoServerProcess,
    scenario: Scenario,
    results: AsyncIterator[bool],
    batch: Any,
) -> Run:
    """``results``: whether each request was answered, as they finish."""
    observer = Observer(server, scenario)
    answered = failed = 0

    async def consume() -> None:
        nonlocal answered, failed
        async for ok in results:
            answered += ok
            failed += not ok

    consuming = asyncio.create_task(consume())
    await observer.run()
    seconds = time.monotonic() - observer.began
    goodput, without_answer = answered / seconds, failed
    changes = getattr(batch, "limit_changes", [])
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)
    attempts = observer.last[0] - observer.first_second[0]
    rejected = observer.last[1] - observer.first_second[1]
    return Run(
        name,
        goodput,
        rejected / max(1, attempts),
        without_answer,
        [(change.elapsed, change.limit) for change in changes],
        observer.rejections,
    )


async def ours(server: DemoServerProcess, scenario: Scenario, concurrency: Any) -> Run:
    auto = concurrency == "auto"
    router = make_router(server.url, 2 if auto else RETRIES)
    async with iter_parallel_acompletions(router, requests(), concurrency=concurrency) as batch:

        async def results() -> AsyncIterator[bool]:
            async for result in batch:
                yield result.ok

        name = "concurrency='auto'" if auto else f"fixed at {concurrency}"
        return await measure(name, server, scenario, results(), batch)


async def async_batch_llm(server: DemoServerProcess, scenario: Scenario, concurrency: int) -> Run:
    from async_batch_llm import (
        CallableStrategy,
        CallOutcome,
        ProcessorConfig,
        RateLimitConfig,
        process_stream,
    )
    from async_batch_llm.classifiers.openai import OpenAIErrorClassifier

    router = make_router(server.url, 0)

    async def invoke(prompt: str, *, attempt: int, timeout: float, state: object) -> Any:
        messages = [{"role": "user", "content": prompt}]
        return CallOutcome(await router.acompletion(model=MODEL, messages=messages))

    config = ProcessorConfig(
        concurrency=concurrency,
        rate_limit=RateLimitConfig(
            cooldown_seconds=1.0,
            slow_start_items=concurrency,
            slow_start_initial_delay=0.1,
            slow_start_final_delay=0.0,
        ),
        max_queue_size=concurrency,
        max_result_queue_size=concurrency,
    )
    prompts = (f"Question {number}" for number in itertools.count())

    async def results() -> AsyncIterator[bool]:
        async for result in process_stream(
            CallableStrategy(invoke),
            prompts,
            config=config,
            error_classifier=OpenAIErrorClassifier(),
        ):
            yield result.success

    name = f"async-batch-llm, {concurrency} workers"
    return await measure(name, server, scenario, results(), None)


def run(scenario: Scenario) -> list[Run]:
    contenders: list[tuple[Any, Any]] = [(ours, number) for number in scenario.sweep]
    contenders.append((ours, "auto"))
    if len(scenario.sweep) > 1 and importlib.util.find_spec("async_batch_llm") is not None:
        contenders.append((async_batch_llm, max(scenario.capacities)))
    runs: list[Run] = []
    for contender, concurrency in contenders:
        settings = DemoServerSettings(
            latency_median=LATENCY, capacity=scenario.capacities[0], models={MODEL: 1.0}
        )
        with demo_server_process(settings) as server:
            # The first calls in a process load much of litellm.
            parallel_completions(make_router(server.url, 0), itertools.islice(requests(), 8))
            server.reset_stats()
            runs.append(asyncio.run(contender(server, scenario, concurrency)))
        best = max((run.goodput for run in runs if run.name.startswith("fixed")), default=0.0)
        latest = runs[-1]
        print(
            f"{scenario.name}: {latest.name:32} {latest.goodput:6.1f} answers/s "
            f"({latest.goodput / best:.2f} of the best fixed), "
            f"{latest.rejected:6.1%} rejected, {latest.failed} failed",
            flush=True,
        )
    return runs


@matplotlib_style()
def draw(scenario: Scenario, runs: list[Run], path: Path) -> None:
    """The limit, the capacity, and what was rejected, over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    auto = next(run for run in runs if run.limits)
    edges = [number * scenario.seconds for number in range(len(scenario.capacities) + 1)]
    upper.stairs(scenario.capacities, edges, color="#30638e", linewidth=2, label="hidden capacity")
    times, limits = zip(*[*auto.limits, (edges[-1], auto.limits[-1][1])], strict=True)
    upper.step(times, limits, where="post", color="#d1495b", label="limit (0: all calls wait)")
    upper.set(
        ylabel="calls in flight", title=f"concurrency='auto', {scenario.name}", ylim=(0, None)
    )
    upper.legend(loc="lower right")
    low, high = scenario.sweep[0], scenario.sweep[-1]
    shown = {
        f"fixed at {low}": "#7d8597",
        f"fixed at {high}": "#00798c",
        auto.name: "#d1495b",
    }
    for contender in runs:
        colour = shown.get(contender.name, "#6a994e" if "async" in contender.name else None)
        if colour is not None and contender.rejections:
            lower.plot(*zip(*contender.rejections, strict=True), color=colour, label=contender.name)
    lower.set(xlabel="seconds", ylabel="rejected so far", yscale="symlog")
    lower.yaxis.set_major_formatter(lambda value, position: f"{value:,.10g}")
    lower.legend(loc="upper left")
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw charts there (SVG)")
    parser.add_argument("--smoke", action="store_true", help="a second each: does it run?")
    options = parser.parse_args()
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    logging.disable(logging.WARNING)  # of async-batch-llm, for every pause
    answers: dict[str, list[dict[str, Any]]] = {}
    for scenario in SCENARIOS[:1] if options.smoke else SCENARIOS:
        if options.smoke:
            scenario = dataclasses.replace(scenario, seconds=1, sweep=scenario.sweep[:1])
        runs = run(scenario)
        answers[scenario.name] = [dataclasses.asdict(contender) for contender in runs]
        if options.plot is not None:
            options.plot.mkdir(parents=True, exist_ok=True)
            words = scenario.name.replace(",", "").replace(" ", "_")
            draw(scenario, runs, options.plot / f"adaptive_{words}.svg")
    if options.json is not None:
        options.json.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
