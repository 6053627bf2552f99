"""Synthetic answers of the demo server: texts, JSON and tool calls, whole or in pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from .request import BadRequestError, ChatRequest, Tool
from .schema import SchemaError, instance_of
from .settings import RequestPlan

_DEMO_TOOL = "demo"


@dataclass(frozen=True, repr=False)
class _Call:
    """A tool call. ``pieces`` are the tokens of its arguments."""

    id: str
    name: str
    pieces: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return self.start("".join(self.pieces))

    def start(self, arguments: str) -> dict[str, Any]:
        function = {"name": self.name, "arguments": arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, repr=False)
class _Choice:
    """One of the choices of an answer: a text, or tool calls.

    Attributes:
        pieces: the tokens of the text; each is a word with the space before it.
        finish_reason: ``"stop"``, ``"tool_calls"``, ``"length"`` if ``max_tokens`` or a trouble
            has cut it, or ``"content_filter"``.
        top_logprobs: number of alternatives of each token; ``None``: no logprobs.
        reasoning_tokens: tokens that are billed and not shown.
    """

    index: int
    pieces: tuple[str, ...]
    calls: tuple[_Call, ...]
    finish_reason: str
    top_logprobs: int | None
    reasoning_tokens: int = 0

    @property
    def tokens(self) -> int:
        calls = sum(len(call.pieces) for call in self.calls)
        return len(self.pieces) + calls + self.reasoning_tokens

    def to_json(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if self.calls else "".join(self.pieces),
            "refusal": None,
        }
        if self.calls:
            message["tool_calls"] = [call.to_json() for call in self.calls]
        return {
            "index": self.index,
            "message": message,
            "logprobs": self._logprobs(0, len(self.pieces)),
            "finish_reason": self.finish_reason,
        }

    def deltas(self) -> Iterator[dict[str, Any]]:
        """Yield the deltas of a stream: one for each token, and one for the finish reason."""
        # The role comes with the first token, so that the first chunk has the first token.
        start: dict[str, Any] = {"role": "assistant"}
        for number, piece in enumerate(self.pieces):
            yield self._delta({**start, "content": piece}, logprobs=self._logprobs(number, 1))
            start = {}
        for index, call in enumerate(self.calls):
            for number, piece in enumerate(call.pieces):
                part = {"function": {"arguments": piece}} if number else call.start(piece)
                yield self._delta({**start, "tool_calls": [{"index": index, **part}]})
                start = {}
        yield self._delta(start, finish_reason=self.finish_reason)

    def _delta(
        self, delta: dict[str, Any], *, finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        return {
            "index": self.index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _logprobs(self, first: int, count: int) -> dict[str, Any] | None:
        if self.top_logprobs is None or self.calls:
            return None
        tokens = [
            _token(piece, first + number, self.top_logprobs)
            for number, piece in enumerate(self.pieces[first : first + count])
        ]
        return {"content": tokens, "refusal": None}


@dataclass(frozen=True, repr=False)
class Answer:
    """A synthetic answer, ready to be sent as a whole or in pieces.

    Attributes:
        created: time when the answer was made, in whole seconds since the epoch.
    """

    request: ChatRequest
    number: int
    created: int
    choices: tuple[_Choice, ...]

    @staticmethod
    def to(request: ChatRequest, plan: RequestPlan) -> Answer:
        """Make the answer. Raises ``BadRequestError`` if no value fits a schema."""
        choices = tuple(_choice(request, plan, index) for index in range(request.n))
        if plan.fault is not None:
            choices = _troubled(choices, request, plan)
        return Answer(request, plan.number, int(time.time()), choices)

    @property
    def completion_tokens(self) -> int:
        return sum(choice.tokens for choice in self.choices)

    def whole(self) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        choices = [choice.to_json() for choice in self.choices]
        usage = {"usage": self._usage()} if self._has_usage else {}
        return {**self._envelope("chat.completion"), "choices": choices, **usage}

    def chunks(self) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a stream: the choices in turn, and the usage if requested."""
        envelope = self._envelope("chat.completion.chunk")
        no_usage = {"usage": None} if self.request.include_usage else {}
        for together in zip_longest(*(choice.deltas() for choice in self.choices)):
            for delta in together:
                if delta is not None:
                    yield {**envelope, "choices": [delta], **no_usage}
        if self.request.include_usage and self._has_usage:
            yield {**envelope, "choices": [], "usage": self._usage()}

    @property
    def _has_usage(self) -> bool:
        return self.request.override.usage is not False

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-demo-{self.request.model}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.request.model,
            "system_fingerprint": "synthetic",
        }

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.request.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.request.prompt_tokens + self.completion_tokens,
        }


