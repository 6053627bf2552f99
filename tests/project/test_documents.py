"""Links in the documents lead somewhere."""

from __future__ import annotations

import re
import tomllib

import pytest

from helpers.snippets import REPOSITORY


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/architecture.md",
        "docs/guide.md",
        "docs/cli.md",
        "docs/durability.md",
        "docs/failures.md",
        "docs/file-formats.md",
        "docs/report.md",
        "docs/controls.md",
        "docs/direct.md",
        "docs/ray-data.md",
        "docs/streaming.md",
        "docs/trio.md",
        "docs/benchmarks.md",
        "docs/decisions.md",
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    path = REPOSITORY / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    for link in links:
        assert link.startswith("https://") or (path.parent / link).exists(), link


def test_the_layers_of_the_page_are_those_that_are_checked() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    checked = [set(re.split(r" [|:] ", line)) for line in contract["layers"]]
    page = (REPOSITORY / "docs" / "architecture.md").read_text()
    table = page.partition("## The layers")[2].partition("\n\nWhat a folder")[0]
    rows = re.findall(r"^\| [a-z ]+ \| (`.*) \|$", table, re.MULTILINE)
    drawn = [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in rows]
    assert set.union(*drawn) == set.union(*checked)
    # A row of the page may stand for several lines of the contract, from the top.
    for row in drawn:
        while row:
            assert checked[0] <= row
            row -= checked.pop(0)
