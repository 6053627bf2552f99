"""Requests whose way to a provider and back is compared member by member."""

from __future__ import annotations

import re
from typing import Any

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9Q"
    "DwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "größte Stadt"},
        "unit": {"enum": ["C", "F", None], "default": None},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}


def _tool(name: str) -> dict[str, Any]:
    function = {"name": name, "description": "", "strict": True, "parameters": WEATHER}
    return {"type": "function", "function": function}


TOOLS = [_tool("weather"), _tool("forecast")]
CALL = {"id": "call-0", "type": "function", "function": {"name": "weather", "arguments": "{ }"}}
VENDOR = {
    "top_k": 4,
    "min_p": 0.1,
    "repetition_penalty": 1.5,
    "chat_template_kwargs": {"enable_thinking": False, "deep": [{"a": None}]},
    "guided_json": WEATHER,
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "weather", "strict": True, "schema": WEATHER},
}

PARAMETERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "tools": {"tools": TOOLS},
    "tools-required": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": True},
    "tools-none": {"tools": TOOLS, "tool_choice": "none", "parallel_tool_calls": False},
    "tools-named": {
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "forecast"}},
    },
    "json-object": {"response_format": {"type": "json_object"}},
    "json-schema": {"response_format": SCHEMA},
    "n": {"n": 3},
    "logprobs": {"logprobs": True, "top_logprobs": 2, "n": 2},
    "sampling": {
        "seed": -1,
        "temperature": 0,
        "top_p": 0.25,
        "presence_penalty": -2,
        "frequency_penalty": 0.5,
        "logit_bias": {"50256": -100},
    },
    "stop": {"stop": "words"},
    "stops": {"stop": ["no such word", "\N{PARTY POPPER}", "words"]},
    "max-completion-tokens": {"max_completion_tokens": 3},
    "max-tokens": {"max_tokens": 3},
    "reasoning-effort": {"reasoning_effort": "low"},
    "verbosity": {"verbosity": "low"},
    "vendor": VENDOR,
    "vendor-in-extra-body": {"extra_body": VENDOR},
    "metadata": {"metadata": {"source": "a", "page": "2"}},
    "stored": {"metadata": {"source": "a", "page": "2"}, "store": True},
    "stored-without": {"store": True},
    "not-stored": {"store": False, "metadata": {"source": "a"}},
    "metadata-in-extra-body": {"extra_body": {"metadata": {"source": "a"}}},
    "user": {"user": "somebody"},
    "user-in-extra-body": {"extra_body": {"user": "somebody"}},
    "service-tier": {"service_tier": "flex"},
    "prediction": {"prediction": {"type": "content", "content": "a batch of"}},
    "cache": {"prompt_cache_key": "key", "safety_identifier": "someone"},
    "thinking": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "nulls": {"temperature": None, "stop": None, "max_tokens": None, "tools": None},
    "user-of-known-model": {"model": "gpt-4o-mini", "user": "somebody"},
    "verbosity-of-known-model": {"model": "gpt-5-mini", "verbosity": "low"},
}
MESSAGES: dict[str, list[dict[str, Any]]] = {
    "system": [{"role": "system", "content": "Be brief.", "name": "house"}],
    "developer": [{"role": "developer", "content": "Be brief."}],
    "tool-call": [
        {"role": "user", "content": "And there?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call-0", "content": '{"degrees": 3}'},
    ],
    "tool-call-with-text": [
        {"role": "user", "content": "And there?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call-0", "content": [{"type": "text", "text": "3"}]},
    ],
    "refused-before": [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "No.", "refusal": "No."},
    ],
    "refusal-null": [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Yes.", "refusal": None},
    ],
    "image": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            ],
        }
    ],
    "audio": [
        {
            "role": "user",
            "content": [{"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}],
        }
    ],
    "unicode": [
        {
            "role": "user",
            "content": "\x00\x1f\x7f \N{PARTY POPPER} e\u0301 \u2028\u2029\u0085\ufeff",
        }
    ],
    "white-space": [{"role": "user", "content": "  a\r\n\tb  \n"}],
    "empty": [{"role": "user", "content": ""}],
    "half-a-character": [{"role": "user", "content": "cut \ud83d"}],
}
_MARK = re.compile(r"^<<(.+)>>$")


def cases() -> dict[str, dict[str, Any]]:
    """The body of each request, by its name; the name is its last message."""
    bodies = {name: {"model": "fast", "messages": [], **of} for name, of in PARAMETERS.items()}
    for name, messages in MESSAGES.items():
        bodies[name] = {"model": "fast", "messages": messages}
    for name, body in bodies.items():
        body["messages"] = [*body["messages"], {"role": "user", "content": f"<<{name}>>"}]
    return bodies


def name_of(body: Any) -> str:
    """The name of the request that a body is of."""
    found = _MARK.match(body["messages"][-1]["content"])
    assert found is not None
    return found[1]
