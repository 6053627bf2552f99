"""Requests as lines of JSON: their formats, names and models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.batch_files import (
    BODY,
    MESSAGES,
    a_line,
    likely_lines,
    problems_of,
    requests_of,
    write,
)
from parallel_core import (
    RouterParallelRequest,
)
from parallel_core.files.batch_input import InputFile


def test_the_formats_may_be_mixed_line_by_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl",
        {"custom_id": "openai", "method": "POST", "url": "/v1/chat/completions", "body": BODY},
        {"custom_id": "mistral", "body": {**BODY, "temperature": 0.5}},
        {**BODY, "n": 2, "tools": [{"type": "function"}]},
        {**BODY, "custom_id": "named"},
        {"custom_id": "azure", "url": "/chat/completions", "body": {**BODY, "model": "other"}},
    )
    with InputFile(path) as file:
        summary = file.check()
        requests = list(file.requests())
    assert summary.problems == []
    assert (summary.requests, summary.models, summary.format) == (
        5,
        {"gpt": 4, "other": 1},
        "jsonl",
    )
    ids = ["openai", "mistral", "3", "named", "azure"]
    assert [request.custom_id for request in requests] == ids
    assert [request.line for request in requests] == [1, 2, 3, 4, 5]
    assert requests[0].request == RouterParallelRequest("gpt", MESSAGES, None)
    assert requests[1].request.kwargs == {"temperature": 0.5}
    assert requests[2].request.kwargs == {"n": 2, "tools": [{"type": "function"}]}
    assert requests[3].request.kwargs is None


@pytest.mark.parametrize("method", ["post", "Post", "POST"])
@pytest.mark.parametrize(
    "url", ["/v1/chat/completions/", "/V1/Chat/Completions", "/chat/completions"]
)
def test_the_method_and_the_url_may_be_written_in_other_ways(
    tmp_path: Path, method: str, url: str
) -> None:
    assert problems_of(write(tmp_path / "in.jsonl", a_line(method=method, url=url))) == []


def test_the_second_of_two_lines_with_one_id_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("b"), a_line("a"), a_line("a"), a_line("a"))
    with InputFile(path) as file:
        summary = file.check()
        assert requests_of(file) == [(1, "b"), (2, "a")]
    found = [(problem.line, problem.code, problem.custom_id) for problem in summary.problems]
    assert found == [
        (3, "duplicate_custom_id", "a#line-3"),
        (4, "duplicate_custom_id", "a#line-4"),
    ]
    assert {problem.message for problem in summary.problems} == {
        "the custom_id 'a' is already used by line 2"
    }
    assert summary.requests == 2


def test_the_number_of_a_line_may_be_taken_by_another(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("2"), BODY, BODY)
    assert problems_of(path) == [(2, "duplicate_custom_id")]


def test_no_bad_line_has_the_name_of_a_good_one(tmp_path: Path) -> None:
    """Or the good one would count as finished once the bad one is in the output."""
    bad = {"custom_id": "a", "body": {}}
    path = write(tmp_path / "in.jsonl", b"{", bad, a_line("1"), a_line("a"), bad)
    with InputFile(path) as file:
        named = [problem.custom_id for problem in file.check().problems]
        assert requests_of(file) == [(3, "1"), (4, "a")]
    assert named == ["1#line-1", "a#line-2", "a#line-5"]


def test_blank_lines_marks_and_line_ends_do_no_harm(tmp_path: Path) -> None:
    line = json.dumps(BODY).encode()
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\r\n" + line + b"\r\n\n  \t\n" + line)
    with InputFile(path) as file:
        assert file.check().problems == []
        assert requests_of(file) == [(2, "2"), (5, "5")]
    path.write_bytes(b"\xef\xbb\xbf" + line)
    with InputFile(path) as file:
        assert requests_of(file) == [(1, "1")]


def test_of_a_name_that_is_there_twice_the_last_counts(tmp_path: Path) -> None:
    line = json.dumps({"custom_id": "a", **BODY})[:-1].encode() + b', "custom_id": "b"}'
    with InputFile(write(tmp_path / "in.jsonl", line)) as file:
        assert requests_of(file) == [(1, "b")]


def test_a_line_may_be_gigantic(tmp_path: Path) -> None:
    text = "long " * 1_000_000
    path = write(tmp_path / "in.jsonl", {**BODY, "messages": [{"role": "user", "content": text}]})
    with InputFile(path) as file:
        (request,) = file.requests()
    assert request.request.messages[0]["content"] == text


def test_a_model_is_filled_in_where_a_line_has_none(tmp_path: Path) -> None:
    without: dict[str, Any] = {"messages": MESSAGES}
    path = write(tmp_path / "in.jsonl", without, {**without, "model": None}, BODY)
    assert problems_of(path) == [
        (1, "missing_required_parameter"),
        (2, "missing_required_parameter"),
    ]
    with InputFile(path, model="mine") as file:
        assert file.check().models == {"mine": 2, "gpt": 1}
        assert [request.request.model for request in file.requests()] == ["mine", "mine", "gpt"]


def test_what_is_finished_is_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", *(a_line(f"{number}") for number in range(10)), BODY)
    asked: list[str] = []

    def finished(custom_id: str) -> bool:
        asked.append(custom_id)
        return custom_id not in ("3", "11")

    with InputFile(path) as file:
        assert [request.custom_id for request in file.requests(finished)] == ["3", "11"]
        assert len(list(file.requests())) == 11
    assert asked == [*map(str, range(10)), "11"]


@given(lines=st.lists(likely_lines.map(json.dumps).map(str.encode) | st.binary(), max_size=8))
def test_each_line_is_a_request_or_one_problem(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "in.jsonl"
    content = b"\n".join([*lines, json.dumps(a_line("the last")).encode()])
    marks: tuple[bytes, ...] = (
        b"\x1f\x8b",
        b"\xff\xfe",
        b"\xfe\xff",
        b"BZh",
        b"PK",
        b"\xfd7zXZ",
        b"\x28\xb5\x2f\xfd",
    )
    marks += (b"\x50\x2a\x4d\x18", b"PAR", b"ARROW1", b"FEA1", b"\xff\xff\xff\xff")
    if content.startswith(marks):
        return
    path.write_bytes(content)
    if re.match(rb"(\xef\xbb\xbf)?\s*\[", content):
        return  # an array, which has another form
    with InputFile(path, drop_columns=True) as file:
        summary = file.check()
        requests = requests_of(file)
    bad = [problem.line for problem in summary.problems]
    good = [line for line, _ in requests]
    assert summary.requests == len(requests)
    blank = {
        number
        for number, line in enumerate(content.split(b"\n"), 1)
        if not line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip()
    }
    assert sorted([*bad, *good, *blank]) == list(range(1, content.count(b"\n") + 2))
    names = [custom_id for _, custom_id in requests]
    names += [str(problem.custom_id) for problem in summary.problems]
    assert len(set(names)) == len(names)
