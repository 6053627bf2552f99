"""What ``parallel-core demo`` shows: a batch through a real Router, then one that fails fast."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ._litellm_loop import leave_this_loop
from .bridge import iter_parallel_acompletions, parallel_acompletions
from .demo_server import DemoServerProcess, DemoServerSettings, DemoServerStats, demo_server_process
from .errors import InvalidRequestError
from .router_call import as_request
from .types import RouterParallelRequest, RouterParallelResult, SupportsAcompletion

FAIL_FAST_REQUESTS = 500
FAIL_FAST_CONCURRENCY = 64
# A request can name another server and its key in many ways; these arguments cannot.
HARMLESS_ARGUMENTS = {
    *("frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens"),
    *("metadata", "n", "parallel_tool_calls", "presence_penalty", "reasoning_effort"),
    *("response_format", "seed", "stop", "temperature", "timeout", "tool_choice", "tools"),
    *("top_logprobs", "top_p", "user"),
}
DISCONNECTS_SEEN_WITHIN = 5.0  # seconds that the server gets to notice closed connections


def run(requests_file: Path | None, *, concurrency: int, seed: int) -> int:
    """Run the demo and return the exit code of the command: 1 when a call was left behind."""
    console = Console(highlight=False)
    requests = _read_requests(requests_file or _example_requests())
    models = DemoServerSettings().models
    try:
        settings = DemoServerSettings(
            seed=seed,
            latency_median=0.3,
            server_error=0.03,
            rate_limited=0.02,
            models={**models, **{r.model: 1.0 for r in requests if r.model not in models}},
        )
    except ValueError as error:
        raise typer.BadParameter(f"the demo server cannot serve these models: {error}") from None
    with demo_server_process(settings) as server:
        console.print(
            f"A local server at {server.url} answers with made-up text; 3 % of its answers are "
            "500, 2 % are 429."
        )
        with console.status("importing litellm"):
            router = _make_router(server.url, sorted(settings.models))
        return asyncio.run(_run(console, server, router, requests, concurrency))


async def _run(
    console: Console,
    server: DemoServerProcess,
    router: SupportsAcompletion,
    requests: list[RouterParallelRequest],
    concurrency: int,
) -> int:
    try:
        await _show_batch(console, server, router, requests, concurrency)
        left_over = await _show_fail_fast(console, server, router)
    finally:
        await leave_this_loop()  # the loop ends here, and with it their connections
    return 1 if left_over else 0


# --- a batch, in completion order ---


async def _show_batch(
    console: Console,
    server: DemoServerProcess,
    router: SupportsAcompletion,
    requests: list[RouterParallelRequest],
    concurrency: int,
) -> None:
    console.rule(f"{len(requests)} requests, {concurrency} at once, results as they finish")
    results: list[RouterParallelResult] = []
    began = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("requests", total=len(requests))
        async with iter_parallel_acompletions(router, requests, concurrency=concurrency) as batch:
            async for result in batch:
                results.append(result)
                progress.console.print(_line(result))
                progress.advance(bar)
    elapsed = time.perf_counter() - began
    console.print(_summary(results, elapsed, server.stats()))


def _line(result: RouterParallelResult) -> str:
    head = f"#{result.index:<4} {escape(result.request.model):<6} {result.duration:6.2f} s  "
    if result.exception is not None:
        return f"{head}[red]{type(result.exception).__name__}[/red]"
    text = str(result.response.choices[0].message.content)
    return head + escape(text if len(text) <= 40 else f"{text[:39]}…")


def _summary(results: list[RouterParallelResult], elapsed: float, seen: DemoServerStats) -> Table:
    durations = sorted(result.duration for result in results if result.ok)
    failed = len(results) - len(durations)
    table = Table("", "", show_header=False, title="summary", title_justify="left")
    table.add_row("ok / failed", f"{len(durations)} / {failed}")
    if len(durations) > 1:
        percentiles = statistics.quantiles(durations, n=100, method="inclusive")
        table.add_row("latency p50 / p95", f"{percentiles[49]:.2f} s / {percentiles[94]:.2f} s")
    table.add_row("calls/s", f"{len(results) / elapsed:.0f}")
    table.add_row("most in flight, as the server saw it", str(seen.max_in_flight))
    return table


# --- fail-fast ---


async def _show_fail_fast(
    console: Console, server: DemoServerProcess, router: SupportsAcompletion
) -> int:
    console.rule(
        f"fail-fast: {FAIL_FAST_REQUESTS} slow requests, {FAIL_FAST_CONCURRENCY} at once, "
        "one of them fails"
    )
    server.reset_stats()
    failed_at: list[float] = []

    async def acompletion(**arguments: Any) -> Any:
        try:
            return await router.acompletion(**arguments)
        except Exception:
            failed_at.append(time.perf_counter())
            raise

    try:
        await parallel_acompletions(
            acompletion,
            _slow_requests(),
            concurrency=FAIL_FAST_CONCURRENCY,
            return_exceptions=False,
        )
    except Exception as error:  # noqa: BLE001 - whatever litellm makes of a 500
        took = time.perf_counter() - failed_at[0]
        seen = await _stats_when_idle(server)
        notes = "; ".join(getattr(error, "__notes__", []))
        console.print(f"raised: {type(error).__name__} ({notes})")
        console.print(
            f"the server saw {seen.accepted} of {FAIL_FAST_REQUESTS} requests, and "
            f"{seen.disconnected} of them cancelled; {seen.in_flight} are still open"
        )
        console.print(
            f"from the failure to the exception, with every call ended: {took * 1000:.1f} ms"
        )
        return seen.in_flight
    raise RuntimeError("the demo server did not fail the request that it was asked to fail")


def _slow_requests() -> Iterator[RouterParallelRequest]:
    for index in range(FAIL_FAST_REQUESTS):
        fault = "server_error" if index == FAIL_FAST_CONCURRENCY // 2 else "none"
        orders = {"latency": 1.0 if fault != "none" else 60.0, "fault": fault}
        messages = [{"role": "user", "content": f"Take your time, {index}."}]
        yield RouterParallelRequest("fast", messages, {"extra_body": {"demo": orders}})


async def _stats_when_idle(server: DemoServerProcess) -> DemoServerStats:
    """The server's counts once it has noticed that the connections are closed."""
    deadline = time.perf_counter() + DISCONNECTS_SEEN_WITHIN
    while True:
        seen = await asyncio.to_thread(server.stats)
        if not seen.in_flight or time.perf_counter() > deadline:
            return seen
        await asyncio.sleep(0.01)


