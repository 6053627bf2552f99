"""The command ``parallel-core``. Each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _doctor_command, _run_command, demo_server, report

app = typer.Typer(
    name="parallel-core",
    help="Send many LLM requests at once through a litellm Router.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # its tracebacks print the values of variables: prompts, keys
)
app.command("run")(_run_command.command)
app.command("report")(report.command)
app.command("doctor")(_doctor_command.command)
app.command("demo-server")(demo_server.command)


@app.command()
def demo(
    requests: Annotated[
        Path | None,
        typer.Argument(
            help="File of requests, one JSON object a line; without it, those of the examples.",
            exists=True,
            dir_okay=False,
            readable=True,
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Calls in flight at most.")] = 32,
    seed: Annotated[int, typer.Option(help="Of the server's latencies and faults.")] = 7,
) -> None:
    """Send a file of requests through a real Router to a local demo server, then fail fast.

    Nothing leaves this machine and nothing is paid for: the server's answers are synthetic.
    """
    from . import _demo

    raise typer.Exit(_demo.run(requests, concurrency=concurrency, seed=seed))


def main() -> None:
    """Run the command line. The entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
