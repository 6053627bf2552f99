"""What the demo server does with a request's parameters."""

from __future__ import annotations

import importlib
import json
from typing import Any

import aiohttp
import pytest

from helpers.demo_clients import IMMEDIATE, SECRET, body_for, post, post_stream, run
from parallel_core.demo_server import (
    DemoServer,
    DemoServerSettings,
)
from parallel_core.demo_server.schema import SchemaError, instance_of

jsonschema: Any = importlib.import_module("jsonschema")  # which has no annotations


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}


CLOCK: dict[str, Any] = {"type": "object", "properties": {"hour": {"type": "integer"}}}


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("weather", WEATHER), tool("clock", CLOCK)]


AFTER_A_TOOL = [
    {"role": "user", "content": SECRET},
    {"role": "tool", "tool_call_id": "call-1", "content": "12"},
]


def ask(*bodies: dict[str, Any], settings: DemoServerSettings = IMMEDIATE) -> list[Any]:
    """The answers to bodies. A streamed one is put together again, with its chunks beside it."""
    answers: list[Any] = []

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        for body in bodies:
            if not body.get("stream"):
                status, answer = await post(server, client, **body)
                answers.append({"status": status, **answer})
                continue
            rest = {name: value for name, value in body.items() if name != "stream"}
            *chunks, done = await post_stream(server, client, **rest)
            assert done == "[DONE]"
            answers.append(put_together([json.loads(chunk) for chunk in chunks]))

    run(test, settings)
    return answers


def put_together(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    choices: dict[int, dict[str, Any]] = {}
    for part in (part for chunk in chunks for part in chunk["choices"]):
        choice = choices.setdefault(
            part["index"], {"message": {"content": None}, "logprobs": None, "finish_reason": None}
        )
        assert choice["finish_reason"] is None
        choice["finish_reason"] = part["finish_reason"]
        message = choice["message"]
        delta = part["delta"]
        if "content" in delta:
            message["content"] = (message["content"] or "") + delta["content"]
        for call in delta.get("tool_calls", ()):
            calls = message.setdefault("tool_calls", [])
            if call["index"] == len(calls):
                named = {name: call[name] for name in ("id", "type")}
                calls.append({**named, "function": {**call["function"], "arguments": ""}})
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        if part["logprobs"] is not None:
            so_far = choice["logprobs"] or {"content": [], "refusal": None}
            so_far["content"] += part["logprobs"]["content"]
            choice["logprobs"] = so_far
    ordered = [{"index": index, **choices[index]} for index in sorted(choices)]
    return {"choices": ordered, "usage": chunks[-1].get("usage"), "chunks": chunks}


ANSWERED_ALIKE: dict[str, dict[str, Any]] = {
    "text": {},
    "json_object": {"response_format": {"type": "json_object"}},
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}}
    },
    "tool": {"tools": TOOLS},
    "tools together": {"tools": TOOLS, "parallel_tool_calls": True},
    "n": {"n": 3, "logprobs": True, "top_logprobs": 2},
    "n of tools": {"n": 2, "tools": TOOLS, "tool_choice": "required"},
    "stop": {"stop": ["no such", " two"], "demo": {"reply": "one two three"}},
    "max_tokens": {"max_tokens": 2, "n": 2},
    "tool that is cut": {"tools": TOOLS, "max_completion_tokens": 2},
}


