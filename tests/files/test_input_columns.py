"""Members of a line that are no parameters: named, kept, dropped or sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from helpers.batch_files import BODY, a_line, problems_of, write
from parallel_core.errors import InputFileError
from parallel_core.files.batch_input import InputFile

ROWS = [
    {**BODY, "id": f"row-{number}", "prompt_id": number, "source": {"page": [number, None]}}
    for number in range(3)
]


def test_columns_are_named_once_and_nothing_is_sent(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", BODY, *ROWS, {**BODY, "temprature": 0.2, "\x1b": 1})
    with InputFile(path) as file:
        summary = file.check()
        assert summary.problems == []
        assert [(column.name, column.lines, column.first_line) for column in summary.columns] == [
            ("id", 3, 2),
            ("prompt_id", 3, 2),
            ("source", 3, 2),
            ("temprature", 1, 5),
            ("\x1b", 1, 5),
        ]
        with pytest.raises(InputFileError) as caught:
            next(file.requests())
    told = str(caught.value)
    assert "'source': 3 lines, first in line 2" in told
    assert "'temprature': 1 line, first in line 5 (is temperature meant?)" in told
    for option in ("--keep id", "--drop-columns", "--send-columns"):
        assert option in told
    assert "\x1b" not in told


def test_a_million_names_of_columns_are_not_all_kept(tmp_path: Path) -> None:
    rows = ({**BODY, f"column {number}": 1} for number in range(1200))
    with InputFile(write(tmp_path / "in.jsonl", *rows)) as file:
        assert len(file.check().columns) == 1000
        with pytest.raises(InputFileError, match="and 980 more"):
            next(file.requests())


@pytest.mark.parametrize("options", [{"drop_columns": True}, {"send_columns": True}])
def test_columns_are_kept_dropped_or_sent(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write(tmp_path / "in.jsonl", *({**row, "top_k": 5, "temperature": 1} for row in ROWS))
    with InputFile(path, keep=["source", "id", "prompt_id"], **options) as file:
        requests = list(file.requests())
    rest = {"temperature": 1} if "drop_columns" in options else {"top_k": 5, "temperature": 1}
    assert [request.request.kwargs for request in requests] == [rest] * 3
    for row, request in zip(ROWS, requests, strict=True):
        assert request.returned is not None
        assert json.loads(bytes(request.returned["columns"])) == {
            name: row[name] for name in ("id", "prompt_id", "source")
        }
    # The names of requests stay what they were: an id is a column.
    assert [request.custom_id for request in requests] == ["1", "2", "3"]


def test_a_setting_of_litellm_is_not_sent_as_a_column(tmp_path: Path) -> None:
    given = {"api_base": "http://x", "api_key": "none", "top_k": 2}
    path = write(tmp_path / "in.jsonl", {**BODY, **given})
    assert problems_of(path, send_columns=True) == [(1, "forbidden_parameter")]
    with InputFile(path, send_columns=True) as file:
        (problem,) = file.problems()
    assert "--keep" in problem.hint
    assert "--drop-columns" in problem.hint
    with InputFile(path, drop_columns=True) as file:
        assert [request.request.kwargs for request in file.requests()] == [None]
    with InputFile(path, send_columns=True, trust_input=True) as file:
        assert [request.request.kwargs for request in file.requests()] == [given]


def test_members_beside_a_body_are_never_sent_and_may_be_kept(tmp_path: Path) -> None:
    line = a_line(source="web", metadata={"row": 7}, body={**BODY, "metadata": {"sent": "yes"}})
    path = write(tmp_path / "in.jsonl", line, a_line("b", body={**BODY, "metadata": {"a": "b"}}))
    with InputFile(path, keep=["source"]) as file:
        first, second = file.requests()
    assert first.request.kwargs == {"metadata": {"sent": "yes"}}
    assert first.returned == {
        "metadata": msgspec.Raw(b'{"row":7}'),
        "columns": msgspec.Raw(b'{"source":"web"}'),
    }
    assert second.returned == {"metadata": msgspec.Raw(b'{"a":"b"}')}


def test_columns_of_a_table_may_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text('id,text,language\nr-1,Good,\nr-2,"a\nb",en\n')
    with InputFile(path, template="{{text}}", model="gpt", keep=["language", "id"]) as file:
        requests = list(file.requests())
    assert [request.custom_id for request in requests] == ["r-1", "r-2"]
    assert [request.returned for request in requests] == [
        {"columns": msgspec.Raw(b'{"language":"","id":"r-1"}')},
        {"columns": msgspec.Raw(b'{"language":"en","id":"r-2"}')},
    ]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("in.jsonl", {"keep": ["sorce"]}, "no line has a member 'sorce'"),
        ("in.jsonl", {"keep": ["custom_id"]}, "custom_id is in each line of the output anyway"),
        ("in.jsonl", {"drop_columns": True, "send_columns": True}, "dropped or sent, not both"),
        ("in.csv", {"keep": ["sorce"], "template": "{{a}}", "model": "m"}, "no column 'sorce'"),
        ("in.csv", {"send_columns": True, "template": "{{a}}", "model": "m"}, "no parameters"),
        ("in.txt", {"keep": ["line"], "model": "m"}, "no columns to keep"),
    ],
)
def test_options_for_columns_that_make_no_sense_are_refused(
    tmp_path: Path, name: str, options: dict[str, Any], reason: str
) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(ROWS[0]) if name.endswith("jsonl") else "a,b\n1,2\n")
    with pytest.raises(InputFileError, match=reason), InputFile(path, **options) as file:
        file.check()


def test_what_decides_on_the_request_is_in_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", *({**row, "top_k": 5} for row in ROWS))

    def fingerprint(**options: Any) -> str:
        with InputFile(path, **options) as file:
            return file.check().fingerprint

    kept = ("id", "prompt_id", "source")
    same = {
        fingerprint(),
        fingerprint(drop_columns=True),
        fingerprint(keep=["id"], drop_columns=True),
    }
    sent = {
        fingerprint(keep=kept, send_columns=True),
        fingerprint(keep=kept[::-1], send_columns=True),
    }
    assert (len(same), len(sent), len(same | sent)) == (1, 1, 2)


def test_a_value_that_is_null_is_not_called_missing(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": null}\n{"other": 1}\n')
    with InputFile(path, template="{{text}}", model="gpt") as file:
        null, missing = file.check().problems
    assert null.message == "text is null"
    assert missing.message == "text is missing"
    assert null.hint.startswith("fill it in")
