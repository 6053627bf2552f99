"""Lines of Anthropic's and Gemini's batches: what they become, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.batch_files import BODY, KEY, MESSAGES, json_values, write
from helpers.provider_lines import ANTHROPIC, GEMINI, SCHEMA
from parallel_core import RouterParallelRequest
from parallel_core.files.batch_input import InputFile

USER = [{"role": "user", "content": "a secret prompt"}]
CONTENTS = [{"parts": [{"text": "a secret prompt"}]}]


def params(**members: Any) -> dict[str, Any]:
    return {
        "custom_id": "a",
        "params": {"model": "gpt", "max_tokens": 9, "messages": USER, **members},
    }


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return params(messages=[*USER, {"role": role, "content": list(blocks)}])


def gemini(**members: Any) -> dict[str, Any]:
    return {"key": "a", "request": {"model": "gpt", "contents": CONTENTS, **members}}


def told(*parts: Any, role: str = "user") -> dict[str, Any]:
    return gemini(contents=[*CONTENTS, {"role": role, "parts": list(parts)}])


def configured(**members: Any) -> dict[str, Any]:
    return gemini(generationConfig=members)


def tool(**members: Any) -> dict[str, Any]:
    return params(tools=[{"name": "look", "input_schema": SCHEMA, **members}])


def function(**members: Any) -> dict[str, Any]:
    return gemini(tools=[{"functionDeclarations": [{"name": "look", **members}]}])


TEXT = {"type": "text", "text": "a secret prompt"}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "yes"}
USE = {"type": "tool_use", "id": "t", "name": "look", "input": {}}
THOUGHT = {"type": "thinking", "thinking": "a secret prompt", "signature": "s"}
CALL = {"functionCall": {"name": "look"}}
ANSWER = {"functionResponse": {"name": "look", "response": {}}}


@pytest.mark.parametrize(
    ("line", "code", "names"),
    [
        ({**params(), "params": []}, "invalid_type", "params must be an object, not an array"),
        (params(messages=None), "missing_required_parameter", "params.messages is missing"),
        (params(messages=[]), "invalid_request", "messages is empty"),
        (params(messages=[{"role": "user"}]), "missing_required_parameter", "messages[0].content"),
        (params(max_tokens="9"), "invalid_type", "max_tokens"),
        (params(stop_sequences=[1]), "invalid_type", "stop"),
        (params(model=7), "invalid_type", "model"),
        (params(betas=["x"]), "invalid_request", "params.betas"),
        (params(mcp_servers=[]), "invalid_request", "params.mcp_servers"),
        (params(metadata={"page": 1}), "invalid_request", "params.metadata.page"),
        (params(api_key=KEY), "forbidden_parameter", "params.api_key"),
        (params(api_base="http://x"), "forbidden_parameter", "params.api_base"),
        (params(mock_response="x"), "forbidden_parameter", "params.mock_response"),
        (params(num_retries=9), "forbidden_parameter", "params.num_retries"),
        (params(extra_headers={}), "forbidden_parameter", "params.extra_headers"),
        (params(litellm_metadata={}), "forbidden_parameter", "params.litellm_metadata"),
        (params(extra_body={"api_key": KEY}), "invalid_request", "params.extra_body"),
        (params(messages=[{"role": "system", "content": "x"}]), "invalid_request", "[0].role"),
        (params(system=[{"type": "image"}]), "invalid_request", "params.system[0].type 'image'"),
        (params(system=[{**TEXT, "citations": []}]), "invalid_request", "system[0].citations"),
        (said({**TEXT, "text": " "}), "invalid_request", "content[0].text is empty"),
        (params(system=""), "invalid_request", "params.system is empty"),
        (params(messages=[{"role": "user", "content": " "}]), "invalid_request", "is empty"),
        (
            params(messages=[*USER, {"role": "assistant", "content": ""}]),
            "invalid_request",
            "messages[1].content is empty",
        ),
        (said(RESULT), "missing_required_parameter", "params.tools is missing"),
        (said(USE, role="assistant"), "missing_required_parameter", "params.tools is missing"),
        (said({"type": "image", "source": {"type": "file"}}), "invalid_request", "source.type"),
        (
            said({"type": "document", "source": {"type": "text", "data": "x"}}),
            "invalid_request",
            "content[0].source that is not a PDF",
        ),
        (said({"type": "search_result"}), "invalid_request", "type 'search_result'"),
        (said(TEXT, RESULT), "invalid_request", "content[1] is a tool_result after"),
        (said({**RESULT, "is_error": True}), "invalid_request", "content[0].is_error 'true'"),
        (said(USE, TEXT, role="assistant"), "invalid_request", "content[1] is content after"),
        (said(TEXT, THOUGHT, role="assistant"), "invalid_request", "content[1] is a thinking"),
        (said({"type": "image"}, role="assistant"), "invalid_request", "type 'image'"),
        (said({**USE, "caller": {}}, role="assistant"), "invalid_request", "content[0].caller"),
        (tool(type="bash_20250124"), "invalid_request", "tools[0].type 'bash_20250124'"),
        (tool(strict=True), "invalid_request", "params.tools[0].strict"),
        (tool(input_schema={"anyOf": []}), "invalid_request", "tools[0].input_schema.anyOf"),
        (params(tool_choice={"type": "some"}), "invalid_request", "tool_choice.type 'some'"),
        (gemini(contents=None), "missing_required_parameter", "request.contents is missing"),
        (gemini(labels={"a": "b"}), "invalid_request", "request.labels"),
        (gemini(api_base="http://x"), "forbidden_parameter", "request.api_base"),
        (gemini(api_key=KEY), "forbidden_parameter", "request.api_key"),
        ({**gemini(), "model": "other"}, "invalid_request", "two models"),
        (gemini(contents=[{"role": "system", "parts": []}]), "invalid_request", "role 'system'"),
        (told({"text": "x", "thought": True}), "invalid_request", "parts[0].thought"),
        (told({"executableCode": {}}), "invalid_request", "parts[0].executableCode"),
        (told({}), "missing_required_parameter", "contents[1].parts[0] has no text"),
        (told(ANSWER), "invalid_request", "parts[0].functionResponse answers no call"),
        (told({"text": "x"}, ANSWER), "invalid_request", "parts[1] answers a function after"),
        (told(CALL, {"text": "x"}, role="model"), "invalid_request", "parts[1] has a text after"),
        (told(CALL, CALL, role="model"), "invalid_request", "two equal calls of a function"),
        (configured(audioTimestamp=True), "invalid_request", "generationConfig.audioTimestamp"),
        (configured(topP=1, top_p=1), "invalid_request", "generationConfig has a member in two"),
        (configured(maxOutputTokens="9"), "invalid_type", "max_tokens"),
        (configured(responseMimeType="text/x.enum"), "invalid_request", "responseMimeType"),
        (configured(responseSchema=SCHEMA), "invalid_request", "a schema without"),
        (
            configured(
                responseMimeType="application/json",
                responseSchema={**SCHEMA, "propertyOrdering": ["days", "city"]},
            ),
            "invalid_request",
            "responseSchema.propertyOrdering",
        ),
        (gemini(tools=[{"googleSearch": {}}]), "invalid_request", "request.tools[0].googleSearch"),
        (function(behavior="BLOCKING"), "invalid_request", "functionDeclarations[0].behavior"),
        (
            gemini(toolConfig={"functionCallingConfig": {"mode": "VALIDATED"}}),
            "invalid_request",
            "functionCallingConfig.mode 'VALIDATED'",
        ),
        (
            gemini(toolConfig={"functionCallingConfig": {"allowedFunctionNames": ["a", "b"]}}),
            "invalid_request",
            "functionCallingConfig.allowedFunctionNames",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(
    tmp_path: Path, line: Any, code: str, names: str
) -> None:
    with InputFile(write(tmp_path / "in.jsonl", line)) as file:
        (problem,) = file.problems()
    assert (problem.code, problem.custom_id) == (code, "a")
    assert names in problem.message
    text = problem.message + problem.hint
    assert KEY not in text
    assert "a secret prompt" not in text


def test_lines_of_all_kinds_may_be_mixed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in.jsonl",
        {"custom_id": "openai", "body": BODY},
        {"custom_id": "anthropic", "params": {**BODY, "max_tokens": 9}, "page": 7},
        {"key": "gemini", "request": {"contents": CONTENTS}, "metadata": {"page": 8}},
        {"request": {"contents": CONTENTS}},
        BODY,
        {**BODY, "params": "a column", "request": "a column"},
    )
    with InputFile(path, model="other", keep=["page"], drop_columns=True) as file:
        summary = file.check()
        requests = list(file.requests())
        names = list(file.names())
    assert summary.problems == []
    assert summary.models == {"gpt": 4, "other": 2}
    assert names == [found.custom_id for found in requests]
    assert names == ["openai", "anthropic", "gemini", "4", "5", "6"]
    plain = RouterParallelRequest("gpt", MESSAGES)
    assert requests[0].request == plain
    assert requests[1].request == RouterParallelRequest("gpt", MESSAGES, {"max_tokens": 9})
    assert requests[2].request == requests[3].request == RouterParallelRequest("other", MESSAGES)
    assert requests[4].request == requests[5].request == plain
    returned = [
        {name: json.loads(bytes(value)) for name, value in (found.returned or {}).items()}
        for found in requests
    ]
    assert returned == [{}, {"columns": {"page": 7}}, {"metadata": {"page": 8}}, {}, {}, {}]


def test_a_request_is_the_same_in_any_shape(tmp_path: Path) -> None:
    def digest(line: Any) -> str:
        with InputFile(write(tmp_path / "in.jsonl", line), model="gpt") as file:
            return file.check().fingerprint

    body = {"model": "gpt", "messages": USER, "max_tokens": 9}
    same = {
        digest({"custom_id": "a", "body": body}),
        digest(params()),
        digest(gemini(generationConfig={"maxOutputTokens": 9})),
    }
    assert len(same) == 1
    assert digest(params(temperature=0)) not in same


def test_a_schema_of_gemini_becomes_json_schema(tmp_path: Path) -> None:
    schema = {
        "type": "OBJECT",
        "properties": {
            "type": {"type": "STRING", "nullable": True, "enum": ["a"]},
            "tags": {"type": "ARRAY", "items": {"type": "STRING"}, "minItems": "1"},
            "either": {"any_of": [{"type": "NUMBER"}, {"type": "BOOLEAN"}]},
        },
        "propertyOrdering": ["type", "tags", "either"],
    }
    line = configured(responseMimeType="application/json", responseSchema=schema)
    with InputFile(write(tmp_path / "in.jsonl", line)) as file:
        (found,) = file.requests()
    assert found.request.kwargs is not None
    assert found.request.kwargs["response_format"]["json_schema"]["schema"] == {
        "type": "object",
        "properties": {
            "type": {"type": ["string", "null"], "enum": ["a", None]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "either": {"anyOf": [{"type": "number"}, {"type": "boolean"}]},
        },
    }


@pytest.mark.parametrize(("depth", "is_refused"), [(100, False), (101, True), (900, True)])
def test_schemas_nested_very_deeply_are_refused(
    tmp_path: Path, depth: int, is_refused: bool
) -> None:
    schema = '{"items":' * depth + "{}" + "}" * depth
    config = f'{{"responseMimeType": "application/json", "responseSchema": {schema}}}'
    contents = json.dumps(CONTENTS)
    line = f'{{"key": "a", "request": {{"contents": {contents}, "generationConfig": {config}}}}}'
    with InputFile(write(tmp_path / "in.jsonl", line.encode()), model="gpt") as file:
        problems = [problem.message for problem in file.problems()]
        assert len(list(file.requests())) == (not is_refused)
    assert problems == ["a schema is nested too deeply"] * is_refused


_WITHIN = st.sampled_from([*ANTHROPIC.values()]), st.sampled_from([*GEMINI.values()])


@given(data=st.data(), value=json_values | st.sampled_from(["user", [], {}, [{}], [[]]]))
def test_any_value_in_any_place_is_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    is_anthropic = data.draw(st.booleans())
    inner = json.loads(json.dumps(data.draw(_WITHIN[not is_anthropic])))
    place: Any = inner
    while True:
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place)))
        )
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    line = {"custom_id": "a", "params": inner} if is_anthropic else {"key": "a", "request": inner}
    path = write(tmp_path_factory.mktemp("any") / "in.jsonl", line)
    with InputFile(path, model="gpt") as file:
        summary = file.check()
        if not summary.problems:
            assert len(list(file.requests())) == 1
