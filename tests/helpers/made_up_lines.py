"""Made-up requests of Anthropic and Gemini, in many shapes."""

from __future__ import annotations

from random import Random
from typing import Any

from helpers.provider_lines import CACHED, PICTURE, SCHEMA

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
        return {**block, **CACHED} if self._often(0.2) else block

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
