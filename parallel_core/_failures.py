"""What has made a call fail: an answer of HTTP, or something that came before one.

litellm gives a status to everything, to a refused connection too. A real one is told by what only
an answer has: headers, or an error object in its body.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec

from ._missing_packages import MISSING_DEPENDENCY, missing_package
from .errors import StreamInterruptedError
from .failures import CODES, code_of_class

_MOST_CAUSES = 16
# By the names of classes: the libraries that they are from may not be loaded.
_TIMEOUTS = frozenset(("APITimeoutError", "TimeoutError", "TimeoutException"))
_CONNECTIONS = frozenset(("APIConnectionError", "ClientError", "ConnectionError", "TransportError"))
_GARBAGE = frozenset(("JSONDecodeError", "APIResponseValidationError", "ValidationError"))
_INVALID = "invalid_response"
# What litellm writes about an answer of status 200 that it cannot read. It gives it status 500.
_UNREADABLE = re.compile(
    r"Empty or invalid response from LLM endpoint|Invalid response object Traceback"
    r"|unable to get json response",
    re.IGNORECASE,
)
_ROUTER_IS_BUSY = frozenset(("RouterRateLimitError", "RouterRateLimitErrorBasic"))
_TAIL_OF_LITELLM = "\n\nLiteLLM: "


class Failure(msgspec.Struct, frozen=True):
    """How a call failed.

    Attributes:
        status_code: of HTTP; None where there was no answer.
        code: the reason in short; None where HTTP and ``error`` say it.
        message: the reason. It may quote a prompt or a key.
        error: the error object of an answer.
        request_id: of the answer, by the provider; empty where it gives none.
    """

    status_code: int | None
    code: str | None
    message: str
    error: Mapping[str, Any] | None = None
    request_id: str = ""


def failure_of(exception: Exception) -> Failure:
    """How a call failed that has raised this."""
    message = _message_of(exception)
    if isinstance(exception, StreamInterruptedError):
        message = _message_of_interruption(exception)
    for kind, code in CODES:
        if isinstance(exception, kind):
            return Failure(None, code, message)
    status = status_of(exception)
    if status is not None:
        request_id = _header(exception, "x-request-id")
        return Failure(status, None, message, _error_object(exception, message), request_id)
    package = missing_package(message, _causes(exception))
    if package is not None:
        return Failure(None, MISSING_DEPENDENCY, package.message)
    code = _code_of(exception)
    if code == _INVALID:
        message = _message_of_unreadable(exception, message)
    return Failure(None, code, _without_traceback(message))


def kind_of(exception: Exception) -> str:
    """What failures like this one are counted as: its class, or the package that is missing."""
    package = None
    if status_of(exception) is None:
        package = missing_package(_message_of(exception), _causes(exception))
    return type(exception).__name__ if package is None else package.kind


def status_of(exception: Exception) -> int | None:
    """The status of HTTP with which a call has failed; None where there was no answer."""
    status: Any = getattr(exception, "status_code", None)
    if type(status) is not int or not 100 <= status < 600:
        return None
    if status < 300 or (status >= 500 and _UNREADABLE.search(_message_of(exception))):
        return None
    if _headers(exception) or isinstance(getattr(exception, "body", None), Mapping):
        return status
    if any(_names(cause) & (_CONNECTIONS | _GARBAGE | _TIMEOUTS) for cause in _causes(exception)):
        return None
    if missing_package(_message_of(exception), _causes(exception)) is not None:
        return None
    # The Router itself has refused it: it knows no such model, or its own limits are reached.
    return status if status < 500 else None


def _code_of(exception: Exception) -> str:
    names = [_names(cause) for cause in _causes(exception)]
    for known, code in (
        (_ROUTER_IS_BUSY, "no_deployment_available"),
        (_TIMEOUTS, "request_timeout"),
        (_GARBAGE, _INVALID),  # litellm makes an APIConnectionError of these, too
        (_CONNECTIONS, "connection_error"),
    ):
        if any(known & of_cause for of_cause in names):
            return code
        if code == _INVALID and _UNREADABLE.search(_message_of(exception)):
            return code
    return code_of_class(type(exception).__name__)


def _causes(exception: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on. litellm leaves this to the context."""
    cause: BaseException | None = exception
    for _ in range(_MOST_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _names(exception: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(exception).__mro__}


def _message_of(exception: BaseException) -> str:
    message: Any = getattr(exception, "message", None)
    text = message if isinstance(message, str) and message else str(exception)
    return text.partition(_TAIL_OF_LITELLM)[0] or type(exception).__name__


def _without_traceback(message: str) -> str:
    """Cut the traceback that litellm writes into messages, with the paths of this machine."""
    before, traceback, _ = message.partition("Traceback (most recent call last)")
    return before.rstrip() if traceback and before else message


def _message_of_unreadable(exception: BaseException, message: str) -> str:
    """Without the answer, which litellm quotes in full."""
    *_, first = _causes(exception)
    errors = cast("Any", getattr(first, "errors", None))
    if callable(errors):  # of pydantic
        found = cast("list[dict[str, Any]]", errors())[0]
        reason = f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
    elif isinstance(first, (AttributeError, TypeError, LookupError)):
        reason = str(first)
    elif not _UNREADABLE.search(message):
        return message
    else:
        reason = ""
    return "the answer is no chat completion that litellm can read" + (reason and f": {reason}")


def _message_of_interruption(exception: StreamInterruptedError) -> str:
    """Without the number of the request, which is none of the file's, and with what broke it."""
    cause = exception.__cause__
    because = f": {_message_of(cause)}" if cause is not None else ""
    if exception.is_complete:
        return (
            f"the stream (model {exception.model!r}) arrived, but its chunks cannot be put "
            f"together{because}"
        )
    return (
        f"the stream (model {exception.model!r}) broke off after {len(exception.text)} "
        f"characters{because}"
    )


def _error_object(exception: Exception, message: str) -> Mapping[str, Any]:
    told = _told_error(exception)
    if told is None:
        told = {name: getattr(exception, name, None) for name in ("type", "param", "code")}
    text = told.get("message")
    if not isinstance(text, str) or not text:
        text = message
    return {"message": text, "type": None, "param": None, "code": None} | {**told, "message": text}


def _told_error(exception: Exception) -> Mapping[str, Any] | None:
    """The error object as the provider gave it. litellm keeps it for some statuses only; for the
    others it is in what its exception was raised from."""
    status: Any = getattr(exception, "status_code", None)
    for cause in _causes(exception):
        body: Any = getattr(cause, "body", None)
        # An earlier attempt may be among the causes.
        if isinstance(body, Mapping) and getattr(cause, "status_code", None) == status:
            told = cast("Mapping[str, Any]", body)
            inner = told.get("error")
            return cast("Mapping[str, Any]", inner) if isinstance(inner, Mapping) else told
    return None


def _headers(exception: Exception) -> Mapping[str, Any]:
    headers: Any = getattr(exception, "litellm_response_headers", None)
    return cast("Mapping[str, Any]", headers) if isinstance(headers, Mapping) else {}


def _header(exception: Exception, name: str) -> str:
    value = _headers(exception).get(name) or getattr(exception, "request_id", None)
    return value if isinstance(value, str) else ""
