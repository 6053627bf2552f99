"""Files of requests and files of results: what they may hold, and what they must not."""

from __future__ import annotations

import csv
import http.server
import io
import json
import math
import os
import re
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import ASYNCIO_HOSTS
from helpers.routers import make_router, run_with_routers
from parallel_core import (
    BatchDeadlineError,
    BudgetExceededError,
    CallCancelledError,
    InvalidRequestError,
    RequestTimeoutError,
    RouterParallelRequest,
    RouterParallelResult,
    StreamInterruptedError,
    StreamStalledError,
    Usage,
    _input_members,
)
from parallel_core.batch_input import InputFile, InputProblem
from parallel_core.batch_output import (
    OutputLine,
    Redactor,
    call_statistics,
    has_answer,
    parse_output_line,
    problem_line,
    result_line,
)
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.errors import InputFileError
from parallel_core.run_statistics import CallStatistics, read_statistics, statistics_line

KEY = "sk-secret-key"  # of the routers
MESSAGES = [{"role": "user", "content": "a secret prompt"}]
BODY = {"model": "gpt", "messages": MESSAGES}


def a_line(custom_id: Any = "a", **more: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "body": BODY, **more}


def write(path: Path, *lines: Any) -> Path:
    path.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
    )
    return path


def requests_of(file: InputFile) -> list[tuple[int, str]]:
    return [(request.line, request.custom_id) for request in file.requests()]


def problems_of(path: Path, **options: Any) -> list[tuple[int, str]]:
    with InputFile(path, **options) as file:
        return [(problem.line, problem.code) for problem in file.problems()]


# --- lines of JSON ---


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


def with_body(more: dict[str, Any]) -> dict[str, Any]:
    return a_line(body={**BODY, **more})


def with_messages(*messages: Any) -> dict[str, Any]:
    return {**BODY, "messages": [*MESSAGES, *messages]}


BAD_LINES: list[tuple[str, Any, str]] = [
    ("no json", b"{", "invalid_json_line"),
    ("nothing but zeros", b"\0" * 20, "invalid_json_line"),
    ("nested too deeply", b"[" * 100_000, "invalid_json_line"),
    ("half a character", b'{"custom_id": "\\ud800"}', "invalid_json_line"),
    ("an array", [a_line()], "invalid_json_line"),
    ("a number", 7, "invalid_json_line"),
    ("not utf-8", b'{"custom_id": "\xff"}', "invalid_encoding"),
    ("id: number", a_line(7), "invalid_type"),
    ("id: null", a_line(None), "invalid_type"),
    ("id: array", a_line([]), "invalid_type"),
    ("id: empty", a_line(""), "missing_required_parameter"),
    ("id: missing", {"body": BODY}, "missing_required_parameter"),
    ("body: missing", {"custom_id": "a", "method": "POST"}, "missing_required_parameter"),
    ("body: text", {"custom_id": "a", "body": "text"}, "invalid_type"),
    ("body: null", {"custom_id": "a", "body": None}, "invalid_type"),
    ("method: GET", a_line(method="GET"), "invalid_method"),
    ("method: null", a_line(method=None), "invalid_method"),
    ("url: embeddings", a_line(url="/v1/embeddings"), "unsupported_url"),
    ("url: number", a_line(url=1), "unsupported_url"),
    ("model: missing", {"messages": MESSAGES}, "missing_required_parameter"),
    ("model: number", {**BODY, "model": 4}, "invalid_type"),
    ("messages: missing", {"model": "gpt"}, "missing_required_parameter"),
    ("messages: text", {**BODY, "messages": "text"}, "invalid_type"),
    ("messages: none", {**BODY, "messages": []}, "invalid_request"),
    ("message: text", {**BODY, "messages": ["text"]}, "invalid_type"),
    ("message without role", {**BODY, "messages": [{"content": "a"}]}, "invalid_request"),
    ("kwargs", with_body({"kwargs": {}}), "forbidden_parameter"),
    ("metadata: text", {**BODY, "metadata": "text"}, "invalid_type"),
    ("anthropic", {"custom_id": "a", "params": BODY}, "missing_required_parameter"),
    ("api_key", with_body({"api_key": KEY}), "forbidden_parameter"),
    ("api_base", with_body({"api_base": "http://x"}), "forbidden_parameter"),
    ("base_url", with_body({"base_url": "http://x"}), "forbidden_parameter"),
    ("mock_response", with_body({"mock_response": "made up"}), "forbidden_parameter"),
    ("headers", with_body({"extra_headers": {"Authorization": KEY}}), "forbidden_parameter"),
    ("fallbacks", with_body({"fallbacks": ["other"]}), "forbidden_parameter"),
    ("aws keys", with_body({"aws_secret_access_key": KEY}), "forbidden_parameter"),
    ("key in extra_body", with_body({"extra_body": {"api_key": KEY}}), "forbidden_parameter"),
    ("self", with_body({"self": 1}), "forbidden_parameter"),
    ("no TLS", with_body({"ssl_verify": False}), "forbidden_parameter"),
    ("retries", with_body({"num_retries": 99}), "forbidden_parameter"),
    ("retries of the client", with_body({"max_retries": 99}), "forbidden_parameter"),
    ("openai params", with_body({"allowed_openai_params": ["x"]}), "forbidden_parameter"),
    ("a silent copy", with_body({"silent_model": "other"}), "forbidden_parameter"),
    ("a proxy", with_body({"use_litellm_proxy": True}), "forbidden_parameter"),
    ("a file as a token", with_body({"anthropic_identity_token_file": "x"}), "forbidden_parameter"),
    ("an inner argument", with_body({"_is_litellm_internal_call": True}), "forbidden_parameter"),
    ("litellm's own", with_body({"litellm_metadata": {}}), "forbidden_parameter"),
    ("callbacks", with_body({"success_callback": ["x"]}), "forbidden_parameter"),
    ("another model", with_body({"model_id": "x"}), "forbidden_parameter"),
    ("a deployment", with_body({"specific_deployment": True}), "forbidden_parameter"),
    ("retries of litellm", with_body({"model_group_retry_policy": {}}), "forbidden_parameter"),
    ("private metadata", with_body({"metadata": {"_x": 1}}), "forbidden_parameter"),
    ("extra_body: list", with_body({"extra_body": []}), "invalid_type"),
    ("extra_body: headers", with_body({"extra_body": {"headers": {}}}), "forbidden_parameter"),
    ("extra_body: messages", with_body({"extra_body": {"messages": []}}), "forbidden_parameter"),
    ("extra_body: model", {**BODY, "extra_body": {"model": "x"}}, "forbidden_parameter"),
    ("extra_body: stream", with_body({"extra_body": {"stream": True}}), "forbidden_parameter"),
    ("extra_body: n", with_body({"extra_body": {"n": 100}}), "forbidden_parameter"),
    ("extra_body: max", {**BODY, "extra_body": {"max_tokens": 10**6}}, "forbidden_parameter"),
    (
        "extra_body: twice",
        with_body({"top_k": 1, "extra_body": {"top_k": 2}}),
        "forbidden_parameter",
    ),
    ("role: unknown", with_messages({"role": "usr", "content": "a"}), "invalid_request"),
    ("role: number", with_messages({"role": 1, "content": "a"}), "invalid_type"),
    ("content: number", with_messages({"role": "user", "content": 5}), "invalid_type"),
    ("content: object", with_messages({"role": "user", "content": {"a": 1}}), "invalid_type"),
    ("content: null", with_messages({"role": "user", "content": None}), "invalid_type"),
    ("content: missing", with_messages({"role": "system"}), "invalid_type"),
    ("content of a tool: null", with_messages({"role": "tool", "content": None}), "invalid_type"),
    ("a part: number", with_messages({"role": "user", "content": ["a", 1]}), "invalid_type"),
    ("temperature: text", {**BODY, "temperature": "0.7"}, "invalid_type"),
    ("temperature: array", with_body({"temperature": [0.7]}), "invalid_type"),
    ("top_p: boolean", {**BODY, "top_p": True}, "invalid_type"),
    ("max_tokens: text", with_body({"max_tokens": "100"}), "invalid_type"),
    ("max_tokens: a fraction", {**BODY, "max_completion_tokens": 99.5}, "invalid_type"),
    ("n: boolean", {**BODY, "n": True}, "invalid_type"),
    ("n: 0", with_body({"n": 0}), "invalid_request"),
    ("max_tokens: negative", {**BODY, "max_tokens": -5}, "invalid_request"),
    ("max_completion_tokens: 0", with_body({"max_completion_tokens": 0}), "invalid_request"),
    ("stop: number", with_body({"stop": 5}), "invalid_type"),
    ("stop: array of numbers", {**BODY, "stop": ["a", 5]}, "invalid_type"),
    ("tools: object", with_body({"tools": {}}), "invalid_type"),
    ("stream: text", {**BODY, "stream": "yes"}, "invalid_type"),
    ("a part: text", with_messages({"role": "user", "content": ["x"]}), "invalid_type"),
    ("seed: object", with_body({"seed": {}}), "invalid_type"),
    ("timeout: text", with_body({"timeout": "abc"}), "invalid_type"),
    ("timeout: boolean", with_body({"timeout": True}), "invalid_type"),
    ("timeout: negative", with_body({"timeout": -1}), "invalid_request"),
]


