"""What the direct lane saves: ``python -m benchmarks.direct``.

Calls and streams of a Router go to the demo server, in a process of its own, which answers at
once: as litellm makes them, on the direct lane, with the client of openai, as bare POSTs of aiohttp
and with the peers of :mod:`.direct_peers` that are installed beside. Then a file is run with and
without ``--direct``. The sides take turns; measured is the CPU time of the client.
Then, with and without the lane: the memory of a long batch, the time from a failure to the
exception; and with Ray, the calls per second of two workers and of one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from parallel_core import iter_parallel_streams, parallel_acompletions, parallel_map
from parallel_core.demo_server import DemoServerSettings, demo_server_process
from parallel_core.ray_engine import is_ray_installed

from . import direct_promises
from .adapter import MODEL
from .direct_peers import Side, installed_peers
from .over_http import make_router

IN_FLIGHT = 64
QUESTION = "Name a colour that goes well with the number given, and say in a sentence why it does. "


def conversations(count: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"{QUESTION}{number}"}] for number in range(count)]


def router_side(router: Any, *, direct: bool) -> Side:
    async def send(messages: list[Any]) -> None:
        requests = ({"model": MODEL, "messages": one} for one in messages)
        await parallel_acompletions(
            router, requests, concurrency=IN_FLIGHT, return_exceptions=False, direct=direct
        )

    return send


def post_side(url: str, session: aiohttp.ClientSession) -> Side:
    async def post(messages: Any) -> Any:
        body = {"model": MODEL, "messages": messages}
        async with session.post(f"{url}/chat/completions", json=body) as response:
            return await response.json()

    return lambda messages: parallel_map(
        post, messages, concurrency=IN_FLIGHT, return_exceptions=False
    )


def openai_side(client: Any) -> Side:
    async def create(messages: Any) -> Any:
        return await client.chat.completions.create(model=MODEL, messages=messages)

    return lambda messages: parallel_map(
        create, messages, concurrency=IN_FLIGHT, return_exceptions=False
    )


async def calls(url: str, rounds: int, count: int) -> dict[str, list[float]]:
    """Return microseconds of CPU per call, for each side and round."""
    from openai import AsyncOpenAI

    router = make_router(url)
    measured: dict[str, list[float]] = {}
    async with (
        aiohttp.ClientSession() as session,
        AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        sides = {
            "Router": router_side(router, direct=False),
            "direct": router_side(router, direct=True),
            "openai": openai_side(client),
            "POST": post_side(url, session),
            **installed_peers(url, IN_FLIGHT),
        }
        for send in sides.values():
            await send(conversations(2 * IN_FLIGHT))  # connections, first imports
        for _ in range(rounds):
            for name, send in sides.items():
                messages = conversations(count)
                began = time.process_time()
                await send(messages)
                took = (time.process_time() - began) / count * 1e6
                measured.setdefault(name, []).append(took)
    return measured


async def streams(url: str, rounds: int, count: int, words: int) -> dict[str, list[float]]:
    """Return microseconds of CPU per chunk, for each side and round."""
    router = make_router(url)
    orders = {"demo": {"reply": " ".join(f"word{number}" for number in range(words))}}
    measured: dict[str, list[float]] = {"Router": [], "direct": []}
    for _ in range(rounds + 1):  # the first one warms up
        for name, values in measured.items():
            requests = (
                {"model": MODEL, "messages": messages, "extra_body": orders}
                for messages in conversations(count)
            )
            began, chunks = time.process_time(), 0
            async with iter_parallel_streams(
                router,
                requests,
                concurrency=IN_FLIGHT,
                return_exceptions=False,
                direct=name == "direct",
            ) as batch:
                async for _piece in batch:
                    chunks += 1
            values.append((time.process_time() - began) / chunks * 1e6)
    return {name: values[1:] for name, values in measured.items()}


def run_of_a_file(url: str, lines: int, *options: str) -> float:
    """Return the seconds of CPU of a run of a file, without its start."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "requests.jsonl")
        with source.open("w") as file:
            for number, messages in enumerate(conversations(lines)):
                body = {"model": MODEL, "messages": messages}
                file.write(json.dumps({"custom_id": str(number), "body": body}) + "\n")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "parallel_core.cli", "run", str(source), "--yes"]
        command += ["--model", f"openai/{MODEL}", "--api-base", url]
        command += ["-o", str(source.with_name("answers.jsonl"))]
        command += ["--concurrency", str(IN_FLIGHT), *options]
        environment = {**os.environ, "OPENAI_API_KEY": "none"}
        subprocess.run(command, check=True, env=environment, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def files(url: str, rounds: int, lines: int) -> dict[str, list[float]]:
    """Return microseconds of CPU per line of a run, and of one with ``--direct``."""
    measured: dict[str, list[float]] = {"run": [], "run --direct": []}
    for _ in range(rounds):
        start = run_of_a_file(url, 1)
        for name, options in (("run", ()), ("run --direct", ("--direct",))):
            measured[name].append((run_of_a_file(url, lines, *options) - start) / lines * 1e6)
    return measured


def report(measured: dict[str, list[float]], base: str, counted: str = "calls") -> None:
    for name, values in measured.items():
        ratios = [one / other for one, other in zip(measured[base], values, strict=True)]
        print(
            f"  {name:14} {statistics.median(values):8.0f} us of CPU  "
            f"{statistics.median(ratios):5.2f} x the {base}'s {counted} per CPU second "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.direct", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=2000, help="of each side, in each round")
    parser.add_argument("--lines", type=int, default=20_000, help="of the file, in each round")
    parser.add_argument("--smoke", action="store_true", help="a few calls: does it run?")
    options = parser.parse_args()
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    rounds, count, lines = options.rounds, options.calls, options.lines
    if options.smoke:
        rounds, count, lines = 1, 64, 64
    in_flight = 8 if options.smoke else IN_FLIGHT
    from importlib.metadata import version

    settings = DemoServerSettings(
        latency_median=0.0,
        latency_sigma=0.0,
        chunk_gap=0.0,
        time_to_first_token=0.0,
        models={MODEL: 0.0},
    )
    with demo_server_process(settings) as server:
        print(f"litellm {version('litellm')}, {IN_FLIGHT} in flight, {rounds} rounds of {count}")
        report(asyncio.run(calls(server.url, rounds, count)), "Router")
        count_of_streams, words = (2, 20) if options.smoke else (IN_FLIGHT, 500)
        print(f"{count_of_streams} streams of {words} words, per chunk")
        measured = asyncio.run(streams(server.url, rounds, count_of_streams, words))
        report(measured, "Router", "chunks")
        print(f"a file of {lines:,} lines")
        report(files(server.url, rounds, lines), "run")
        print("what it must not cost")
        asyncio.run(direct_promises.memory(server.url, count, in_flight))
        direct_promises.failures(rounds, in_flight)
        if is_ray_installed():
            print("workers on Ray")
            direct_promises.workers(server.url, rounds, count, in_flight)


if __name__ == "__main__":
    main()
