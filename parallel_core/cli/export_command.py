"""The command ``parallel-core export``: results as a table."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Annotated, TypedDict

import typer

from parallel_core.errors import InputFileError
from parallel_core.files import EndpointName, InputFile, InputFormat, export_results
from parallel_core.printable import printable
from parallel_core.quantities import counted

_NO_MODEL = "none"  # a prompt needs no model, but a table of prompts has none of its own


class _AsRead(TypedDict):
    """The options with which the run read its input, and which name its requests."""

    template: str | None
    format: InputFormat
    id_column: str | None
    endpoint: EndpointName | None


def command(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT.jsonl", help="File with the results of a run.", dir_okay=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="File to write: .parquet, .csv or .jsonl.", dir_okay=False
        ),
    ],
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Columns, with commas between: id,prompt,answer,finish_reason,model,"
            "prompt_tokens,completion_tokens,cost,error. Default: these, and those that --keep or "
            "metadata brought to the results.",
        ),
    ] = None,
    requests: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="INPUT",
            help="The file of requests, for the prompts; the rows are in its order.",
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="The --template of the run, if it had one.")
    ] = None,
    format: Annotated[
        InputFormat | None, typer.Option(help="The --format of the run, if it had one.")
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The --id-column of the run, if it had one."),
    ] = None,
    endpoint: Annotated[
        EndpointName | None, typer.Option(help="The --endpoint of the run, if it had one.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite the file if it exists.")
    ] = False,
) -> None:
    """Write results as a table: Parquet, CSV or JSON lines, with prompt and answer side by side.

    Exit codes: 0, or 2 if nothing was written.
    """
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    try:
        with contextlib.ExitStack() as opened:
            source = None
            if requests is not None:
                as_read: _AsRead = {
                    "template": template,
                    "format": format or "auto",
                    "id_column": id_column,
                    "endpoint": endpoint,
                }
                source = opened.enter_context(_requests_in(requests, as_read))
            written = export_results(results, output, columns=names, requests=source, force=force)
    except (ImportError, ValueError) as error:
        raise _failed(str(error)) from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not results.exists():
            raise _failed(f"{results} does not exist: name the output file of a run") from None
        where = f"{error.filename}: " if error.filename else ""
        raise _failed(f"{where}{error.strerror or error}") from None
    rows = counted(written.rows, "row")
    typer.echo(printable(f"written: {output}: {rows}; {', '.join(written.columns)}"))
    if written.without_request:
        typer.echo(
            printable(
                f"{counted(written.without_request, 'result')} of requests that {requests} does "
                "not have: they come last, without a prompt. If it is the input of the run, give "
                "--id-column, --template, --endpoint and --format as the run had them"
            )
        )
    if "cost" in written.columns and not written.has_costs:
        typer.echo("costs are not known: there is no file of statistics beside the results")


def _requests_in(path: str, as_read: _AsRead) -> InputFile:
    """Open a file of requests that are not sent: what sending them needs does not matter."""
    open_file = functools.partial(InputFile, path, model=_NO_MODEL, drop_columns=True, **as_read)
    try:
        return open_file(trust_input=True)
    except InputFileError:  # a table has no settings to trust
        return open_file()


def _failed(message: str) -> typer.Exit:
    typer.echo(f"Error: {printable(message)}", err=True)
    return typer.Exit(2)
