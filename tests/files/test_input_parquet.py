"""Requests from Parquet and Arrow: by columns as from CSV, and rows that are requests."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from helpers.batch_files import BODY, MESSAGES, refused, requests_of
from helpers.table_files import CHATS, WRITERS, by_arrow_stream, by_polars
from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile


def table_of(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def prompts_of(path: Path, template: str, **options: Any) -> list[str]:
    with InputFile(path, model="gpt", template=template, **options) as file:
        assert file.check().problems == []
        return [request.request.messages[0]["content"] for request in file.requests()]


@pytest.mark.parametrize("name", WRITERS)
def test_rows_with_messages_are_plain_lines(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    with InputFile(path, model="gpt", keep=["prompt_id"], drop_columns=True) as file:
        summary = file.check()
        requests = list(file.requests())
    assert (summary.format, summary.unit) == (path.suffix[1:].replace("feather", "arrow"), "row")
    assert (summary.requests, summary.problems) == (100, [])
    assert [(request.line, request.custom_id) for request in requests[:2]] == [(1, "1"), (2, "2")]
    for request, chat in zip(requests, CHATS, strict=True):
        assert request.request.messages == chat["messages"]
        assert request.returned is not None
        assert json.loads(bytes(request.returned["columns"])) == {"prompt_id": chat["prompt_id"]}


@pytest.mark.parametrize("name", WRITERS)
def test_a_template_makes_prompts_of_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    prompts = prompts_of(path, "{{prompt_id}}: {{prompt}}")
    assert prompts == [f"{chat['prompt_id']}: {chat['prompt']}" for chat in CHATS]


def test_a_table_is_known_by_its_contents(tmp_path: Path) -> None:
    path = tmp_path / "no ending"
    by_polars(path)
    with InputFile(path, model="gpt", drop_columns=True) as file:
        assert file.check().format == "parquet"
    assert len(prompts_of(path, "{{prompt}}")) == 100
    content = path.read_bytes()
    with InputFile(
        "-", model="gpt", template="{{prompt}}", standard_input=io.BytesIO(content)
    ) as file:
        assert len(list(file.requests())) == 100
    assert "leave out --format" in refused(path, format="jsonl")
    path = tmp_path / "in.parquet"
    path.write_text(json.dumps(BODY))
    assert "it has another format" in refused(path)
    with InputFile(path, format="jsonl") as file:
        assert requests_of(file) == [(1, "1")]


def test_batch_lines_may_be_rows(tmp_path: Path) -> None:
    body = {**BODY, "temperature": 0.5, "max_tokens": None}
    path = table_of(
        tmp_path / "in.parquet",
        custom_id=pa.array(["a", "b", None]),
        method=pa.array(["POST", None, "GET"]),
        url=["/v1/chat/completions"] * 3,
        body=[body, {**body, "max_tokens": 7}, body],
    )
    with InputFile(path) as file:
        (problem,) = file.check().problems
        requests = list(file.requests())
    assert (problem.where, problem.code) == ("row 3", "invalid_method")
    assert [(request.line, request.custom_id) for request in requests] == [(1, "a"), (2, "b")]
    assert [request.request.kwargs for request in requests] == [
        {"temperature": 0.5},
        {"temperature": 0.5, "max_tokens": 7},
    ]


def test_null_members_of_a_struct_are_not_there(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]
    path = table_of(tmp_path / "in.parquet", messages=[messages], custom_id=[7])
    with InputFile(path, model="gpt") as file:
        (request,) = file.requests()
    assert request.custom_id == "7"
    assert request.request.messages == messages


def test_parameters_may_be_columns(tmp_path: Path) -> None:
    path = table_of(
        tmp_path / "in.parquet",
        messages=[MESSAGES, MESSAGES],
        model=["one", None],
        temperature=pa.array([decimal.Decimal("0.5"), None]),
        n=pa.array([None, 1], pa.int8()),
    )
    with InputFile(path, model="gpt") as file:
        found = [(r.request.model, r.request.kwargs) for r in file.requests()]
    assert found == [("one", {"temperature": 0.5}), ("gpt", {"n": 1})]


def test_columns_that_are_no_parameters_are_told_by_their_rows(tmp_path: Path) -> None:
    path = table_of(tmp_path / "in.parquet", messages=[MESSAGES] * 3, source=[None, "web", "b"])
    with (
        InputFile(path, model="gpt") as file,
        pytest.raises(InputFileError, match="'source': 2 rows, first in row 2"),
    ):
        list(file.requests())
    with InputFile(path, model="gpt", keep=["source"]) as file:
        kept = [bytes((request.returned or {})["columns"]) for request in file.requests()]
    assert kept == [b'{"source":null}', b'{"source":"web"}', b'{"source":"b"}']


NOON = datetime.datetime(2026, 5, 4, 12, 30, 15, 250)
VALUES: dict[str, tuple[Any, str]] = {
    "text": ("a {{b}} \n", "a {{b}} \n"),
    "null": (None, ""),
    "number": (3, "3"),
    "float": (0.5, "0.5"),
    "decimal": (decimal.Decimal("1.50"), "1.50"),
    "true": (True, "true"),
    "date": (NOON.date(), "2026-05-04"),
    "time": (NOON.time(), "12:30:15.000250"),
    "datetime": (NOON, "2026-05-04T12:30:15.000250"),
    "zoned": (NOON.replace(tzinfo=datetime.UTC), "2026-05-04T12:30:15.000250Z"),
    "list": ([1, None, "é"], '[1,null,"é"]'),
    "struct": (
        {"a": {"b": [NOON]}, "c": None},
        '{"a":{"b":["2026-05-04T12:30:15.000250"]},"c":null}',
    ),
    "bytes": ("é".encode(), "é"),
}
VALUES["list"] = ([1, None, 2], "[1,null,2]")


def test_values_become_texts(tmp_path: Path) -> None:
    path = table_of(
        tmp_path / "in.parquet", **{name: [value] for name, (value, _) in VALUES.items()}
    )
    template = "|".join(f"{{{{{name}}}}}" for name in VALUES)
    assert prompts_of(path, template) == ["|".join(text for _, text in VALUES.values())]


@pytest.mark.parametrize(
    "type_",
    [
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
        pa.binary(),
    ],
    ids=str,
)
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_texts_of_each_type_are_read(tmp_path: Path, type_: Any, ending: str) -> None:
    texts = [None if number % 7 == 0 else f"text é {number % 5}" for number in range(100)]
    column = pa.array(texts, pa.string())
    column = (
        column.dictionary_encode().cast(type_)
        if pa.types.is_dictionary(type_)
        else column.cast(type_)
    )
    path = tmp_path / f"in.{ending}"
    table = pa.table({"text": column})
    if ending == "parquet":
        pq.write_table(table, path)
    else:
        feather.write_feather(table, path)
    assert prompts_of(path, "<{{text}}>") == [f"<{text or ''}>" for text in texts]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_each_unit_are_read(tmp_path: Path, unit: str) -> None:
    path = table_of(
        tmp_path / "in.parquet",
        plain=pa.array([NOON], pa.timestamp("us")).cast(pa.timestamp(unit), safe=False),
        nested=pa.array([[1_000_000_001]], pa.list_(pa.timestamp("ns"))),
        zoned=pa.array([0], pa.timestamp(unit, "Europe/Berlin")),
    )
    fraction = ".000250" if unit in ("us", "ns") else ""
    assert prompts_of(path, "{{plain}} {{nested}} {{zoned}}") == [
        f'2026-05-04T12:30:15{fraction} ["1970-01-01T00:00:01"] 1970-01-01T01:00:00+01:00'
    ]


def test_kept_columns_have_their_values(tmp_path: Path) -> None:
    path = table_of(
        tmp_path / "in.parquet",
        id=[10, 11],
        text=["one", "two"],
        number=[1.5, None],
        tags=[["a"], []],
        day=[NOON.date()] * 2,
        raw=[b"\xff", b""],
    )
    with InputFile(
        path, model="gpt", template="{{text}}", keep=["number", "tags", "day", "raw"]
    ) as file:
        assert not file.check().named_by_line
        requests = list(file.requests())
    assert [(request.line, request.custom_id) for request in requests] == [(1, "10"), (2, "11")]
    assert [json.loads(bytes((r.returned or {})["columns"])) for r in requests] == [
        {"number": 1.5, "tags": ["a"], "day": "2026-05-04", "raw": "/w=="},
        {"number": None, "tags": [], "day": "2026-05-04", "raw": ""},
    ]


def test_rows_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    bad = pa.array([b"good", b"\xff", b"good", b"good"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 4, bad.buffers())
    path = table_of(
        tmp_path / "in.parquet",
        id=["a", "b", "a", ""],
        text=texts,
        raw=bad,
        late=pa.array([0, 0, 2**40, 0], pa.timestamp("s")),
        messages=[MESSAGES] * 4,
    )

    def problems(template: str | None, **options: Any) -> list[tuple[str, str]]:
        with InputFile(path, model="gpt", template=template, **options) as file:
            return [(problem.where, problem.code) for problem in file.check().problems]

    assert problems("{{text}}") == [
        ("row 2", "invalid_encoding"),
        ("row 3", "duplicate_custom_id"),
        ("row 4", "missing_required_parameter"),
    ]
    assert problems("{{raw}}")[0] == ("row 2", "invalid_encoding")
    assert problems("{{id}}{{late}}")[0] == ("row 3", "invalid_encoding")
    assert problems(None, drop_columns=True) == [
        ("row 2", "invalid_encoding"),
        ("row 3", "invalid_encoding"),
    ]


def test_a_row_that_is_too_long_is_told(tmp_path: Path) -> None:
    texts = ["a", "x" * 5000, "b"]
    path = table_of(
        tmp_path / "in.parquet",
        text=texts,
        messages=[[{"role": "user", "content": text}] for text in texts],
    )
    for options in ({"template": "{{text}}"}, {"drop_columns": True}):
        with InputFile(path, model="gpt", max_line=4000 / 2**20, **options) as file:
            (problem,) = file.check().problems
            assert requests_of(file) == [(1, "1"), (3, "3")]
        assert (problem.where, problem.code) == ("row 2", "line_too_long")


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = table_of(tmp_path / "in.parquet", text=["one"] * 1000, other=["two"] * 1000)
    told = refused(path)
    assert "no column that holds requests, such as messages, input or body" in told
    assert '--template "{{text}}"' in told
    other = table_of(tmp_path / "other.parquet", one=["a"], two=["b"])
    assert '--template "{{two}}"' in refused(other)
    assert "--model" in refused(path, template="{{text}}")
    assert "columns of the file are: 'text', 'other'" in refused(
        path, template="{{no}}", model="gpt"
    )
    assert "no column 'no' to keep" in refused(path, template="{{text}}", model="gpt", keep=["no"])
    content = path.read_bytes()
    for broken in (content[:-1], content[: len(content) // 2], b"PAR1" + bytes(100), b"PAR1"):
        path.write_bytes(broken)
        assert "cannot be read as Parquet: it is broken" in refused(path)
    pq.write_table(pa.table([["a"], ["b"]], names=["one", "one"]), path)
    assert "the same name" in refused(path, template="{{one}}", model="gpt")
    arrow = tmp_path / "in.arrow"
    by_arrow_stream(arrow)
    content = arrow.read_bytes()
    for broken in (content[: len(content) // 2], content[:20], b"ARROW1" + bytes(30)):
        arrow.write_bytes(broken)
        assert "cannot be read as Arrow: it is broken" in refused(arrow, drop_columns=True)
    arrow.write_bytes(b"FEA1" + bytes(30))
    assert "save the table as Parquet" in refused(arrow)


def test_a_page_that_is_broken_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": [os.urandom(20).hex() for _ in range(1000)]}), path)
    content = bytearray(path.read_bytes())
    content[2000:4000] = bytes(2000)
    path.write_bytes(content)
    assert "cannot be read as Parquet" in refused(path, template="{{text}}", model="gpt")


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table_of(tmp_path / "in.parquet", text=["one"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'parallel_core[parquet]'" in refused(path)


def test_a_table_that_changes_is_refused(tmp_path: Path) -> None:
    texts = [os.urandom(2000).hex() for _ in range(1500)]  # more than one block
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": texts}), path, compression="none")
    content = path.read_bytes()
    place = content.index(texts[1400].encode()) + 10
    with InputFile(path, model="gpt", template="{{text}}") as file:
        requests = file.requests()
        drawn = [next(requests)]
        with path.open("r+b") as middle:
            middle.seek(place)
            middle.write(b"evil")
        with pytest.raises(InputFileError, match="changed since it was checked"):
            drawn += requests
        assert "evil" not in str([request.request.messages for request in drawn])
        path.write_bytes(content)
        assert len(list(file.requests())) == 1500
        path.write_bytes(content + b"more")
        with pytest.raises(InputFileError, match="changed since it was checked"):
            next(file.requests())


@pytest.mark.thorough  # a large file
def test_a_large_table_needs_little_memory(tmp_path: Path) -> None:
    texts = [os.urandom(10_000).hex() for _ in range(4000)]  # 80 MB, in one group of rows
    table = pa.table({"text": texts, "same": ["y" * 20_000] * 4000})
    path = tmp_path / "in.parquet"
    pq.write_table(table, path, row_group_size=4000, write_batch_size=16)  # pages of 1 MB
    del table
    del texts
    before = pa.total_allocated_bytes()
    most = 0
    with InputFile(path, model="gpt", template="{{text}}{{same}}") as file:
        tracemalloc.start()
        try:
            file.check()
            for _ in file.requests():
                most = max(most, pa.total_allocated_bytes() - before)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 12 << 20
    assert most < 24 << 20


def test_rows_take_what_requests_have_in_common(tmp_path: Path) -> None:
    path = table_of(tmp_path / "in.parquet", key=[7, 8], messages=[MESSAGES, MESSAGES])
    options: Any = {"id_column": "key", "override_model": "other", "parameters": {"seed": 1}}
    with InputFile(path, **options) as file:
        assert requests_of(file) == [(1, "7"), (2, "8")]
        request = next(file.requests()).request
    assert (request.model, request.kwargs) == ("other", {"seed": 1})
    assert prompts_of(path, "{{key}}?", id_column="key", system="Be brief") == ["Be brief"] * 2


def test_a_column_is_embedded(tmp_path: Path) -> None:
    path = table_of(tmp_path / "in.parquet", id=["a"], text=["Hi"])
    options: Any = {"model": "small", "endpoint": "embeddings", "parameters": {"dimensions": 8}}
    with InputFile(path, template="{{text}}", **options) as file:
        request = next(file.requests()).request
    assert request.operation == "aembedding"
    assert request.arguments == {"model": "small", "input": "Hi", "dimensions": 8}
    assert "--system is for chat" in refused(path, template="{{text}}", system="x", **options)
    path = table_of(tmp_path / "in.parquet", prompt=["Hi"])
    with InputFile(path, model="small", endpoint="completions") as file:
        assert next(file.requests()).request.operation == "atext_completion"
