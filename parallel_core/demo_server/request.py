"""Parse and check a request for a chat completion."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from .sentiment import sentiment_of
from .settings import RequestOverride

_MOST_CHOICES: Final = 128
_MOST_TOP_LOGPROBS: Final = 20
_MOST_STOPS: Final = 4


class BadRequestError(Exception):
    """A request gets a 4xx answer. The message quotes only names.

    Attributes:
        param: the wrong parameter.
    """

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param


@dataclass(frozen=True, repr=False)
class Tool:
    """A function that an answer may call.

    Attributes:
        parameters: the JSON schema of its arguments.
    """

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, repr=False)  # a repr would show the messages
class ChatRequest:
    """The parts of a request for a chat completion that the demo server uses.

    Attributes:
        prompt_tokens: number of words in the messages, plus some for each message.
        max_tokens: most tokens (here: words) of each choice, or ``None``.
        include_usage: True if a stream ends with a chunk that has the usage.
        sentiment: the answer to a prompt that asks for ``positive or negative``; else ``None``.
        n: number of choices.
        stop: texts that end an answer; the answer does not contain them.
        top_logprobs: number of alternatives of each token; ``None``: no logprobs.
        schema: the JSON schema that the text must fit; ``None``: any text.
        calls: the tools that the answer calls, in order; empty: the answer is a text.
    """

    model: str
    prompt_tokens: int
    max_tokens: int | None
    stream: bool
    include_usage: bool
    override: RequestOverride
    sentiment: str | None
    n: int
    stop: tuple[str, ...]
    top_logprobs: int | None
    schema: object
    calls: tuple[Tool, ...]

    @staticmethod
    def from_body(value: object, models: Collection[str]) -> ChatRequest:
        """Read the parsed body of a request. Raises ``BadRequestError``."""
        if not isinstance(value, dict):
            raise BadRequestError("The body must be a JSON object.")
        fields = cast("dict[str, object]", value)
        model = fields.get("model")
        if not isinstance(model, str):
            raise _wrong("model", "must be a string")
        if model not in models:
            raise unknown_model(model, models)
        stream_options = fields.get("stream_options")
        if not isinstance(stream_options, (dict, type(None))):
            raise _wrong("stream_options", "must be an object")
        try:
            override = RequestOverride.from_json(fields.get("demo"))
        except ValueError as error:
            raise BadRequestError(f"{error}.") from None
        messages = _messages_of(fields.get("messages"))
        texts = [_text_of(message.get("content")) for message in messages]
        return ChatRequest(
            model=model,
            prompt_tokens=sum(4 + len(text.split()) for text in texts),
            max_tokens=_max_tokens(fields),
            stream=_flag(fields, "stream"),
            include_usage=_flag(cast("dict[str, object]", stream_options or {}), "include_usage"),
            override=override,
            sentiment=sentiment_of(texts),
            n=_whole_number(fields, "n", 1, _MOST_CHOICES) or 1,
            stop=_stop(fields),
            top_logprobs=_top_logprobs(fields),
            schema=_schema(fields),
            calls=_calls(fields, messages[-1], override),
        )


def parse_body(body: bytes) -> object:
    """Parse a body. Raises ``BadRequestError``, which does not quote the body."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequestError("The body is not valid JSON.") from None


def unknown_model(model: str, models: Collection[str]) -> BadRequestError:
    return BadRequestError(
        f"The model {model!r} does not exist. The models are: {', '.join(models)}.",
        status=404,
        code="model_not_found",
        param="model",
    )


def _wrong(name: str, what: str) -> BadRequestError:
    return BadRequestError(f"'{name}' {what}.", param=name)


def _messages_of(messages: object) -> list[dict[str, object]]:
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be a list of at least one message")
    for message in cast("list[object]", messages):
        if not isinstance(message, dict):
            raise BadRequestError("Every message must be an object.", param="messages")
        if not isinstance(cast("dict[str, object]", message).get("role"), str):
            raise BadRequestError(
                "Every message must have a 'role' that is a string.", param="messages"
            )
    return cast("list[dict[str, object]]", messages)


def _text_of(content: object) -> str:
    if content is None:  # a message that only calls tools has no content
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
        value = _whole_number(fields, name, 1)
        if value is not None:
            return value
    return None


def _stop(fields: dict[str, object]) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    texts = cast("list[object]", value if isinstance(value, list) else [value])
    if len(texts) > _MOST_STOPS or not all(isinstance(text, str) and text for text in texts):
        raise _wrong("stop", f"must be a string or a list of at most {_MOST_STOPS} strings")
    return cast("tuple[str, ...]", tuple(texts))


