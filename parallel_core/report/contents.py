"""Read the contents of result lines, as different servers write them."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from parallel_core.journal import NULL, ResultLine, read_json_line
from parallel_core.router import Finish, finish_of

_ERROR_WITHOUT_NAME = "error"


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class Body(msgspec.Struct):
    """The parts of a chat completion that a report counts."""

    model: str | None = None
    usage: _Usage | None = None
    choices: msgspec.Raw = NULL


_BODY_DECODER = msgspec.json.Decoder(Body)
_ANYTHING = msgspec.json.Decoder()
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def body_of(result: ResultLine) -> Body:
    """Return the answer of a line; an empty one if it is no chat completion."""
    assert result.response is not None
    try:
        return read_json_line(_BODY_DECODER.decode, bytes(result.response.body))
    except _UNREADABLE:  # not a chat completion, but an answer of another API
        return Body()


def finish_in(body: Body) -> Finish:
    """Return how the answer ended."""
    try:
        choices: object = read_json_line(_ANYTHING.decode, bytes(body.choices))
    except _UNREADABLE:
        choices = None
    return finish_of({"choices": choices})


def failure_of(result: ResultLine) -> str:
    """Return the kind of failure of a line."""
    status = None if result.response is None else result.response.status_code
    found = _error_name(result.error)
    if found is None and bytes(result.error).startswith(b'"'):  # vLLM writes a text
        found = _ERROR_WITHOUT_NAME
    if found is None and result.response is not None:
        found = _error_name(result.response.body)
    return failure_name(found or (_ERROR_WITHOUT_NAME if status is None else "HTTP"), status)


def _error_name(raw: msgspec.Raw) -> str | None:
    """Return the code or type of an error, in any of the shapes that servers use."""
    try:
        value: Any = read_json_line(_ANYTHING.decode, bytes(raw))
    except _UNREADABLE:
        return None
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, object]", value)
    inner = fields.get("error")
    if isinstance(inner, dict):
        fields = cast("dict[str, object]", inner)
    for name in ("code", "type"):
        text = fields.get(name)
        if isinstance(text, str) and text:
            return text
    return None


def failure_name(name: str, status_code: int | None) -> str:
    """Return the kind of a failure: its name, with the HTTP status if there is one."""
    return name if status_code is None else f"{name} ({status_code})"