@pytest.mark.parametrize(
    ("line", "code"), [case[1:] for case in BAD_LINES], ids=[case[0] for case in BAD_LINES]
)
def test_a_bad_line_is_told_and_passed_over(tmp_path: Path, line: Any, code: str) -> None:
    path = write(tmp_path / "in.jsonl", a_line("before"), line, a_line("after"))
    with InputFile(path) as file:
        (problem,) = file.check().problems
        assert requests_of(file) == [(1, "before"), (3, "after")]
    assert (problem.line, problem.code) == (2, code)
    assert problem.message
    assert problem.hint
    told = repr(problem)
    assert KEY not in told
    assert "secret prompt" not in told


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ({"custom_id": "a", "params": {"max_tokens": 9, "system": "x"}}, "rewrite params as body"),
        (a_line(body={"max_tokens": 9, "system": "x", "messages": MESSAGES}), "the first message"),
        ({"contents": [{"parts": []}]}, "rewrite contents as messages"),
        ({"key": "a", "request": {"contents": []}}, "rewrite request as body"),
        ({"custom_id": "a", "body": {"prompt": "x"}}, 'rewrite it as "messages"'),
        ({"custom_id": "a", "body": {}}, "for instance"),
    ],
)
@pytest.mark.parametrize("model", [None, "gpt"])
def test_lines_of_other_kinds_get_a_hint_with_and_without_a_model(
    tmp_path: Path, line: Any, hint: str, model: str | None
) -> None:
    with InputFile(write(tmp_path / "in.jsonl", line), model=model) as file:
        (problem,) = file.check().problems
    assert hint in problem.hint


def test_half_a_character_is_told_as_what_it_is(tmp_path: Path) -> None:
    half, torn = b'{"custom_id": "\\udc00"}', b'{"custom_id": "\\udc00'
    with InputFile(write(tmp_path / "in.jsonl", half, torn)) as file:
        first, second = file.check().problems
    assert first.message.startswith("half a character")
    assert second.message.startswith("not valid JSON")


def test_an_array_over_many_lines_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("\n" + json.dumps([a_line(), a_line("b")], indent=2))
    with InputFile(path) as file:
        (problem,) = file.check().problems
        assert requests_of(file) == []
    assert (problem.line, problem.code) == (2, "invalid_json_line")
    assert "jq -c '.[]'" in problem.hint


