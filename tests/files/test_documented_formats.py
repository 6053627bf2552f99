"""The examples and the tables of docs/file-formats.md are true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from parallel_core.files.batch_input import InputFile
from parallel_core.files.formats import anthropic_lines, gemini_lines

PAGE = (Path(__file__).parents[2] / "docs" / "file-formats.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return a section of the page, with the smaller ones in it."""
    marks = title.split()[0]
    rest = PAGE.partition(f"\n{title}\n")[2]
    assert rest, title
    return re.split(rf"^#{{1,{len(marks)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def examples(language: str) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", section("### Requests"), re.DOTALL)
    assert blocks
    return blocks


def templates_for(example: str) -> dict[str, Any]:
    if '"messages"' in example or '"contents"' in example:
        return {}
    return {"template": "{{review}}", "system": "Be brief."}


@pytest.mark.parametrize("example", [*examples("json"), *examples("csv")])
def test_an_example_is_read_without_a_problem(tmp_path: Path, example: str) -> None:
    path = tmp_path / ("in.csv" if "," in example.split("\n")[0].split("{")[0] else "in.jsonl")
    path.write_text(example, encoding="utf-8")
    with InputFile(path, model="gpt", **templates_for(example)) as file:
        summary = file.check()
        assert summary.problems == []
        assert summary.columns == []
        assert summary.requests == len(list(file.requests())) > 0


@pytest.mark.parametrize(
    "names",
    [anthropic_lines.PARAMETERS, gemini_lines.CONFIG, gemini_lines.OF_GEMINI],
    ids=["anthropic", "gemini config", "gemini"],
)
def test_the_tables_have_every_parameter(names: dict[str, str]) -> None:
    tables = section("### Lines of Anthropic and Gemini")
    rows = [line.split(" | ") for line in tables.splitlines() if line.startswith("| ")]
    for name, becomes in names.items():
        assert any(
            f"`{name}`" in row[0]
            and (f"`{becomes}`" in row[1] or "the same" in row[1] or "of the provider" in row[1])
            for row in rows
        ), name
