"""The arguments and options of ``parallel-core run``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import typer
from typer.core import TyperCommand

from parallel_core.failures import KINDS, NOT_FINAL
from parallel_core.files import LONGEST_LINE, EndpointName
from parallel_core.ray_engine import MOST_WORKERS
from parallel_core.run import ATTEMPT_TIMEOUT, LONGEST_OUTAGE

RETRY_FAILED = "--retry-failed"
ALL_KINDS = "all"  # of failures

_PANELS: Final = {
    "Most used": (
        *("output", "model", "config", "demo", "template", "concurrency", "max_cost"),
        *("limit", "validate", "retry_failed", "yes"),
    ),
    "The input": (
        *("format", "endpoint", "system", "param", "id_column", "keep"),
        *("drop_columns", "send_columns", "trust_input", "max_line"),
    ),
    "Which requests are sent": ("skip_invalid", "only", "shard"),
    "The output, and going on": (
        *("error_file", "order", "changed", "allow_changed", "force_new"),
    ),
    "The Router": ("override_model", "api_base"),
    "Rates, time and money": (
        *("rpm", "tpm", "timeout", "attempt_timeout", "total_timeout", "max_outage"),
        *("assume_output_tokens", "confirm_above"),
    ),
    "Speed": ("workers", "ray_address", "pack", "direct", "hedge", "fair_by"),
    "Stopping, and what is printed": ("fail_fast", "grace", "json"),
}
"""Panels of the help with their options, in the order in which they are shown."""

_RATE = "NUMBER or MODEL=NUMBER"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunArguments:
    """Arguments as written by the user. Each field is an argument or an option of the command."""

    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="The requests: batch lines of OpenAI, Mistral, Anthropic or Gemini, plain lines "
            "({model, messages}, or the parameters of another endpoint), a JSON array of either; "
            "or, with --template, CSV, text, Parquet, Arrow or JSON rows. It may be compressed. "
            "- is standard input.",
        ),
    ]
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for the answers."),
    ] = None
    format: Annotated[
        Literal["auto", "jsonl", "csv", "text"],
        typer.Option(
            help="Format of the input. auto: by its contents and name (Parquet and Arrow, too).",
        ),
    ] = "auto"
    template: Annotated[
        str | None,
        typer.Option(
            help="Make a prompt of each row: 'Translate: {{column}}'; of text: {{line}}.",
        ),
    ] = None
    system: Annotated[
        str | None,
        typer.Option(
            help="A system message before each prompt, also with {{column}}. @FILE reads it from "
            "that file.",
        ),
    ] = None
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Add a parameter to the requests that lack it: temperature=0. "
            "NAME=@FILE reads JSON from a file. Repeatable.",
        ),
    ] = None
    id_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column, or member of a line, that has the ids.",
        ),
    ] = None
    endpoint: Annotated[
        EndpointName | None,
        typer.Option(
            help="Endpoint of lines without a url, and of prompts made by a template. Default: "
            "what the members of a line say; chat for prompts.",
        ),
    ] = None
    validate: Annotated[
        bool,
        typer.Option("--validate", help="Check the input, and send nothing."),
    ] = False
    skip_invalid: Annotated[
        bool,
        typer.Option(
            "--skip-invalid",
            help="Write bad lines as failures, and send the others.",
        ),
    ] = False
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Copy these columns to the output: id,source.",
        ),
    ] = None
    drop_columns: Annotated[
        bool,
        typer.Option(
            "--drop-columns",
            help="Leave out all columns (members that are not parameters) except those of --keep.",
        ),
    ] = False
    send_columns: Annotated[
        bool,
        typer.Option(
            "--send-columns",
            help="Send all other columns as parameters of the provider.",
        ),
    ] = False
    trust_input: Annotated[
        bool,
        typer.Option(
            "--trust-input",
            help="Accept lines with settings of litellm: keys, addresses, retries.",
        ),
    ] = False
    max_line: Annotated[
        float,
        typer.Option(metavar="MiB", help="Longest line that is read, in MiB."),
    ] = LONGEST_LINE
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Send only the first N requests."),
    ] = None
    only: Annotated[
        str | None,
        typer.Option(
            metavar="IDS.txt",
            help="Send only the requests whose ids are in this file, one per line; - is standard "
            "input.",
        ),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="N/M",
            help="Send only shard N of M of the requests, so that M machines can share a file.",
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(help="A config file of litellm's proxy."),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            help="A model, such as openai/gpt-4o-mini, for lines that name none.",
        ),
    ] = None
    override_model: Annotated[
        str | None,
        typer.Option(
            help="A model for all lines, in place of those that they name.",
        ),
    ] = None
    api_base: Annotated[
        str | None,
        typer.Option(help="With --model: the address of the API."),
    ] = None
    demo: Annotated[
        bool,
        typer.Option(
            "--demo",
            help="Ask a local server that makes up its answers.",
        ),
    ] = False
    error_file: Annotated[
        Path | None,
        typer.Option(help="File for the failures. Default: the output."),
    ] = None
    order: Annotated[
        Literal["completion", "input"],
        typer.Option(
            help="Order of the answers; input: as the requests, sorted at the end.",
        ),
    ] = "completion"
    retry_failed: Annotated[
        str | None,
        typer.Option(
            RETRY_FAILED,
            metavar="[=KINDS]",
            help="Send failed requests again, except those that would fail again; or only those of "
            "these kinds: =overloaded,timeout or =all.",
        ),
    ] = None
    force_new: Annotated[
        bool,
        typer.Option(
            "--force-new",
            help="Start over; files of another run are moved aside.",
        ),
    ] = False
    allow_changed: Annotated[
        bool,
        typer.Option(
            "--allow-changed",
            help="Resume although a model or its parameters have changed.",
        ),
    ] = False
    changed: Annotated[
        Literal["refuse", "keep", "resend"] | None,
        typer.Option(
            help="If requests have changed since they were answered: refuse to run (the default), "
            "keep the answers (the default with --allow-changed), or resend the requests.",
        ),
    ] = None
    concurrency: Annotated[
        str,
        typer.Option(
            help="Calls in flight: a number (with --workers: in each), or auto.",
        ),
    ] = "16"
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_WORKERS,
            help="Number of processes on Ray that make the calls, if one core is not enough.",
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="With --workers: address of a Ray cluster. Default: start Ray here.",
        ),
    ] = None
    pack: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Send the embeddings of up to N lines in one request, and take the answer apart.",
        ),
    ] = None
    rpm: Annotated[
        list[str] | None,
        typer.Option(
            metavar=_RATE,
            help="Requests per minute, of all models together or of one (gpt=60; repeatable); off "
            "ignores the limits of the config.",
        ),
    ] = None
    tpm: Annotated[
        list[str] | None,
        typer.Option(metavar=_RATE, help="Tokens per minute, as --rpm."),
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option(help="Maximum cost of this run in USD."),
    ] = None
    assume_output_tokens: Annotated[
        int | None,
        typer.Option(
            help="With --max-cost: maximum tokens of an answer, if neither the request nor litellm "
            "has one.",
        ),
    ] = None
    timeout: Annotated[
        float | None,
        typer.Option(help="Seconds for a request, each time that the run sends it."),
    ] = None
    attempt_timeout: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds for each attempt of a request, unless the config or the request has a "
            "timeout; 0: litellm's default.",
        ),
    ] = ATTEMPT_TIMEOUT
    total_timeout: Annotated[float | None, typer.Option(help="Seconds for the run.")] = None
    max_outage: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds without an answer of a model, while all calls fail, until it is stopped.",
        ),
    ] = LONGEST_OUTAGE
    direct: Annotated[
        bool,
        typer.Option(
            "--direct",
            help="Send the requests without litellm's completion code where the answers are the "
            "same: faster. The Router still decides.",
        ),
    ] = False
    fail_fast: Annotated[
        bool,
        typer.Option("--fail-fast", help="Stop at the first failure."),
    ] = False
    hedge: Annotated[
        str | None,
        typer.Option(
            help="Send stragglers twice: after so many seconds, or p95.",
        ),
    ] = None
    fair_by: Annotated[
        Literal["model"] | None,
        typer.Option(help="model: models take turns."),
    ] = None
    grace: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Seconds that calls in flight get at Ctrl-C.",
        ),
    ] = 10.0
    confirm_above: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="On a terminal: ask before a run that will cost more, in USD.",
        ),
    ] = 5.0
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print all messages as JSON lines on standard output.",
        ),
    ] = False


def takes_run_arguments(function: Callable[[RunArguments], None]) -> Callable[..., None]:
    """Return a function for typer: the fields of :class:`RunArguments` are its parameters."""

    @functools.wraps(function)
    def command(**given: Any) -> None:
        function(RunArguments(**given))

    hints = get_type_hints(RunArguments, include_extras=True)
    command.__annotations__ = {**hints, "return": None}
    parameters = inspect.signature(RunArguments).parameters
    for panel, names in _PANELS.items():
        for name in names:
            hints[name].__metadata__[0].rich_help_panel = panel
    order = ["source", *(name for names in _PANELS.values() for name in names)]
    vars(command)["__signature__"] = inspect.Signature(
        [parameters[name].replace(annotation=hints[name]) for name in order]
    )
    return command


class RunCommand(TyperCommand):
    """The command, with an option that may have a value or stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give ``--retry-failed`` the value that it stands for where it has none.

        The parser would take the next word, the name of the input, for its value.

        Raises:
            typer.BadParameter: kinds follow it without ``=``.
        """
        end = args.index("--") if "--" in args else len(args)
        options = args[:end]
        for word, following in zip(options, args[1:], strict=False):
            if word == RETRY_FAILED and _names_kinds(following) and not Path(following).exists():
                raise typer.BadParameter(f"write {RETRY_FAILED}={following}, with '='")
        alone = f"{RETRY_FAILED}={','.join(kind for kind in KINDS if kind in NOT_FINAL)}"
        options = [alone if word == RETRY_FAILED else word for word in options]
        return super().parse_args(ctx, [*options, *args[end:]])


def _names_kinds(word: str) -> bool:
    return word == ALL_KINDS or all(name in KINDS for name in word.split(","))
