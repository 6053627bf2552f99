"""Seconds that an answer asks to wait: what takes precedence, units, dates, and what is no wait."""

from __future__ import annotations

import email.utils
from typing import Any

import pytest

from parallel_core.failures.evidence import Evidence
from parallel_core.failures.requested_waits import LONGEST_REQUESTED_WAIT, duration, requested_wait

NOW = 1_800_000_000.0


def waits(headers: dict[str, str] | None = None, body: object = None, **fields: Any) -> Any:
    error = Exception("failed")
    error.__dict__.update(headers=headers or {}, body=body, **fields)
    return requested_wait(Evidence((error,)), now=lambda: NOW)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5", 1.5),
        ("  2S ", 2.0),
        ("250ms", 0.25),
        ("250 milliseconds", 0.25),
        ("7.66s", 7.66),
        ("1m", 60.0),
        ("2 min", 120.0),
        ("1h", 3600.0),
        ("2d", 172_800.0),
        ("1d 1h 1m 1s", 90_061.0),
        ("3 weeks", None),
        ("1s 3 weeks", None),
        ("soon", None),
        ("1s soon", None),
        ("-1s", None),
        ("", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    assert duration(text) == (None if seconds is None else pytest.approx(seconds))


def test_what_takes_precedence() -> None:
    headers = {
        "Retry-After-MS": "1500",
        "Retry-After": "2",
        "x-ratelimit-reset": "5",
    }
    body = {
        "error": {"message": "Please retry in 4s.", "details": [{"retryDelay": "3s"}, {"x": 1}]}
    }
    assert waits(headers, body, cooldown_time=0.5) == 0.5
    assert waits(headers, body, cooldown_time="0.5") == 1.5
    assert waits(headers, body) == 1.5
    del headers["Retry-After-MS"]
    assert waits(headers, body) == 2
    del headers["Retry-After"]
    assert waits(headers, body) == 3
    body["error"]["details"] = []
    assert waits(headers, body) == 4
    body["error"]["message"] = "later"
    assert waits(headers, body) == 5
    assert waits({}, body) is None


def test_the_first_that_is_no_wait_is_passed_over() -> None:
    assert waits({"retry-after": "3"}, cooldown_time=-1) == 3
    assert waits({"retry-after": "3"}, cooldown_time=LONGEST_REQUESTED_WAIT) == 3
    assert waits(cooldown_time=LONGEST_REQUESTED_WAIT - 1) == LONGEST_REQUESTED_WAIT - 1
    assert waits({"retry-after": "0"}) == 0
    assert waits({"retry-after-ms": "0", "retry-after": "3"}) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("1m30s", 90.0),
        (email.utils.formatdate(NOW + 9, usegmt=True), 9.0),
        (email.utils.formatdate(NOW - 9, usegmt=True), 0.0),
        ("2027-01-15T08:00:20Z", 20.0),
        ("nan", None),
        ("inf", None),
        ("-3", None),
        ("never", None),
    ],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    assert waits({"Retry-After": text}) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("100000000", None),  # 1e8 s are no wait, and no moment
        (str(int(NOW + 12)), 12.0),
        (str(int(NOW - 12)), 0.0),
        (str(int((NOW + 12.5) * 1000)), 12.5),
        (str(int((NOW - 12) * 1000)), 0.0),
        ("2027-01-15T08:00:20Z", 20.0),
        ("2027-01-15T07:00:20Z", 0.0),
        ("6m0s", 360.0),
        ("never", None),
    ],
)
def test_resets(text: str, seconds: float | None) -> None:
    assert waits({"x-ratelimit-reset": text}) == seconds
    assert waits({"x-ratelimit-reset-tokens": text}) == seconds


@pytest.mark.parametrize("what", ["requests", "tokens", "input-tokens", "output-tokens"])
@pytest.mark.parametrize(
    ("remaining", "reset"),
    [
        ("x-ratelimit-remaining-{}", "x-ratelimit-reset-{}"),
        ("anthropic-ratelimit-{}-remaining", "anthropic-ratelimit-{}-reset"),
    ],
)
def test_a_reset_counts_where_nothing_remains(what: str, remaining: str, reset: str) -> None:
    left, moment = remaining.format(what), reset.format(what)
    assert waits({moment: "3"}) == 3
    assert waits({moment: "3", left: "0"}) == 3
    assert waits({moment: "3", left: "1"}) is None
    assert waits({left: "0"}) is None


def test_a_reset_of_everything_counts_where_nothing_remains() -> None:
    assert waits({"x-ratelimit-reset": "3", "x-ratelimit-remaining": "0"}) == 3
    assert waits({"x-ratelimit-reset": "3", "x-ratelimit-remaining": "1"}) is None


def test_the_last_of_several_resets_counts() -> None:
    headers = {"x-ratelimit-reset-requests": "3", "x-ratelimit-reset-tokens": "8"}
    assert waits(headers | {"x-ratelimit-reset": "5"}) == 8
    assert waits(headers | {"x-ratelimit-reset": "soon"}) == 8


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 2s.", 2.0),
        ("try again after 1m30s", 90.0),
        ("Retry: 3 seconds", 3.0),
        ("please retry after 4", 4.0),
        ("try again later", None),
    ],
)
def test_words(text: str, seconds: float | None) -> None:
    assert waits(body={"message": text}) == seconds


def test_the_clock_is_that_of_the_machine() -> None:
    error = Exception()
    error.__dict__["headers"] = {"retry-after": email.utils.formatdate(4e9, usegmt=True)}
    assert requested_wait(Evidence((error,))) is None  # decades from now
    error.__dict__["headers"] = {"x-ratelimit-reset": "1000000001"}
    assert requested_wait(Evidence((error,))) == 0
