"""Functions that make summaries, pages and pictures of runs."""

from __future__ import annotations

from pathlib import Path

from parallel_core.journal import RunPaths

from .model import RunReport
from .reading import RunReader


def summarize(output: Path | str, errors: Path | str | None = None) -> RunReport:
    """Read the files of a run and summarize them. This blocks.

    Args:
        output: the file with the results; the statistics are expected beside it.
        errors: the file with the failures, if it is a separate file.

    Raises:
        ReportError: a file cannot be read, is not the output of a run, or has no results yet.
    """
    reader = RunReader(RunPaths.of(output, errors))
    reader.read_all()
    return reader.report()


def html_page(report: RunReport) -> str:
    """Return the report as an HTML page: one file that needs no other file and no network."""
    from .html import page

    return page(report)


def write_pictures(report: RunReport, folder: Path | str) -> list[Path]:
    """Draw the charts of the report as PNG, with matplotlib.

    Args:
        report: the report to draw.
        folder: folder for the files; it is created if it does not exist.

    Returns:
        The paths of the files. There is no file for values that were not measured.

    Raises:
        ReportError: matplotlib is not installed; it is in the extra ``parallel_core[report]``.
        OSError: a file cannot be written.
    """
    from .png import write

    return write(report, Path(folder))
