"""Seconds that a provider, or the Router, asks to wait before the next attempt.

Few providers say it in ``Retry-After``. Others write it into the body, into the message or into
headers of their own; ``docs/failures.md`` lists them with their sources.
"""

from __future__ import annotations

import datetime
import email.utils
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping

from .evidence import Evidence

LONGEST_TOLD_WAIT = 86_400.0  # seconds: a longer one is a quota, and no reason to wait

_PART = r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)\s*"
_PARTS = re.compile(_PART)
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?\s*[a-z]*\s*)+")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_TRY_AGAIN = re.compile(
    r"(?:try again|retry)(?: after| in)?:? (?P<wait>\d+(?:\.\d+)?\s*[a-z]*(?:\d+(?:\.\d+)?[a-z]+)*)"
)
# Remaining 0 of what the reset belongs to.
_RESETS = ("requests", "tokens", "input-tokens", "output-tokens")


def told_wait(evidence: Evidence, now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds to wait; None if nobody says.

    Args:
        evidence: of the failed attempt.
        now: the time in seconds since the epoch, for dates.
    """
    for seconds in _told(evidence, now):
        if seconds is not None and 0 <= seconds < LONGEST_TOLD_WAIT:
            return seconds
    return None


def _told(evidence: Evidence, now: Callable[[], float]) -> Iterator[float | None]:
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
    """Return the wait until everything that is used up is there again."""
    waits: list[float] = []
    for what in _RESETS:
        for remaining, reset in (
            (f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}"),
            (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset"),
        ):
            if _number(headers.get(remaining)) == 0 or remaining not in headers:
                waits.append(_reset(headers.get(reset), now))
    if _number(headers.get("x-ratelimit-remaining", "0")) == 0:
        waits.append(_reset(headers.get("x-ratelimit-reset"), now))
    told = [wait for wait in waits if not math.isnan(wait)]
    return max(told) if told else None


def _reset(text: str | None, now: Callable[[], float]) -> float:
    """Seconds to a reset: a duration, a moment in s or ms since the epoch, or a date."""
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
    """Return the seconds of a duration such as ``1m30s``, ``7.66s``, ``120ms``, ``37 seconds``."""
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
    """Return the moment of a date of HTTP or of RFC 3339, in seconds since the epoch."""
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
