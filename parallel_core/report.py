"""``parallel-core report``: what a run has done, as tables, as a page and as pictures.

It reads the statistics that lie beside the output of a run, and the output itself. Of results that
nobody has measured (of OpenAI's Batch API, or vLLM's) it tells what their lines tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._report_model import (
    FailureReport,
    Histogram,
    LimitReport,
    ModelReport,
    Pause,
    Percentiles,
    ReportError,
    RunReport,
    Timeline,
)
from ._report_records import read_run, text_of
from ._report_summary import report_of
from .run_statistics import RunPaths

__all__ = [
    "FailureReport",
    "Histogram",
    "LimitReport",
    "ModelReport",
    "Pause",
    "Percentiles",
    "ReportError",
    "RunReport",
    "Timeline",
    "command",
    "html_page",
    "summarize",
    "write_pictures",
]


def summarize(output: Path | str, errors: Path | str | None = None) -> RunReport:
    """Read what a run has left behind, and sum it up. It blocks.

    Args:
        output: the file with the results; the statistics are looked for beside it.
        errors: the file with the failures, if they are in one of their own.

    Raises:
        ReportError: a file cannot be read, is something else, or has no results yet.
    """
    paths = RunPaths.of(output, errors)
    return report_of(read_run(paths), text_of(paths.output.name))


def html_page(report: RunReport) -> str:
    """The report as a page: one file that needs no other, no network and no script."""
    from ._report_html import page

    return page(report)


def write_pictures(report: RunReport, folder: Path | str) -> list[Path]:
    """Draw the charts of the report as PNG, with matplotlib.

    Args:
        report: what to draw.
        folder: where the files go; it is made if it is not there.

    Returns:
        The files. Of what was not measured there is none.

    Raises:
        ReportError: matplotlib is not installed: it is in the extra ``parallel_core[report]``.
        OSError: a file cannot be written.
    """
    from ._report_png import write

    return write(report, Path(folder))


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
    from ._report_table import print_report
    from ._terminal import console, printable

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
    from ._report_html import BEGINNING

    with html.open("rb") as file:
        beginning = file.read(len(BEGINNING))
    if beginning and beginning != BEGINNING.encode():
        raise ReportError(
            f"{html} exists, and is no page of a report: give --html another name, or delete it"
        )


def _failed(message: str) -> typer.Exit:
    from ._terminal import printable

    typer.echo(f"Error: {printable(message)}", err=True)
    return typer.Exit(2)