# --- what it needs ---


def _make_router(url: str, models: list[str]) -> SupportsAcompletion:
    # litellm would otherwise fetch its price map over the network at import.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm
    from litellm.router import Router

    litellm.suppress_debug_info = True
    return Router(
        model_list=[
            {
                "model_name": model,
                "litellm_params": {"model": f"openai/{model}", "api_base": url, "api_key": "none"},
            }
            for model in models
        ],
        num_retries=0,  # so that the demo shows the failures
    )


def _example_requests() -> Path:
    """The requests that the wheel brings, or in a checkout those of the examples."""
    packaged = Path(str(resources.files("parallel_core") / "demo_requests.jsonl"))
    if packaged.exists():
        return packaged
    return Path(__file__).resolve().parent.parent / "examples" / "requests.jsonl"


def _read_requests(path: Path) -> list[RouterParallelRequest]:
    requests: list[RouterParallelRequest] = []
    decoder = msgspec.json.Decoder(dict[str, Any])
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                request = as_request(len(requests), decoder.decode(line))
            except msgspec.DecodeError as error:
                raise typer.BadParameter(f"{path}, line {number}: {error}") from None
            except InvalidRequestError as error:
                (problem,) = error.problems.values()
                raise typer.BadParameter(f"{path}, line {number}: {problem}") from None
            if elsewhere := sorted(set(request.kwargs or ()) - HARMLESS_ARGUMENTS):
                raise typer.BadParameter(
                    f"{path}, line {number}: the demo does not send {', '.join(elsewhere)}, which "
                    "might lead to another server; leave it out"
                )
            requests.append(request)
    if not requests:
        raise typer.BadParameter(f"{path} has no requests")
    return requests
