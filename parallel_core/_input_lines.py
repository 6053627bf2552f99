"""Lines of JSON: those of OpenAI's and Mistral's Batch APIs, and plain requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

import msgspec

from ._input_records import InputProblem, InputRequest, not_utf8, shown
from .errors import InputFileError, InvalidRequestError
from .router_call import as_request

UTF8_MARK = b"\xef\xbb\xbf"
_ENDPOINT = "/chat/completions"

# What is in almost every body. A line that has nothing else needs no closer look.
_ORDINARY = frozenset((
    "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "messages", "metadata", "modalities", "model", "n",
    "parallel_tool_calls", "presence_penalty", "reasoning_effort", "response_format", "seed",
    "service_tier", "stop", "stream", "stream_options", "temperature", "tool_choice", "tools",
    "top_k", "top_logprobs", "top_p", "user",
))  # fmt: skip

# Arguments of a Router that send a key, send the request elsewhere, make an answer up, or change
# what it seems to cost. They belong to whoever runs the file, not to whoever has written it.
_FORBIDDEN = frozenset((
    "api_base", "api_key", "api_version", "azure_ad_token", "azure_ad_token_provider",
    "base_model", "base_url", "callbacks", "client", "client_id", "client_secret",
    "content_policy_fallbacks", "context_window_fallbacks", "custom_llm_provider",
    "default_headers", "deployment_id", "deployment_url", "extra_headers", "failure_callback",
    "fallbacks", "headers", "http_client", "litellm_credential_name", "litellm_logging_obj",
    "litellm_params", "logger_fn", "model_info", "model_list", "organization",
    "original_function", "proxy_server_request", "router_settings_override", "s3_endpoint_url",
    "sagemaker_base_url", "self", "shared_session", "specific_deployment", "success_callback",
    "tenant_id", "use_ssl", "user_config",
))  # fmt: skip
_FORBIDDEN_PREFIXES = (
    "aws_", "azure_", "input_cost_", "langfuse_", "langsmith_", "mock_", "output_cost_", "vertex_",
)  # fmt: skip
_FORBIDDEN_IN_EXTRA_BODY = frozenset(("api_base", "api_key", "azure_ad_token", "base_url"))

_JSON_TYPES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}

_EXAMPLE = 'one JSON object a line: {"custom_id": "1", "body": {"model": "…", "messages": […]}}'
_CONFIG_HINT = "leave it out of the file: keys and addresses belong into the config of the Router"


_NONE: Any = object()


class _LineError(Exception):
    """What is wrong with a line."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class JsonLines:
    """Reads JSON lines, in which the formats may be mixed.

    Args:
        model: of the requests that name none.
    """

    format = "jsonl"
    lines_are_ids = False

    def __init__(self, model: str | None) -> None:
        self._model = model
        self._model_was_needed = False
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        return text_rows(stream)

    def meaning(self) -> list[str | None]:
        return [self._model if self._model_was_needed else None]

    def check(self, line: int, row: bytes) -> InputRequest | InputProblem:
        custom_id = str(line)
        try:
            record = self._record(row)
            given = record.pop("custom_id", _NONE)
            if given is not _NONE:
                custom_id = _checked_id(given)
            body = _body_of(record, given)
            if body.get("model") is None:
                if self._model is None:
                    raise _missing("model", "give the line a model, or all of them with --model")
                body["model"] = self._model
                self._model_was_needed = True
            return InputRequest(line, custom_id, _request_of(line, body))
        except UnicodeDecodeError:
            return not_utf8(line)
        except _LineError as error:
            return InputProblem(line, error.code, error.message, error.hint, custom_id)

    def request(
        self, line: int, row: bytes, finished: Callable[[str], bool]
    ) -> InputRequest | None:
        try:
            record = self._record(row)
        except (_LineError, UnicodeDecodeError):
            raise _no_request_any_more(line) from None
        custom_id = record.pop("custom_id", None) or str(line)
        if finished(custom_id):
            return None
        body: dict[str, Any] = record.get("body") or record
        if body.get("model") is None:
            body["model"] = self._model
        try:
            return InputRequest(line, custom_id, as_request(line, body))
        except InvalidRequestError:
            raise _no_request_any_more(line) from None

    def _record(self, row: bytes) -> dict[str, Any]:
        try:
            record = self._decode(row)
        except (msgspec.DecodeError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise _LineError("invalid_json_line", f"not valid JSON: {reason}", _EXAMPLE) from None
        if type(record) is not dict:
            kind = _JSON_TYPES[cast("type[object]", type(record))]
            hint = _EXAMPLE
            if type(record) is list:
                hint = "a file with one array of requests becomes lines with: jq -c '.[]'"
            raise _LineError("invalid_json_line", f"{kind} instead of an object", hint)
        return cast("dict[str, Any]", record)


def _no_request_any_more(line: int) -> InputFileError:
    return InputFileError(
        f"line {line} was a request when the file was checked, and is none any more: leave the "
        "file alone while it is run"
    )


def text_rows(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a stream that are not blank, numbered from 1, without a mark of UTF-8."""
    for line, row in enumerate(stream, 1):
        if line == 1 and row.startswith(UTF8_MARK):
            row = row[len(UTF8_MARK) :]
        if not row.isspace() and row:
            yield line, row


def _checked_id(custom_id: object) -> str:
    if type(custom_id) is str and custom_id:
        return custom_id
    if custom_id == "":
        raise _LineError(
            "missing_required_parameter",
            "custom_id is empty",
            "give each line a custom_id of its own",
        )
    kind = _JSON_TYPES[type(custom_id)]
    hint = "write it as a string"
    if type(custom_id) is int:
        hint += f', in quotes: "custom_id": "{str(custom_id)[:20]}"'
    raise _LineError("invalid_type", f"custom_id must be a string, not {kind}", hint)


def _body_of(record: dict[str, Any], custom_id: Any) -> dict[str, Any]:
    """What is sent: the body of a batch line, or the line itself."""
    body = record.get("body", _NONE)
    if body is _NONE:
        if "url" in record or "method" in record:
            raise _missing("body", "put model and messages into the body of the line")
        return record
    method = record.get("method", "POST")
    if method != "POST":
        raise _LineError(
            "invalid_method",
            f"method {shown(method)} instead of POST" if type(method) is str else "no method",
            'write "method": "POST", or leave it out',
        )
    url = record.get("url", _ENDPOINT)
    if type(url) is not str or not url.endswith(_ENDPOINT):
        raise _LineError(
            "unsupported_url",
            f"url {shown(url)} is none of chat completions" if type(url) is str else "no url",
            'only "/v1/chat/completions" is supported: other requests need a file and a tool of '
            "their own",
        )
    if type(body) is not dict:
        kind = _JSON_TYPES[cast("type[object]", type(body))]
        raise _LineError("invalid_type", f"body must be an object, not {kind}", _EXAMPLE)
    if custom_id is _NONE:
        raise _missing("custom_id", "give each line a custom_id of its own")
    return cast("dict[str, Any]", body)


def _request_of(line: int, body: dict[str, Any]) -> Any:
    if "messages" not in body:
        hint = 'for instance "messages": [{"role": "user", "content": "…"}]'
        if "params" in body:
            hint = "the lines of Anthropic's batches are not supported: rewrite params as body"
        raise _missing("messages", hint)
    if not body.keys() <= _ORDINARY:
        _refuse_forbidden(body)
    try:
        return as_request(line, body)
    except InvalidRequestError as error:
        message = error.problems[line]
        code = "invalid_type" if " must be " in message else "invalid_request"
        raise _LineError(code, message, "see the chat completions API for what it may be") from None


def _refuse_forbidden(body: dict[str, Any]) -> None:
    names = [name for name in body if name in _FORBIDDEN or name.startswith(_FORBIDDEN_PREFIXES)]
    extra = body.get("extra_body")
    if type(extra) is dict:
        names += [
            f"extra_body.{name}"
            for name in cast("dict[str, Any]", extra)
            if name in _FORBIDDEN_IN_EXTRA_BODY
        ]
    if names:
        listed = ", ".join(map(shown, names))
        raise _LineError("forbidden_parameter", f"{listed} must not come from a file", _CONFIG_HINT)


def _missing(name: str, hint: str) -> _LineError:
    return _LineError("missing_required_parameter", f"{name} is missing", hint)
