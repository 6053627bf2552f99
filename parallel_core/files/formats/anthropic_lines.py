"""Lines of Anthropic's Message Batches API, as chat completion requests.

litellm has such a translation for its own ``/v1/messages``. It drops what it does not know, joins
texts and shortens names, so it is not used here. The tests compare the two where both can say it.
"""

from __future__ import annotations

from typing import Any, Final, cast

from parallel_core.files.input_records import LineError

from .translation import Source, as_text, inexpressible, plain_if_alone, typed

PARAMETERS: Final = {
    **{name: name for name in ("model", "max_tokens", "temperature", "top_p", "stream")},
    "stop_sequences": "stop",
    # litellm sends these to Anthropic as they are.
    **{name: name for name in ("cache_control", "container", "context_management", "thinking")},
    **{name: name for name in ("inference_geo", "output_config", "service_tier", "top_k")},
}
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
# Keywords at the top of a tool's schema. litellm sends only the first ones to Anthropic; the others
# change nothing of what the schema accepts.
_KEYWORDS: Final = frozenset(("type", "properties", "required", "additionalProperties", "$defs"))
_ANNOTATIONS: Final = frozenset((
    *("$schema", "$id", "$comment", "title", "description", "examples", "default"),
))  # fmt: skip
_PDF: Final = "application/pdf"
_ORDER_HINT: Final = "split the message, or use the provider's own batches"


def chat_of_anthropic(params: object) -> dict[str, Any]:
    """Return the body of a chat completion request that says the same as ``params``.

    Raises:
        LineError: ``params`` is invalid, or chat completions cannot express a part of it.
    """
    source = Source("params", params)
    body: dict[str, Any] = {}
    source.move(PARAMETERS, body)
    messages: list[dict[str, Any]] = []
    system = source.take("system")
    if system is not None:
        place = source.at("system")
        content = _not_blank(place, _parts(place, system, only_text=True))
        messages.append({"role": "system", "content": content})
    for number, message in enumerate(source.require("messages", list[Any])):
        messages += _messages(Source(f"params.messages[{number}]", message))
    body["messages"] = messages
    tools = source.take_typed("tools", list[Any])
    if tools is not None:
        body["tools"] = [_tool(Source(f"params.tools[{n}]", tool)) for n, tool in enumerate(tools)]
    elif any("tool_calls" in message or message["role"] == "tool" for message in messages):
        # litellm would add a tool of its own.
        problem = "params.tools is missing, although a message has a tool_use or a tool_result"
        raise LineError("missing_required_parameter", problem, "give the line its tools")
    _move_tool_choice(source, body)
    metadata = source.take("metadata")
    if metadata is not None:
        described = Source(source.at("metadata"), metadata)
        described.move({"user_id": "user"}, body)
        described.finish()
    source.finish()
    return body


def _messages(source: Source) -> list[dict[str, Any]]:
    """Return the messages that say the same as one of Anthropic's."""
    role, content = source.require("role", str), source.take("content")
    source.finish()
    if content is None:
        raise LineError(
            "missing_required_parameter", f"{source.at('content')} is missing", "give it content"
        )
    if role == "user":
        return _user_messages(source.at("content"), content)
    if role == "assistant":
        return [_assistant_message(source.at("content"), content)]
    raise source.refused("role", role)


def _user_messages(place: str, content: object) -> list[dict[str, Any]]:
    if type(content) is str:
        return [{"role": "user", "content": _not_blank(place, content)}]
    results: list[dict[str, Any]] = []
    others: list[object] = []
    blocks = typed(place, content, list[Any])
    for number, block in enumerate(blocks):
        if _kind(block) == "tool_result":
            if others:
                raise _wrong_order(f"{place}[{number}]", "a tool_result after other content")
            results.append(_tool_result(Source(f"{place}[{number}]", block)))
        else:
            others.append(block)
    if others or not results:
        parts = [_part(f"{place}[{len(results) + n}]", block) for n, block in enumerate(others)]
        results.append({"role": "user", "content": plain_if_alone(parts)})
    return results


def _tool_result(source: Source) -> dict[str, Any]:
    source.take("type")
    message: dict[str, Any] = {
        "role": "tool",
        "tool_call_id": source.require("tool_use_id", str),
    }
    content = source.take("content")
    message["content"] = "" if content is None else _parts(source.at("content"), content)
    if source.take_typed("is_error", bool):
        raise source.refused("is_error", "true")
    source.move({"cache_control": "cache_control"}, message)
    source.finish()
    return message


def _assistant_message(place: str, content: object) -> dict[str, Any]:
    """Return the message of an answer: first its thinking, then its text, then its tool calls."""
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if type(content) is str:
        _not_blank(place, content)
        return message
    thoughts: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(typed(place, content, list[Any])):
        here = f"{place}[{number}]"
        kind = _kind(block)
        if kind in ("thinking", "redacted_thinking"):
            if parts or calls:
                raise _wrong_order(here, "a thinking block after other content")
            thoughts.append(_thought(Source(here, block), str(kind)))
        elif kind == "tool_use":
            calls.append(_tool_call(Source(here, block)))
        elif calls:
            raise _wrong_order(here, "content after a tool_use")
        else:
            parts.append(_part(here, block, only_text=True))
    message["content"] = plain_if_alone(parts) or None
    if thoughts:
        message["thinking_blocks"] = thoughts
    if calls:
        message["tool_calls"] = calls
    return message