def _top_logprobs(fields: dict[str, object]) -> int | None:
    number = _whole_number(fields, "top_logprobs", 0, _MOST_TOP_LOGPROBS)
    if _flag(fields, "logprobs"):
        return number or 0
    if number is not None:
        raise _wrong("top_logprobs", "is only allowed when 'logprobs' is true")
    return None


def _schema(fields: dict[str, object]) -> object:
    value = fields.get("response_format")
    if value is None:
        return None
    wanted = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        return {"type": "object", "properties": {"answer": {}}}
    if wanted.get("type") != "json_schema":
        raise _wrong("response_format", "must have a 'type': text, json_object or json_schema")
    described = wanted.get("json_schema")
    if not isinstance(described, dict):
        raise _wrong("response_format.json_schema", "must be an object with 'name' and 'schema'")
    named = cast("dict[str, object]", described)
    if not isinstance(named.get("name"), str):
        raise _wrong("response_format.json_schema.name", "must be a string")
    return named.get("schema", {})


# --- tools ---


def _calls(
    fields: dict[str, object], last: dict[str, object], override: RequestOverride
) -> tuple[Tool, ...]:
    """Return the tools that the answer calls.

    If the request leaves the choice, the answer calls a tool, unless the last message is that of a
    tool or ``demo.reply`` has a text. With ``"parallel_tool_calls": true`` it calls each tool once.
    """
    tools = _tools(fields)
    together = fields.get("parallel_tool_calls")
    _flag(fields, "parallel_tool_calls")
    choice = fields.get("tool_choice")
    if not tools:
        for name in ("tool_choice", "parallel_tool_calls"):
            if fields.get(name) not in (None, "none"):
                raise _wrong(name, "is only allowed when 'tools' are specified")
        return ()
    if choice == "none":
        return ()
    mode = "auto" if choice is None else choice
    if isinstance(choice, dict):
        tools, mode = _chosen(cast("dict[str, Any]", choice), tools)
    if mode not in ("auto", "required"):
        raise _wrong("tool_choice", "must be none, auto, required or an object that names a tool")
    if mode == "auto" and (last["role"] in ("tool", "function") or override.reply is not None):
        return ()
    return tuple(tools) if together is True else (tools[0],)


def _chosen(choice: dict[str, Any], tools: list[Tool]) -> tuple[list[Tool], str]:
    """Return the tools that a choice allows, and its mode: ``required`` if one must be called."""
    if choice.get("type") == "allowed_tools":
        allowed: Any = choice.get("allowed_tools")
        allowed = cast("dict[str, Any]", allowed) if isinstance(allowed, dict) else {}
        named: Any = allowed.get("tools")
        mode = str(allowed.get("mode"))
    else:
        named, mode = [choice], "required"
    wanted = [_name_of(entry) for entry in cast("list[object]", named or [])]
    chosen = [tool for tool in tools if tool.name in wanted]
    if not chosen or len(set(wanted)) > len(chosen):
        raise _wrong("tool_choice", "names a tool that is not in 'tools'")
    return chosen, mode


def _name_of(entry: object) -> object:
    function = cast("dict[str, object]", entry).get("function") if isinstance(entry, dict) else None
    return cast("dict[str, object]", function).get("name") if isinstance(function, dict) else None


def _tools(fields: dict[str, object]) -> list[Tool]:
    value = fields.get("tools")
    if value is None:
        return []
    if not isinstance(value, list) or not value:
        raise _wrong("tools", "must be a list of at least one tool")
    tools: list[Tool] = []
    for number, entry in enumerate(cast("list[object]", value)):
        where = f"tools[{number}]"
        tool = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
        function: Any = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise _wrong(where, "must be {'type': 'function', 'function': {…}}")
        described = cast("dict[str, Any]", function)
        name: Any = described.get("name")
        parameters: Any = described.get("parameters") or {}
        if not isinstance(name, str) or not name:
            raise _wrong(f"{where}.function.name", "must be a string")
        if not isinstance(parameters, dict):
            raise _wrong(f"{where}.function.parameters", "must be a JSON schema")
        tools.append(Tool(name, cast("dict[str, Any]", parameters)))
    return tools


# --- plain values ---


def _whole_number(
    fields: dict[str, object], name: str, least: int, most: int | None = None
) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    number = value if isinstance(value, int) and not isinstance(value, bool) else least - 1
    if number < least or (most is not None and number > most):
        upto = "" if most is None else f" and at most {most}"
        raise _wrong(name, f"must be an integer of at least {least}{upto}")
    return number


def _flag(fields: dict[str, object], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, (bool, type(None))):
        raise _wrong(name, "must be true or false")
    return bool(value)
