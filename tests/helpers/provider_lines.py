"""Lines of Anthropic's and Gemini's batches that use all that chat completions can express."""

from __future__ import annotations

from random import Random
from typing import Any

PICTURE = "aGk="  # base64

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}

_CACHED = {"cache_control": {"type": "ephemeral"}}

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
            {"type": "text", "text": "Two.", **_CACHED},
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
                        **_CACHED,
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
                    {"type": "tool_use", "id": "t_2", "name": "look", "input": {}, **_CACHED},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t_1", "content": "rain", **_CACHED},
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
            {"name": "look", "description": "Looks.", "input_schema": SCHEMA, **_CACHED},
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


TEXTS = [
    "a",
    "b c",
    " before",
    "after ",
    "ü\n\nx",
    "{{x}}",
    "<a>&",
    "a\u2028b",
    "Human: hi",
    "null",
]


class MadeUp:
    """Makes requests of many shapes, the same ones for each seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._calls = 0

    def _often(self, share: float) -> bool:
        return self._random.random() < share

    def _text(self) -> str:
        return self._random.choice(TEXTS)

    def _some(self, members: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in members.items() if self._often(0.3)}

    def _cached(self, block: dict[str, Any]) -> dict[str, Any]:
        return {**block, **_CACHED} if self._often(0.2) else block

    def _block(self) -> dict[str, Any]:
        return self._cached({"type": "text", "text": self._text()})

    def _file_block(self) -> dict[str, Any]:
        kind = self._random.choice(["image/png", "image/webp", "application/pdf"])
        source = {"type": "base64", "media_type": kind, "data": PICTURE}
        name = "document" if kind.endswith("pdf") else "image"
        return self._cached({"type": name, "source": source})

    def _content(self) -> Any:
        if self._often(0.5):
            return self._text()
        blocks = (self._block, self._file_block)
        return [self._random.choice(blocks)() for _ in range(self._random.randint(1, 3))]

    def anthropic(self) -> dict[str, Any]:
        """Return params that litellm sends to Anthropic without a change."""
        with_tools = self._often(0.5)
        messages = [{"role": "user", "content": self._content()}]
        for _ in range(self._random.randint(0, 3)):
            if with_tools and self._often(0.6):
                messages += self._tool_turn()
            else:
                answer = self._text() if self._often(0.5) else [self._block(), self._block()]
                messages.append({"role": "assistant", "content": answer})
                messages.append({"role": "user", "content": self._content()})
        params: dict[str, Any] = {"model": "claude", "max_tokens": 4096, "messages": messages}
        if with_tools:
            params["tools"] = [
                self._cached({"name": name, "description": "d", "input_schema": SCHEMA})
                for name in ("look", "other")
            ]
        params |= self._some({
            "system": [self._block(), self._block()],
            "temperature": 0.0,
            "top_p": 0.5,
            "top_k": 1,
            "stop_sequences": ["a"],
            "metadata": {"user_id": "u"},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        })  # fmt: skip
        return params

    def _tool_turn(self) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = []
        if self._often(0.3):
            said.append({"type": "thinking", "thinking": "t", "signature": "s"})
        said += [self._block() for _ in range(self._random.randint(0, 2))]
        results: list[dict[str, Any]] = []
        for _ in range(self._random.randint(1, 2)):
            self._calls += 1
            call = f"toolu_{self._calls}"
            given = self._random.choice([{}, {"a": 1.5, "b": [None, True, "ü"]}])
            said.append(
                self._cached({"type": "tool_use", "id": call, "name": "look", "input": given})
            )
            content = self._random.choice(["", "yes", [self._block(), self._block()]])
            result = {"type": "tool_result", "tool_use_id": call, "content": content}
            results.append(self._cached(result))
        if self._often(0.4):
            results.append(self._block())
        return [{"role": "assistant", "content": said}, {"role": "user", "content": results}]

    def _part(self) -> dict[str, Any]:
        if self._often(0.5):
            return {"text": self._text()}
        kinds = [
            "image/png",
            "application/pdf",
            "audio/wav",
            "audio/mp3",
            "audio/flac",
            "text/plain",
        ]
        data = {"mimeType": self._random.choice(kinds), "data": PICTURE}
        return {"inlineData": data}

    def _user_content(self) -> dict[str, Any]:
        others = [self._part() for _ in range(self._random.randint(0, 2))]
        return {"role": "user", "parts": [{"text": self._text()}, *others]}

    def gemini(self) -> dict[str, Any]:
        """Return a request that litellm sends to Gemini without a change."""
        with_tools = self._often(0.5)
        contents = [self._user_content()]
        for _ in range(self._random.randint(0, 3)):
            if with_tools and self._often(0.6):
                contents += self._function_turn()
            else:
                contents.append({"role": "model", "parts": [{"text": self._text()}]})
                contents.append(self._user_content())
        request: dict[str, Any] = {"contents": contents}
        if with_tools:
            declared = [
                {"name": "look", "description": "d", "parameters": SCHEMA},
                {"name": "other"},
            ]
            request["tools"] = [{"functionDeclarations": declared}]
        if config := self._some({
            "temperature": 0.0,
            "topP": 0.5,
            "topK": 1,
            "stopSequences": ["a"],
            "seed": 0,
            "candidateCount": 1,
            "maxOutputTokens": 5,
            "frequencyPenalty": 0.5,
            "thinkingConfig": {"thinkingBudget": -1, "includeThoughts": True},
        }):  # fmt: skip
            request["generationConfig"] = config
        return request | self._some({"systemInstruction": {"parts": [{"text": self._text()}]}})

    def _function_turn(self) -> list[dict[str, Any]]:
        names = [self._random.choice(["look", "other"]) for _ in range(self._random.randint(1, 2))]
        calls: list[dict[str, Any]] = []
        for name in names:
            self._calls += 1  # no two calls are the same
            calls.append(
                {"functionCall": {"name": name, "args": {"a": self._calls, "b": [None, "ü"]}}}
            )
        answers = [{"functionResponse": {"name": name, "response": {"is": []}}} for name in names]
        return [{"role": "model", "parts": calls}, {"role": "user", "parts": answers}]
