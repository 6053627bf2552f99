"""The command ``parallel-core``. Each command imports what it needs when it runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup

import parallel_core
from parallel_core.demo_server.command import command as demo_server
from parallel_core.printable import printable

from . import doctor_command, export_command, merge_command, report_command, run_command
from .demo import demo
from .run_arguments import RunCommand
from .run_command import INTERRUPTED
from .run_signals import interrupt_on_signals
from .terminal import json_line, survive_any_encoding

# ClickException of click, or of the copy of click in newer versions of typer.
_ClickError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[2])


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parallel-core {parallel_core.__version__}")
        raise typer.Exit


class _Commands(TyperGroup):
    """The commands. Wrong options are reported like all other errors: as text, or as JSON."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command, and end the program."""
        survive_any_encoding()
        self._words = list(sys.argv[1:] if args is None else args)
        return super().main(args, *rest, **options)

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with self._reported_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with self._reported_errors():
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _reported_errors(self) -> Generator[None]:
        try:
            yield
        except _ClickError as error:
            error.message = error.message.removeprefix("Value error, ")  # pydantic's, from typer
            if "--json" in self._words:
                typer.echo(json_line(event="error", text=error.format_message()))
                raise typer.Exit(error.exit_code) from None
            if not all(map(str.isprintable, self._words)):  # the text quotes the words
                error.message = printable(error.message)
            raise
        except KeyboardInterrupt:  # a run handles it itself once it has begun
            text = "interrupted before anything was sent"
            if "--json" in self._words:
                typer.echo(json_line(event="error", text=text))
            else:
                typer.echo(text, err=True)
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    name="parallel-core",
    help="Send many LLM requests at once through a litellm Router.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks show values of variables: prompts and keys
)
app.command("run", cls=RunCommand)(run_command.command)
app.command("report")(report_command.command)
app.command("merge")(merge_command.command)
app.command("export")(export_command.command)
app.command("doctor")(doctor_command.command)
app.command("demo-server")(demo_server)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
    ] = False,
) -> None:
    """Send many LLM requests at once through a litellm Router."""


@app.command("demo")
def demo_command() -> None:
    """Watch runs through trouble: 429s, an outage, Ctrl-C, a failure that cancels the others.

    It needs no setup, and takes half a minute. A server on this machine sends made-up answers:
    nothing leaves this machine, and nothing costs money. The exit code is 0 if everything went as
    it should.
    """
    with resources.as_file(_example_requests()) as requests:
        raise typer.Exit(demo(_run_here, requests))


def _run_here(arguments: Sequence[str]) -> int:
    """Run a command of this program, and return its exit code."""
    # The command to resume, which it prints, is made from sys.argv.
    sys.argv[1:] = arguments
    return int(app(list(arguments), standalone_mode=False) or 0)


def _example_requests() -> Traversable:
    packed = resources.files("parallel_core") / "demo_requests.jsonl"
    # In a checkout, the examples are in their source folder.
    checkout = Path(__file__).resolve().parents[2] / "examples" / "requests.jsonl"
    return packed if packed.is_file() else checkout


def main() -> None:
    """Run the command line as the program of this process."""
    try:
        interrupt_on_signals()
        app()
    except KeyboardInterrupt:  # it came while the program ended
        sys.exit(INTERRUPTED)