def test_a_timeout_may_be_a_number(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", {**BODY, "timeout": 2.5}, {**BODY, "timeout": None})
    with InputFile(path) as file:
        assert [request.request.kwargs for request in file.requests()] == [
            {"timeout": 2.5},
            {"timeout": None},
        ]


@pytest.mark.parametrize("stream", [True, False])
def test_a_line_may_ask_for_a_stream(tmp_path: Path, stream: bool) -> None:
    path = write(tmp_path / "in.jsonl", a_line(body={**BODY, "stream": stream}))
    with InputFile(path) as file:
        (request,) = file.requests()
    assert request.request.kwargs == {"stream": stream}


def test_what_providers_take_is_taken(tmp_path: Path) -> None:
    """Also what only some of them take: parts of any type, whole numbers with a point."""
    path = write(
        tmp_path / "in.jsonl",
        with_messages({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}),
        with_messages({"role": "assistant"}, {"role": "function", "name": "f", "content": None}),
        with_messages({"role": "developer", "content": ""}, {"role": "tool", "content": []}),
        with_messages({"role": "user", "content": [{"type": "odd"}, {}]}),
        {**BODY, "temperature": 0, "top_p": 0.5, "max_tokens": 100.0, "seed": -1, "n": None},
        {**BODY, "temperature": None, "max_completion_tokens": -1, "metadata": None},
    )
    assert problems_of(path) == []


@pytest.mark.parametrize("method", ["post", "Post", "POST"])
@pytest.mark.parametrize(
    "url", ["/v1/chat/completions/", "/V1/Chat/Completions", "/chat/completions"]
)
def test_the_method_and_the_url_may_be_written_in_other_ways(
    tmp_path: Path, method: str, url: str
) -> None:
    assert problems_of(write(tmp_path / "in.jsonl", a_line(method=method, url=url))) == []


def litellm_settings() -> set[str]:
    """What the litellm that is installed takes as its own."""
    import litellm
    from litellm.types import router, utils

    names = set(utils.all_litellm_params).union(
        router.GenericLiteLLMParams.model_fields,
        router.LiteLLM_Params.model_fields,
        router.CredentialLiteLLMParams.model_fields,
        utils.StandardCallbackDynamicParams.__annotations__,
    )
    body_parameters = {"model", "messages", "metadata", "timeout"}
    return names - body_parameters - set(litellm.OPENAI_CHAT_COMPLETION_PARAMS) | {"api_base"}


def test_no_setting_of_litellm_comes_from_a_body_that_is_not_trusted(tmp_path: Path) -> None:
    settings_of_litellm = sorted(litellm_settings())
    lines = [
        # An address needs a key beside it.
        a_line(f"{number}", body={**BODY, "api_key": "none", name: None})
        if name in ("api_base", "base_url")
        else a_line(f"{number}", body={**BODY, name: None})
        for number, name in enumerate(settings_of_litellm)
    ]
    path = write(tmp_path / "in.jsonl", *lines)
    codes = {code for _, code in problems_of(path)}
    with InputFile(path) as file:
        refused = {problem.line - 1 for problem in file.problems()}
    assert codes == {"forbidden_parameter"}
    assert [settings_of_litellm[n] for n in set(range(len(lines))) - refused] == []
    with InputFile(path, trust_input=True) as file:
        assert file.check().problems == []
        sent = {name for request in file.requests() for name in request.request.kwargs or {}}
    assert sent - {"api_key"} == set(settings_of_litellm) - {"api_key"}


VENDOR_PARAMETERS = {
    "top_k": 20,
    "input": "of embeddings",
    "prompt": "of text completions",
    "query": "of a reranker",
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "guided_json": {"type": "object"},
    "chat_template_kwargs": {"enable_thinking": False},
    "thinking": {"type": "enabled"},
    "safe_prompt": True,
    "stop_token_ids": [1],
    "ignore_eos": True,
    "transforms": [],
    "kv_transfer_params": {},
    "documents": [],
    "reasoning": {"effort": "low"},
}


def test_parameters_of_openai_and_of_vendors_are_sent(tmp_path: Path) -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming

    openai = dict.fromkeys(CompletionCreateParamsStreaming.__annotations__)
    body = {**openai, **BODY, **VENDOR_PARAMETERS}
    path = write(tmp_path / "in.jsonl", a_line(body=body), {**openai, **BODY, "timeout": 9})
    with InputFile(path) as file:
        assert file.check().problems == []
        first, second = file.requests()
    expected = {name: value for name, value in body.items() if name not in BODY}
    assert first.request.kwargs == expected
    assert second.request.kwargs == {**{n: None for n in openai if n not in BODY}, "timeout": 9}
    body = {**BODY, "extra_body": {**VENDOR_PARAMETERS, "priority": 1, "id": "x", "ttl": 5}}
    with InputFile(write(tmp_path / "in.jsonl", body)) as file:
        (request,) = file.requests()
    assert request.request.kwargs == {"extra_body": body["extra_body"]}


def test_litellm_is_not_asked_about_names_that_openai_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import takes seconds."""

    def never(name: str) -> bool:
        raise AssertionError(name)

    monkeypatch.setattr(_input_members, "is_litellm_setting", never)
    body = {**BODY, "temperature": 0.2, "seed": 1, "extra_body": {"top_k": 2}, "timeout": 1}
    path = write(tmp_path / "in.jsonl", {**body, "source": "web"}, a_line(body=body))
    with InputFile(path, drop_columns=True) as file:
        assert file.check().problems == []


# --- columns ---

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


# --- lines of JSON, again ---


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
        "the custom_id 'a' is that of line 2"
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


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
likely_values = json_values | st.sampled_from(
    ["a", "POST", "/v1/chat/completions", MESSAGES, BODY, "gpt", {"role": "user"}]
)
likely_names = st.sampled_from(
    ["custom_id", "body", "method", "url", "model", "messages", "metadata", "extra_body", "kwargs"]
)
likely_lines = st.dictionaries(likely_names | st.text(), likely_values, max_size=6) | json_values


@given(lines=st.lists(likely_lines.map(json.dumps).map(str.encode) | st.binary(), max_size=8))
def test_each_line_is_a_request_or_one_problem(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "in.jsonl"
    content = b"\n".join([*lines, json.dumps(a_line("the last")).encode()])
    marks = (b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff", b"BZh", b"PK", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
    if content.startswith(marks):
        return
    path.write_bytes(content)
    if re.match(rb"(\xef\xbb\xbf)?\s*\[\s*(\n|$)", content):
        return  # an array, which is one problem
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


# --- tables and text ---


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


# --- what a file as a whole may not be ---


def refused(path: Path | str, **options: Any) -> str:
    with pytest.raises(InputFileError) as caught, InputFile(path, **options) as file:
        file.check()
    text = str(caught.value)
    assert text.startswith("standard input: " if path == "-" else f"{path}: ")
    return text


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.jsonl")
    assert "directory" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no request"),
        (b"\n \n", "no request"),
        (b"\x1f\x8b\x08\x00", "gzip -dc"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd -dc"),
        (b"PK\x03\x04", "save it as CSV"),
        (b"\xff\xfe{\x00", "iconv -f UTF-16"),
    ],
)
def test_a_file_without_readable_lines_is_refused(
    tmp_path: Path, content: bytes, told: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    assert told in refused(path)


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    table, text = tmp_path / "in.csv", tmp_path / "in.txt"
    table.write_text("one,two\n1,2\n")
    text.write_text("text\n")
    lines = write(tmp_path / "in.jsonl", BODY)
    assert "template is for CSV and text" in refused(lines, template="{{line}}")
    assert "--model" in refused(text)
    assert "--model" in refused(table, template="{{one}}")
    assert "columns of the file are: 'one', 'two'" in refused(table, model="gpt")
    unknown = refused(table, model="gpt", template="{{three}} {{one}} {{}}")
    assert "{{}}, {{three}}" in unknown
    assert "columns of the file are: 'one', 'two'" in unknown
    assert "no {{column}}" in refused(table, model="gpt", template="one")
    assert "{{two}}" in refused(text, model="gpt", template="{{two}}")
    table.write_text("one,one\n1,2\n")
    assert "same name" in refused(table, model="gpt", template="{{one}}")
    table.write_text('"one"x\n')
    assert "no CSV" in refused(table, model="gpt", template="{{one}}")
    with pytest.raises(ValueError, match="format must be"):
        InputFile(lines, format="xml")  # type: ignore[arg-type]


def test_messages_are_short_and_harmless_in_a_terminal(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", *[a_line("\x1b[31m" + "x" * 1000)] * 2)
    with InputFile(path) as file:
        (problem,) = file.check().problems
    assert problem.message.isprintable()
    assert len(problem.message) < 200
    table = tmp_path / "in.csv"
    table.write_text(",".join(f"\x1b{number}" + "x" * 1000 for number in range(100)))
    told = refused(table, model="gpt", template="{{a}}")
    assert told.removeprefix(str(table)).isprintable()
    assert len(told.removeprefix(str(table))) < 2000


def test_a_file_that_changes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("a"), a_line("b"))
    with InputFile(path) as file:
        file.check()
        write(path, a_line("a"), a_line("b"), a_line("c"))
        with pytest.raises(InputFileError, match="changed"):
            next(file.requests())
    with InputFile(path) as file:
        requests = file.requests()
        next(requests)
        write(path, a_line("a"), a_line("b"), a_line("c"), a_line("d"))
        with pytest.raises(InputFileError, match="changed"):
            list(requests)


def test_nothing_that_was_not_checked_is_given_out(tmp_path: Path) -> None:
    # More than one block of lines: what is behind the first is read after the change.

    def saying(custom_id: str, text: str) -> dict[str, Any]:
        return a_line(custom_id, body={**BODY, "messages": [{"role": "user", "content": text}]})

    lines = [saying(f"{number}", "x" * 1000) for number in range(2500)]
    for change in ("append", "replace", "in place", "shorten"):
        path = write(tmp_path / f"{change}.jsonl", *lines)
        status = path.stat()
        with InputFile(path) as file:
            requests = file.requests()
            drawn = [next(requests)]
            content = path.read_bytes()
            evil = json.dumps(saying("0", "evil")).encode() + b"\n"
            if change == "append":
                with path.open("ab") as end:
                    end.write(evil)
            elif change == "replace":
                path.write_bytes(content.replace(b"x" * 1000, b"evil"))
            elif change == "in place":
                with path.open("r+b") as middle:
                    middle.write(content.replace(b"xxxx", b"evil"))
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            else:
                os.truncate(path, len(content) // 2)
            with pytest.raises(InputFileError, match="changed since it was checked"):
                drawn += requests
        assert 0 < len(drawn) < len(lines)
        assert "evil" not in str([request.request.messages for request in drawn])


def test_a_file_that_is_only_touched_is_read_on(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("a"), a_line("b"))
    with InputFile(path) as file:
        requests = file.requests()
        next(requests)
        os.utime(path, ns=(0, 0))
        assert [request.custom_id for request in requests] == ["b"]
        assert len(list(file.requests())) == 2


def test_a_file_that_changes_with_its_size_and_time_kept_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", a_line("a"), a_line("b"))
    status = path.stat()
    with InputFile(path) as file:
        file.check()
        with path.open("r+b") as bytes_of_it:
            bytes_of_it.write(b"!")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(InputFileError, match="changed since it was checked"):
            list(file.requests())


def test_standard_input_is_read_twice(tmp_path: Path) -> None:
    content = json.dumps(a_line("a")).encode() + b"\n" + json.dumps(a_line("b")).encode()
    with InputFile("-", standard_input=io.BytesIO(content)) as file:
        summary = file.check()
        first, second = file.requests(), file.requests()
        assert [next(first).custom_id, next(second).custom_id] == ["a", "a"]
        assert [next(first).custom_id, next(second).custom_id] == ["b", "b"]
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    assert InputFile(path).check() == summary
    assert "no request" in refused("-", standard_input=io.BytesIO(b""))


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_standard_input_is_told(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    stdin = io.TextIOWrapper(io.BytesIO())
    stdin.close()
    monkeypatch.setattr("sys.stdin", stdin if closed else None)
    with (
        InputFile("-") as file,
        pytest.raises(InputFileError, match="standard input is closed: name a file"),
    ):
        file.check()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_of_a_file_need_not_be_a_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"in\xff.jsonl")
    with (
        InputFile(path) as file,
        pytest.raises(InputFileError, match=r"in\?\.jsonl: cannot be read"),
    ):
        file.check()
    with InputFile(write(path, BODY)) as file:
        assert requests_of(file) == [(1, "1")]


def test_a_pipe_is_read_twice() -> None:
    reading, writing = os.pipe()
    os.write(writing, json.dumps(a_line("a")).encode())
    os.close(writing)
    try:
        with InputFile(f"/dev/fd/{reading}") as file:
            assert file.check().requests == 1
            assert requests_of(file) == [(1, "a")]
    finally:
        os.close(reading)


# --- fingerprint and memory ---


def test_the_fingerprint_tells_whether_the_requests_are_the_same(tmp_path: Path) -> None:
    def fingerprint(name: str, content: str, **options: Any) -> str:
        path = tmp_path / name
        path.write_text(content)
        with InputFile(path, **options) as file:
            return file.check().fingerprint

    full, bare = json.dumps(BODY), json.dumps({"messages": MESSAGES})
    same = fingerprint("a.jsonl", full)
    assert len(bytes.fromhex(same)) == 16
    for form in (
        full + "\n\n  \r\n",
        json.dumps(BODY, indent=None, separators=(" ,", " : "), sort_keys=True),
        json.dumps({**BODY, "stream": True, "user": "me", "metadata": {"a": "b"}, "timeout": 3}),
    ):
        assert fingerprint("b.jsonl", form) == same
    assert fingerprint("b.jsonl", full, model="unused") == same
    assert fingerprint("b.jsonl", bare, model=BODY["model"]) == fingerprint(
        "b.jsonl", json.dumps({"model": BODY["model"], "messages": MESSAGES})
    )
    named = [json.dumps({"custom_id": name, "body": BODY}) for name in "abc"]
    assert fingerprint("a.jsonl", "\n".join(named)) == fingerprint(
        "a.jsonl", "\n".join(reversed(named))
    )
    text = "a,b\n1,2\n"
    prints = [
        same,
        fingerprint("a.jsonl", full + "\n" + full),
        fingerprint("a.jsonl", json.dumps({**BODY, "temperature": 0.125})),
        fingerprint("a.jsonl", json.dumps({**BODY, "seed": 5})),
        fingerprint("a.jsonl", json.dumps({"custom_id": "1", "body": {**BODY, "top_k": 5}})),
        fingerprint("a.jsonl", json.dumps({**BODY, "messages": [*MESSAGES, *MESSAGES]})),
        fingerprint("a.jsonl", json.dumps({"custom_id": "x", "body": BODY})),
        fingerprint("a.jsonl", bare, model="one"),
        fingerprint("a.jsonl", bare, model="two"),
        fingerprint("a.csv", text, model="one", template="{{a}}"),
        fingerprint("a.csv", text, model="two", template="{{a}}"),
        fingerprint("a.csv", text, model="one", template="{{b}}"),
        fingerprint("a.txt", text, model="one"),
        fingerprint("a.txt", text, model="one", template="{{line}}."),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint("a.txt", text, model="one", template="{{line}}") == prints[-2]


def test_memory_grows_by_the_names_only(tmp_path: Path) -> None:
    count = 20_000
    path = tmp_path / "in.jsonl"
    message = [{"role": "user", "content": "x" * 500}]
    with path.open("w") as lines:
        for number in range(count):
            body = {"model": "gpt", "messages": message}
            lines.write(json.dumps({"custom_id": f"request-{number}", "body": body}) + "\n")
    file = InputFile(path)
    tracemalloc.start()
    try:
        file.check()
        _, peak_of_check = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        assert sum(1 for _ in file.requests()) == count
        _, peak_of_requests = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    blocks = 3 << 20  # bytes; the file has four times as many
    # A set that has just grown is at its largest.
    assert peak_of_check < blocks + 160 * count
    assert peak_of_requests < blocks


# --- lines of results ---


def result_of(
    exception: Exception | None = None, response: Any = None, **more: Any
) -> RouterParallelResult:
    request = RouterParallelRequest("gpt", MESSAGES)
    return RouterParallelResult(0, request, response, exception, **more)


def read(line: bytes) -> tuple[OutputLine, dict[str, Any]]:
    assert b"\n" not in line
    return parse_output_line(line), json.loads(line)


class FromProvider(Exception):
    """As litellm's exceptions are."""

    __module__ = "litellm.exceptions"

    def __init__(self, status: int, **fields: Any) -> None:
        super().__init__("not this text")
        self.status_code = status
        self.message = "what is wrong\n\nLiteLLM: model group 'gpt' failed."
        for name, value in fields.items():
            setattr(self, name, value)


class APIConnectionError(Exception):
    pass


class RouterRateLimitError(ValueError):
    pass


def caused_by(exception: Exception, cause: Exception) -> Exception:
    exception.__context__ = cause
    return exception


FAILURES: list[tuple[Exception, str]] = [
    (BatchDeadlineError(0, 1.0), "batch_expired"),
    (RequestTimeoutError(0, "gpt", 1.0), "request_timeout"),
    (TimeoutError("too late"), "request_timeout"),
    (CallCancelledError("cancelled"), "batch_cancelled"),
    (BudgetExceededError(0, "max_cost of 1 USD", 2.0, 1.0), "budget_exceeded"),
    (StreamInterruptedError(0, "gpt", "text"), "stream_interrupted"),
    (StreamStalledError(0, "gpt", 1.0), "stream_stalled"),
    (InvalidRequestError({0: "no messages"}), "invalid_request"),
    (RouterRateLimitError("try again"), "no_deployment_available"),
    (ConnectionResetError("reset"), "connection_error"),
    (caused_by(FromProvider(500), APIConnectionError()), "connection_error"),
    (caused_by(FromProvider(429), APIConnectionError()), "connection_error"),
    (caused_by(FromProvider(500), json.JSONDecodeError("x", "y", 0)), "invalid_response"),
    (FromProvider(500), "from_provider"),
    (KeyError("x"), "key_error"),
    (
        caused_by(APIConnectionError("APIConnectionError: none"), ImportError("x")),
        "connection_error",
    ),
]


@pytest.mark.parametrize(
    ("exception", "code"), FAILURES, ids=[type(error).__name__ for error, _ in FAILURES]
)
def test_a_failure_without_an_answer_of_http_is_an_error(exception: Exception, code: str) -> None:
    result = result_of(exception, duration=1.0)
    line, fields = read(result_line("a", result, Redactor()))
    assert fields["response"] is None
    assert set(fields["error"]) == {"code", "message"}
    assert fields["error"]["message"]
    assert (line.custom_id, line.ok, line.status_code, line.body) == ("a", False, None, None)
    assert (line.error_code, line.error_message) == (code, fields["error"]["message"])
    measured = call_statistics("a", result, None)
    assert (measured.ok, measured.status_code) == (False, None)
    assert measured.error == type(exception).__name__
    assert not has_answer(result)


ERROR = {"message": "too many", "type": "rate", "param": None, "code": "slow_down"}


@pytest.mark.parametrize(
    ("exception", "error"),
    [
        (FromProvider(429, body=ERROR), ERROR),
        (FromProvider(429, body={"error": ERROR}), ERROR),
        (
            FromProvider(503, body={"message": "down"}),
            {"message": "down", "type": None, "param": None, "code": None},
        ),
        (
            FromProvider(429, body={**ERROR, "message": None}),
            {**ERROR, "message": "what is wrong"},
        ),
        (
            FromProvider(502, litellm_response_headers={"server": "x"}, body="<html>"),
            {"message": "what is wrong", "type": None, "param": None, "code": None},
        ),
        (
            FromProvider(400, type="invalid", code="400"),
            {"message": "what is wrong", "type": "invalid", "param": None, "code": "400"},
        ),
    ],
)
def test_a_failure_of_http_is_a_response(exception: FromProvider, error: dict[str, Any]) -> None:
    result = result_of(exception)
    line, fields = read(result_line("a", result, Redactor()))
    status = exception.status_code
    body = {"error": error}
    assert fields["error"] is None
    assert fields["response"] == {"status_code": status, "request_id": "", "body": body}
    assert (line.ok, line.status_code) == (False, status)
    assert line.error_message == error["message"]
    assert line.error_code == (error["code"] or error["type"])
    assert call_statistics("a", result, None).status_code == status


def test_the_id_of_a_request_at_the_provider_is_told() -> None:
    exception = FromProvider(429, litellm_response_headers={"x-request-id": "req_1"})
    _, fields = read(result_line("a", result_of(exception), Redactor()))
    assert fields["response"]["request_id"] == "req_1"


def test_an_error_of_an_earlier_attempt_is_not_that_of_the_last() -> None:
    exception = FromProvider(503, litellm_response_headers={"server": "x"}, body=None)
    earlier = FromProvider(429, body={"message": "an earlier one"})
    caused_by(exception, caused_by(FromProvider(503, body=ERROR), earlier))
    _, fields = read(result_line("a", result_of(exception), Redactor()))
    assert fields["response"]["body"]["error"] == ERROR
    caused_by(exception, earlier)
    _, fields = read(result_line("a", result_of(exception), Redactor()))
    assert fields["response"]["body"]["error"]["code"] is None


def test_a_stream_that_broke_off_says_why() -> None:
    exception = StreamInterruptedError(76, "gpt", "text")
    exception.__cause__ = ConnectionResetError("reset by peer, the key is sk-abcdefghijkl")
    line, _ = read(result_line("a", result_of(exception), Redactor()))
    assert line.error_message == (
        "the stream (model 'gpt') broke off after 4 characters: reset by peer, the key is "
        "[redacted]"
    )


@pytest.mark.parametrize(
    ("response", "code", "kind"),
    [
        (None, "empty_response", "EmptyResponseError"),
        ("text", "invalid_response", "NoCompletionError"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(response: Any, code: str, kind: str) -> None:
    """Of a callable in the place of a Router."""
    result = result_of(response=response)
    line, _ = read(result_line("a", result, Redactor()))
    assert (line.ok, line.error_code) == (False, code)
    measured = call_statistics("a", result, None)
    assert (measured.ok, measured.error, measured.status_code) == (False, kind, None)
    assert not has_answer(result)


def test_the_id_of_a_line_is_that_of_its_request() -> None:
    def id_of(custom_id: str, result: RouterParallelResult) -> Any:
        return read(result_line(custom_id, result, Redactor()))[1]["id"]

    same = id_of("a", result_of(KeyError("x")))
    assert same.startswith("batch_req_")
    assert id_of("a", result_of(response={"choices": []})) == same
    assert id_of("b", result_of(KeyError("x"))) != same


def test_an_answer_with_half_a_character_is_written(tmp_path: Path) -> None:
    """Escaped, as providers send it: nothing of it is lost, and our own readers take it."""
    half = {"text": "half \ud83d", "pair": "\U0001f600", "not one": "\\ud83d", "kind": object()}
    half["number"] = math.inf
    whole = result_line("half \ude00", result_of(response=half), Redactor())
    assert rb"half \ud83d" in whole
    line, fields = read(whole)
    assert line.ok
    assert line.body is not None
    expected = {**half, "kind": "<object>", "number": None}
    assert fields["response"]["body"] == json.loads(bytes(line.body)) == expected
    assert (fields["custom_id"], line.custom_id) == ("half \ude00", "half \ufffd")
    line, fields = read(result_line("a", result_of(ValueError("half \ud83d")), Redactor()))
    assert fields["error"]["message"] == "half \ud83d"
    assert line.error_message == "half \ufffd"
    (tmp_path / "statistics").write_bytes(
        statistics_line(call_statistics("half \ude00", result_of(response=half), None))
    )
    (record,) = read_statistics(tmp_path / "statistics")
    assert isinstance(record, CallStatistics)
    assert record.custom_id == "half \ufffd"


# Where `str.splitlines` ends a line.
ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@given(text=st.text(st.sampled_from(ENDS + 'a"\\é\U0001f600\ud83d')))
def test_no_text_cuts_a_line_or_changes(text: str) -> None:
    answer = {"choices": [{"message": {"content": text, text: 1}}]}
    error = FromProvider(400, body={"message": "m", text: text})
    results = [result_of(response=answer), result_of(error), result_of(ValueError(f"m {text}"))]
    for result in results:
        line = result_line(text, result, Redactor()).decode()
        assert line.splitlines() == [line]
        assert json.loads(line)["custom_id"] == text
        measured = statistics_line(call_statistics(text, result, None)).decode()
        assert measured.splitlines() == [measured]
        assert json.loads(measured)["custom_id"] == text
    lines = [json.loads(result_line(text, result, Redactor())) for result in results]
    assert lines[0]["response"]["body"] == answer
    assert lines[1]["response"]["body"]["error"][text] == text
    assert lines[2]["error"]["message"] == f"m {text}"
    (problem,) = problem_line(InputProblem(1, "c", text, "fix it", text)).decode().splitlines()
    assert json.loads(problem)["custom_id"] == text or not text


def test_what_only_this_provider_tells_is_kept_and_a_refusal_is_where_openai_has_it() -> None:
    from litellm.types.utils import Choices, Message, ModelResponse

    extras = {"citations": ["a"], "refusal": "no", "nothing": None}
    message = Message(content=None, provider_specific_fields=extras)
    response = ModelResponse(choices=[Choices(message=message, provider_specific_fields={})])
    _, fields = read(result_line("a", result_of(response=response), Redactor()))
    (choice,) = fields["response"]["body"]["choices"]
    assert choice["message"]["refusal"] == "no"
    assert choice["message"]["provider_specific_fields"] == {"citations": ["a"]}
    assert "provider_specific_fields" not in choice


def test_a_bad_line_has_a_line_of_its_own_in_the_output() -> None:
    problem = InputProblem(3, "invalid_json_line", "not valid JSON", "mend it", "3")
    line, fields = read(problem_line(problem))
    assert fields["response"] is None
    assert (line.custom_id, line.ok, line.error_code) == ("3", False, "invalid_json_line")
    assert line.error_message == "line 3: not valid JSON; mend it"


def test_lines_of_openai_and_vllm_are_read() -> None:
    def read_fields(response: Any, error: Any) -> tuple[Any, ...]:
        line = {"id": "x", "custom_id": "a", "response": response, "error": error, "more": 1}
        found = parse_output_line(json.dumps(line).encode())
        body = None if found.body is None else json.loads(bytes(found.body))
        return found.ok, found.status_code, found.error_code, found.error_message, body

    answer = {"status_code": 200, "request_id": "r", "body": {"id": "c"}}
    assert read_fields(answer, None) == (True, 200, None, None, {"id": "c"})
    failed = {"status_code": 429, "request_id": "r", "body": {"error": ERROR}}
    expected = (False, 429, "slow_down", "too many", {"error": ERROR})
    assert read_fields(failed, None) == expected
    expired = {"code": "batch_expired", "message": "late"}
    assert read_fields(None, expired) == (False, None, "batch_expired", "late", None)
    # vLLM: a text, or an error as its server answers it (older and newer), and no body.
    bare = {"status_code": 400, "request_id": "r", "body": None}
    assert read_fields(bare, "bad line") == (False, 400, None, "bad line", None)
    older = {"object": "error", "message": "no", "type": "BadRequestError", "code": 400}
    assert read_fields(bare, older) == (False, 400, "400", "no", None)
    newer = {"error": {"message": "no", "type": "BadRequestError", "param": None}}
    assert read_fields(bare, newer) == (False, 400, "BadRequestError", "no", None)
    assert read_fields({"request_id": "r", "body": {"id": "c"}}, None)[:2] == (True, 200)
    assert read_fields({**answer, "body": None}, None)[0] is False


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'{"custom_id": "a"}',
        b'{"custom_id": "a", "response": null, "error": null}',
        b'{"response": null, "error": null}',
        b'{"custom_id": 1, "response": null}',
        b'{"custom_id": "a", "response": {"status_code": "200"}}',
        b'{"custom_id": "a", "response": null, "error": "\xff"}',
        b'{"custom_id": "a", "response": null, "error": ' + b"[" * 100_000,
        json.dumps(a_line()).encode(),
    ],
    ids=range(11),
)
def test_what_is_no_line_of_results_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        parse_output_line(line)


@given(line=likely_lines.map(json.dumps).map(str.encode) | st.binary())
def test_a_line_is_read_or_refused(line: bytes) -> None:
    try:
        found = parse_output_line(line)
    except ValueError:
        return
    assert isinstance(found.custom_id, str)


def test_statistics_say_what_has_been_used() -> None:
    usage = Usage(10, 5, 4, 2, cost=0.5)
    answer: dict[str, Any] = {"choices": []}
    result = result_of(response=answer, started_at=7.0, duration=2.0, time_to_first_chunk=0.5)
    measured = call_statistics("a", result, usage)
    assert (measured.custom_id, measured.model) == ("a", "gpt")
    assert (measured.ok, measured.error) == (True, None)
    assert (measured.started_at, measured.duration) == (7.0, 2.0)
    assert (measured.time_to_first_chunk, measured.attempts) == (0.5, 1)
    assert (measured.prompt_tokens, measured.completion_tokens) == (10, 5)
    assert (measured.cached_tokens, measured.reasoning_tokens) == (4, 2)
    assert (measured.cost, measured.estimated) == (0.5, False)
    estimated = msgspec.structs.replace(usage, unpriced_calls=1, estimated_calls=1)
    measured = call_statistics("a", msgspec.structs.replace(result, usage=estimated), None)
    assert (measured.cost, measured.estimated, measured.prompt_tokens) == (None, True, 10)
    told = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": None,
    }
    measured = call_statistics("a", result_of(response={"usage": told}), None)
    assert (measured.prompt_tokens, measured.completion_tokens) == (3, 2)
    assert (measured.cached_tokens, measured.reasoning_tokens, measured.cost) == (1, 0, None)


def test_what_was_not_sent_has_no_attempts() -> None:
    over_budget = result_of(BudgetExceededError(0, "x", 2.0, 1.0), attempts=0)
    assert call_statistics("a", over_budget, None).attempts == 0
    not_begun = result_of(BatchDeadlineError(0, 1.0), attempts=0)
    assert call_statistics("a", not_begun, None).attempts == 0
    begun = result_of(BatchDeadlineError(0, 1.0), duration=0.5)
    assert call_statistics("a", begun, None).attempts == 1


# --- keys ---


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-abc***********wxyz.",
        "Authorization: Bearer abcdefghijkl",
        "header {'Authorization': 'Bearer abc.def'}",
        'x-api-key: "abcdefghijkl"',
        "https://user:abcdefghijkl@host/path",
        "https://host/path?x=1&api_key=abcdefghijkl&y=2",
        "https://host/v1?key=AIzaabcdefghijklmnopqrstuvwxyz",
        "(gsk_abcdefghijklmnop)",
        "AKIAABCDEFGHIJKLMNOP",
        "token eyJhbGciOiJI.eyJabcdefghijkl.abc-def",
        "my own given secret, and given%20secret%20too",
    ],
)
def test_keys_are_taken_out_of_errors(text: str) -> None:
    redactor = Redactor(["given secret", "given secret too", "short"])
    redacted = redactor.redact(text)
    assert "[redacted]" in redacted
    for part in ("abc", "ABC", "wxyz", "eyJ", "given secret", "given%20"):
        assert part not in redacted
    assert redactor.redact(redacted) == redacted
    assert "given" not in repr(redactor)


