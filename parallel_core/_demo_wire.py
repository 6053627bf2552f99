"""The JSON that the demo server reads and writes: chat completions in the way of OpenAI's API."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

from ._demo_sentiment import sentiment_of
from ._demo_settings import RequestOverride, RequestPlan


class BadRequestError(Exception):
    """A request that gets a 4xx answer. The message quotes nothing but the model's name."""

    def __init__(self, message: str, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


@dataclass(frozen=True, repr=False)  # a repr would show the messages
class ChatRequest:
    """A request for a chat completion, as far as the demo server cares.

    Attributes:
        prompt_tokens: as many as the messages have words, and some for each message.
        max_tokens: most tokens (here: words) of the answer, or ``None``.
        include_usage: whether a stream ends with a chunk that tells the usage.
        sentiment: the answer to a prompt that asks for ``positive or negative``; else ``None``.
    """

    model: str
    prompt_tokens: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    override: RequestOverride
    sentiment: str | None

    @staticmethod
    def from_body(body: bytes, models: Collection[str]) -> ChatRequest:
        """Read a request's body; raises ``BadRequestError``."""
        try:
            value: object = json.loads(body)
        except (ValueError, RecursionError):  # whose text would quote the body
            raise BadRequestError("The body is not valid JSON.") from None
        if not isinstance(value, dict):
            raise BadRequestError("The body must be a JSON object.")
        fields = cast("dict[str, object]", value)
        model = fields.get("model")
        if not isinstance(model, str):
            raise BadRequestError("'model' must be a string.")
        if model not in models:
            raise BadRequestError(
                f"The model {model!r} does not exist. There are: {', '.join(models)}.",
                status=404,
                code="model_not_found",
            )
        if fields.get("n") not in (None, 1):
            raise BadRequestError("'n' must be 1.")
        stream_options = fields.get("stream_options")
        if not isinstance(stream_options, (dict, type(None))):
            raise BadRequestError("'stream_options' must be an object.")
        try:
            override = RequestOverride.from_json(fields.get("demo"))
        except ValueError as error:
            raise BadRequestError(f"{error}.") from None
        texts = _texts_of(fields.get("messages"))
        return ChatRequest(
            model=model,
            prompt_tokens=sum(4 + len(text.split()) for text in texts),
            max_tokens=_max_tokens(fields),
            stream=_flag(fields, "stream"),
            include_usage=_flag(cast("dict[str, object]", stream_options or {}), "include_usage"),
            override=override,
            sentiment=sentiment_of(texts),
        )


@dataclass(frozen=True, repr=False)
class Answer:
    """A synthetic answer, ready to be sent as a whole or in pieces.

    Attributes:
        pieces: the tokens of the text, or of a tool call's arguments; a word each, with the space
            before it.
        finish_reason: ``"stop"``, ``"tool_calls"``, or ``"length"`` when ``max_tokens`` has cut the
            text.
        calls_tool: whether the answer is a call of the tool ``"demo"``.
    """

    request: ChatRequest
    number: int
    pieces: tuple[str, ...]
    finish_reason: str
    calls_tool: bool

    @staticmethod
    def to(request: ChatRequest, plan: RequestPlan) -> Answer:
        calls_tool = plan.tool_arguments is not None
        text = plan.reply if plan.tool_arguments is None else plan.tool_arguments
        if request.sentiment is not None and not calls_tool and request.override.reply is None:
            text = request.sentiment
        words = text.split(" ") if text else []
        pieces = [word if index == 0 else f" {word}" for index, word in enumerate(words)]
        fits = request.max_tokens is None or len(pieces) <= request.max_tokens
        return Answer(
            request=request,
            number=plan.number,
            pieces=tuple(pieces[: request.max_tokens]),
            finish_reason=("tool_calls" if calls_tool else "stop") if fits else "length",
            calls_tool=calls_tool,
        )

    @property
    def completion_tokens(self) -> int:
        return len(self.pieces)

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        text = "".join(self.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.calls_tool:
            message = {"role": "assistant", "content": None, "tool_calls": [self._tool_call(text)]}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        usage = {"usage": self._usage()} if self._tells_usage else {}
        return {**self._envelope("chat.completion"), "choices": [choice], **usage}

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The chunks of a stream: one for each token, the finish, and the usage if asked for."""
        # The role comes along with the first token, so that the first chunk is the first token.
        start: dict[str, Any] = {"role": "assistant"}
        for number, piece in enumerate(self.pieces):
            if self.calls_tool:
                call = self._tool_call(piece)
                if number:
                    call = {"function": {"arguments": piece}}
                delta: dict[str, Any] = {"tool_calls": [{"index": 0, **call}]}
            else:
                delta = {"content": piece}
            yield self._chunk({**start, **delta}, None)
            start = {}
        yield self._chunk(start, self.finish_reason)
        if self.request.include_usage and self._tells_usage:
            envelope = self._envelope("chat.completion.chunk")
            yield {**envelope, "choices": [], "usage": self._usage()}

    @property
    def _tells_usage(self) -> bool:
        return self.request.override.usage is not False

    def _tool_call(self, arguments: str) -> dict[str, Any]:
        function = {"name": "demo", "arguments": arguments}
        return {"id": f"call-{self.number}", "type": "function", "function": function}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        usage = {"usage": None} if self.request.include_usage else {}
        return {**self._envelope("chat.completion.chunk"), "choices": [choice], **usage}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-demo-{self.request.model}-{self.number}",
            "object": kind,
            "created": int(time.time()),
            "model": self.request.model,
            "system_fingerprint": "synthetic",
        }

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.request.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.request.prompt_tokens + self.completion_tokens,
        }


def error_body(message: str, *, status: int, code: str | None = None) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kind = {429: "rate_limit_error", 500: "server_error"}.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def models_body(models: Collection[str]) -> dict[str, Any]:
    """The body of the list of models."""
    entries = [
        {"id": model, "object": "model", "created": 0, "owned_by": "parallel-core-demo"}
        for model in models
    ]
    return {"object": "list", "data": entries}


def _texts_of(messages: object) -> list[str]:
    """The text of each message."""
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("'messages' must be a list of at least one message.")
    texts: list[str] = []
    for message in cast("list[object]", messages):
        if not isinstance(message, dict):
            raise BadRequestError("Every message must be an object.")
        fields = cast("dict[str, object]", message)
        if not isinstance(fields.get("role"), str):
            raise BadRequestError("Every message must have a 'role' that is a string.")
        texts.append(_text_of(fields.get("content")))
    return texts


def _text_of(content: object) -> str:
    if content is None:  # as in a message that only calls tools
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequestError("The 'content' of a message must be a string, a list or null.")
    texts: list[str] = []
    for part in cast("list[object]", content):
        if not isinstance(part, dict):
            raise BadRequestError("Every part of a message's 'content' must be an object.")
        text = cast("dict[str, object]", part).get("text")
        if isinstance(text, str):
            texts.append(text)
    return " ".join(texts)


def _max_tokens(fields: dict[str, object]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadRequestError(f"'{name}' must be an integer of at least 1.")
        return value
    return None


def _flag(fields: dict[str, object], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, (bool, type(None))):
        raise BadRequestError(f"'{name}' must be true or false.")
    return bool(value)
