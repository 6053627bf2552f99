"""How long a provider asks to wait."""

import pytest

from helpers.litellm_errors import HTTPStatusError, answer
from parallel_core.failures import classify
from parallel_core.failures.evidence import evidence_of
from parallel_core.failures.requested_waits import duration, requested_wait

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (answer(429, Retry_After="37"), 37.0),
        (answer(429, Retry_After="0.5"), 0.5),
        (answer(429, Retry_After="Fri, 15 Jan 2027 08:00:09 GMT"), 9.0),
        (answer(429, Retry_After="Fri, 15 Jan 2027 07:00:00 GMT"), 0.0),
        (answer(429, retry_after_ms="250", Retry_After="1"), 0.25),
        (answer(429, Retry_After="-5"), None),
        (answer(429, Retry_After="soon"), None),
        (answer(429, Retry_After="9999999"), None),
        (answer(429, "Please try again in 7.66s. Visit …"), 7.66),
        (answer(429, "Please try again in 1m30s."), 90.0),
        (answer(429, "Please try again in 120ms."), 0.12),
        (answer(429, "Please retry after 37 seconds."), 37.0),
        (answer(429, "try again later"), None),
        (answer(429, x_ratelimit_reset_requests="1m30s"), 90.0),
        (
            answer(
                429,
                x_ratelimit_remaining_requests="3",
                x_ratelimit_reset_requests="1m30s",
                x_ratelimit_remaining_tokens="0",
                x_ratelimit_reset_tokens="6s",
            ),
            6.0,
        ),
        (answer(429, X_RateLimit_Reset=str(int((NOW + 12) * 1000))), 12.0),
        (answer(429, X_RateLimit_Reset=str(int(NOW + 12))), 12.0),
        (answer(429, anthropic_ratelimit_requests_reset="2027-01-15T08:00:20Z"), 20.0),
        (
            HTTPStatusError(
                429,
                [
                    {
                        "error": {
                            "code": 429,
                            "details": [
                                {
                                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                                    "retryDelay": "37s",
                                }
                            ],
                        }
                    }
                ],
            ),
            37.0,
        ),
        (RuntimeError(), None),
    ],
)
def test_told_wait(error: Exception, seconds: float | None) -> None:
    assert requested_wait(evidence_of(error), now=lambda: NOW) == (
        None if seconds is None else pytest.approx(seconds, abs=0.01)
    )


def test_cooldown_of_a_router() -> None:
    error = type("RouterRateLimitError", (ValueError,), {"cooldown_time": 5.0})()
    failure = classify(error)
    assert (failure.kind, failure.retry_after, failure.sent) == ("cooling_down", 5.0, False)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h2m3s", 3723.0), ("2 minutes", 120.0), ("", None), ("5", 5.0)]
)
def test_duration(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds
