"""Options for what the requests of a file have in common: messages, parameters, ids, a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.batch_files import BODY, MESSAGES, a_line, refused, requests_of, write
from parallel_core import RouterParallelRequest
from parallel_core.files.batch_input import InputFile


def requests(path: Path, **options: Any) -> list[RouterParallelRequest]:
    with InputFile(path, **options) as file:
        assert file.check().problems == []
        return [found.request for found in file.requests()]


def fingerprint(path: Path, **options: Any) -> str:
    with InputFile(path, **options) as file:
        return file.check().fingerprint


TABLE = "id,text,language\na,Hello,German\n"


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_system_message_and_parameters_for_each_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(
        TABLE if name == "in.csv" else '{"id": "a", "text": "Hello", "language": "German"}\n'
    )
    options: dict[str, Any] = {
        "template": "Translate: {{text}}",
        "system": "You write {{language}}.",
        "parameters": {
            "temperature": 0,
            "top_k": 3,
            "timeout": 7,
            "response_format": {"type": "x"},
        },
        "model": "gpt",
    }
    (request,) = requests(path, **options)
    assert request == RouterParallelRequest(
        "gpt",
        [
            {"role": "system", "content": "You write German."},
            {"role": "user", "content": "Translate: Hello"},
        ],
        {"temperature": 0, "top_k": 3, "response_format": {"type": "x"}},
        7,
    )
    # They belong to the identity of a run, since they are sent.
    digests = {fingerprint(path, **options)}
    digests |= {fingerprint(path, **{**options, "system": "Be brief."})}
    digests |= {fingerprint(path, **{**options, "parameters": {"temperature": 1}})}
    digests |= {fingerprint(path, **{**options, "override_model": "other"})}
    assert len(digests) == 4


def test_text_has_them_too(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("Hello\n")
    (request,) = requests(path, model="gpt", system="Repeat: {{line}}", parameters={"seed": 1})
    assert [message["content"] for message in request.messages] == ["Repeat: Hello", "Hello"]
    assert request.kwargs == {"seed": 1}


def test_requests_share_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("one\ntwo\n")
    one, two = requests(path, model="gpt", parameters={"response_format": {"type": "x"}})
    assert one.kwargs is not None
    assert two.kwargs is not None
    assert one.kwargs["response_format"] is not two.kwargs["response_format"]


def test_parameters_fill_in_what_lines_do_not_have(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl",
        {**BODY, "temperature": 1},
        {**BODY, "temperature": None},
        {"custom_id": "a", "body": {**BODY, "seed": 3}},
        {"custom_id": "b", "params": {**BODY, "max_tokens": 9, "temperature": 0.5}},
        {**BODY, "top_k": 5},
    )
    found = requests(path, parameters={"temperature": 0, "top_k": 4}, drop_columns=True)
    assert [request.kwargs for request in found] == [
        {"temperature": 1, "top_k": 4},
        {"temperature": 0, "top_k": 4},
        {"seed": 3, "temperature": 0, "top_k": 4},
        {"max_tokens": 9, "temperature": 0.5, "top_k": 4},
        {"temperature": 0, "top_k": 4},  # its own top_k is a column
    ]


def test_a_parameter_must_not_clash_with_an_extra_body(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {**BODY, "extra_body": {"top_k": 5}})
    with InputFile(path, parameters={"top_k": 4}) as file:
        (problem,) = file.problems()
    assert (problem.code, "'top_k'" in problem.message) == ("forbidden_parameter", True)


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"tools": {}}, "tools must be an array"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more"),
        ({"timeout": 0}, "timeout must be more than 0 seconds"),
        ({"api_key": "x"}, "'api_key' must not come from a file"),
        ({"mock_response": "x"}, "'mock_response' must not come from a file"),
        ({"extra_body": {"model": "x"}}, "would replace what was checked"),
        ({"metadata": {"_x": 1}}, "'metadata._x'"),
        ({"model": "x"}, "--override-model"),
        ({"messages": []}, "--template"),
        ({"tools": [object()]}, "not JSON"),
    ],
)
def test_parameters_are_checked_as_those_of_a_line(
    tmp_path: Path, parameters: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "in.jsonl", BODY)
    if "JSON" in says:
        with pytest.raises(Exception, match=says):
            InputFile(path, parameters=parameters)
    else:
        assert says in refused(path, parameters=parameters)


def test_a_trusted_input_may_have_settings_as_parameters(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("Hello\n")
    (request,) = requests(path, model="gpt", parameters={"num_retries": 3}, trust_input=True)
    assert request.kwargs == {"num_retries": 3}


def test_an_id_column_names_the_requests(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl",
        {"prompt": "Hi", "prompt_id": "p-1", "messages": MESSAGES, "model": "gpt"},
        {"prompt_id": 2, "custom_id": "a column", "messages": MESSAGES, "model": "gpt"},
        {"custom_id": "c", "prompt_id": "p-3", "body": BODY},
        a_line("d"),
    )
    with InputFile(path, id_column="prompt_id", drop_columns=True) as file:
        assert requests_of(file) == [(1, "p-1"), (2, "2"), (3, "p-3"), (4, "d")]
        assert list(file.names()) == ["p-1", "2", "p-3", "d"]
        assert not file.check().named_by_line


@pytest.mark.parametrize("given", ["", None, [], 1.5, True])
def test_an_id_must_be_a_text_or_a_whole_number(tmp_path: Path, given: Any) -> None:
    path = write(tmp_path / "in.jsonl", {**BODY, "key": given})
    with InputFile(path, id_column="key") as file:
        (problem,) = file.problems()
    assert "key" in problem.message
    path = write(tmp_path / "in.jsonl", {"text": "Hi", "key": given})
    with InputFile(path, id_column="key", template="{{text}}", model="gpt") as file:
        (problem,) = file.problems()
    assert "key" in problem.message


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_every_row_needs_its_id(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("key,id,text\n,b,Hi\n" if name == "in.csv" else '{"id": "b", "text": "Hi"}\n')
    with InputFile(path, id_column="key", template="{{text}}", model="gpt") as file:
        (problem,) = file.problems()
    assert problem.code == "missing_required_parameter"
    assert "key" in problem.message


def test_a_table_may_be_named_by_any_column(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text("id,key,text\n1,x,Hi\n")
    with InputFile(path, id_column="key", template="{{text}}", model="gpt") as file:
        assert requests_of(file) == [(2, "x")]


def test_rows_of_data_as_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl",
        {"id": 7, "text": "one {{id}}", "tags": ["a", "ü"], "n": 1.5},
        {"id": "b", "text": "two", "tags": {}, "n": True, "source": "web"},
        {"text": "three", "tags": "plain", "n": 0},
        {"id": "d", "text": None, "tags": [], "n": 0},
        {"id": "e", "tags": [], "n": 0},
        {"id": 7, "text": "again", "tags": [], "n": 0},
    )
    options: dict[str, Any] = {"template": "{{text}} {{tags}} {{n}}", "model": "gpt"}
    with InputFile(path, keep=["source"], **options) as file:
        summary = file.check()
        assert [(one.line, one.code) for one in summary.problems] == [
            (4, "missing_required_parameter"),
            (5, "missing_required_parameter"),
            (6, "duplicate_custom_id"),
        ]
        assert summary.columns == []
        assert summary.named_by_line
        found = list(file.requests())
    assert {one.custom_id: one.request.messages[0]["content"] for one in found} == {
        "7": 'one {{id}} ["a","ü"] 1.5',
        "b": "two {} true",
        "3": "three plain 0",
    }
    assert found[0].returned is None
    assert found[1].returned is not None
    assert json.loads(bytes(found[1].returned["columns"])) == {"source": "web"}
    good = write(tmp_path / "good.jsonl", {"text": "x", "tags": [], "n": 0})
    assert "no line has a member 'source' to keep" in refused(good, keep=["source"], **options)


def test_a_row_with_an_empty_prompt_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {"id": "a", "text": " "}, "no object", b'{"text": "\xff"}')
    with InputFile(path, template="{{text}}", model="gpt") as file:
        assert [(one.custom_id, one.code) for one in file.problems()] == [
            ("a", "missing_required_parameter"),
            ("2", "invalid_json_line"),
            ("3", "invalid_encoding"),
        ]


def test_a_model_in_place_of_those_of_the_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl",
        BODY,
        a_line("a"),
        {"custom_id": "b", "params": {**BODY, "max_tokens": 9}},
        {"messages": MESSAGES},
    )
    found = requests(path, override_model="other", model="unused")
    assert [request.model for request in found] == ["other"] * 4


def test_rows_of_unicode_blanks_have_no_prompt(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("\u00a0\nHello\n", encoding="utf-8")
    with InputFile(path, model="gpt") as file:
        assert [one.line for one in file.check().problems] == [1]
        assert requests_of(file) == [(2, "2")]
