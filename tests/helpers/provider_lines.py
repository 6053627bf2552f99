"""Lines of Anthropic's and Gemini's batches that use all that chat completions can express."""

from __future__ import annotations

from typing import Any

PICTURE = "aGk="  # base64

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}

CACHED = {"cache_control": {"type": "ephemeral"}}

ANTHROPIC: dict[str, dict[str, Any]] = {
    "one prompt": {
        "model": "claude",
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": "Hello, Klöße"}],
    },
    "all parameters": {
        "model": "claude",
        "max_tokens": 2048,
        "system": "Be brief.",
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Go on"},
        ],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop_sequences": ["END", "\n"],
        "metadata": {"user_id": "u-1"},
        "service_tier": "auto",
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        "container": "c-1",
        "inference_geo": "us",
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
        "cache_control": {"type": "ephemeral"},
    },
    "parts": {
        "model": "claude",
        "max_tokens": 9,
        "system": [
            {"type": "text", "text": "One."},
            {"type": "text", "text": "Two.", **CACHED},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "text",
                        "text": "a",
                        "cache_control": {"type": "ephemeral", "ttl": "1h"},
                    },
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": PICTURE},
                        **CACHED,
                    },
                    {
                        "type": "image",
                        "source": {"type": "url", "url": "https://example.com/a.png"},
                    },
                    {
                        "type": "document",
                        "source": {
                            "type": "base64",
                            "media_type": "application/pdf",
                            "data": PICTURE,
                        },
                    },
                    {"type": "text", "text": "b"},
                ],
            },
        ],
    },
    "tools and thoughts": {
        "model": "claude",
        "max_tokens": 2048,
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                    {"type": "redacted_thinking", "data": "EmwKAhgB/8A="},
                    {"type": "text", "text": "I look it up."},
                    {"type": "text", "text": "Both."},
                    {"type": "tool_use", "id": "t_1", "name": "look", "input": {"city": "Köln"}},
                    {"type": "tool_use", "id": "t_2", "name": "look", "input": {}, **CACHED},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t_1", "content": "rain", **CACHED},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t_2",
                        "content": [
                            {"type": "text", "text": "sun"},
                            {
                                "type": "image",
                                "source": {
                                    "type": "base64",
                                    "media_type": "image/png",
                                    "data": PICTURE,
                                },
                            },
                        ],
                    },
                    {"type": "text", "text": "And now?"},
                ],
            },
        ],
        "tools": [
            {"name": "look", "description": "Looks.", "input_schema": SCHEMA, **CACHED},
            {"type": "custom", "name": "other", "input_schema": SCHEMA},
        ],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    },
    "any tool": {
        "model": "claude",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"name": "look", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
    },
    "one tool": {
        "model": "claude",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"name": "look", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "look"},
    },
    "no tool": {
        "model": "claude",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"name": "look", "input_schema": SCHEMA}],
        "tool_choice": {"type": "none"},
    },
}

GEMINI: dict[str, dict[str, Any]] = {
    "one prompt": {"contents": [{"parts": [{"text": "Hello, Klöße"}]}]},
    "all parameters": {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [{"text": "Hello."}, {"text": "Yes?"}]},
            {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
        ],
        "generationConfig": {
            "temperature": 0,
            "topP": 0.5,
            "topK": 3,
            "maxOutputTokens": 100,
            "candidateCount": 2,
            "stopSequences": ["END"],
            "seed": 4,
            "presencePenalty": 0.1,
            "frequencyPenalty": 0.2,
            "responseModalities": ["TEXT"],
            "thinkingConfig": {"thinkingBudget": 0},
            "mediaResolution": "MEDIA_RESOLUTION_LOW",
        },
        "safetySettings": [
            {"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_ONLY_HIGH"}
        ],
        "cachedContent": "cachedContents/1",
    },
    "in the other spelling": {
        "system_instruction": {"parts": [{"text": "Be brief."}]},
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "generation_config": {"max_output_tokens": 100, "response_mime_type": "application/json"},
    },
    "files": {
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "a"},
                    {"inlineData": {"mimeType": "image/png", "data": PICTURE}},
                    {"inlineData": {"mimeType": "application/pdf", "data": PICTURE}},
                    {"inlineData": {"mimeType": "audio/wav", "data": PICTURE}},
                    {"inlineData": {"mimeType": "video/mp4", "data": PICTURE}},
                    {
                        "fileData": {
                            "mimeType": "video/mp4",
                            "fileUri": "https://generativelanguage.googleapis.com/v1beta/files/a",
                        }
                    },
                ],
            }
        ],
    },
    "functions": {
        "contents": [
            {"role": "user", "parts": [{"text": "Weather?"}]},
            {
                "role": "model",
                "parts": [
                    {"text": "I look."},
                    {"functionCall": {"name": "look", "args": {"city": "Köln"}}},
                    {"functionCall": {"name": "look", "args": {"city": "Bonn"}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"name": "look", "response": {"is": "rain"}}},
                    {"functionResponse": {"name": "look", "response": {"is": ["sun"]}}},
                ],
            },
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {"name": "look", "description": "Looks.", "parameters": SCHEMA},
                    {"name": "other"},
                ]
            }
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
    },
    "one function": {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "tools": [{"functionDeclarations": [{"name": "look", "parameters": SCHEMA}]}],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["look"]}},
    },
    "a schema": {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}],
        "generationConfig": {
            "responseMimeType": "application/json",
            "responseJsonSchema": SCHEMA,
        },
    },
}


def normal_anthropic(params: dict[str, Any]) -> dict[str, Any]:
    """Return params with every shorthand written out: texts as blocks, custom tools as such."""
    wanted = {**params}
    if isinstance(wanted.get("system"), str):
        wanted["system"] = _blocks(wanted["system"])
    wanted["messages"] = [
        {"role": message["role"], "content": _blocks(message["content"])}
        for message in wanted["messages"]
    ]
    if "tools" in wanted:
        wanted["tools"] = [{"type": "custom", **tool} for tool in wanted["tools"]]
    return wanted


def _blocks(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def camel(value: Any) -> Any:
    """Return a request of Gemini with all names in one spelling, and the role of each content."""
    if isinstance(value, list):
        return [camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    renamed = {_camel_name(name): camel(one) for name, one in value.items()}
    if "contents" in renamed:
        renamed["contents"] = [{"role": "user", **content} for content in renamed["contents"]]
    return renamed


def _camel_name(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
