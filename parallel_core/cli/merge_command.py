"""The command ``parallel-core merge``: join the outputs of shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parallel_core.errors import JournalError
from parallel_core.journal import MergeSummary, merge_outputs
from parallel_core.printable import printable
from parallel_core.quantities import counted


def command(
    parts: Annotated[
        list[Path],
        typer.Argument(metavar="PART.jsonl...", help="Files with results of runs.", dir_okay=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", dir_okay=False)],
    error_file: Annotated[
        Path | None,
        typer.Option(help="File for the failures. Default: the output.", dir_okay=False),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="If the output exists, move its files aside."),
    ] = False,
) -> None:
    """Join the outputs of shards, or of other runs, into one.

    An answer wins over a failure, the first answer over a second one. Statistics are joined, too.
    The output resumes with the whole input if all parts are of the same run.

    Exit codes: 0, or 2 if nothing was written.
    """
    try:
        summary = merge_outputs(parts, output, error_file=error_file, force=force)
    except JournalError as error:
        typer.echo(f"Error: {printable(str(error))}", err=True)
        raise typer.Exit(2) from None
    for line in describe_merge(summary):
        typer.echo(printable(line))


def describe_merge(summary: MergeSummary) -> list[str]:
    """Return lines about what was written."""
    answers, failures = counted(summary.answers, "answer"), counted(summary.failures, "failure")
    lines = [f"written: {summary.paths.output}: {answers}, {failures}"]
    if summary.superseded:
        lines.append(f"left out: {counted(summary.superseded, 'failure')} with a newer result")
    if summary.duplicates:
        more = "" if summary.duplicates <= len(summary.duplicate_ids) else ", …"
        ids = ", ".join(summary.duplicate_ids) + more
        second = "second answer" if summary.duplicates == 1 else "second answers"
        lines.append(f"left out: {summary.duplicates:,} {second}: {ids}")
    if summary.backups:
        lines.append(f"moved aside: {', '.join(map(str, summary.backups))}")
    lines += summary.notes
    if not summary.resumable:
        lines.append("a run resumes this output only with --allow-changed")
    return lines
