"""Kinds of failures: the table, row by row."""

import json
import pickle
from typing import get_args

import pytest

from helpers.litellm_errors import NAMED, HTTPStatusError, answer, quota_of_gemini, raised_from
from parallel_core import errors
from parallel_core.failures import KINDS, NOT_FINAL, FailureKind, checked_kinds, classify
from parallel_core.failures.evidence import evidence_of


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (quota_of_gemini("Minute"), "overloaded"),
        (quota_of_gemini("Day"), "account"),  # though it says to come back in 37 s
        (quota_of_gemini("Day", says_when=False), "account"),
    ],
    ids=["minute", "day", "day without RetryInfo"],
)
def test_quotas_of_gemini(error: Exception, kind: FailureKind) -> None:
    """It words a quota per minute as OpenAI does one that is used up."""
    assert classify(error).kind == kind


@pytest.mark.parametrize(("error", "kind"), NAMED, ids=lambda value: str(value)[:40])
def test_kind(error: Exception, kind: FailureKind) -> None:
    assert classify(error).kind == kind


def test_kinds_are_those_of_the_type() -> None:
    assert get_args(FailureKind) == KINDS


def test_what_was_not_sent_cost_nothing() -> None:
    assert classify(ConnectionRefusedError()).sent is False
    assert classify(ConnectionResetError()).sent is None
    assert classify(errors.RequestTimeoutError(0, "m", 1.0)).sent is True


def test_status_of_the_provider_wins_over_that_of_litellm() -> None:
    masked = HTTPStatusError(529, json.dumps({"error": {"type": "overloaded_error"}}))
    wrapper = type("InternalServerError", (Exception,), {"status_code": 500})()
    failure = classify(raised_from(wrapper, masked))
    assert (failure.kind, failure.status_code) == ("overloaded", 529)


def test_an_earlier_attempt_does_not_count() -> None:
    """A Router raises the last error while it handles the one before."""
    litellm = pytest.importorskip("litellm")
    last = litellm.AuthenticationError("wrong key", llm_provider="openai", model="m")
    earlier = litellm.RateLimitError("slow down", llm_provider="openai", model="m")
    last.__context__ = earlier
    assert evidence_of(last).chain == (last,)
    assert classify(last).kind == "account"


def test_a_chain_that_is_a_circle_ends() -> None:
    first, second = RuntimeError(), RuntimeError()
    first.__context__, second.__context__ = second, first
    assert classify(first).kind == "unknown"


def test_an_exception_whose_text_raises() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert classify(Odd()).kind == "unknown"


def test_reason_has_neither_contents_nor_keys() -> None:
    error = answer(400, "Invalid content: 'my secret prompt', key sk-abcdef", code="a b: prompt!")
    assert classify(error).reason == "the provider refused the request (400)"


def test_failure_survives_pickling() -> None:
    failure = classify(answer(429, retry_after="3"))
    assert pickle.loads(pickle.dumps(failure)) == failure


def test_kinds_of_an_option() -> None:
    assert checked_kinds("x", True) == NOT_FINAL == set(KINDS) - {"request"}
    assert checked_kinds("x", False) == checked_kinds("x", []) == set()
    assert checked_kinds("x", ["timeout", "answer"]) == {"timeout", "answer"}
    with pytest.raises(ValueError, match=r"^x: there is no kind of failure 'late'; .* overloaded,"):
        checked_kinds("x", ["timeout", "late"])
    for bad in ("timeout", None, 3):
        with pytest.raises(TypeError, match=r"x must be True, False or a collection of kinds"):
            checked_kinds("x", bad)
