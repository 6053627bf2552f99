"""Reader of JSON lines: lines of OpenAI's and Mistral's Batch APIs, and plain requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import msgspec

from parallel_core.errors import InputFileError, InvalidRequestError
from parallel_core.router import as_request
from parallel_core.types import RouterParallelRequest

from .input_members import ColumnOptions, Members, kind_of
from .input_records import InputColumn, InputProblem, InputRequest, LineError, not_utf8, shown
from .parameters import openai_roles

UTF8_MARK = b"\xef\xbb\xbf"
_ENDPOINT = "/chat/completions"

_EXAMPLE = (
    'write one JSON object per line: {"custom_id": "1", "body": {"model": "…", "messages": […]}}'
)


_BEGINNING_OF_ARRAY = b"["
_ARRAY = "an array over many lines instead of an object on each line"
_ARRAY_HINT = "convert an array of requests to lines with: jq -c '.[]'"
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_SURROGATE = "half a character: one of \\ud800 to \\udfff without the other half"
_SURROGATE_HINT = "remove it: it is the rest of an emoji or the like, where a text was cut"

_SHAPES_OF_OTHERS = {
    "params": "the lines of Anthropic's batches are not supported: rewrite params as body",
    "contents": "lines for Gemini are not supported: rewrite contents as messages",
    "request": "lines for Gemini are not supported: rewrite request as body, contents as messages",
    "prompt": 'rewrite it as "messages": [{"role": "user", "content": "the prompt"}]',
    "input": 'rewrite it as "messages": [{"role": "user", "content": "the input"}]',
}
_API_HINT = "see the chat completions API for valid values"
_TIMEOUT_HINT = 'for instance "timeout": 60'
_FROM_ONE = ("n", "max_tokens", "max_completion_tokens")
_CHECKED_PARAMETERS = frozenset((*_FROM_ONE, "stop", "tools", "stream"))
_ROLES_WITHOUT_CONTENT = ("assistant", "function")  # an assistant may only call tools

_NONE: Any = object()


class JsonLines:
    """Reads JSON lines. A file may mix the formats.

    Args:
        model: model of the requests that name none.
        columns: options for members that are not parameters.
    """

    format = "jsonl"
    lines_are_ids = False

    def __init__(self, model: str | None, columns: ColumnOptions) -> None:
        self._model = model
        self._model_was_needed = False
        self.names_lines = False
        self._options = columns
        self._members = Members(columns)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        for number, (line, row) in enumerate(text_rows(stream)):
            yield line, row
            if not number and row.strip() == _BEGINNING_OF_ARRAY:
                return  # otherwise every further line would be reported too

    def meaning(self) -> list[str | None]:
        return [self._model if self._model_was_needed else None, *self._options.meaning()]

    def refuse_missing(self) -> None:
        self._members.refuse_missing()

    def undecided(self) -> list[InputColumn]:
        return self._members.undecided()

    def check(self, line: int, row: bytes) -> InputRequest | InputProblem:
        custom_id = str(line)
        try:
            record = self._record(row)
            given = record.pop("custom_id", _NONE)
            if given is not _NONE:
                custom_id = _checked_id(given)
            body = _body_of(record, given)
            _refuse_other_shapes(body)
            if body.get("model") is None:
                if self._model is None:
                    raise _missing("model", "give the line a model, or set one with --model")
                body["model"] = self._model
                self._model_was_needed = True
            self._members.sort(line, record, body)
            self.names_lines |= given is _NONE
            return InputRequest(line, custom_id, _request_of(line, body))
        except UnicodeDecodeError:
            return not_utf8(line)
        except LineError as error:
            return InputProblem(line, error.code, error.message, error.hint, custom_id)

    def request(
        self, line: int, row: bytes, finished: Callable[[str], bool]
    ) -> InputRequest | None:
        try:
            record = self._record(row)
        except (LineError, UnicodeDecodeError):
            raise _changed_line(line) from None
        custom_id = record.pop("custom_id", None) or str(line)
        if finished(custom_id):
            return None
        body: dict[str, Any] = record.get("body") or record
        returned = self._members.split(record, body)
        if body.get("model") is None:
            body["model"] = self._model
        try:
            return InputRequest(line, custom_id, as_request(line, body), returned)
        except InvalidRequestError:
            raise _changed_line(line) from None

    def _record(self, row: bytes) -> dict[str, Any]:
        try:
            record = self._decode(row)
        except (msgspec.DecodeError, RecursionError) as error:
            if row.strip() == _BEGINNING_OF_ARRAY:
                raise LineError("invalid_json_line", _ARRAY, _ARRAY_HINT) from None
            if _has_lone_surrogate(row):
                raise LineError("invalid_json_line", _LONE_SURROGATE, _SURROGATE_HINT) from None
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise LineError("invalid_json_line", f"not valid JSON: {reason}", _EXAMPLE) from None
        if type(record) is not dict:
            kind = kind_of(record)
            hint = _ARRAY_HINT if type(record) is list else _EXAMPLE
            raise LineError("invalid_json_line", f"{kind} instead of an object", hint)
        return cast("dict[str, Any]", record)


def _changed_line(line: int) -> InputFileError:
    return InputFileError(
        f"line {line} was a request when the file was checked, but is not one now: do not change "
        "the file during a run"
    )


def text_rows(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a stream that are not blank, numbered from 1, without a UTF-8 BOM."""
    for line, row in enumerate(stream, 1):
        if line == 1 and row.startswith(UTF8_MARK):
            row = row[len(UTF8_MARK) :]
        if not row.isspace() and row:
            yield line, row


