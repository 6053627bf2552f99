"""The codes of failures in files of results, and what such a line means.

A line of OpenAI's Batch API has no place for a kind of failure. So the kind is found out from what
the line has, by the same table: from the status and the body of an answer, or from the code of an
error. This also holds for lines of earlier versions, of OpenAI and of vLLM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from parallel_core.errors import (
    BatchAbortedError,
    BatchTimeoutError,
    BudgetExceededError,
    CallCancelledError,
    EmptyResponseError,
    InvalidRequestError,
    NoCompletionError,
    NotSentError,
    RequestTimeoutError,
    StoppedError,
    StreamInterruptedError,
    StreamStalledError,
)

from .table import CLASS_NAMES, Failure, classify

CODES: tuple[tuple[type[Exception], str], ...] = (
    # As OpenAI names them.
    (BatchTimeoutError, "batch_expired"),
    (RequestTimeoutError, "request_timeout"),
    (CallCancelledError, "batch_cancelled"),
    (BatchAbortedError, "batch_cancelled"),
    # Our own.
    (BudgetExceededError, "budget_exceeded"),
    (StreamStalledError, "stream_stalled"),
    (StreamInterruptedError, "stream_interrupted"),
    (InvalidRequestError, "invalid_request"),
    (EmptyResponseError, "empty_response"),
    (NoCompletionError, "invalid_response"),
    (NotSentError, "not_sent_error"),
    (StoppedError, "stopped_error"),
)
"""Codes of our errors in files of results. The others have codes made of the names of classes."""

# Codes that stand for several classes, by one of them.
_STAND_INS = {
    "connection_error": "ConnectionResetError",
    "local_error": "MemoryError",
    "memory_error": "MemoryError",
    "missing_dependency": "ImportError",
    "no_deployment_available": "RouterRateLimitError",
}
# Of lines that were not sent, because they are no requests.
_BAD_LINES = frozenset(
    (
        "invalid_json_line",
        "invalid_csv_row",
        "invalid_encoding",
        "missing_required_parameter",
        "duplicate_custom_id",
        "invalid_type",
        "invalid_method",
        "unsupported_url",
        "forbidden_parameter",
    )
)
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class HTTPStatusError(Exception):
    """An answer of HTTP of which only the line is left."""


def code_of_class(name: str) -> str:
    """Return the code of an exception that has no other: ``KeyError`` is ``key_error``."""
    return _WORD.sub("_", name).lower()


def classify_line(status_code: int | None, error: object) -> Failure:
    """Say what a failure in a file of results means.

    Args:
        status_code: of the answer of HTTP; None if there was none.
        error: the error of the line, or else the body of the answer, as it was decoded.
    """
    body: object = {"message": error} if isinstance(error, str) else error
    exception: Exception = HTTPStatusError()
    if status_code is None:
        is_object = isinstance(body, Mapping)
        exception = _stand_in(cast("Mapping[str, object]", body).get("code") if is_object else None)
    evidence: dict[str, Any] = {"status_code": status_code, "body": body}
    exception.__dict__.update(evidence)
    return classify(exception)


_CLASSES: dict[str, type[Exception]] = {
    **{
        code: type(name, (Exception,), {})
        for name in sorted(CLASS_NAMES.union(_STAND_INS.values()))
        for code in (code_of_class(name), *(c for c, n in _STAND_INS.items() if n == name))
    },
    **{code: kind for kind, code in reversed(CODES)},
    **dict.fromkeys(_BAD_LINES, InvalidRequestError),
}


def _stand_in(code: object) -> Exception:
    """Return an exception that has this code in files, without what it once said."""
    kind = _CLASSES.get(code, Exception) if isinstance(code, str) else Exception
    return kind.__new__(kind)