@pytest.mark.parametrize("fields", ANSWERED_ALIKE.values(), ids=ANSWERED_ALIKE)
def test_a_stream_gives_the_same_as_a_whole_answer(fields: dict[str, Any]) -> None:
    streamed = {"stream": True, "stream_options": {"include_usage": True}, **fields}
    # The second answers would have other words: each is the first of its server.
    (whole,), (stream,) = ask(fields), ask(streamed)
    for choice in whole["choices"]:
        del choice["message"]["role"], choice["message"]["refusal"]
    assert stream["choices"] == whole["choices"]
    assert stream["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in stream["chunks"][:-1])


def test_text_fits_the_schema_that_is_asked_for() -> None:
    (an_object, fitting, as_told, text) = ask(
        ANSWERED_ALIKE["json_object"],
        {**ANSWERED_ALIKE["schema"], "n": 2},
        {**ANSWERED_ALIKE["schema"], "demo": {"reply": "no JSON"}},
        {"response_format": {"type": "text"}},
    )
    assert isinstance(json.loads(an_object["choices"][0]["message"]["content"]), dict)
    assert len(fitting["choices"]) == 2
    for choice in fitting["choices"]:
        jsonschema.validate(json.loads(choice["message"]["content"]), WEATHER)
        assert choice["finish_reason"] == "stop"
    assert as_told["choices"][0]["message"]["content"] == "no JSON"
    assert text["choices"][0]["message"]["content"].startswith("[synthetic]")


@pytest.mark.parametrize(
    ("fields", "called"),
    [
        ({}, ["weather"]),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, ["weather"]),
        ({"tool_choice": "required", "parallel_tool_calls": True}, ["weather", "clock"]),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, ["clock"]),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "required", "tools": TOOLS[1:]},
                }
            },
            ["clock"],
        ),
        ({"tool_choice": "none"}, []),
        ({"demo": {"reply": "text"}}, []),
        ({"messages": AFTER_A_TOOL}, []),
        ({"messages": AFTER_A_TOOL, "tool_choice": "required"}, ["weather"]),
    ],
)
def test_tools_are_called_as_asked(fields: dict[str, Any], called: list[str]) -> None:
    answers: list[Any] = []

    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        body = {**body_for(tools=TOOLS), **fields}
        async with client.post(f"{server.url}/chat/completions", json=body) as response:
            answers.append(await response.json())

    run(test)
    (choice,) = answers[0]["choices"]
    assert choice["finish_reason"] == ("tool_calls" if called else "stop")
    assert (choice["message"]["content"] is None) is bool(called)
    calls = choice["message"].get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == called
    for call in calls:
        schema = {"weather": WEATHER, "clock": CLOCK}[call["function"]["name"]]
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema)
    assert len({call["id"] for call in calls}) == len(calls)


def test_logprobs_are_those_of_the_tokens() -> None:
    (answer, bare) = ask(
        {"logprobs": True, "top_logprobs": 3, "demo": {"reply": "one two"}}, {"logprobs": True}
    )
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == "one two"
    for token in tokens:
        assert bytes(token["bytes"]).decode() == token["token"]
        likely = token["top_logprobs"]
        assert likely[0]["token"] == token["token"]
        probabilities = [one["logprob"] for one in likely]
        assert probabilities == sorted(probabilities, reverse=True)
        assert len(likely) == 3
    assert bare["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("stop", "fields", "text", "reason"),
    [
        ("two", {}, "one ", "stop"),
        (["three", "two"], {}, "one ", "stop"),
        ("four", {}, "one two three", "stop"),
        ("three", {"max_tokens": 1}, "one", "length"),
        ("one", {}, "", "stop"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_stop_cuts(stop: Any, fields: Any, text: str, reason: str, stream: bool) -> None:
    (answer,) = ask({"stop": stop, "demo": {"reply": "one two three"}, "stream": stream, **fields})
    (choice,) = answer["choices"]
    assert (choice["message"]["content"] or "", choice["finish_reason"]) == (text, reason)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 1}}},
            "response_format",
        ),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [tool("a", {"not": {}})]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
    ],
)
def test_a_wrong_parameter_is_named(fields: dict[str, Any], param: str) -> None:
    (answer,) = ask(fields)
    assert (answer["status"], answer["error"]["param"]) == (400, param)
    assert answer["error"]["type"] == "invalid_request_error"


