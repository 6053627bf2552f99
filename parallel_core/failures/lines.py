"""Failure codes in result files: write them, and classify a line that has one.

A line of OpenAI's Batch API has no field for a kind of failure. The same table derives the kind
from the status and the body of an answer, or from the code of an error. This also works for lines
from earlier versions, from OpenAI and from vLLM.
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
    # Codes that OpenAI uses.
    (BatchTimeoutError, "batch_expired"),
    (RequestTimeoutError, "request_timeout"),
    (CallCancelledError, "batch_cancelled"),
    (BatchAbortedError, "batch_cancelled"),
    # Codes of this package.
    (BudgetExceededError, "budget_exceeded"),
    (StreamStalledError, "stream_stalled"),
    (StreamInterruptedError, "stream_interrupted"),
    (InvalidRequestError, "invalid_request"),
    (EmptyResponseError, "empty_response"),
    (NoCompletionError, "invalid_response"),
    (NotSentError, "not_sent_error"),
    (StoppedError, "stopped_error"),
)
"""Codes of this package's errors in result files. Other errors have codes made from class names."""

# One class for each code that stands for several classes.
_STAND_INS = {
    "connection_error": "ConnectionResetError",
    "local_error": "MemoryError",
    "memory_error": "MemoryError",
    "missing_dependency": "ImportError",
    "no_deployment_available": "RouterRateLimitError",
}
# Codes of lines that were not sent because they are not valid requests.
_BAD_LINES = frozenset(
    (
        "invalid_json_line",
        "invalid_csv_row",
        "invalid_encoding",
        "line_too_long",
        "missing_required_parameter",
        "duplicate_custom_id",
        "invalid_type",
        "invalid_method",
        "unsupported_url",
        "ambiguous_endpoint",
        "forbidden_parameter",
    )
)
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class HTTPStatusError(Exception):
    """HTTP error answer that was restored from a result line."""


def code_of_class(name: str) -> str:
    """Return the code of an exception that is not in `CODES`: ``KeyError`` is ``key_error``."""
    return _WORD.sub("_", name).lower()


def classify_line(status_code: int | None, error: object) -> Failure:
    """Classify a failure in a result file.

    Args:
        status_code: status of the HTTP answer; None if there was none.
        error: the error of the line, or else the decoded body of the answer.
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
    """Return an exception, without its message, that has this code in result files."""
    kind = _CLASSES.get(code, Exception) if isinstance(code, str) else Exception
    return kind.__new__(kind)
