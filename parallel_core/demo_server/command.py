"""The command ``parallel-core demo-server``. It imports the server when it runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from typing import Annotated

import typer

from .settings import DemoServerSettings, parse_models
from .trouble import TROUBLE_KINDS, Trouble


def command(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on 127.0.0.1; 0: any free port.")
    ] = 0,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the random latencies and faults: the same seed gives the same ones."
        ),
    ] = DemoServerSettings.seed,
    latency_median: Annotated[
        float, typer.Option(help="Median of the log-normal latency, in seconds.")
    ] = DemoServerSettings.latency_median,
    latency_sigma: Annotated[
        float, typer.Option(help="Standard deviation of the latency's logarithm.")
    ] = DemoServerSettings.latency_sigma,
    time_to_first_token: Annotated[
        float, typer.Option(help="Median time to a stream's first token, in seconds.")
    ] = DemoServerSettings.time_to_first_token,
    chunk_gap: Annotated[
        float, typer.Option(help="Time between a stream's tokens, in seconds.")
    ] = DemoServerSettings.chunk_gap,
    rate_limited: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) answered 429.")
    ] = DemoServerSettings.rate_limited,
    server_error: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) answered 500.")
    ] = DemoServerSettings.server_error,
    hang: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) never answered.")
    ] = DemoServerSettings.hang,
    reset: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) whose connection is reset.")
    ] = DemoServerSettings.reset,
    truncated: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) whose answer is cut off.")
    ] = DemoServerSettings.truncated,
    invalid_json: Annotated[
        float, typer.Option(help="Share of requests (0 to 1) whose answer is not JSON.")
    ] = DemoServerSettings.invalid_json,
    retry_after: Annotated[
        float, typer.Option(help="Seconds that a 429 asks the client to wait.")
    ] = DemoServerSettings.retry_after,
    capacity: Annotated[
        int | None, typer.Option(help="Requests in flight above which it answers 429.")
    ] = DemoServerSettings.capacity,
    keep_requests: Annotated[
        int, typer.Option(help="Number of newest requests that GET /requests shows, with answers.")
    ] = DemoServerSettings.keep_requests,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FACTOR]",
            help="A model, and the factor of its latency; repeat for more models.",
        ),
    ] = None,
    trouble: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND[,NAME=VALUE…]",
            help="Trouble on demand; repeat for more: the first that is due happens. KIND: "
            f"{', '.join(TROUBLE_KINDS)}. NAME: model, key (which requests); after, count (numbers "
            "of requests), share (0 to 1), seconds (when); retry_after (seconds). Examples: "
            "hang,share=0.1 or away,seconds=5 or bad_key,key=sk-1",
        ),
    ] = None,
    until_stdin_closes: Annotated[
        bool,
        typer.Option(
            "--until-stdin-closes",
            help="Stop when standard input ends: a pipe from another process ends with that "
            "process.",
        ),
    ] = False,
) -> None:
    """Serve made-up answers with OpenAI's API and Cohere's rerank API, on this machine only.

    There is no model behind it. The first line of output is a JSON object with the address ("url").
    """
    try:
        settings = DemoServerSettings(
            seed=seed,
            latency_median=latency_median,
            latency_sigma=latency_sigma,
            time_to_first_token=time_to_first_token,
            chunk_gap=chunk_gap,
            rate_limited=rate_limited,
            server_error=server_error,
            hang=hang,
            reset=reset,
            truncated=truncated,
            invalid_json=invalid_json,
            retry_after=retry_after,
            capacity=capacity,
            keep_requests=keep_requests,
            models=parse_models(model) if model else DemoServerSettings().models,
            trouble=[Trouble.parse(text) for text in trouble or ()],
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    with contextlib.suppress(KeyboardInterrupt):  # on Windows, asyncio cannot handle signals
        asyncio.run(_serve_until_stopped(settings, port, until_stdin_closes))


async def _serve_until_stopped(
    settings: DemoServerSettings, port: int, until_stdin_closes: bool
) -> None:
    from .app import DemoServer  # imports aiohttp
    from .listener import HOST

    stop_requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop_requested.set)
    async with contextlib.AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(DemoServer(settings, port=port))
        except OSError as error:
            typer.echo(f"Cannot listen on {HOST}:{port}: {error.strerror}", err=True)
            raise typer.Exit(1) from None
        address = {"url": server.url, "pid": os.getpid(), "answers": "synthetic"}
        try:
            typer.echo(json.dumps(address))
        except BrokenPipeError:
            with contextlib.suppress(BrokenPipeError):
                typer.echo("Nobody reads the address: standard output is closed.", err=True)
            raise  # typer ends the process with exit code 1
        if until_stdin_closes:
            # This is not a thread of the loop's executor: the process would wait for it at exit.
            threading.Thread(
                target=_wait_for_end_of_stdin, args=(loop, stop_requested), daemon=True
            ).start()
        await stop_requested.wait()


def _wait_for_end_of_stdin(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # This bypasses the buffer of sys.stdin: the interpreter needs its lock at exit.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop is already closed
        loop.call_soon_threadsafe(stop.set)


def main() -> None:
    """Run the command as ``python -m parallel_core.demo_server``."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    app(prog_name="python -m parallel_core.demo_server")
