"""The report as an HTML page: one file with its charts and without scripts."""

from __future__ import annotations

from . import formats
from .charts import COLORS, charts_of
from .model import RunReport
from .svg import svg

BEGINNING = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="generator" content="parallel-core report">'
)
"""Beginning of every page. It distinguishes a report page from other files."""


def page(report: RunReport) -> str:
    """Return the whole page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("parallel_core.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.j2").render(
        beginning=BEGINNING,
        colors=COLORS,
        report=report,
        cards=formats.cards(report.total),
        facts=formats.facts(report),
        charts=charts_of(report),
        svg=svg,
        tables=formats.tables(report),
    )
