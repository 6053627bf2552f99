"""Lines for endpoints: which one they ask for, and what is refused before the first call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.batch_files import MESSAGES, write
from parallel_core import InputFile, InputFileError
from parallel_core.files.endpoints import ENDPOINTS, endpoint_of_url
from parallel_core.files.parameters import is_litellm_setting, parameters_of

GOOD: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": MESSAGES},
    "responses": {"model": "m", "input": "a", "instructions": "b", "max_output_tokens": 20},
    "embeddings": {"model": "m", "input": ["a", "b"], "dimensions": 3, "encoding_format": "float"},
    "completions": {"model": "m", "prompt": ["a"], "max_tokens": 3, "stop": ["x"], "n": 2},
    "moderations": {"model": "m", "input": [{"type": "text", "text": "a"}]},
    "rerank": {"model": "m", "query": "a", "documents": ["b", {"text": "c"}], "top_n": 1},
}
URLS = {
    "/v1/chat/completions": "chat",
    "https://api.openai.com/V1/Responses/": "responses",
    "/v1/embeddings": "embeddings",
    "/v1/completions": "completions",
    "/v1/moderations": "moderations",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/rerank": "rerank",
}


def body_line(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"custom_id": "a", "body": body, **more}


def endpoint_of(path: Path, **options: Any) -> str:
    with InputFile(path, **options) as file:
        (operation,) = file.check().operations
        (request,) = file.requests()
    assert (request.request.operation or "acompletion") == operation
    return next(one.name for one in ENDPOINTS.values() if one.operation == operation)


def problem_of(tmp_path: Path, *lines: Any, **options: Any) -> tuple[str, str, str]:
    with InputFile(write(tmp_path / "in.jsonl", *lines), **options) as file:
        (problem,) = file.problems()
    return problem.code, problem.message, problem.hint


# --- the endpoint of a line ---


@pytest.mark.parametrize(("url", "name"), URLS.items())
def test_the_url_of_a_line_says_its_endpoint(tmp_path: Path, url: str, name: str) -> None:
    found = endpoint_of_url(url)
    assert found is not None
    assert found.name == name
    path = write(tmp_path / "in.jsonl", body_line(GOOD[name], url=url))
    assert endpoint_of(path) == name
    assert endpoint_of(path, endpoint="chat") == name  # the option is for lines without a url


@pytest.mark.parametrize("name", GOOD)
def test_the_option_says_the_endpoint_of_lines_without_a_url(tmp_path: Path, name: Any) -> None:
    assert endpoint_of(write(tmp_path / "in.jsonl", GOOD[name]), endpoint=name) == name
    path = write(tmp_path / "in.jsonl", body_line(GOOD[name]))
    assert endpoint_of(path, endpoint=name) == name


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"messages": MESSAGES}, "chat"),
        ({"input": "a"}, "embeddings"),
        ({"input": ["a", "b"], "user": "u", "dimensions": 3}, "embeddings"),
        ({"input": [[1, 2]], "metadata": {"page": 1}}, "embeddings"),
        ({"prompt": "a", "max_tokens": 3}, "completions"),
        ({"query": "a", "documents": ["b"]}, "rerank"),
    ],
)
def test_the_members_of_a_line_say_its_endpoint(
    tmp_path: Path, body: dict[str, Any], name: str
) -> None:
    assert endpoint_of(write(tmp_path / "in.jsonl", {"model": "m", **body})) == name
    assert endpoint_of(write(tmp_path / "in.jsonl", body_line(body)), model="m") == name


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"input": "a", "instructions": "b"}, "embeddings and responses"),
        ({"input": [{"role": "user", "content": "a"}]}, "embeddings and responses"),
        ({"input": "a", "prompt": "b"}, "embeddings and completions"),
        ({"prompt": "b", "query": "a", "documents": ["b"]}, "completions and rerank"),
    ],
)
def test_members_that_fit_several_endpoints_are_refused(
    tmp_path: Path, body: dict[str, Any], names: str
) -> None:
    for line in ({"model": "m", **body}, body_line({"model": "m", **body})):
        code, message, hint = problem_of(tmp_path, line)
        assert (code, message) == ("ambiguous_endpoint", f"the members of the line fit {names}")
        assert "--endpoint" in hint


def test_messages_make_a_chat_of_rows_with_other_members(tmp_path: Path) -> None:
    """Rows as in ultrachat, and others."""
    row = {"prompt": "a", "prompt_id": "1", "messages": MESSAGES, "input": "b", "query": "c"}
    assert endpoint_of(write(tmp_path / "in.jsonl", row), model="m", drop_columns=True) == "chat"


def test_a_file_mixes_endpoints(tmp_path: Path) -> None:
    lines = [
        {"custom_id": name, "url": f"/v1/{path}", "body": GOOD[name]}
        for path, name in (
            *(("chat/completions", "chat"), ("responses", "responses"), ("rerank", "rerank")),
            *(("embeddings", "embeddings"), ("moderations", "moderations")),
            ("completions", "completions"),
        )
    ]
    with InputFile(write(tmp_path / "in.jsonl", *lines)) as file:
        summary = file.check()
        requests = {one.custom_id: one.request for one in file.requests()}
    assert summary.operations == {one.operation: 1 for one in ENDPOINTS.values()}
    assert {name: one.arguments for name, one in requests.items()} == GOOD


def test_there_is_no_such_endpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chat, responses, embeddings"):
        InputFile(tmp_path / "in.jsonl", endpoint="images")  # type: ignore[arg-type]


# --- texts and tables ---


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("embeddings", "input"),
        ("responses", "input"),
        ("moderations", "input"),
        ("completions", "prompt"),
    ],
)
def test_a_template_makes_the_text_of_an_endpoint(tmp_path: Path, name: Any, member: str) -> None:
    (table := tmp_path / "in.csv").write_text("id,text\na,one\nb,two\n")
    (text := tmp_path / "in.txt").write_text("one\ntwo\n")
    for path, template in ((table, "< {{text}}"), (text, "< {{line}}")):
        with InputFile(path, model="m", template=template, endpoint=name) as file:
            assert file.check().operations == {ENDPOINTS[name].operation: 2}
            requests = [one.request for one in file.requests()]
        assert [one.arguments for one in requests] == [
            {"model": "m", member: "< one"},
            {"model": "m", member: "< two"},
        ]
        assert not any(one.messages for one in requests)


def test_a_text_is_not_enough_for_a_reranking(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="rerank needs more than one text"):
        InputFile(tmp_path / "in.txt", model="m", endpoint="rerank")


# --- bodies ---


@pytest.mark.parametrize(
    ("name", "change", "code", "what"),
    [
        ("embeddings", {"input": None}, "missing_required_parameter", "input"),
        ("embeddings", {"input": []}, "invalid_request", "empty"),
        ("embeddings", {"input": 3}, "invalid_type", "input must be"),
        ("embeddings", {"input": ["a", 3]}, "invalid_type", "input must be"),
        ("embeddings", {"input": [[1], []]}, "invalid_type", "input must be"),
        ("embeddings", {"dimensions": "3"}, "invalid_type", "dimensions must be a number"),
        ("embeddings", {"dimensions": 0}, "invalid_request", "1 or more"),
        ("embeddings", {"encoding_format": 3}, "invalid_type", "encoding_format"),
        ("embeddings", {"messages": MESSAGES}, "invalid_request", "messages"),
        ("embeddings", {"stream": True}, "invalid_request", "stream is only for chat"),
        ("embeddings", {"model": 3}, "invalid_type", "model must be a string"),
        ("embeddings", {"model": ""}, "invalid_request", "model is empty"),
        ("embeddings", {"timeout": 0}, "invalid_request", "timeout"),
        ("responses", {"input": {}}, "invalid_type", "input must be"),
        ("responses", {"input": ["a"]}, "invalid_type", "input must be"),
        ("responses", {"instructions": ["a"]}, "invalid_type", "instructions"),
        ("responses", {"tools": {}}, "invalid_type", "tools must be an array"),
        ("responses", {"max_output_tokens": "9"}, "invalid_type", "max_output_tokens"),
        ("responses", {"stream": True}, "invalid_request", "stream"),
        ("responses", {"background": True}, "invalid_request", "background"),
        ("responses", {"messages": MESSAGES}, "invalid_request", "messages"),
        ("completions", {"prompt": None}, "missing_required_parameter", "prompt"),
        ("completions", {"prompt": {"a": 1}}, "invalid_type", "prompt must be"),
        ("completions", {"stop": [1]}, "invalid_type", "stop must be"),
        ("completions", {"stream": True}, "invalid_request", "stream"),
        ("completions", {"n": 0}, "invalid_request", "n must be 1 or more"),
        ("completions", {"messages": MESSAGES}, "invalid_request", "messages"),
        ("moderations", {"input": True}, "invalid_type", "input must be"),
        ("moderations", {"top_k": 3}, "invalid_request", "would not reach the provider"),
        ("moderations", {"extra_body": {"a": 1}}, "invalid_request", "would not reach"),
        ("rerank", {"documents": "a"}, "invalid_type", "documents must be an array"),
        ("rerank", {"documents": None}, "missing_required_parameter", "documents"),
        ("rerank", {"query": 3}, "invalid_type", "query must be"),
        ("rerank", {"top_n": 0}, "invalid_request", "top_n"),
        ("rerank", {"priority": 3}, "invalid_request", "would not reach the provider"),
    ],
)
def test_what_every_provider_refuses_is_refused_before_the_first_call(
    tmp_path: Path, name: Any, change: dict[str, Any], code: str, what: str
) -> None:
    body = {**GOOD[name], **change}
    found, message, hint = problem_of(tmp_path, body_line(body), endpoint=name)
    assert (found, what in message) == (code, True), message
    assert hint
    assert "secret" not in message + hint


FORBIDDEN = ("api_key", "api_base", "extra_headers", "fallbacks", "num_retries", "client", "azure")


@pytest.mark.parametrize("name", GOOD)
def test_settings_of_litellm_are_forbidden_for_every_endpoint(tmp_path: Path, name: Any) -> None:
    """So are keys and addresses in ``extra_body``, and its own metadata."""
    for setting in (*FORBIDDEN, "mock_response", "custom_llm_provider", "litellm_metadata"):
        body = {**GOOD[name], setting: "x"}
        code, message, _ = problem_of(tmp_path, body_line(body), endpoint=name)
        assert (code, setting in message) == ("forbidden_parameter", True)
    for more in (
        {"extra_body": {"api_base": "http://x"}},
        {"extra_body": {"model": "other"}},
        {"metadata": {"litellm_x": 1}},
    ):
        code, _, _ = problem_of(tmp_path, body_line({**GOOD[name], **more}), endpoint=name)
        assert code == "forbidden_parameter"


def test_litellm_does_not_call_tools_of_a_file_by_itself(tmp_path: Path) -> None:
    tool = {"type": "mcp", "server_label": "x", "server_url": "litellm_proxy/mcp"}
    body = {**GOOD["responses"], "tools": [tool]}
    code, message, _ = problem_of(tmp_path, body_line(body), endpoint="responses")
    assert (code, "litellm_proxy" in message) == ("forbidden_parameter", True)


@pytest.mark.parametrize("name", GOOD)
def test_openais_parameters_of_an_endpoint_are_sent_and_others_are_columns(
    tmp_path: Path, name: Any
) -> None:
    parameters = parameters_of(ENDPOINTS[name].operation)
    assert {"model"} < parameters
    assert not any(is_litellm_setting(one, ENDPOINTS[name].operation) for one in parameters)
    row = {**GOOD[name], "source": "web", "temprature": 1}
    with InputFile(write(tmp_path / "in.jsonl", row), endpoint=name) as file:
        columns = file.check().columns
    assert [one.name for one in columns] == ["source", "temprature"]
    with InputFile(
        write(tmp_path / "in.jsonl", row), endpoint=name, drop_columns=True, keep=["source"]
    ) as file:
        (request,) = file.requests()
    assert request.request.arguments == GOOD[name]
    assert request.returned is not None
    assert bytes(request.returned["columns"]) == b'{"source":"web"}'


def test_metadata_comes_back_and_is_sent_where_it_is_a_parameter(tmp_path: Path) -> None:
    for name, is_sent in (("embeddings", False), ("responses", True), ("rerank", False)):
        row = {**GOOD[name], "metadata": {"page": "1"}}
        path = write(tmp_path / "in.jsonl", row)
        with InputFile(path, endpoint=name) as file:  # type: ignore[arg-type]
            (request,) = file.requests()
        assert ("metadata" in request.request.arguments) is is_sent
        assert request.returned is not None
        assert bytes(request.returned["metadata"]) == b'{"page":"1"}'


def test_vendor_parameters_of_a_response_go_into_extra_body(tmp_path: Path) -> None:
    """litellm would leave them out where they are."""
    body = {**GOOD["responses"], "top_k": 3, "extra_body": {"min_p": 0.1}}
    with InputFile(write(tmp_path / "in.jsonl", body_line(body)), endpoint="responses") as file:
        assert file.check().problems == []
        (request,) = file.requests()
    expected = {**GOOD["responses"], "extra_body": {"top_k": 3, "min_p": 0.1}}
    assert request.request.arguments == expected
