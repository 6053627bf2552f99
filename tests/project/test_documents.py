"""Links in the documents lead somewhere."""

from __future__ import annotations

import re

import pytest

from helpers.snippets import REPOSITORY


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/guide.md",
        "docs/cli.md",
        "docs/durability.md",
        "docs/failures.md",
        "docs/file-formats.md",
        "docs/report.md",
        "docs/controls.md",
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
