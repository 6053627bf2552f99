"""Summaries, pages and pictures of runs."""

from __future__ import annotations

from pathlib import Path

from parallel_core.journal import RunPaths

from .model import RunReport
from .records import read_run, text_of
from .summary import report_of


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
    from .html import page

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
    from .png import write

    return write(report, Path(folder))
