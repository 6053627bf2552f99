"""The report as an HTML page: one file with its charts, its style and a script for its filters."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from . import formats
from .charts import COLORS, charts_of
from .model import RunReport
from .svg import svg

if TYPE_CHECKING:
    import jinja2

BEGINNING = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="generator" content="parallel-core report">'
)
"""Beginning of every page. It distinguishes a report page from other files."""


def page(report: RunReport) -> str:
    """Return the whole page."""
    return _page(report.name, content(report), live=False)


def live_page(name: str, state: str, report_content: str) -> str:
    """Return a page that shows what its server sends.

    Args:
        name: name of the output file.
        state: text about the state of the run.
        report_content: the report so far, from :func:`content`; empty if there is none yet.
    """
    return _page(name, report_content, live=True, state=state)


def content(report: RunReport) -> str:
    """Return the part of the page that changes while a run goes on. Every value is escaped."""
    template = _environment().get_template("content.html.j2")
    kinds = set(report.total.failures) | {call.kind for call in report.slowest} - {""}
    return template.render(
        report=report,
        cards=formats.cards(report.total),
        facts=formats.facts(report),
        charts=charts_of(report),
        svg=svg,
        tables=formats.page_tables(report),
        kinds=kinds,
    )


def policy(*, live: bool) -> str:
    """Return the content policy of a page: it runs only its own script, and fetches nothing.

    Args:
        live: True to allow a connection to the server of the page.
    """
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    parts = ["default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'"]
    parts += ["base-uri 'none'", "form-action 'none'"]
    return "; ".join([*parts, "connect-src 'self'"] if live else parts)


def _page(name: str, report_content: str, *, live: bool, state: str = "") -> str:
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            beginning=BEGINNING,
            colors=COLORS,
            name=name,
            policy=policy(live=live),
            live=live,
            state=state,
            content=report_content,
            script=_script(),
        )
    )


@functools.cache
def _script() -> str:
    return files(__package__ or "").joinpath("page.js").read_text(encoding="utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(
        loader=jinja2.PackageLoader("parallel_core.report", ""),
        autoescape=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        **options,
    )
