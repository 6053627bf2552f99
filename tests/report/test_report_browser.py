"""The page of a report in a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from helpers.browsers import BrowserPage, browser_page, needs_browser
from helpers.followed_reports import append, followed
from helpers.report_runs import (
    BEGIN,
    NASTY,
    answer,
    call,
    example_run,
    failure,
    invoke,
    nasty_run,
    write_run,
)
from parallel_core.journal import BeginStatistics, EndStatistics

pytestmark = [needs_browser, pytest.mark.thorough]

VISIBLE = """
Array.from(document.querySelectorAll("section"), (section) => [
  section.querySelector("h2").textContent,
  Array.from(section.querySelectorAll("tbody tr:not([hidden]) th"), (head) => head.textContent),
])
"""


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 120))


async def choose(page: BrowserPage, name: str, value: str) -> dict[str, list[str]]:
    """Choose a value of a filter, and return the rows that are visible, by their tables."""
    await page.evaluate(
        f"""(() => {{
          const select = document.forms[0].elements[{json.dumps(name)}];
          select.value = {json.dumps(value)};
          select.dispatchEvent(new Event("change", {{ bubbles: true }}));
        }})()"""
    )
    return dict(await page.evaluate(VISIBLE))


def test_a_browser_shows_the_page_and_runs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert invoke(nasty_run(tmp_path), "--html", path).exit_code == 0

    async def test() -> None:
        async with browser_page() as page:
            await page.go(path.as_uri())
            assert await page.evaluate("document.title") == "Report of out.jsonl"
            assert await page.evaluate("document.scripts.length") == 1
            assert await page.evaluate("document.images.length") == 0
            assert await page.evaluate("document.querySelectorAll('figure').length") == 5
            assert NASTY in await page.evaluate("document.body.innerText")
            # The names of models and kinds become options, and no markup.
            shown = await choose(page, "kind", f"{NASTY} (500)"[:120])
            assert shown["Requests"] == [NASTY[:120]]
            assert page.requests == [path.as_uri()]
            assert page.complaints == []

    run(test())


def test_filters_leave_the_rows_of_a_model_and_of_a_kind(tmp_path: Path) -> None:
    records = [
        call("a", 0, model="fast"),
        call("b", 1, model="fast", error="E", failure_kind="timeout"),
        call("c", 2, model="smart", error="E", failure_kind="overloaded", status_code=429),
    ]
    path = tmp_path / "report.html"
    assert invoke(write_run(tmp_path, records), "--html", path).exit_code == 0

    async def test() -> None:
        async with browser_page() as page:
            await page.go(path.as_uri())
            every = dict(await page.evaluate(VISIBLE))
            assert every["Requests"] == ["fast", "smart", "all"]
            assert sorted(every["The slowest calls"]) == ["a", "b", "c"]
            options = "Array.from(document.forms[0].elements.kind.options, (one) => one.value)"
            assert await page.evaluate(options) == ["", "overloaded (429)", "timeout"]
            shown = await choose(page, "model", "fast")
            assert shown["Requests"] == ["fast"]
            assert shown["Failed requests by id"] == ["b"]
            assert sorted(shown["The slowest calls"]) == ["a", "b"]
            shown = await choose(page, "kind", "overloaded (429)")
            assert shown["Failed requests"] == []  # they are of all models
            assert shown["Failed requests by id"] == shown["The slowest calls"] == []
            pale = "Array.from(document.querySelectorAll('.pale'), (bar) => bar.dataset.kind)"
            assert await page.evaluate(pale) == ["timeout"]
            remarks = "document.body.innerText.split('Nothing to show with this filter.').length"
            assert await page.evaluate(remarks) > 1
            shown = await choose(page, "model", "")
            assert shown["Failed requests"] == ["overloaded (429)"]
            assert shown["Failed requests by id"] == shown["The slowest calls"] == ["c"]
            assert await choose(page, "kind", "") == every
            assert page.complaints == []

    run(test())


def test_a_page_fits_a_phone_and_is_dark_if_that_is_preferred(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert invoke(example_run(tmp_path), "--html", path).exit_code == 0

    async def test() -> None:
        async with browser_page() as page:
            await page.go(path.as_uri())
            for width in (320, 390, 900, 1600):
                colors: set[tuple[str, str]] = set()
                for dark in (False, True):
                    await page.resize(width, dark=dark)
                    wide = "document.documentElement.scrollWidth"
                    assert await page.evaluate(wide) <= width
                    ground = "getComputedStyle(document.body).backgroundColor"
                    bar = "getComputedStyle(document.querySelector('figure rect.blue')).fill"
                    colors.add((await page.evaluate(ground), await page.evaluate(bar)))
                assert len(colors) == 2
            assert page.complaints == []

    run(test())


def test_a_followed_page_changes_while_it_is_open(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    waits = """new Promise((found) => {
      const look = () => document.body.innerText.includes(TEXT) && found(true);
      new MutationObserver(look).observe(document.body, { childList: true, subtree: true });
      look();
    })"""

    async def test() -> None:
        async with followed(output) as address, browser_page() as page:

            async def shows(text: str) -> None:
                assert await page.evaluate(waits.replace("TEXT", json.dumps(text)))

            await page.go(address)
            await shows("Waiting for results in out.jsonl.")
            late = call("b", 1, model="smart", error="E", failure_kind="timeout")
            begin = BeginStatistics(at=BEGIN, total=3)
            append(output, [answer("a"), failure("b")], [begin, call("a", 0, model="fast"), late])
            await shows("The run goes on: 2 of 3 requests.")
            await shows("Failed requests by id")
            shown = await choose(page, "model", "smart")
            assert shown["The slowest calls"] == ["b"]
            last = call("c", 5, 2, model="smart")
            append(output, [answer("c")], [last, EndStatistics(at=BEGIN + 7, ending="complete")])
            await shows("The run has ended: 3 of 3 requests.")
            # The filter stays.
            shown = dict(await page.evaluate(VISIBLE))
            assert shown["The slowest calls"] == ["c", "b"]
            assert all(url.startswith(address) for url in page.requests)
            assert page.complaints == []

    run(test())
