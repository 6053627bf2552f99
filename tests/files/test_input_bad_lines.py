"""Lines that are no requests are named, with a hint, and passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.batch_files import (
    BODY,
    KEY,
    MESSAGES,
    a_line,
    refused,
    requests_of,
    with_messages,
    write,
)
from parallel_core.files.batch_input import InputFile


def with_body(more: dict[str, Any]) -> dict[str, Any]:
    return a_line(body={**BODY, **more})


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
    ("url: unknown", a_line(url="/v1/audio/speech"), "unsupported_url"),
    ("url: embeddings", a_line(url="/v1/embeddings"), "missing_required_parameter"),
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
    ("anthropic without an id", {"params": BODY}, "missing_required_parameter"),
    ("gemini without contents", {"key": "a", "request": BODY}, "missing_required_parameter"),
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
        ({"custom_id": "a", "params": {"max_tokens": 9}}, "see the provider's API"),
        (a_line(body={"max_tokens": 9, "system": "x", "messages": MESSAGES}), "the first message"),
        ({"contents": [{"parts": []}]}, "Gemini's batches"),
        ({"key": "a", "request": {"contents": 1}}, "see the provider's API"),
        (a_line(url="/v1/chat/completions", body={"prompt": "x"}), 'rewrite it as "messages"'),
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
    at_the_end = b'{"input": "\\ud83d"}'
    with InputFile(write(tmp_path / "in.jsonl", half, torn, at_the_end)) as file:
        first, second, third = file.check().problems
    assert first.message.startswith("half a character")
    assert second.message.startswith("not valid JSON")
    assert third.message.startswith("half a character")


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