def test_what_is_no_key_stays() -> None:
    text = "The model gpt-4o-mini has failed: task-7 asks for a token; see https://host/a?b=c"
    assert Redactor(["short", "", "redact"]).redact(text) == text


key_like = st.sampled_from(
    ["sk-", "Bearer ", "://", "@", "?key=", "&", "abcdefgh", "[redacted]", "[", "]", " ", "secret",
     "api_key=", "eyJ", ".", "redacted", "Authorization: "]
)  # fmt: skip


@given(
    text=st.lists(key_like | st.text(max_size=3)).map("".join),
    secrets=st.lists(st.sampled_from(["secret", "my secret", "redacted", "abcdefgh"])),
)
@settings(max_examples=300)
def test_redaction_is_done_once_and_leaves_no_secret(text: str, secrets: list[str]) -> None:
    redactor = Redactor(secrets)
    redacted = redactor.redact(text)
    assert redactor.redact(redacted) == redacted
    for secret in set(secrets) - {"redacted"}:
        assert secret not in redacted


def test_redaction_takes_a_time_that_grows_with_the_text() -> None:
    """A pattern that goes back and forth would need hours for these."""
    redactor = Redactor(["given secret"])
    for piece in ("sk-", "Bearer ", "://", "a", "eyJaaaaaaaa", "api key ", "Authorization: x "):
        text = piece * (300_000 // len(piece))
        assert len(redactor.redact(text)) <= 2 * len(text)


def test_keys_stay_in_answers_and_are_nowhere_in_errors() -> None:
    secret = 'my "quoted" secret'
    redactor = Redactor([secret])
    other = "sk-abcdefghijklmnop"
    answer = {"choices": [{"message": {"content": f"{secret} {other}", secret: 1}}]}
    line = result_line("a", result_of(response=answer), redactor)
    assert json.loads(line)["response"]["body"] == answer
    failures: list[Exception] = [
        FromProvider(401, body={"message": f"wrong key {secret} {other}", "keys": [secret]}),
        FromProvider(401, body={"message": f"wrong key {other}", "type": [other]}),
        FromProvider(401, message=f"wrong key {other}"),
        ValueError(f"{secret} {other}"),
    ]
    for exception in failures:
        line = result_line("a", result_of(exception), redactor)
        assert other.encode() not in line
        assert "quoted" not in line.decode()
    # The names of members are those of the provider.
    named = FromProvider(400, body={"message": "m", "content of it": ["content of it", 1]})
    body = json.loads(result_line("a", result_of(named), Redactor(["content of it"])))
    assert body["response"]["body"]["error"] == {
        "message": "m",
        "type": None,
        "param": None,
        "code": None,
        "content of it": ["[redacted]", 1],
    }


# --- a real Router ---


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as running:
        yield running


def run_over_http(
    server: DemoServerThread, *requests: RouterParallelRequest, **settings: Any
) -> list[RouterParallelResult]:
    results: list[RouterParallelResult] = []

    async def main() -> None:
        router = make_router(server, ("fast",), **settings)
        router.add_deployment(deployment("refused", "http://127.0.0.1:9/v1"))  # the discard port
        results.extend(
            await parallel_core.parallel_acompletions(
                router, requests, preserve_order=True, retry=None
            )
        )

    run_with_routers(ASYNCIO_HOSTS[0], main)
    return results


def deployment(name: str, address: str) -> Any:
    from litellm.types.router import Deployment, LiteLLM_Params

    return Deployment(
        model_name=name,
        litellm_params=LiteLLM_Params(model=f"openai/{name}", api_base=address, api_key=KEY),
    )


def ask(model: str = "fast", kwargs: dict[str, Any] | None = None, **orders: Any) -> Any:
    arguments = {"extra_body": {"demo": orders}, **(kwargs or {})}
    return RouterParallelRequest(model, MESSAGES, arguments)


def test_what_really_fails_is_written_as_what_it_is(server: DemoServerThread) -> None:
    expected: list[tuple[RouterParallelRequest, int | None, str | None]] = [
        (ask(kwargs={"n": 200}), 400, "invalid_request_error"),
        (ask(fault="rate_limited"), 429, "rate_limited"),
        (ask(fault="server_error"), 500, "server_error"),
        (ask("unknown"), 400, None),
        (ask("refused"), None, "connection_error"),
        (ask(fault="reset"), None, "connection_error"),
        (ask(fault="truncated"), None, "connection_error"),
        (ask(fault="invalid_json"), None, "invalid_response"),
        (ask(fault="hang", kwargs={"timeout": 0.2}), None, "request_timeout"),
        (ask(fault="reset", kwargs={"stream": True}), None, "stream_interrupted"),
        (ask(cut_after=0, kwargs={"stream": True}), None, "stream_interrupted"),
        (ask(cut_after=3, kwargs={"stream": True}), None, "stream_interrupted"),
    ]
    results = run_over_http(server, *(request for request, *_ in expected))
    found: list[tuple[int | None, str | None]] = []
    for number, result in enumerate(results):
        whole = result_line(str(number), result, Redactor([KEY]))
        line, fields = read(whole)
        assert (line.custom_id, line.ok, has_answer(result)) == (str(number), False, False)
        assert line.error_message
        assert (fields["response"] is None) != (fields["error"] is None)
        assert "secret" not in whole.decode()
        found.append((line.status_code, line.error_code))
        measured = call_statistics(str(number), result, None)
        assert (measured.status_code, measured.attempts) == (line.status_code, 1)
        assert measured.error == type(result.exception).__name__
    assert found == [(status, code) for _, status, code in expected]


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "hosted_vllm/model"])
def test_an_answer_that_litellm_cannot_read_is_an_invalid_response(model: str) -> None:
    message = {"role": "assistant", "content": "secret words"}
    citation = {"start_index": 0, "end_index": 1, "url": "u", "title": None}
    messages = [
        None,
        {**message, "annotations": [{"type": "url_citation", "url_citation": citation}]},
    ]
    answers = ["<html>secret words</html>", "null", "[]", '{"choices": [{"message": "secret words']
    answers += [
        json.dumps({"id": "a", "choices": [{"message": message, "finish_reason": "stop"}]})
        for message in messages
    ]
    waiting = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = waiting.pop(0).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as unreadable:
        thread = threading.Thread(target=unreadable.serve_forever)
        thread.start()
        try:
            parameters = {
                "model": model,
                "api_key": KEY,
                "api_base": f"http://127.0.0.1:{unreadable.server_port}/v1",
            }
            router = parallel_core.ParallelRouter(
                model_list=[{"model_name": "fast", "litellm_params": parameters}],
                num_retries=0,
                disable_cooldowns=True,
            )
            results = parallel_core.parallel_completions(
                router,
                [RouterParallelRequest("fast", MESSAGES) for _ in answers],
                concurrency=1,
                preserve_order=True,
            )
            assert not waiting  # each was asked for, and paid for, once
        finally:
            unreadable.shutdown()
            thread.join()
    for number, result in enumerate(results):
        line, fields = read(result_line(str(number), result, Redactor([KEY])))
        assert (fields["response"], line.error_code) == (None, "invalid_response"), fields
        text = fields["error"]["message"]
        assert len(text) < 200
        assert not any(found in text for found in ("Traceback", "secret words", "site-packages"))