def _troubled(
    choices: tuple[_Choice, ...], request: ChatRequest, plan: RequestPlan
) -> tuple[_Choice, ...]:
    """Apply a fault to the choices: the answer stays complete, but is not what was requested."""
    if plan.fault == "empty":
        return ()
    if plan.fault == "cut":
        shorter = [replace(request, max_tokens=choice.tokens // 2) for choice in choices]
        cut = (_choice(request, plan, index) for index, request in enumerate(shorter))
        return tuple(replace(choice, finish_reason="length") for choice in cut)
    reasons = {"no_text": "length", "filtered": "content_filter"}
    if plan.fault not in reasons:
        return choices
    return tuple(
        replace(
            choice,
            pieces=(),
            calls=(),
            finish_reason=reasons[plan.fault],
            reasoning_tokens=choice.tokens if plan.fault == "no_text" else 0,
        )
        for choice in choices
    )


def _choice(request: ChatRequest, plan: RequestPlan, index: int) -> _Choice:
    if plan.tool_arguments is not None:
        calls = [(_DEMO_TOOL, plan.tool_arguments)]
    else:
        words = _words(plan.reply, index)
        calls = [(tool.name, _arguments(tool, words)) for tool in request.calls]
    if not calls:
        text = _text(request, plan, index)
        stops = [place for stop in request.stop if (place := text.find(stop)) >= 0]
        pieces = _pieces(text[: min(stops)] if stops else text)
        kept = pieces[: request.max_tokens]
        reason = "stop" if len(kept) == len(pieces) else "length"
        return _Choice(index, kept, (), reason, request.top_logprobs)
    made: list[_Call] = []
    left = request.max_tokens
    for number, (name, arguments) in enumerate(calls):
        pieces = _pieces(arguments)
        call = _Call(f"call-{plan.number}-{index}-{number}", name, pieces)
        if left is not None and left < len(pieces):
            made.append(replace(call, pieces=pieces[:left]))
            return _Choice(index, (), tuple(made), "length", None)
        left = None if left is None else left - len(pieces)
        made.append(call)
    return _Choice(index, (), tuple(made), "tool_calls", None)


def _text(request: ChatRequest, plan: RequestPlan, index: int) -> str:
    if request.override.reply is not None:
        return plan.reply
    if request.schema is not None:
        try:
            return json.dumps(instance_of(request.schema, _words(plan.reply, index)))
        except SchemaError as error:
            raise _bad_schema("response_format", str(error)) from None
    if request.sentiment is not None:
        return request.sentiment
    return " ".join(_words(plan.reply, index))


def _arguments(tool: Tool, words: list[str]) -> str:
    if not tool.parameters:
        return "{}"
    try:
        return json.dumps(instance_of({"type": "object", **tool.parameters}, words))
    except SchemaError as error:
        raise _bad_schema("tools", f"of {tool.name!r}: {error}") from None


def _bad_schema(param: str, reason: str) -> BadRequestError:
    message = f"The demo server cannot make a value for the schema: {reason}."
    return BadRequestError(message, code="unsupported_schema", param=param)


def _words(reply: str, index: int) -> list[str]:
    """Return the words of a choice: the reply's mark, then its words, rotated by the index."""
    mark, *words = reply.split(" ")
    start = index % max(1, len(words))
    return [mark, *words[start:], *words[:start]]


def _pieces(text: str) -> tuple[str, ...]:
    words = text.split(" ") if text else []
    return tuple(word if index == 0 else f" {word}" for index, word in enumerate(words))


def _token(text: str, position: int, alternatives: int) -> dict[str, Any]:
    """Return a token with synthetic probabilities whose sum is less than 1."""
    itself = _probability(text, -0.5 - 0.01 * (position % 10))
    others = [_probability(f" other{rank}", -2.0 - 0.5 * rank) for rank in range(1, alternatives)]
    return {**itself, "top_logprobs": [itself, *others] if alternatives else []}


def _probability(token: str, logprob: float) -> Mapping[str, Any]:
    octets = list(token.encode("utf-8", "surrogatepass"))
    return {"token": token, "logprob": logprob, "bytes": octets}