def _thought(source: Source, kind: str) -> dict[str, Any]:
    source.take("type")
    names = ("thinking", "signature") if kind == "thinking" else ("data",)
    block = {"type": kind, **{name: source.require(name, str) for name in names}}
    source.finish()
    return block


def _tool_call(source: Source) -> dict[str, Any]:
    source.take("type")
    call: dict[str, Any] = {
        "id": source.require("id", str),
        "type": "function",
        "function": {
            "name": source.require("name", str),
            "arguments": as_text(source.require("input", dict[str, Any])),
        },
    }
    source.move({"cache_control": "cache_control"}, call)
    source.finish()
    return call


def _kind(block: Any) -> Any:
    return cast("dict[str, Any]", block).get("type") if type(block) is dict else None


def _wrong_order(place: str, what: str) -> LineError:
    message = f"{place} is {what}, an order that chat completions do not have"
    return LineError("invalid_request", message, _ORDER_HINT)


def _parts(place: str, content: object, *, only_text: bool = False) -> Any:
    """Return content of any kind as a text or as parts."""
    if type(content) is str:
        return content
    blocks = typed(place, content, list[Any])
    return plain_if_alone(
        [_part(f"{place}[{n}]", block, only_text=only_text) for n, block in enumerate(blocks)]
    )


def _part(place: str, block: object, *, only_text: bool = False) -> dict[str, Any]:
    """Return the content part that says the same as a block."""
    source = Source(place, block)
    kind = source.require("type", str)
    if kind == "text":
        text = _not_blank(source.at("text"), source.require("text", str))
        part: dict[str, Any] = {"type": "text", "text": text}
    elif kind == "image" and not only_text:
        part = {"type": "image_url", "image_url": {"url": _image(source)}}
    elif kind == "document" and not only_text:
        # OpenAI wants a name, which Anthropic's block does not have. litellm uses the same one.
        part = {"type": "file", "file": {"filename": "document.pdf", "file_data": _pdf(source)}}
    else:
        raise source.refused("type", kind)
    source.move({"cache_control": "cache_control"}, part)
    source.finish()
    return part


def _not_blank(place: str, content: Any) -> Any:
    """Return content that is no blank text, which Anthropic refuses.

    Raises:
        LineError: it is blank: litellm would send a text of its own instead.
    """
    if type(content) is str and not content.strip():
        raise LineError("invalid_request", f"{place} is empty", "leave it out")
    return content


def _image(block: Source) -> str:
    """Return the address of an image: its own, or one that has its data."""
    source = Source(block.at("source"), block.require("source", dict[str, Any]))
    kind = source.require("type", str)
    if kind == "url":
        url = source.require("url", str)
    elif kind == "base64":
        url = f"data:{source.require('media_type', str)};base64,{source.require('data', str)}"
    else:
        raise source.refused("type", kind)
    source.finish()
    return url


def _pdf(block: Source) -> str:
    source = Source(block.at("source"), block.require("source", dict[str, Any]))
    kind, media_type = source.require("type", str), source.take("media_type")
    if kind != "base64" or media_type != _PDF:
        raise inexpressible(f"{source.place} that is not a PDF in base64")
    url = f"data:{_PDF};base64,{source.require('data', str)}"
    source.finish()
    return url


def _tool(source: Source) -> dict[str, Any]:
    kind = source.take("type")
    if kind is not None and kind != "custom":
        raise source.refused("type", str(kind))
    function: dict[str, Any] = {"name": source.require("name", str)}
    source.move({"description": "description"}, function)
    function["parameters"] = source.require("input_schema", dict[str, Any])
    for keyword in function["parameters"]:
        if keyword not in _KEYWORDS and keyword not in _ANNOTATIONS:
            raise Source(source.at("input_schema"), {}).refused(keyword)
    tool: dict[str, Any] = {"type": "function", "function": function}
    source.move({"cache_control": "cache_control"}, tool)
    source.finish()
    return tool


def _move_tool_choice(params: Source, body: dict[str, Any]) -> None:
    given = params.take("tool_choice")
    if given is None:
        return
    choice = Source(params.at("tool_choice"), given)
    kind = choice.require("type", str)
    if kind == "tool":
        function = {"name": choice.require("name", str)}
        body["tool_choice"] = {"type": "function", "function": function}
    elif kind in _CHOICES:
        body["tool_choice"] = _CHOICES[kind]
    else:
        raise choice.refused("type", kind)
    if choice.take_typed("disable_parallel_tool_use", bool):
        body["parallel_tool_calls"] = False
    choice.finish()
