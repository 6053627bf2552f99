"""The examples and tables of docs/file-formats.md and docs/reference/translation.md are true."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest

from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile
from parallel_core.files.endpoints import ENDPOINTS
from parallel_core.files.formats import anthropic_lines, gemini_lines

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "file-formats.md").read_text(encoding="utf-8")
TRANSLATION = (DOCS / "reference" / "translation.md").read_text(encoding="utf-8")


def section(title: str, page: str = PAGE) -> str:
    """Return a section of a page, with the smaller ones in it."""
    marks = title.split()[0]
    rest = page.partition(f"\n{title}\n")[2]
    assert rest, title
    return re.split(rf"^#{{1,{len(marks)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


class Format(NamedTuple):
    """A row of the table of formats."""

    name: str
    recognised_by: str
    example: str
    needs: str

    def options(self) -> dict[str, Any]:
        """Return the options that the row names, and no others."""
        template = {"template": "{{review}}", "system": "Be brief."}
        given = template if "`--template`" in self.needs else {}
        return {**given, "model": "gpt"} if "`--model`" in self.needs else given

    def write(self, folder: Path) -> Path:
        """Write the example to a file that is recognised as the row says."""
        texts: list[str] = re.findall(r"`([^`]*)`", self.example)
        if self.name == "compressed":
            name, inner = texts
            (table,) = (row for row in TABLE if f"`{inner}`" in row.recognised_by)
            path = folder / name
            path.write_bytes(gzip.compress(table.write(folder).read_bytes()))
            return path
        ending = re.match(r"`(\.\w+)`", self.recognised_by)
        path = folder / f"in{ending[1] if ending else '.jsonl'}"
        if self.name == "Parquet, Arrow":
            rows = [json.loads(text) for text in texts if text.startswith("{")]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            path.write_text("\n".join(texts), encoding="utf-8")  # a line end is <br> in a table
        return path


TABLE = [
    Format(*(cell.strip() for cell in line.strip("|").split("|")))
    for line in section("## Formats").splitlines()
    if line.startswith("| ") and not line.startswith("| format |")
]


def checked(path: Path, **options: Any) -> int:
    """Return the number of requests of a file without a problem."""
    with InputFile(path, **options) as file:
        summary = file.check()
        assert summary.problems == []
        assert summary.requests == len(list(file.requests()))
        return summary.requests


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_an_example_of_the_table_needs_what_its_row_says(tmp_path: Path, row: Format) -> None:
    options = row.options()
    if row.name == "compressed":  # as the file that it holds
        options = {"template": "{{review}}", "model": "gpt"}
    if row.name == "Parquet, Arrow":
        options["keep"] = ["prompt_id"]
    path = row.write(tmp_path)
    assert checked(path, **options) == 1
    for name in options.keys() & {"template", "model"}:
        with pytest.raises((InputFileError, AssertionError)):
            checked(path, **{**options, name: None})


def test_every_format_is_in_the_table() -> None:
    named = set(re.findall(r"`(\.\w+)`", " ".join(row.recognised_by for row in TABLE)))
    assert named == {".csv", ".tsv", ".txt"}
    assert len(TABLE) == 10


def test_the_lines_of_every_endpoint_are_read(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```json\n(.*?)```", section("## Endpoints"), re.DOTALL)
    path = tmp_path / "in.jsonl"
    path.write_text(lines, encoding="utf-8")
    assert checked(path) == len(ENDPOINTS)


@pytest.mark.parametrize(
    "names",
    [anthropic_lines.PARAMETERS, gemini_lines.CONFIG, gemini_lines.OF_GEMINI],
    ids=["anthropic", "gemini config", "gemini"],
)
def test_the_tables_have_every_parameter(names: dict[str, str]) -> None:
    tables = section("## Lines of Anthropic and Gemini", TRANSLATION)
    rows = [line.split(" | ") for line in tables.splitlines() if line.startswith("| ")]
    for name, becomes in names.items():
        assert any(
            f"`{name}`" in row[0]
            and (f"`{becomes}`" in row[1] or "the same" in row[1] or "of the provider" in row[1])
            for row in rows
        ), name
