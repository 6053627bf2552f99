"""Lines of JSON: those of OpenAI's and Mistral's Batch APIs, and plain requests."""

from __future__ import annotations

import json
import re
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

# Arguments of a Router that send a key, send the request elsewhere, weaken its encryption, make an
# answer up, call more often, or change what it seems to cost. They
# belong to whoever runs the file, not to whoever has written it.
_FORBIDDEN = frozenset((
    "acompletion", "allowed_model_region", "allowed_openai_params", "api_base", "api_key",
    "api_version", "async_call", "azure", "azure_ad_token", "azure_ad_token_provider",
    "base_model", "base_url", "callbacks", "client", "client_id", "client_secret",
    "bucket_name", "cache", "cache_key", "caching", "caching_groups", "config",
    "configurable_clientside_auth_params", "content_policy_fallbacks",
    "context_window_fallback_dict", "context_window_fallbacks", "cooldown_time",
    "custom_llm_provider", "custom_prompt_dict", "disable_fallbacks", "engine",
    "enable_tag_filtering", "fallback_depth", "final_prompt_value", "guardrails",
    "hf_model_name", "initial_prompt_value", "max_agentic_loops", "max_fallbacks",
    "max_parallel_requests", "max_retries", "model_alias_map", "model_config",
    "model_group_retry_policy", "model_id", "no-log", "num_retries", "preset_cache_key",
    "prompt_id", "prompt_label", "prompt_variables", "prompt_version", "provider_affinity_header",
    "provider_specific_header", "proxies", "proxy", "region_name", "retry_policy", "retry_strategy",
    "routing_groups", "routing_strategy", "routing_strategy_args", "rpm", "search_tool_name",
    "secret_fields", "silent_model", "standard_callback_dynamic_params", "text_completion",
    "tiered_pricing", "tpm", "turn_off_message_logging", "use_client", "use_in_pass_through",
    "use_litellm_proxy", "use_xai_oauth", "verbose", "weight",
    "default_headers", "deployment_id", "deployment_url", "extra_headers", "failure_callback",
    "fallbacks", "headers", "http_client", "logger_fn", "model_info", "model_list", "organization",
    "original_function", "proxy_server_request", "router_settings_override",
    "sagemaker_base_url", "self", "shared_session", "specific_deployment", "success_callback",
    "tenant_id", "use_ssl", "user_config",
))  # fmt: skip
_FORBIDDEN_PREFIXES = (
    "_", "adaptive_router_", "anthropic_disable_", "anthropic_federation_", "anthropic_identity_",
    "anthropic_issuer_", "anthropic_keycloak_", "anthropic_organization_",
    "anthropic_service_account_", "arize_", "auto_router_", "aws_", "azure_", "cache_creation_",
    "cache_read_", "complexity_router_", "cost_per_", "dd_", "gcs_", "gigachat_", "humanloop_",
    "input_cost_", "langfuse_", "langsmith_", "litellm_", "milvus_", "mock_", "newrelic_",
    "openai_identity_", "openai_service_account_", "output_cost_", "posthog_", "proxy_",
    "quality_router_", "s3_", "signoz_", "ssl_", "valkey_", "vertex_", "wandb_", "watsonx_",
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


_BEGINNING_OF_ARRAY = b"["
_ARRAY = "one array of many lines instead of an object on each line"
_ARRAY_HINT = "a file with one array of requests becomes lines with: jq -c '.[]'"
_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_HALF = "half a character: one of \\ud800 to \\udfff without the other half"
_HALF_HINT = "leave it out: it is the rest of an emoji or the like, where a text was cut"

_SHAPES_OF_OTHERS = {
    "params": "the lines of Anthropic's batches are not supported: rewrite params as body",
    "contents": "lines for Gemini are not supported: rewrite contents as messages",
    "request": "lines for Gemini are not supported: rewrite request as body, contents as messages",
    "prompt": 'rewrite it as "messages": [{"role": "user", "content": "the prompt"}]',
    "input": 'rewrite it as "messages": [{"role": "user", "content": "the input"}]',
}
_TIMEOUTS = ("timeout", "request_timeout", "stream_timeout")

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
        for number, (line, row) in enumerate(text_rows(stream)):
            yield line, row
            if not number and row.strip() == _BEGINNING_OF_ARRAY:
                return  # each further line would be told to be wrong, too

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
            _refuse_other_shapes(body)
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
            if row.strip() == _BEGINNING_OF_ARRAY:
                raise _LineError("invalid_json_line", _ARRAY, _ARRAY_HINT) from None
            if _has_half_a_character(row):
                raise _LineError("invalid_json_line", _HALF, _HALF_HINT) from None
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise _LineError("invalid_json_line", f"not valid JSON: {reason}", _EXAMPLE) from None
        if type(record) is not dict:
            kind = _JSON_TYPES[cast("type[object]", type(record))]
            hint = _ARRAY_HINT if type(record) is list else _EXAMPLE
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
    if not body.keys() <= _ORDINARY:
        _refuse_forbidden(body)
        _check_timeouts(body)
    try:
        return as_request(line, body)
    except InvalidRequestError as error:
        message = error.problems[line]
        code = "invalid_type" if " must be " in message else "invalid_request"
        raise _LineError(code, message, "see the chat completions API for what it may be") from None


def _refuse_other_shapes(body: dict[str, Any]) -> None:
    """What is no chat completion is told so, before anything else that it lacks."""
    if "messages" not in body:
        hints = [hint for name, hint in _SHAPES_OF_OTHERS.items() if name in body]
        usual = 'for instance "messages": [{"role": "user", "content": "…"}]'
        raise _missing("messages", hints[0] if hints else usual)
    if "system" in body:
        raise _LineError(
            "invalid_request",
            "system is no parameter of chat completions",
            "lines for Anthropic are not supported: make it the first message, "
            '{"role": "system", "content": "…"}',
        )


def _check_timeouts(body: dict[str, Any]) -> None:
    for name in _TIMEOUTS:
        seconds = body.get(name)
        if seconds is None:
            continue
        if type(seconds) not in (int, float):
            kind = _JSON_TYPES[cast("type[object]", type(seconds))]
            message = f"{name} must be a number of seconds, not {kind}"
            raise _LineError("invalid_type", message, f'for instance "{name}": 60')
        if seconds <= 0:
            message = f"{name} is not more than 0 seconds"
            raise _LineError("invalid_request", message, f'for instance "{name}": 60')


def _has_half_a_character(row: bytes) -> bool:
    """Whether this is why a line is no JSON: Python's own reader takes half a pair of UTF-16."""
    if _ESCAPED_HALF.search(row) is None:
        return False
    try:
        json.loads(row)
    except (ValueError, RecursionError):
        return False
    return True


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
