"""Requests from tables and from text."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.batch_files import requests_of
from parallel_core.files.batch_input import InputFile


def test_a_table_becomes_prompts(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b"\xef\xbb\xbftext, kind ,id\r\n"
        b'"two\r\nlines, a comma",verb,first\r\n'
        b"\r\n"
        b'"a ""quoted"" {{kind}}",noun,second\r\n'
    )
    with InputFile(path, template="Is {{ text }} a {{kind}}?", model="gpt") as file:
        summary = file.check()
        requests = list(file.requests())
    assert summary.format == "csv"
    assert [(request.line, request.custom_id) for request in requests] == [
        (2, "first"),
        (5, "second"),
    ]
    assert [request.request.messages for request in requests] == [
        [{"role": "user", "content": "Is two\r\nlines, a comma a verb?"}],
        [{"role": "user", "content": 'Is a "quoted" {{kind}} a noun?'}],
    ]
    assert {request.request.model for request in requests} == {"gpt"}


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        ("id;text\na;1,5\nb;x\n", {"a": "1,5", "b": "x"}),
        ('\n"id";"text"\n"a";"x;y"\n', {"a": "x;y"}),
        ("id\ttext\na\tx;y\n", {"a": "x;y"}),
        ("id,text\na,x;y\n", {"a": "x;y"}),
        ("\rid;text\ra;x\r", {"a": "x"}),
        ("text\nx;y\n", {"2": "x;y"}),
        ('"text"\nx\n', {"2": "x"}),
        ("\n \n\ntext\nx;y\n", {"5": "x;y"}),
    ],
)
def test_semicolons_and_tabs_are_found_between_columns(
    tmp_path: Path, content: str, prompts: dict[str, str]
) -> None:
    path = tmp_path / "in.csv"
    path.write_text(content)
    with InputFile(path, model="gpt", template="{{text}}") as file:
        assert file.check().problems == []
        found = {r.custom_id: r.request.messages[0]["content"] for r in file.requests()}
    assert found == prompts


def test_custom_id_goes_before_id(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text("id\tcustom_id\ttext\n1\tx\tone\n1\ty\ttwo, three\n")
    with InputFile(path, template="{{text}}", model="gpt") as file:
        assert requests_of(file) == [(2, "x"), (3, "y")]


def test_rows_without_names_are_named_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "anything"
    path.write_text("text\none\ntwo\n")
    with InputFile(path, format="csv", template="{{text}}", model="gpt") as file:
        assert requests_of(file) == [(2, "2"), (3, "3")]


def test_bad_rows_are_told_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(
        b"id,text\n"
        b"a,good\n"
        b"b\n"
        b"c,one,too many\n"
        b'd,"quotes" in the middle\n'
        b"e,\xff\n"
        b",no name\n"
        b"f,  \n"
        b"a,again\n"
        b"g,good\n"
        b'h,"never closed\n'
    )
    with InputFile(path, template="{{text}}", model="gpt") as file:
        problems = [(problem.line, problem.code) for problem in file.check().problems]
        assert requests_of(file) == [(2, "a"), (10, "g")]
    assert problems == [
        (3, "invalid_csv_row"),
        (4, "invalid_csv_row"),
        (5, "invalid_csv_row"),
        (6, "invalid_encoding"),
        (7, "missing_required_parameter"),
        (8, "missing_required_parameter"),
        (9, "duplicate_custom_id"),
        (11, "invalid_csv_row"),
    ]


def test_a_field_may_be_gigantic(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("text\n" + "x" * 1_000_000 + "\n")
    with InputFile(path, template="{{text}}", model="gpt") as file:
        (request,) = file.requests()
    assert len(request.request.messages[0]["content"]) == 1_000_000


@given(rows=st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=5))
def test_what_csv_writes_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "in.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("left", "right"))
        writer.writerows(rows)
    with InputFile(path, template="<{{left}}|{{right}}>", model="gpt") as file_of_rows:
        prompts = [request.request.messages[0]["content"] for request in file_of_rows.requests()]
    assert prompts == [f"<{left}|{right}>" for left, right in rows]


def test_each_line_of_text_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\n  second {{line}}\nnot \xff utf-8\nlast")
    with InputFile(path, model="gpt") as file:
        summary = file.check()
        requests = list(file.requests())
    assert [(problem.line, problem.code) for problem in summary.problems] == [
        (4, "invalid_encoding")
    ]
    prompts = [request.request.messages[0]["content"] for request in requests]
    assert prompts == ["first", "  second {{line}}", "last"]
    assert [request.custom_id for request in requests] == ["1", "3", "5"]
    with InputFile(path, model="gpt", template="Say {{line}}!") as file:
        first = next(iter(file.requests()))
    assert first.request.messages == [{"role": "user", "content": "Say first!"}]
