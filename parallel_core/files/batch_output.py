"""Result lines in the format of OpenAI's Batch API, and the statistics of calls.

The format is described on the page ``docs/file-formats.md``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from parallel_core.config import Redactor
from parallel_core.control import cost_reported, tokens_of
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
from parallel_core.router import finish_of
from parallel_core.types import RouterParallelResult, Usage

from .answer_bodies import answer_body, hidden_parameters
from .input_records import InputProblem
from .line_failures import LineFailure, error_name, failure_of

# --- writing ---


def result_line(
    custom_id: str,
    result: RouterParallelResult,
    redactor: Redactor,
    returned: Mapping[str, msgspec.Raw] | None = None,
) -> bytes:
    """Return the line of a finished request, without the newline.

    An answer and an HTTP failure are a ``response``; everything else is an ``error``. An answer is
    written as litellm returned it, whatever it contains (:func:`answer_body`). The redactor applies
    to errors and to provider ids, but not to ``custom_id``.

    ``returned`` has members of the input line that are copied unchanged (:class:`InputRequest`).
    """
    failure = failure_in(result)
    if failure is None:
        response = {
            "status_code": 200,
            "request_id": redactor.redact(_request_id(result.response)),
            "body": answer_body(result.request, result.response),
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
    nothing, or something that is no JSON object.
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


def _headers(response: Any) -> Mapping[str, Any]:
    headers = hidden_parameters(response).get("additional_headers")
    return cast("Mapping[str, Any]", headers) if isinstance(headers, Mapping) else {}


def _request_id(response: Any) -> str:
    reported = _headers(response).get("llm_provider-x-request-id")
    value = reported or hidden_parameters(response).get("litellm_call_id")
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
    tokens, cost = tokens_of(response), cost_reported(response)
    if tokens is None:
        return Usage(cost=cost or 0.0, unpriced_calls=int(cost is None))
    return Usage(*tokens, cost or 0.0, int(cost is None))


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
