"""Seconds that a provider or the Router asks to wait before the next attempt.

Few providers send ``Retry-After``. Others write the wait into the body, the message or
provider-specific headers; the page ``docs/failures.md`` lists them.
"""

from __future__ import annotations

import datetime
import email.utils
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping

from .evidence import Evidence

LONGEST_REQUESTED_WAIT = 86_400.0  # seconds: a longer wait is a quota and is not waited for

_PART = r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)\s*"
_PARTS = re.compile(_PART)
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?\s*[a-z]*\s*)+")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TRY_AGAIN = re.compile(
    r"(?:try again|retry)(?: after| in)?:? (?P<wait>\d+(?:\.\d+)?\s*[a-z]*(?:\d+(?:\.\d+)?[a-z]+)*)"
)
# Resources in the headers for limits. A reset counts if 0 of its resource remains.
_RESETS = ("requests", "tokens", "input-tokens", "output-tokens")


def requested_wait(evidence: Evidence, now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds to wait; None if no wait is requested.

    Args:
        evidence: facts about the failed attempt.
        now: returns the time in seconds since the epoch, for dates.
    """
    for seconds in _requested_waits(evidence, now):
        if seconds is not None and 0 <= seconds < LONGEST_REQUESTED_WAIT:
            return seconds
    return None


def _requested_waits(evidence: Evidence, now: Callable[[], float]) -> Iterator[float | None]:
    cooldown = evidence.attribute("cooldown_time")
    if isinstance(cooldown, int | float):
        yield float(cooldown)
    headers = evidence.headers
    yield _scaled(_number(headers.get("retry-after-ms")), 0.001)
    yield _retry_after(headers.get("retry-after"), now)
    for detail in evidence.details:  # google.rpc.RetryInfo
        yield duration(str(detail.get("retryDelay", "")))
    found = _TRY_AGAIN.search(evidence.text)
    if found is not None:
        yield duration(found["wait"])
    yield _latest_reset(headers, now)


def _latest_reset(headers: Mapping[str, str], now: Callable[[], float]) -> float | None:
    """Return the wait until every exhausted limit is reset."""
    waits: list[float] = []
    for resource in _RESETS:
        for remaining, reset in (
            (f"x-ratelimit-remaining-{resource}", f"x-ratelimit-reset-{resource}"),
            (f"anthropic-ratelimit-{resource}-remaining", f"anthropic-ratelimit-{resource}-reset"),
        ):
            if _number(headers.get(remaining)) == 0 or remaining not in headers:
                waits.append(_reset(headers.get(reset), now))
    if _number(headers.get("x-ratelimit-remaining", "0")) == 0:
        waits.append(_reset(headers.get("x-ratelimit-reset"), now))
    known = [wait for wait in waits if not math.isnan(wait)]
    return max(known) if known else None


def _reset(text: str | None, now: Callable[[], float]) -> float:
    """Return the seconds until a reset; NaN if unknown.

    The text is a duration, a time in s or ms since the epoch, or a date.
    """
    if text is None:
        return math.nan
    number = _number(text)
    if number is not None:
        if number > 1e11:  # ms since the epoch
            return max(0.0, number / 1000 - now())
        return max(0.0, number - now()) if number > 1e8 else number
    moment = _date(text)
    if moment is not None:
        return max(0.0, moment - now())
    seconds = duration(text)
    return math.nan if seconds is None else seconds


def _retry_after(text: str | None, now: Callable[[], float]) -> float | None:
    if text is None:
        return None
    number = _number(text)
    if number is not None:
        return number
    moment = _date(text)
    return duration(text) if moment is None else max(0.0, moment - now())


def duration(text: str) -> float | None:
    """Parse a duration such as ``1m30s``, ``7.66s``, ``120ms`` or ``37 seconds`` into seconds."""
    text = text.strip().lower()
    if not _WHOLE.fullmatch(text):
        return None
    total = 0.0
    for part in _PARTS.finditer(text):
        unit = part["unit"] or "s"
        scale = _UNITS.get("ms" if unit.startswith("milli") else unit, _UNITS.get(unit[0]))
        if scale is None:
            return None
        total += float(part["number"]) * scale
    return total


def _date(text: str) -> float | None:
    """Parse a date in HTTP or RFC 3339 format into seconds since the epoch."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _scaled(number: float | None, scale: float) -> float | None:
    return None if number is None else number * scale
