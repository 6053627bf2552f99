"""The command ``parallel-core report``: sum up a run as tables, a page and pictures."""

from __future__ import annotations

import asyncio
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from parallel_core.journal import RunPaths
from parallel_core.printable import printable
from parallel_core.report import BEGINNING, ReportError, html_page, summarize, write_pictures

from .report_table import print_report
from .terminal import console


def command(
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT.jsonl", help="File with the results of a run.", dir_okay=False
        ),
    ],
    errors: Annotated[
        Path | None,
        typer.Option(
            "--error-file",
            help="File with the failures, if the run had --error-file.",
            dir_okay=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write the report with charts to this file, as one HTML page. An existing file "
            "is only overwritten if it is such a page."
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the charts to this folder, as PNG."),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Serve the page on this computer, and update it while the run goes on. The run "
            "need not have begun. Ctrl-C ends it.",
        ),
    ] = False,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port for --follow.", show_default="a free one"),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page of --follow in the browser.")
    ] = False,
) -> None:
    """Sum up a run: requests, failures, latency, tokens, cost, throughput.

    Exit codes: 0, or 2 if there are no results, or the report cannot be written or served.
    """
    if follow:
        if html is not None or png is not None:
            raise _failed("--follow writes no files: leave out --html and --png")
        _follow(output, errors, port or 0, open_page=open_page)
        return
    if port is not None or open_page:
        raise _failed("--port and --open are for --follow: add it, or leave them out")
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


def _follow(output: Path, errors: Path | None, port: int, *, open_page: bool) -> None:
    """Serve the report until Ctrl-C."""
    from parallel_core.report.following import follow  # imports aiohttp

    if not output.parent.is_dir():
        raise _failed(f"there is no folder {output.parent}: name the output file of a run")

    def on_ready(address: str) -> None:
        typer.echo(f"Report of {printable(output.name)}: {address} (Ctrl-C ends it)")
        if open_page:
            webbrowser.open(address)

    try:
        asyncio.run(follow(output, errors, port=port, on_ready=on_ready))
    except KeyboardInterrupt:
        typer.echo("The report has ended.")
    except ReportError as error:
        raise _failed(str(error)) from None


def _refuse_to_overwrite(paths: RunPaths, html: Path | None) -> None:
    """Refuse to overwrite files other than a report page: answers have been paid for."""
    if html is None or not html.is_file():
        return
    for path in paths.files:
        if path.exists() and path.samefile(html):
            raise ReportError(f"{html} is a file of the run itself: give --html another name")
    with html.open("rb") as file:
        beginning = file.read(len(BEGINNING))
    if beginning and beginning != BEGINNING.encode():
        raise ReportError(
            f"{html} exists and is not a report page: give --html another name, or delete it"
        )


def _failed(message: str) -> typer.Exit:
    typer.echo(f"Error: {printable(message)}", err=True)
    return typer.Exit(2)