def test_real_answers_are_chat_completions_of_openai(server: DemoServerThread) -> None:
    from openai.types.chat import ChatCompletion

    results = run_over_http(
        server,
        ask(reply="plain"),
        ask(tool_arguments="{}"),
        ask(reply="streamed", kwargs={"stream": True}),
        ask(reply=f"the key is {KEY}"),
    )
    for result in results:
        line, _ = read(result_line("a", result, Redactor([KEY])))
        assert (line.ok, line.status_code, line.error_code) == (True, 200, None)
        assert line.body is not None
        text = bytes(line.body).decode()
        completion = ChatCompletion.model_validate_json(text)
        (choice,) = completion.choices
        assert (choice.message.content is None) == (choice.message.tool_calls is not None)
        assert {"content", "refusal", "role"} <= set(json.loads(text)["choices"][0]["message"])
        for foreign in ("provider_specific", "hidden", "127.0.0.1"):
            assert foreign not in text
        measured = call_statistics("a", result, None)
        assert (measured.ok, measured.status_code, measured.attempts) == (True, 200, 1)
        assert completion.usage is not None
        assert measured.prompt_tokens == completion.usage.prompt_tokens > 0
        assert measured.completion_tokens == completion.usage.completion_tokens > 0
        assert measured.cost is None  # litellm knows no price of the demo server's models
        if "the key" in text:
            assert f"the key is {KEY}" in text