def test_paths_are_answered_as_by_openai() -> None:
    async def test(server: DemoServer, client: aiohttp.ClientSession) -> None:
        async with client.get(f"{server.url}/models/slow") as response:
            assert (response.status, (await response.json())["id"]) == (200, "slow")
        for method, path, status, code in (
            ("GET", "/models/a/b", 404, "model_not_found"),
            ("POST", "/audio/speech", 404, None),
            ("GET", "/chat/completions", 405, "method_not_supported"),
            ("DELETE", "/models/fast", 405, "method_not_supported"),
        ):
            async with client.request(method, server.url + path) as response:
                error = (await response.json())["error"]
                assert (response.status, error["code"]) == (status, code)
                assert error["type"] == "invalid_request_error"
                assert ("Allow" in response.headers) is (status == 405)

    run(test)


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.3},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                "more": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "other": {"$ref": "#/$defs/node"},
            },
            "required": ["value", "next", "more"],
        }
    },
    "$ref": "#/$defs/node",
}


SCHEMAS: list[dict[str, Any]] = [
    {},
    {"const": {"a": [1]}},
    {"type": ["null", "boolean"]},
    {"type": "null"},
    {"type": "integer", "minimum": 20, "multipleOf": 7},
    {"type": "integer", "maximum": -5},
    {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
    {"type": "number", "minimum": 0.1, "maximum": 0.2},
    {"type": "string", "minLength": 40, "maxLength": 41},
    {"type": "string", "format": "date-time"},
    {"type": "string", "pattern": "[a-z]"},
    {"type": "array", "items": {"enum": ["x", "y", "z"]}, "minItems": 3, "uniqueItems": True},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": "a"}], "minItems": 2},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
    {"type": "object", "required": ["a"], "minProperties": 3},
    {"properties": {"a": {"type": "string"}, "b": {}}, "required": ["b"], "maxProperties": 1},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
            {"properties": {"b": {"type": "string"}}, "required": ["b"]},
        ]
    },
    {"type": "object", "properties": {"a": {"oneOf": [{"not": {}}, {"type": "integer"}]}}},
    {
        "allOf": [{"$ref": "#/$defs/a"}, {"allOf": [{"$ref": "#/$defs/a"}]}],
        "$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}, "c": {"type": "null"}}}},
    },
    {"$ref": "#/$defs/a", "minimum": 5, "$defs": {"a": {"type": "integer", "minimum": 2}}},
    TREE,
    {
        "type": "array",
        "items": {"$ref": "#/$defs/node"},
        "minItems": 2,
        "$defs": TREE["$defs"],
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_an_instance_fits_its_schema(schema: dict[str, Any]) -> None:
    for count in range(1, 4):
        words = ["[synthetic]", "a", "batch", "of"][: count + 1]
        value = instance_of(schema, words)
        jsonschema.validate(value, schema)
        assert json.loads(json.dumps(value)) == value
        assert instance_of(schema, words) == value


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"not": {}},
        {"$ref": "#"},
        {"$ref": "https://example.com/schema"},
        {"$ref": "#/$defs/none"},
        {"allOf": [{"$ref": "#"}]},
        {"type": "text"},
        {"enum": []},
        {"pattern": "^[0-9]{40}$"},
        {"pattern": "("},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"type": "array", "minItems": 10**9},
        {"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": True},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"minLength": 10**9},
        {"allOf": 3},
        {"allOf": [3]},
        {"allOf": [{"format": "date"}, {"format": "email"}]},
        {"type": "string", "pattern": 3},
        {"type": "string", "format": "date", "maxLength": 3},
        {"type": "object", "properties": []},
        {"type": "object", "required": ["a", "b"], "maxProperties": 1},
        {"type": "array", "minItems": 3, "maxItems": 2},
        {"type": "array", "minItems": "3"},
        {"type": "number", "minimum": "3"},
        {"type": "integer", "multipleOf": 0.5},
        {"type": "array", "minItems": 900, "items": {"type": "array", "minItems": 900}},
    ],
    ids=str,
)
def test_a_schema_that_nothing_is_made_for_is_refused(schema: Any) -> None:
    with pytest.raises(SchemaError):
        instance_of(schema, ["a", "b"])
