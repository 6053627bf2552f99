"""The command ``parallel-core report``: sum up a run as tables, a page and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parallel_core.journal import RunPaths
from parallel_core.report import BEGINNING, ReportError, html_page, summarize, write_pictures

from .report_table import print_report
from .terminal import console, printable


def command(
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT.jsonl", help="The file with the results of a run.")
    ],
    errors: Annotated[
        Path | None,
        typer.Option("--error-file", help="The file with the failures, if they have their own."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write the report with charts to this file, as one page. Of files that exist, "
            "only such a page is overwritten."
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the charts into this folder, as PNG."),
    ] = None,
) -> None:
    """Sum up a run: requests, failures, latency, tokens, cost, throughput.

    Exit code 0; 2 if there is nothing to report of, or something cannot be written.
    """
    try:
        report = summarize(output, errors)
        _refuse_to_overwrite(RunPaths.of(output, errors), html)
        print_report(report, console())
        written: list[Path] = []
        if html is not None:
            html.write_text(html_page(report), encoding="utf-8")
            written.append(html)
        if png is not None:
            written += write_pictures(report, png)
    except ReportError as error:
        raise _failed(str(error)) from None
    except OSError as error:
        where = f"{error.filename} " if error.filename else "the report "
        raise _failed(f"{where}cannot be written: {error.strerror or error}") from None
    for path in written:
        typer.echo(f"written: {printable(str(path))}")


def _refuse_to_overwrite(paths: RunPaths, html: Path | None) -> None:
    """A slip on the command line must not cost what a run has paid for."""
    if html is None or not html.is_file():
        return
    for path in paths.files:
        if path.exists() and path.samefile(html):
            raise ReportError(f"{html} is a file of the run itself: give --html another name")
    with html.open("rb") as file:
        beginning = file.read(len(BEGINNING))
    if beginning and beginning != BEGINNING.encode():
        raise ReportError(
            f"{html} exists, and is no page of a report: give --html another name, or delete it"
        )


def _failed(message: str) -> typer.Exit:
    typer.echo(f"Error: {printable(message)}", err=True)
    return typer.Exit(2)
