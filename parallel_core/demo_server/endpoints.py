"""The endpoints of the demo server beside chat: embeddings, responses, completions, and others.

Each reads its body as if it were that of a chat with the same texts. So models, troubles, numbers,
counts and the field ``demo`` are those of chat. None of them streams.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from .answer import Answer
from .request import BadRequestError, ChatRequest
from .settings import RequestPlan

_DIMENSIONS: Final = 8  # of an embedding, unless the request has others
_MOST_DIMENSIONS: Final = 4096
_UNSAFE: Final = "unsafe"  # the word that makes a moderation flag a text, as violence
_VIOLENCE: Final = "violence"
_CATEGORIES: Final = (
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit"),
    *("illicit/violent", "self-harm", "self-harm/instructions", "self-harm/intent", "sexual"),
    *("sexual/minors", _VIOLENCE, "violence/graphic"),
)


@dataclass(frozen=True, repr=False)
class EndpointAnswer:
    """The answer of an endpoint, made of the answer of a chat with the same texts.

    Attributes:
        chat: that answer.
        fields: the body of the request.
        endpoint: makes the body of the answer.
    """

    chat: Answer
    fields: Mapping[str, Any]
    endpoint: Endpoint

    @property
    def request(self) -> ChatRequest:
        return self.chat.request

    @property
    def completion_tokens(self) -> int:
        return self.chat.completion_tokens if self.endpoint.answers_in_text else 0

    def whole(self) -> dict[str, Any]:
        """Return the body of the answer."""
        return self.endpoint.render(self)

    @property
    def has_usage(self) -> bool:
        return self.request.override.usage is not False


@dataclass(frozen=True)
class Endpoint:
    """An endpoint.

    Attributes:
        path: its path below ``/v1``.
        as_chat: makes the body of a chat with the same texts.
        render: makes the body of the answer.
        answers_in_text: False if its answers have no tokens.
    """

    path: str
    as_chat: Callable[[Mapping[str, Any]], dict[str, Any]]
    render: Callable[[EndpointAnswer], dict[str, Any]]
    answers_in_text: bool = False

    def read(self, value: object, models: Collection[str]) -> ChatRequest:
        """Read the parsed body of a request. Raises ``BadRequestError``."""
        if not isinstance(value, dict):
            raise BadRequestError("The body must be a JSON object.")
        fields = cast("dict[str, Any]", value)
        if fields.get("stream"):
            raise BadRequestError("The demo server streams only chat completions.", param="stream")
        body = self.as_chat(fields)
        body.update((name, fields[name]) for name in ("model", "demo") if name in fields)
        return ChatRequest.from_body(body, models)

    def answer(self, value: object, request: ChatRequest, plan: RequestPlan) -> EndpointAnswer:
        """Make the answer."""
        return EndpointAnswer(Answer.to(request, plan), cast("dict[str, Any]", value), self)


# --- bodies of requests ---


def _wrong(name: str, what: str) -> BadRequestError:
    return BadRequestError(f"{name!r} {what}.", param=name)


def _texts(fields: Mapping[str, Any], name: str) -> list[str]:
    """Return the texts of a parameter: one, several, or the same as numbers of tokens."""
    value: object = fields.get(name)
    if isinstance(value, str):
        return [value]
    members = cast("list[object]", value) if isinstance(value, list) else []
    if members and all(type(member) is int for member in members):
        return [" ".join(map(str, members))]
    texts: list[str] = []
    for member in members:
        if isinstance(member, list):
            texts.append(" ".join(map(str, cast("list[object]", member))))
        elif isinstance(member, str):
            texts.append(member)
        else:
            texts = []
            break
    if not texts:
        raise _wrong(name, "must be a string or a list of at least one string")
    return texts


def _messages(texts: list[str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


def _input_as_chat(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": _messages(_texts(fields, "input"))}


def _ranking_as_chat(fields: Mapping[str, Any]) -> dict[str, Any]:
    query: object = fields.get("query")
    if not isinstance(query, str):
        raise _wrong("query", "must be a string")
    return {"messages": _messages([query, *_documents(fields)])}


def _documents(fields: Mapping[str, Any]) -> list[str]:
    found: object = fields.get("documents")
    if isinstance(found, list):
        of_text = [
            cast("dict[str, object]", one).get("text") if isinstance(one, dict) else one
            for one in cast("list[object]", found)
        ]
        return _texts({"documents": of_text}, "documents")
    return _texts(fields, "documents")


def _completion_as_chat(fields: Mapping[str, Any]) -> dict[str, Any]:
    texts = _texts(fields, "prompt")
    number = fields.get("n", 1)
    taken = {name: fields[name] for name in ("max_tokens", "stop") if name in fields}
    answers = number * len(texts) if type(number) is int else number
    return {"messages": _messages(texts), "n": answers, **taken}


def _response_as_chat(fields: Mapping[str, Any]) -> dict[str, Any]:
    given: object = fields.get("input")
    if isinstance(given, list):
        messages = cast("list[dict[str, Any]]", given)
    else:
        messages = _messages(_texts(fields, "input"))
    instructions = fields.get("instructions")
    if instructions is not None:
        messages = [{"role": "system", "content": instructions}, *messages]
    return {"messages": messages, "max_tokens": fields.get("max_output_tokens")}


# --- bodies of answers ---


def _embeddings(answer: EndpointAnswer) -> dict[str, Any]:
    dimensions = answer.fields.get("dimensions", _DIMENSIONS)
    if type(dimensions) is not int or not 0 < dimensions <= _MOST_DIMENSIONS:
        raise _wrong("dimensions", f"must be an integer from 1 to {_MOST_DIMENSIONS}")
    is_packed = answer.fields.get("encoding_format") == "base64"
    vectors = [_vector(text, dimensions) for text in _texts(answer.fields, "input")]
    data = [
        {"object": "embedding", "index": index, "embedding": _packed(one) if is_packed else one}
        for index, one in enumerate(vectors if answer.chat.choices else [])
    ]
    body = {"object": "list", "data": data, "model": answer.request.model}
    tokens = answer.request.prompt_tokens
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {**body, "usage": usage} if answer.has_usage else body


def _vector(text: str, dimensions: int) -> list[float]:
    """Return a vector of length 1 that depends on the text alone."""
    octets = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    numbers = [one / 32768 - 1 for one in struct.unpack(f"<{dimensions}H", octets)]
    length = math.hypot(*numbers) or 1.0
    return [number / length for number in numbers]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _moderations(answer: EndpointAnswer) -> dict[str, Any]:
    flags = [_UNSAFE in text.lower().split() for text in _texts(answer.fields, "input")]
    results = [
        {
            "flagged": flag,
            "categories": {name: flag and name == _VIOLENCE for name in _CATEGORIES},
            "category_scores": {
                name: 0.9 if flag and name == _VIOLENCE else 0.1 for name in _CATEGORIES
            },
            "category_applied_input_types": {name: ["text"] for name in _CATEGORIES},
        }
        for flag in (flags if answer.chat.choices else [])
    ]
    number = answer.chat.number
    return {"id": f"modr-demo-{number}", "model": answer.request.model, "results": results}


def _ranking(answer: EndpointAnswer) -> dict[str, Any]:
    words = set(answer.fields["query"].lower().split())
    scores = [
        len(words & set(text.lower().split())) / max(1, len(words))
        for text in _documents(answer.fields)
    ]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    kept = order[: answer.fields.get("top_n")] if answer.chat.choices else []
    tokens = answer.request.prompt_tokens
    meta = {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": tokens}}
    return {
        "id": f"rerank-demo-{answer.chat.number}",
        "results": [{"index": index, "relevance_score": scores[index]} for index in kept],
        "meta": meta if answer.has_usage else {},
    }


def _completion(answer: EndpointAnswer) -> dict[str, Any]:
    whole = answer.chat.whole()
    choices = [
        {
            "index": choice["index"],
            "text": choice["message"]["content"] or "",
            "logprobs": None,
            "finish_reason": choice["finish_reason"],
        }
        for choice in whole["choices"]
    ]
    return {**whole, "id": f"cmpl-demo-{answer.chat.number}", "object": "text_completion"} | {
        "choices": choices
    }


def _response(answer: EndpointAnswer) -> dict[str, Any]:
    chat = answer.chat
    reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
    choice = chat.choices[0] if chat.choices else None
    reason = None if choice is None else reasons.get(choice.finish_reason)
    texts = [] if choice is None else ["".join(choice.pieces)]
    body: dict[str, Any] = {
        "id": f"resp_demo_{chat.request.model}_{chat.number}",
        "object": "response",
        "created_at": chat.created,
        "status": "completed" if reason is None else "incomplete",
        "incomplete_details": None if reason is None else {"reason": reason},
        "model": chat.request.model,
        "output": [
            {
                "type": "message",
                "id": f"msg_demo_{chat.number}",
                "status": "completed" if reason is None else "incomplete",
                "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
            for text in texts
            if text
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    if answer.has_usage:
        prompt, completion = chat.request.prompt_tokens, chat.completion_tokens
        reasoning = 0 if choice is None else choice.reasoning_tokens
        body["usage"] = {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": prompt + completion,
        }
    return body


ENDPOINTS: Final = (
    Endpoint("embeddings", _input_as_chat, _embeddings),
    Endpoint("moderations", _input_as_chat, _moderations),
    Endpoint("rerank", _ranking_as_chat, _ranking),
    Endpoint("completions", _completion_as_chat, _completion, answers_in_text=True),
    Endpoint("responses", _response_as_chat, _response, answers_in_text=True),
)