def _checked_id(custom_id: object) -> str:
    if type(custom_id) is str and custom_id:
        return custom_id
    if custom_id == "":
        raise LineError(
            "missing_required_parameter",
            "custom_id is empty",
            "give each line a different custom_id",
        )
    kind = kind_of(custom_id)
    hint = "write it as a string"
    if type(custom_id) is int:
        hint += f', in quotes: "custom_id": "{str(custom_id)[:20]}"'
    raise LineError("invalid_type", f"custom_id must be a string, not {kind}", hint)


def _body_of(record: dict[str, Any], custom_id: Any) -> dict[str, Any]:
    """Return the object to send: the body of a batch line, or the line itself."""
    body = record.get("body", _NONE)
    if body is _NONE:
        if "url" in record or "method" in record:
            raise _missing("body", "put model and messages into the body of the line")
        return record
    method = record.get("method", "POST")
    if type(method) is not str or method.upper() != "POST":
        raise LineError(
            "invalid_method",
            f"method {shown(method)} instead of POST"
            if type(method) is str
            else f"method must be a string, not {kind_of(method)}",
            'write "method": "POST", or leave it out',
        )
    url = record.get("url", _ENDPOINT)
    if type(url) is not str or not url.lower().rstrip("/").endswith(_ENDPOINT):
        raise LineError(
            "unsupported_url",
            f"url {shown(url)} is not the chat completions API"
            if type(url) is str
            else f"url must be a string, not {kind_of(url)}",
            'only "/v1/chat/completions" is supported: send other requests with another tool',
        )
    if type(body) is not dict:
        kind = kind_of(cast("object", body))
        raise LineError("invalid_type", f"body must be an object, not {kind}", _EXAMPLE)
    if custom_id is _NONE:
        raise _missing("custom_id", "give each line a different custom_id")
    return cast("dict[str, Any]", body)


def _request_of(line: int, body: dict[str, Any]) -> RouterParallelRequest:
    if "timeout" in body:
        _check_timeout(body["timeout"])
    try:
        request = as_request(line, body)
    except InvalidRequestError as error:
        message = error.problems[line]
        code = "invalid_type" if " must be " in message else "invalid_request"
        raise LineError(code, message, _API_HINT) from None
    if not _CHECKED_PARAMETERS.isdisjoint(body):
        _check_parameters(body)
    roles = openai_roles()
    for position, message in enumerate(request.messages):
        if message["role"] not in roles or message.get("content").__class__ is not str:
            _check_message(f"messages[{position}]", message, roles)
    return request


