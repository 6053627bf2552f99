"""Result lines in the format of OpenAI's Batch API, and the statistics of calls.

The format is described in ``docs/file-formats.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from parallel_core.config import Redactor
from parallel_core.errors import EmptyResponseError, NoCompletionError
from parallel_core.journal import (
    NULL,
    CallStatistics,
    ResultLine,
    json_line,
    one_line,
    read_json_line,
    read_result_line,
)
from parallel_core.router import PROVIDER_BODY, finish_of, read_provider_json
from parallel_core.types import RouterParallelResult, Usage

from .input_records import InputProblem
from .line_failures import LineFailure, error_name, failure_of

_COUNTS_OF_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


# --- writing ---


def result_line(
    custom_id: str,
    result: RouterParallelResult,
    redactor: Redactor,
    returned: Mapping[str, msgspec.Raw] | None = None,
) -> bytes:
    """Return the line of a finished request, without the newline.

    An answer and an HTTP failure are a ``response``; everything else is an ``error``. An answer is
    written as litellm returned it, whatever it contains. The redactor applies to errors and to
    provider ids, but not to ``custom_id``.

    ``returned`` has members of the input line that are copied unchanged (:class:`InputRequest`).
    """
    failure = failure_in(result)
    if failure is None:
        response = {
            "status_code": 200,
            "request_id": redactor.redact(_request_id(result.response)),
            "body": _completion(result.response),
        }
        return _line(custom_id, response, None, returned)
    if failure.status_code is None:
        message = redactor.redact(failure.message)
        return _line(custom_id, None, {"code": failure.code, "message": message}, returned)
    response = {
        "status_code": failure.status_code,
        "request_id": redactor.redact(failure.request_id),
        "body": {"error": redactor.redact_all(failure.error or {})},
    }
    return _line(custom_id, response, None, returned)


def problem_line(problem: InputProblem) -> bytes:
    """Return the result line of a request that was not sent because its input line is invalid."""
    message = f"{problem.where}: {problem.message}; {problem.hint}"
    error = {"code": problem.code, "message": message}
    return _line(problem.custom_id or str(problem.line), None, error)


def unwritable_line(
    custom_id: str, error: Exception, returned: Mapping[str, msgspec.Raw] | None = None
) -> tuple[bytes, LineFailure]:
    """Return the line of a request whose result cannot be written, and its failure.

    Its answer or its error is nested too deeply, or is an object that raises when it is read.
    """
    message = f"the result of the call cannot be written as JSON: {type(error).__name__}"
    failure = LineFailure("answer", None, "invalid_response", message)
    written = {"code": failure.code, "message": message}
    return _line(custom_id, None, written, returned), failure


def error_of(result: RouterParallelResult) -> Exception | None:
    """Return the error for which a result is written as a failure; None if it is an answer.

    It is the exception that the call raised. A callable in place of a Router may also return
    nothing, or something that is not a chat completion.
    """
    response = result.response
    if result.exception is not None:
        return result.exception
    if response is None:
        return EmptyResponseError(result.index, result.request.model)
    if isinstance(response, Mapping) or hasattr(response, "model_dump"):
        return None
    return NoCompletionError()


def has_answer(result: RouterParallelResult) -> bool:
    """Return True if a result is written as an answer."""
    return error_of(result) is None


def failure_in(result: RouterParallelResult) -> LineFailure | None:
    """Describe how a call failed; None if it has an answer."""
    error = error_of(result)
    return None if error is None else failure_of(error)


def _line(
    custom_id: str,
    response: Any,
    error: Any,
    returned: Mapping[str, msgspec.Raw] | None = None,
) -> bytes:
    # The same request has the same id whenever it is run.
    digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    line = json_line(
        {
            "id": f"batch_req_{digest}",
            "custom_id": custom_id,
            "response": response,
            "error": error,
        }
    )
    if returned:
        # The members are JSON already; insert them unchanged.
        members = b",".join(b'"%b":%b' % (name.encode(), returned[name]) for name in returned)
        line = one_line(b"%b,%b}" % (line[:-1], members))
    return line


def _completion(response: Any) -> Mapping[str, Any]:
    """Convert a chat completion of litellm to the form in which OpenAI writes one.

    An answer on the direct lane is written as the provider sent it.

    litellm adds nulls, empty members and a usage of zeros to every answer, even if the provider did
    not send them: these are removed. OpenAI always writes some nulls: these are added.
    """
    if isinstance(response, Mapping):
        return cast("Mapping[str, Any]", response)  # from a user's callable: keep it unchanged
    sent = _hidden(response).get(PROVIDER_BODY)
    if isinstance(sent, bytes):  # on the direct lane, it is known as the provider sent it
        return cast("Mapping[str, Any]", read_provider_json(sent))
    body: dict[str, Any] = _without_nulls(response.model_dump(warnings=False))
    usage = body.get("usage")
    # No prompt has 0 tokens: litellm writes 0 if the provider reported nothing.
    if usage and not any(usage.get(count) for count in _COUNTS_OF_USAGE):
        del body["usage"]
    elif usage:
        body["usage"] = {
            name: _without_nulls(value) if name.endswith("_details") else value
            for name, value in _without_nulls(usage).items()
        }
    if body.get("choices"):
        body["choices"] = [_choice(choice) for choice in body["choices"]]
    return body


def _choice(dumped: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"logprobs": None, **_without_empty_extras(dumped)}
    message: Mapping[str, Any] | None = choice.get("message")
    if message is not None:
        extras: dict[str, Any] = dict(message.get("provider_specific_fields") or {})
        refusal = extras.pop("refusal", None)  # older versions of litellm have it here
        given = _without_empty_extras({**message, "provider_specific_fields": extras})
        choice["message"] = {"content": None, "refusal": refusal, **given}
    return choice


def _without_empty_extras(value: Mapping[str, Any]) -> dict[str, Any]:
    filled = _without_nulls(value)
    extras = _without_nulls(filled.pop("provider_specific_fields", {}))
    return {**filled, "provider_specific_fields": extras} if extras else filled


def _without_nulls(value: Any) -> Any:
    """Return an object without the members that are null. Nested members are unchanged."""
    if not isinstance(value, Mapping):
        return value
    members = cast("Mapping[str, Any]", value)
    return {name: member for name, member in members.items() if member is not None}


def _hidden(response: Any) -> Mapping[str, Any]:
    """Return the hidden parameters with which litellm describes a call."""
    hidden = getattr(response, "_hidden_params", None)
    return cast("Mapping[str, Any]", hidden) if isinstance(hidden, Mapping) else {}


def _headers(response: Any) -> Mapping[str, Any]:
    headers = _hidden(response).get("additional_headers")
    return cast("Mapping[str, Any]", headers) if isinstance(headers, Mapping) else {}


def _request_id(response: Any) -> str:
    reported = _headers(response).get("llm_provider-x-request-id")
    value = reported or _hidden(response).get("litellm_call_id")
    return value if isinstance(value, str) else ""


# --- measuring ---


def call_statistics(
    custom_id: str, result: RouterParallelResult, usage: Usage | None
) -> CallStatistics:
    """Return the statistics of a call.

    Args:
        custom_id: id of the request.
        result: result of the call.
        usage: usage of the call, if known; None takes it from the result.
    """
    error = error_of(result)
    failure = None if error is None else failure_of(error)
    used = usage or result.usage or _reported_usage(result.response)
    finish = finish_of(result.response)
    return CallStatistics(
        custom_id=custom_id,
        model=result.request.model,
        started_at=result.started_at,
        duration=result.duration,
        ok=failure is None,
        status_code=200 if failure is None else failure.status_code,
        error=None if error is None else error_name(error),
        failure_kind=None if failure is None else failure.kind,
        attempts=_attempts(result),
        time_to_first_chunk=result.time_to_first_chunk,
        prompt_tokens=used.prompt_tokens,
        completion_tokens=used.completion_tokens,
        cached_tokens=used.cached_tokens,
        reasoning_tokens=used.reasoning_tokens,
        estimated=used.estimated,
        cost=None if used.unpriced_calls else used.cost,
        finish_reason=finish.reason,
        without_text=finish.without_text,
    )


def _attempts(result: RouterParallelResult) -> int:
    """Return the number of attempts: of the batch, and of the Router within the last of them."""
    if not result.attempts:
        return 0
    if result.exception is not None:
        return result.attempts + _count(getattr(result.exception, "num_retries", None))
    headers = _headers(result.response)
    retries = _count(headers.get("x-litellm-attempted-retries"))
    return result.attempts + retries + _count(headers.get("x-litellm-attempted-fallbacks"))


def _reported_usage(response: Any) -> Usage:
    reported = _field(response, "usage")
    cost: Any = _hidden(response).get("response_cost")
    # litellm reports 0 both for an unknown price and for a free model.
    is_priced = isinstance(cost, int | float) and cost > 0
    return Usage(
        _count(_field(reported, "prompt_tokens")),
        _count(_field(reported, "completion_tokens")),
        _count(_field(_field(reported, "prompt_tokens_details"), "cached_tokens")),
        _count(_field(_field(reported, "completion_tokens_details"), "reasoning_tokens")),
        float(cost) if is_priced else 0.0,
        int(not is_priced),
    )


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).get(name)
    return getattr(value, name, None)


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


# --- reading ---


class OutputLine(msgspec.Struct, frozen=True):
    """A result line.

    Attributes:
        custom_id: id of the request.
        ok: True if it is an answer.
        status_code: HTTP status; None if there was no response, or the line does not say.
        error_code: short reason of a failure, if the line has one.
        error_message: reason of a failure, if the line has one.
        body: body of the HTTP response, as JSON: a chat completion, or an error.
    """

    custom_id: str
    ok: bool
    status_code: int | None
    error_code: str | None
    error_message: str | None
    body: msgspec.Raw | None


def parse_output_line(line: bytes) -> OutputLine:
    """Read a result line of this package, OpenAI or vLLM (whose errors have other shapes).

    Raises:
        ValueError: it is not a result line.
    """
    return describe_result_line(read_result_line(line))


def describe_result_line(parsed: ResultLine) -> OutputLine:
    """Return what a result line says about its request."""
    response = parsed.response
    status = None if response is None else response.status_code
    body = None if response is None or response.body == NULL else response.body
    if parsed.ok:
        return OutputLine(parsed.custom_id, True, status, None, None, body)
    error = body if parsed.error == NULL else parsed.error
    code, message = _reason(_decoded(error))
    return OutputLine(parsed.custom_id, False, status, code, message, body)


def _decoded(document: msgspec.Raw | None) -> Any:
    try:
        return None if document is None else read_json_line(msgspec.json.decode, bytes(document))
    except RecursionError:
        return None


def _reason(error: Any) -> tuple[str | None, str | None]:
    """Return code and message of an error: an object, an object in an object, or a text."""
    fields = _fields_of(error)
    inner = fields.get("error")
    if inner is not None and "message" not in fields:
        error = inner
        fields = _fields_of(inner)
    if isinstance(error, str):
        return None, error
    code = fields.get("code")
    if code is None:
        code = fields.get("type")
    message = fields.get("message")
    return None if code is None else str(code), message if isinstance(message, str) else None


def _fields_of(error: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", error) if isinstance(error, Mapping) else {}
