"""Form of a failed call in a result line: an HTTP response, or an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from parallel_core.errors import (
    InvalidRequestError,
    RebuiltError,
    StreamInterruptedError,
    text_of,
)
from parallel_core.failures import (
    CODES,
    MISSING_DEPENDENCY,
    Evidence,
    FailureKind,
    classify_evidence,
    code_of_class,
    evidence_of,
)

_CODES_OF_KINDS: Mapping[FailureKind, str] = {
    "cooling_down": "no_deployment_available",
    "timeout": "request_timeout",
    "answer": "invalid_response",
    "unreachable": "connection_error",
    "local": "local_error",
}
_TAIL_OF_LITELLM = "\n\nLiteLLM: "


class LineFailure(msgspec.Struct, frozen=True):
    """The failure of a call, as its result line describes it.

    Attributes:
        kind: kind of the failure.
        status_code: HTTP status; None if there was no response.
        code: short reason; None if the status and ``error`` give it.
        message: the reason. It may quote a prompt or a key.
        error: the error object of the response.
        request_id: the provider's id of the response; empty if it gives none.
    """

    kind: FailureKind
    status_code: int | None
    code: str | None
    message: str
    error: Mapping[str, Any] | None = None
    request_id: str = ""


def failure_of(exception: Exception) -> LineFailure:
    """Describe the failure of a call that raised this exception."""
    evidence = evidence_of(exception)
    kind = classify_evidence(evidence).kind
    message = _message_of(exception)
    if isinstance(exception, StreamInterruptedError):
        message = _message_of_interruption(exception)
    for own, code in CODES:
        if isinstance(exception, own):
            return LineFailure(kind, None, code, message)
    if evidence.missing_package is not None:
        return LineFailure(kind, None, MISSING_DEPENDENCY, evidence.missing_package.message)
    known = _CODES_OF_KINDS.get(kind)
    status = evidence.answer_status
    if status is None and known is None and (evidence.status or 500) < 500:
        status = evidence.status  # the Router itself refused the request: an unknown model
    if status is not None:
        error = _error_object(exception, evidence, message)
        return LineFailure(kind, status, None, message, error, _request_id(evidence))
    if kind == "answer":
        message = _message_of_unreadable(evidence, message)
    code = known or code_of_class(type(exception).__name__)
    return LineFailure(kind, None, code, _without_traceback(message))


def error_name(exception: Exception) -> str:
    """Return the name of the exception's class, or the package that is missing."""
    package = evidence_of(exception).missing_package
    return type(exception).__name__ if package is None else package.kind


def _message_of(exception: BaseException) -> str:
    message: Any = getattr(exception, "message", None)
    text = message if isinstance(message, str) and message else text_of(exception)
    text = _without_index(exception, text)
    return text.partition(_TAIL_OF_LITELLM)[0] or type(exception).__name__


def _without_index(exception: BaseException, text: str) -> str:
    """Leave out the index of the request, which is not a line number of the file."""
    if isinstance(exception, InvalidRequestError) and len(exception.problems) == 1:
        return next(iter(exception.problems.values()))
    index = getattr(exception, "index", None) if isinstance(exception, RebuiltError) else None
    return text if index is None else text.replace(f"request {index}", "the request", 1)


def _without_traceback(message: str) -> str:
    """Cut the traceback that litellm writes into messages: it has paths of this machine."""
    before, traceback, _ = message.partition("Traceback (most recent call last)")
    return before.rstrip() if traceback and before else message


def _message_of_unreadable(evidence: Evidence, message: str) -> str:
    """Describe an answer that litellm cannot read, without the answer that litellm quotes."""
    first = evidence.chain[-1]
    errors = cast("Any", getattr(first, "errors", None))
    if callable(errors):  # a pydantic error
        found = cast("list[dict[str, Any]]", errors())[0]
        reason = f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
    elif isinstance(first, (AttributeError, TypeError, LookupError)):
        reason = str(first)
    elif not evidence.quotes_an_answer:
        return message
    else:
        reason = ""
    return "litellm cannot read the answer as a chat completion" + (reason and f": {reason}")


def _message_of_interruption(exception: StreamInterruptedError) -> str:
    """Describe an interrupted stream with its cause.

    The index of the request is left out, because it is not a line number of the file.
    """
    cause = exception.__cause__
    because = f": {_message_of(cause)}" if cause is not None else ""
    if exception.is_complete:
        return (
            f"the stream (model {exception.model!r}) arrived, but its chunks cannot be "
            f"combined{because}"
        )
    return (
        f"the stream (model {exception.model!r}) broke off after {len(exception.text)} "
        f"characters{because}"
    )


def _error_object(exception: Exception, evidence: Evidence, message: str) -> Mapping[str, Any]:
    """Return the error object as the provider gave it."""
    sent = evidence.sent_error
    if not sent:
        sent = {name: getattr(exception, name, None) for name in ("type", "param", "code")}
    text = sent.get("message")
    if not isinstance(text, str) or not text:
        text = message
    return {"message": text, "type": None, "param": None, "code": None} | {**sent, "message": text}


def _request_id(evidence: Evidence) -> str:
    value = evidence.headers.get("x-request-id") or evidence.attribute("request_id")
    return value if isinstance(value, str) else ""
