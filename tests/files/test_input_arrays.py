"""A JSON array of requests: its elements are what JSON lines hold."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.batch_files import BODY, a_line, json_values, refused, requests_of, write
from parallel_core.files.batch_input import InputFile
from parallel_core.files.formats.json_array import elements_of

LONG = 1 << 20


class InPieces(io.RawIOBase):
    """A stream that returns few bytes at a time, whatever is asked for."""

    def __init__(self, content: bytes, size: int) -> None:
        self._content = io.BytesIO(content)
        self._size = size

    def read(self, size: int = -1, /) -> bytes:
        return self._content.read(self._size)


def places_of(path: Path, **options: Any) -> list[tuple[str, str]]:
    with InputFile(path, **options) as file:
        return [(problem.where, problem.code) for problem in file.check().problems]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_as_its_elements(tmp_path: Path, indent: int | None) -> None:
    elements = [a_line("a"), BODY, {"custom_id": "c", **BODY}]
    path = tmp_path / "in.json"
    path.write_text("\ufeff\n " + json.dumps(elements, indent=indent) + "\n\n")
    with InputFile(path) as file:
        summary = file.check()
        assert requests_of(file) == [(1, "a"), (2, "2"), (3, "c")]
    assert (summary.format, summary.unit, summary.named_by_line) == ("json", "element", True)
    with InputFile(write(tmp_path / "in.jsonl", *elements)) as file:
        assert file.check().fingerprint == summary.fingerprint


def test_the_number_of_an_element_is_its_name_in_any_layout(tmp_path: Path) -> None:
    elements = [BODY, BODY, {**BODY, "temperature": 0.5}]
    path = tmp_path / "in.json"
    prints: list[str] = []
    for indent in (None, 1, 4):
        path.write_text(json.dumps(elements, indent=indent))
        with InputFile(path) as file:
            prints.append(file.check().fingerprint)
    assert len(set(prints)) == 1


def test_bad_elements_are_told_with_their_numbers_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    good = json.dumps(a_line("a"), indent=1)
    path.write_text(f'[\n{good},\n\n{{"body": }}, 7,\n{good},\n"a, \\"]" , nul]')
    line = 2 + good.count("\n")
    assert places_of(path) == [
        (f"element 2 (line {line + 2})", "invalid_json_line"),
        (f"element 3 (line {line + 2})", "invalid_json_line"),
        (f"element 4 (line {line + 3})", "duplicate_custom_id"),
        (f"element 5 (line {2 * line + 2})", "invalid_json_line"),
        (f"element 6 (line {2 * line + 2})", "invalid_json_line"),
    ]
    with InputFile(path) as file:
        assert requests_of(file) == [(1, "a")]
        (duplicate,) = [p for p in file.problems() if p.code == "duplicate_custom_id"]
    assert "already used by element 1" in duplicate.message
    assert "give each element a different custom_id" in duplicate.hint


def test_columns_of_elements_are_told(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text(json.dumps([BODY, {**BODY, "source": "web"}]))
    with (
        InputFile(path) as file,
        pytest.raises(ValueError, match="'source': 1 element, first in element 2"),
    ):
        list(file.requests())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[", "no end: the file was cut off"),
        ('[\n{"a": 1},\n{"b": "\n', "in or after line 3"),
        ('[{"a": [1}', "no end"),
        ('[{"a": 1}\n', "no end"),
        ("[1, 2,\n]", "comma too many in line 2"),
        ("[,1]", "comma too many in line 1"),
        ("[1,,2]", "comma too many in line 1"),
        ("[1, 2]\n\n[3]", "something follows the array, in line 3"),
        ("[1]]", "something follows the array, in line 1"),
        ("[]", "no request in the file"),
        (" \n[\n]\n", "no request in the file"),
    ],
)
def test_an_array_that_is_no_array_is_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "in.json"
    path.write_text(content)
    assert told in refused(path)


def test_an_object_over_many_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text(json.dumps(a_line("a"), indent=2))
    assert "jq -c . FILE" in refused(path)
    path.write_bytes(b"{\n" + json.dumps(a_line("b")).encode())  # only the first line is bad
    assert places_of(path) == [("line 1", "invalid_json_line")]
    with InputFile(path) as file:
        assert requests_of(file) == [(2, "b")]
        assert "does not end in this line" in file.check().problems[0].message


@given(
    values=st.lists(json_values, max_size=5),
    indent=st.none() | st.integers(min_value=0, max_value=3),
    is_ascii=st.booleans(),
    size=st.integers(min_value=1, max_value=60),
)
def test_the_elements_are_those_of_the_array(
    values: list[Any], indent: int | None, is_ascii: bool, size: int
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    found = list(elements_of(InPieces(text, size), LONG))  # type: ignore[arg-type]
    assert [json.dumps(json.loads(element.text or b"")) for element in found] == [
        json.dumps(value) for value in values
    ]
    lines = text.split(b"\n")
    for element in found:
        assert (element.text or b"").split(b"\n")[0].strip() in lines[element.line - 1]


def test_an_element_that_is_too_long_is_told_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    long = a_line("long", metadata={"text": "x, ]}\\" * 400_000})
    path.write_text(
        "[\n" + ",\n".join(json.dumps(e) for e in (a_line("a"), long, a_line("b"))) + "]"
    )
    assert places_of(path, max_line=1) == [("element 2 (line 3)", "line_too_long")]
    with InputFile(path, max_line=1) as file:
        assert requests_of(file) == [(1, "a"), (3, "b")]
    with InputFile(path, max_line=4) as file:
        assert requests_of(file) == [(1, "a"), (2, "long"), (3, "b")]


def test_a_long_array_needs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    element = json.dumps({**BODY, "messages": [{"role": "user", "content": "x" * 5000}]})
    path.write_text(f"[{', '.join([element] * 2000)}]")  # 10 MB in one line
    with InputFile(path) as file:
        tracemalloc.start()
        try:
            file.check()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 3 << 20


def test_elements_may_be_rows_of_data(tmp_path: Path) -> None:
    path = tmp_path / "in.json"
    path.write_text(json.dumps([{"key": 7, "text": "Hi"}, {"key": 8}, {"key": 9, "text": "Ho"}]))
    options: Any = {"model": "gpt", "template": "Say {{text}}", "id_column": "key"}
    options |= {"system": "Be brief", "parameters": {"seed": 1}}
    assert places_of(path, **options) == [("element 2 (line 1)", "missing_required_parameter")]
    with InputFile(path, **options) as file:
        assert requests_of(file) == [(1, "7"), (3, "9")]
        request = next(file.requests()).request
    assert [message["content"] for message in request.messages] == ["Be brief", "Say Hi"]
    assert request.kwargs == {"seed": 1}