def test_an_answer_without_usage_is_written_without(server: DemoServerThread) -> None:
    """An estimate is in the statistics alone."""
    streamed = {"stream": True}
    results = run_over_http(
        server, ask(usage=False), ask(), ask(usage=False, kwargs=streamed), ask(kwargs=streamed)
    )
    bodies = [
        read(result_line("a", result, Redactor()))[1]["response"]["body"] for result in results
    ]
    assert ["usage" in body for body in bodies] == [False, True, False, True]
    assert set(bodies[3]["usage"]) == set(bodies[1]["usage"])
    measured = [call_statistics("a", result, None) for result in results]
    assert [one.estimated for one in measured] == [False, False, True, False]
    assert measured[2].prompt_tokens > 0


def test_what_a_provider_answers_is_written_as_it_is_but_for_keys() -> None:
    """Of all statuses: litellm keeps the error object of some only."""
    statuses = (200, 400, 401, 402, 403, 404, 418, 422, 429, 500, 503, 529)
    error = {"message": "as it is", "type": "t", "param": "p", "code": "c"}
    token = {"token": "yes", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    logprobs = {"content": [token], "refusal": None}
    usage: Any = {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "vendor": {"a": None},
    }

    async def answer(request: web.Request) -> web.Response:
        status = (await request.json())["seed"]
        message = {"role": "assistant", "content": f"yes {KEY}", "vendor": [{"b": None}]}
        choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}]
        body: dict[str, Any] = {"id": "1", "object": "chat.completion", "model": "x"}
        body |= {"choices": choices, "created": 1, "usage": usage, "own": {"c": None}}
        key = request.headers["Authorization"].split()[-1]
        return web.json_response(
            body if status == 200 else {"error": error},
            status=status,
            headers={"x-request-id": f"req {key}"},
        )

    results: list[RouterParallelResult] = []

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            router = parallel_core.ParallelRouter(
                model_list=[], num_retries=0, disable_cooldowns=True
            )
            router.add_deployment(deployment("gpt", f"http://127.0.0.1:{site.port}/v1"))
            requests = [
                RouterParallelRequest("gpt", MESSAGES, {"seed": status}) for status in statuses
            ]
            results.extend(
                await parallel_core.parallel_acompletions(
                    router, requests, preserve_order=True, retry=None
                )
            )
        finally:
            await runner.cleanup()

    run_with_routers(ASYNCIO_HOSTS[0], main)
    for status, result in zip(statuses, results, strict=True):
        line, fields = read(result_line("a", result, Redactor([KEY])))
        assert line.status_code == status
        assert fields["response"]["request_id"] == "req [redacted]"
        if status != 200:
            assert fields["response"]["body"] == {"error": error}
            continue
        body = fields["response"]["body"]
        assert (body["usage"], body["own"], body["created"]) == (usage, {"c": None}, 1)
        (choice,) = body["choices"]
        assert choice["logprobs"] == logprobs
        assert choice["message"]["content"] == f"yes {KEY}"
        assert choice["message"]["provider_specific_fields"] == {"vendor": [{"b": None}]}


def test_attempts_are_those_that_the_provider_has_seen(server: DemoServerThread) -> None:
    server.reset_stats()
    (result,) = run_over_http(server, ask(fault="server_error"), num_retries=1, retry_after=0)
    assert server.stats().accepted == 2
    assert call_statistics("a", result, None).attempts == 2