def _check_parameters(body: dict[str, Any]) -> None:
    """Refuse values that no provider accepts."""
    for name in _FROM_ONE:
        number = body.get(name)
        # Some servers take -1 for "no limit".
        if number is not None and number < 1 and (name == "n" or number != -1):
            problem = f"{name} must be 1 or more, not {number}"
            raise LineError("invalid_request", problem, _API_HINT)
    stop = body.get("stop")
    texts: list[object] = [stop]
    if stop.__class__ is list:
        texts = cast("list[object]", stop)
    if stop is not None and not all(type(text) is str for text in texts):
        raise _wrong_type("stop", "a string or an array of strings", stop)
    tools, stream = body.get("tools"), body.get("stream")
    if tools is not None and type(tools) is not list:
        raise _wrong_type("tools", "an array", tools)
    if stream is not None and type(stream) is not bool:
        raise _wrong_type("stream", "true or false", stream)


def _wrong_type(name: str, wanted: str, value: object) -> LineError:
    kind = "an array of other values" if type(value) is list else kind_of(value)
    return LineError("invalid_type", f"{name} must be {wanted}, not {kind}", _API_HINT)


def _check_message(place: str, message: dict[str, Any], roles: frozenset[str]) -> None:
    """Refuse a message that no provider accepts. Content parts may be objects of any type."""
    role, content = message["role"], message.get("content")
    if role not in roles:
        hint = f"use one of {', '.join(sorted(roles))}"
        raise LineError("invalid_request", f"{place}.role is {shown(role)}", hint)
    if content is None:
        if role in _ROLES_WITHOUT_CONTENT:
            return
        problem = f"{place}.content must be a string or an array of parts, not null"
        raise LineError("invalid_type", problem, f"a message with the role {role} needs content")
    for number, part in enumerate(content):
        if type(part) is not dict:  # litellm fails on a text
            problem = f"{place}.content[{number}] must be an object, not {kind_of(part)}"
            hint = 'for instance {"type": "text", "text": "…"}'
            raise LineError("invalid_type", problem, hint)


def _refuse_other_shapes(body: dict[str, Any]) -> None:
    """Refuse a body that is not a chat completion request, before other members are checked."""
    if "messages" not in body:
        hints = [hint for name, hint in _SHAPES_OF_OTHERS.items() if name in body]
        usual = 'for instance "messages": [{"role": "user", "content": "…"}]'
        raise _missing("messages", hints[0] if hints else usual)
    if "system" in body:
        raise LineError(
            "invalid_request",
            "system is not a parameter of chat completions",
            "lines for Anthropic are not supported: make it the first message, "
            '{"role": "system", "content": "…"}',
        )


def _check_timeout(seconds: object) -> None:
    if seconds is None:
        return
    if type(seconds) not in (int, float):
        message = f"timeout must be a number of seconds, not {kind_of(seconds)}"
        raise LineError("invalid_type", message, _TIMEOUT_HINT)
    if cast("float", seconds) <= 0:
        raise LineError("invalid_request", "timeout must be more than 0 seconds", _TIMEOUT_HINT)


def _has_lone_surrogate(row: bytes) -> bool:
    """Return True if a line is invalid only for a lone surrogate (half a UTF-16 pair).

    msgspec refuses it, and Python's ``json`` accepts it.
    """
    if _ESCAPED_SURROGATE.search(row) is None:
        return False
    try:
        json.loads(row)
    except (ValueError, RecursionError):
        return False
    return True


def _missing(name: str, hint: str) -> LineError:
    return LineError("missing_required_parameter", f"{name} is missing", hint)
