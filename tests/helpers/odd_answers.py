"""Answers of providers that are not like those of OpenAI in one thing or another."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any, Final

from helpers.recording_provider import USAGE, Canned, completion


def _message(**members: Any) -> dict[str, Any]:
    return completion(choices=[_choice(**members)])


def _choice(finish_reason: Any = "stop", index: int = 0, **members: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "answer", **members}
    return {"index": index, "message": message, "finish_reason": finish_reason}


def _finished(reason: Any) -> dict[str, Any]:
    return completion(choices=[_choice(reason)])


def _usage(**members: Any) -> dict[str, Any]:
    return completion(usage={**USAGE, **members})


def _without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in completion().items() if name not in names}


def _call(arguments: Any = "{}", **members: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": "call-1", "type": "function", "function": function, **members}


def _encoded(coding: str, content: bytes) -> Canned:
    return Canned(content, headers=[("Content-Encoding", coding)])


_BYTES: Final = json.dumps(completion()).encode()
_ERROR: Final[Mapping[str, Any]] = {"message": "broken", "type": "server_error", "code": 500}

ODD_ANSWERS: Final[Mapping[str, Canned]] = {
    name: value if isinstance(value, Canned) else Canned(value)
    for name, value in {
        "plain": completion(),
        # messages
        "reasoning": _message(reasoning_content="hm"),
        "reasoning of openrouter": _message(reasoning="hm", reasoning_details=[{"text": "hm"}]),
        "thought in tags": _message(content="<think>hm</think>answer"),
        "no content": _message(content=None),
        "empty content": _message(content=""),
        "content as parts": _message(content=[{"type": "text", "text": "answer"}]),
        "refusal": _message(content=None, refusal="no"),
        "annotations": _message(
            annotations=[{"type": "url_citation", "url_citation": {"url": "http://a"}}]
        ),
        "audio": _message(
            audio={"id": "a", "data": "UklG", "expires_at": 2, "transcript": "answer"}
        ),
        "images": _message(images=[{"type": "image_url", "image_url": {"url": "data:a"}}]),
        "unknown member": _message(unknown={"deep": [None, 1.5]}),
        "provider fields": _message(provider_specific_fields={"a": 1}),
        "other role": _message(role="model"),
        "no role": completion(
            choices=[{"index": 0, "message": {"content": "answer"}, "finish_reason": "stop"}]
        ),
        "unicode": _message(content="\N{PARTY POPPER} \u2028 \x00 \ud83d"),
        # tools
        "tool call": _message(content=None, tool_calls=[_call()]),
        "two tool calls": _message(tool_calls=[_call(), _call('{"a": 1}', id="call-2", index=1)]),
        "no tool calls": _message(tool_calls=[]),
        "tool call without id": _message(tool_calls=[_call(id=None)]),
        "tool call with object": _message(tool_calls=[_call({"a": 1})]),
        "tool call with arguments that are not JSON": _message(tool_calls=[_call("{")]),
        "tool call finished": completion(choices=[_choice("tool_calls", tool_calls=[_call()])]),
        "tool call stopped": completion(choices=[_choice("stop", tool_calls=[_call()])]),
        "function call": _message(function_call={"name": "weather", "arguments": "{}"}),
        # choices
        **{
            f"finish reason {reason}": _finished(reason)
            for reason in ("length", "content_filter", "eos", "max_tokens", "STOP", "odd", None)
        },
        "two choices": completion(choices=[_choice(), _choice("length", 1)]),
        "choices out of order": completion(choices=[_choice(index=1), _choice(index=0)]),
        "no choices": completion(choices=[]),
        "null choices": completion(choices=None),
        "without choices": _without("choices"),
        "choices as object": completion(choices=_choice()),
        "choice without message": completion(choices=[{"index": 0, "finish_reason": "stop"}]),
        "text instead of message": completion(
            choices=[{"index": 0, "text": "answer", "finish_reason": "stop"}]
        ),
        "unknown member of a choice": completion(
            choices=[{**_choice(), "stop_reason": None, "token_ids": [1]}]
        ),
        "logprobs": completion(
            choices=[
                {
                    **_choice(),
                    "logprobs": {
                        "content": [
                            {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
                        ]
                    },
                }
            ]
        ),
        "null logprobs": completion(choices=[{**_choice(), "logprobs": None}]),
        # usage
        "no usage": _without("usage"),
        "null usage": completion(usage=None),
        "cached tokens": _usage(prompt_tokens_details={"cached_tokens": 3}),
        "reasoning tokens": _usage(completion_tokens_details={"reasoning_tokens": 3}),
        "null details": _usage(prompt_tokens_details=None, completion_tokens_details=None),
        "unknown usage": _usage(cost=0.5, queue_time=0.1, cost_details={"upstream": None}),
        "usage without total": completion(usage={"prompt_tokens": 5, "completion_tokens": 7}),
        "usage as floats": _usage(prompt_tokens=5.0),
        "no tokens": completion(
            usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        ),
        "hit and miss": _usage(prompt_cache_hit_tokens=2, prompt_cache_miss_tokens=3),
        # the whole
        "no id": _without("id"),
        "no created": _without("created"),
        "no model": _without("model"),
        "no object": _without("object"),
        "created as float": completion(created=1.5),
        "null fingerprint": completion(system_fingerprint=None),
        "tier": completion(service_tier="default", system_fingerprint="fp"),
        "other model": completion(model="another-2024"),
        "unknown of the whole": completion(citations=["http://a"], unknown={"a": [1]}),
        "hidden": completion(_hidden_params={"a": 1}),
        "error member": completion(error=_ERROR),
        "null error": completion(error=None),
        "only an error": {"error": _ERROR},
        "list": [completion()],
        "text": "answer",
        "null": None,
        "not JSON": b"{not JSON",
        "empty": b"",
        "not a number": _BYTES.replace(b'"created": 1', b'"created": NaN'),
        "mark in front": b"\xef\xbb\xbf" + _BYTES,
        "not UTF-8": _BYTES.replace(b"answer", b"\xff"),
        "member twice": _BYTES.replace(b'"created": 1', b'"created": 1, "created": 2'),
        # the wire
        "gzip": _encoded("gzip", gzip.compress(_BYTES, mtime=0)),
        "deflate": _encoded("deflate", zlib.compress(_BYTES)),
        "broken gzip": _encoded("gzip", _BYTES),
        "unknown coding": _encoded("odd", _BYTES),
        "identity": _encoded("identity", _BYTES),
        "plain text": Canned(_BYTES, headers=[("Content-Type", "text/plain")]),
        "as events": Canned(_BYTES, headers=[("Content-Type", "text/event-stream")]),
        "other charset": Canned(
            _BYTES.replace(b"answer", b"\xe4"),
            headers=[("Content-Type", "application/json; charset=latin-1")],
        ),
        "headers": Canned(
            completion(),
            headers=[
                ("X-RateLimit-Remaining-Requests", "7"),
                ("x-ratelimit-limit-tokens", "100"),
                ("X-Request-Id", "request-1"),
                ("Openai-Processing-Ms", "12"),
                ("x-litellm-model-id", "theirs"),
                ("Set-Cookie", "a=1"),
                ("Set-Cookie", "b=2"),
                ("X-Odd", "a, b"),
            ],
        ),
        "created status": Canned(completion(), 201),
        "no content status": Canned(completion(), 203),
        "teapot": Canned({"error": _ERROR}, 418),
        "error as text": Canned({"error": "broken"}, 400),
        "error as detail": Canned({"detail": [{"loc": ["body"], "msg": "broken"}]}, 422),
        "error without body": Canned(b"", 500),
        "compressed error": Canned(
            gzip.compress(json.dumps({"error": _ERROR}).encode(), mtime=0),
            500,
            [("Content-Encoding", "gzip"), ("x-request-id", "request-2")],
        ),
        "limited": Canned({"error": _ERROR}, 429, [("Retry-After", "7")]),
    }.items()
}
