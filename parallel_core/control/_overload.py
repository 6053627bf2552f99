"""Which errors say that a provider is overloaded, and how long it asks to wait."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Any, cast

from parallel_core.errors import BatchDeadlineError

_LONGEST = 86_400.0  # seconds: what asks for more has told no time
_OVERLOADED = (408, 429, 503, 529)
# What litellm raises where all deployments of a model are cooling down; it has no status code.
_COOLING_DOWN = "RouterRateLimitError"


def is_overload(error: BaseException) -> bool:
    """Whether fewer calls at a time would have helped: 429, 503, 529, a timeout."""
    if isinstance(error, TimeoutError):
        return not isinstance(error, BatchDeadlineError)  # of a batch inside of the call
    if any(base.__name__ == _COOLING_DOWN for base in type(error).__mro__):
        return True
    return getattr(error, "status_code", None) in _OVERLOADED


def retry_after(error: BaseException) -> float | None:
    """Seconds that the provider, or the Router, asks to wait; None where it does not say."""
    cooldown = getattr(error, "cooldown_time", None)
    if isinstance(cooldown, int | float) and 0 <= cooldown < _LONGEST:
        return float(cooldown)
    for headers in (
        getattr(error, "litellm_response_headers", None),
        getattr(getattr(error, "response", None), "headers", None),
    ):
        seconds = None if headers is None else _of_headers(headers)
        if seconds is not None:
            return seconds
    return None


def _of_headers(headers: Any) -> float | None:
    if not isinstance(headers, Mapping) and not hasattr(headers, "items"):
        return None
    values = {
        str(name).lower(): str(value)
        for name, value in cast("Mapping[object, object]", headers).items()
    }
    milliseconds = _number(values.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = values.get("retry-after")
    seconds = _number(text)
    return seconds if seconds is not None or text is None else _until(text)


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < _LONGEST else None


def _until(date: str) -> float | None:
    try:
        seconds = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if seconds < _LONGEST else None
