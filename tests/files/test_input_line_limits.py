"""A line, an element or a row that is longer than the limit is refused by name."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from helpers.batch_files import BODY, a_line, problems_of, refused, requests_of, write
from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile

LONG = a_line("long", metadata={"text": "x" * (2 << 20)})


def test_a_line_that_is_too_long_is_told_and_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("a"), LONG, a_line("b"))
    with InputFile(path, max_line=1) as file:
        (problem,) = file.check().problems
        assert requests_of(file) == [(1, "a"), (3, "b")]
    assert (problem.line, problem.code, problem.custom_id) == (2, "line_too_long", "2")
    assert problem.message == "longer than 1 MiB"
    assert "--max-line" in problem.hint
    with InputFile(path) as file:
        assert [custom_id for _, custom_id in requests_of(file)] == ["a", "long", "b"]


def test_the_limit_counts_the_bytes_of_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", BODY, {**BODY, "n": 1})
    size = len(json.dumps(BODY)) + 1
    assert problems_of(path, max_line=size / 2**20) == [(2, "line_too_long")]
    assert problems_of(path, max_line=(size - 1) / 2**20) == [
        (1, "line_too_long"),
        (2, "line_too_long"),
    ]


def test_a_line_of_text_and_a_row_of_a_table_have_the_limit(tmp_path: Path) -> None:
    text = tmp_path / "in.txt"
    text.write_text("one\n" + "x" * 2000 + "\nthree\n")
    limit: dict[str, Any] = {"model": "gpt", "max_line": 1000 / 2**20}
    assert problems_of(text, **limit) == [(2, "line_too_long")]
    table = tmp_path / "in.csv"
    limit["template"] = "{{text}}"
    table.write_text("text\none\n" + "x" * 2000 + "\nthree\n")
    assert "the row that begins in line 3 is longer" in refused(table, **limit)
    table.write_text('text\none\n"never closed\n' + "line\n" * 1000)
    told = refused(table, **limit)
    assert "the row that begins in line 3 is longer" in told
    assert "close the quotes" in told
    table.write_text("text\n" + "line\n" * 1000)
    with InputFile(table, **limit) as file:
        assert file.check().requests == 1000


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, limit: float) -> None:
    with pytest.raises(ValueError, match="max_line must be a finite number of MiB above 0"):
        InputFile(tmp_path / "in.jsonl", max_line=limit)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("in.jsonl", "longer than 1 MiB"),
        ("in.txt", "longer than 1 MiB"),
        ("in.csv", "longer than 1 MiB"),
        ("in.json", "no end"),
    ],
)
def test_what_is_too_long_is_not_read_whole(tmp_path: Path, name: str, told: str) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write({"in.csv": b"text\n", "in.json": b"["}.get(name, b""))
        file.truncate(64 << 20)  # zeros, which need no room on the disk
    template = {"in.csv": "{{text}}", "in.txt": "{{line}}"}.get(name)
    tracemalloc.start()
    try:
        with InputFile(path, max_line=1, model="gpt", template=template) as file:
            try:
                found = file.check().problems[0].message
            except InputFileError as error:
                found = str(error)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert told in found
    assert peak < 10 << 20
