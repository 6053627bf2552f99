"""Links in the documents lead somewhere."""

from __future__ import annotations

import re
import tomllib

import pytest

from helpers.snippets import REPOSITORY, documents

# Pages that are made when the site is built.
GENERATED = {"benchmark-tables.md", "reference/commands.md"}


@pytest.mark.parametrize("document", documents())
def test_links_lead_somewhere(document: str) -> None:
    path = documents()[document]
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    generated = {(REPOSITORY / "docs" / page).resolve() for page in GENERATED}
    for link in links:
        target = (path.parent / link).resolve()
        assert link.startswith("https://") or target.exists() or target in generated, link


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
