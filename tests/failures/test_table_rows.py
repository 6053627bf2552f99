"""Rows of the table: their predicates, one at a time, and what a failure says."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from parallel_core.errors import NotSentError
from parallel_core.failures import classify, table
from parallel_core.failures.evidence import Evidence
from parallel_core.failures.lines import classify_line, code_of_class
from parallel_core.failures.wording import describe


class HTTPStatusError(Exception):
    """An answer of HTTP, by its name."""


def litellm_error(name: str, text: str = "", **fields: Any) -> Exception:
    kind = type(name, (Exception,), {"__module__": "litellm.exceptions"})
    return with_fields(kind(text), **fields)


def with_fields(error: Exception, **fields: Any) -> Exception:
    error.__dict__.update(fields)
    return error


def answer(status: int, message: str = "", **fields: Any) -> Exception:
    return with_fields(HTTPStatusError(), status_code=status, body={"message": message, **fields})


def evidence(*errors: BaseException) -> Evidence:
    return Evidence(errors)


# --- predicates ---


def test_is_looks_at_the_exception_alone() -> None:
    fits = table._is(KeyError, IndexError)
    assert fits(evidence(KeyError()))
    assert fits(evidence(IndexError()))
    assert not fits(evidence(ValueError(), KeyError()))


def test_named_class_looks_at_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "CLASS_NAMES", known := {"Other"})
    fits = table._named_class("KeyError", "IndexError")
    assert known == {"Other", "KeyError", "IndexError"}
    assert fits(evidence(ValueError(), IndexError()))
    assert not fits(evidence(ValueError()))


def test_status_in_and_between() -> None:
    among, between = table._status_in(401, 403), table._status_between(400, 403)
    for status, in_, between_ in (
        (399, False, False),
        (400, False, True),
        (401, True, True),
        (402, False, True),
        (403, True, False),
    ):
        found = evidence(answer(status))
        assert (among(found), between(found)) == (in_, between_)
    assert not between(evidence(ValueError()))
    assert not among(evidence(ValueError()))


def test_says_looks_at_words_and_codes() -> None:
    fits = table._says("no credit", r"\bquota\b")
    assert fits(evidence(answer(429, "There is No Credit left")))
    assert fits(evidence(answer(429, code="quota")))
    assert not fits(evidence(answer(429, "quotas", code="credit")))


def test_all_and_any() -> None:
    found = evidence(ValueError())
    yes, no = (lambda it: it is found), (lambda it: it is not found)
    assert table._all(yes, yes)(found)
    assert not table._all(yes, no)(found)
    assert table._any(no, yes)(found)
    assert not table._any(no, no)(found)


def test_no_answer() -> None:
    assert table._no_answer(evidence(ValueError()))
    assert not table._no_answer(evidence(answer(500)))


def test_out_of_resources() -> None:
    assert table._out_of_resources(evidence(ValueError(), OSError(errno.ENOMEM, "")))
    assert table._out_of_resources(evidence(ValueError(), MemoryError()))
    assert not table._out_of_resources(evidence(OSError(errno.ENOENT, "")))


@pytest.mark.parametrize(
    ("text", "too_large"),
    [
        ("Limit 30000, Requested 36055", True),
        ("limit: 30,000 tokens, requested: 30,001", True),
        ("Limit 30000, Requested 30000", False),
        ("Limit 30,000, Requested 3,000", False),
        ("Request too large for gpt-4o", True),
        ("Too many requests", False),
    ],
)
def test_more_than_the_limit(text: str, too_large: bool) -> None:
    assert table._asks_for_more_than_the_limit(evidence(answer(429, text))) is too_large


def test_retry_info() -> None:
    assert table._has_retry_info(evidence(answer(429, details=[{}, {"retryDelay": "3s"}])))
    assert not table._has_retry_info(evidence(answer(429, details=[{"reason": "x"}])))


def test_a_lost_connection_is_known_by_its_cause() -> None:
    claim = litellm_error("APIConnectionError")
    assert table._claims_a_lost_connection(evidence(claim))
    assert not table._lost_connection(evidence(claim))
    caused = evidence(claim, KeyError(), ConnectionError())
    assert table._lost_connection(caused)
    assert not table._claims_a_lost_connection(caused)
    other = evidence(claim, KeyError())
    assert not table._lost_connection(other)
    assert not table._claims_a_lost_connection(other)
    assert not table._claims_a_lost_connection(evidence(KeyError()))


def test_a_fallback_that_may_pass() -> None:
    text = (
        "wrong key\n\nLiteLLM: model group m. Fallback to n also failed: litellm.RateLimitError: {}"
    )
    assert table._fallback_may_pass(evidence(litellm_error("A", text.format("slow down"))))
    assert not table._fallback_may_pass(evidence(litellm_error("A", text.format("current quota"))))
    assert not table._fallback_may_pass(evidence(litellm_error("A", "wrong key")))
    assert not table._fallback_may_pass(evidence(ValueError(text.format("slow down"))))
    failure = classify(
        litellm_error("A", text.format("slow down"), status_code=401, body={"message": "key"})
    )
    assert (failure.kind, failure.sent) == ("overloaded", False)
    assert failure.reason == "the model's fallback is overloaded or down"
    assert (failure.retry_after, failure.status_code) == (None, None)


# --- what a failure says ---


def test_reason_has_status_and_code() -> None:
    assert classify(answer(429)).reason == "too many requests (429)"
    named = classify(answer(429, code="slow_down"))
    assert named.reason == "too many requests (429 slow_down)"
    assert (named.status_code, named.sent) == (429, False)
    assert classify(KeyError()).reason == "the call failed in an unexpected way"


def test_a_row_is_chosen_and_the_wait_is_kept() -> None:
    error = with_fields(answer(503), headers={"retry-after": "3"})
    failure = classify(error)
    assert (failure.kind, failure.retry_after, failure.may_pass) == ("overloaded", 3, True)
    assert not classify(answer(400)).may_pass


def test_what_was_not_sent_is_what_it_was_raised_from() -> None:
    error = NotSentError(0, "m", "why")
    assert classify(error).reason == "the request was not sent"
    error.__cause__ = TimeoutError()
    failure = classify(error)
    assert (failure.kind, failure.sent) == ("timeout", False)
    assert classify(TimeoutError()).sent is True


def test_a_stream_that_gave_text_may_have_been_paid() -> None:
    wrapper, cause = litellm_error("MidStreamFallbackError"), answer(429)
    wrapper.__cause__ = cause
    assert classify(wrapper).sent is None
    assert classify(cause).sent is False


def test_a_cooldown_is_explained_by_the_account() -> None:
    cooldown = litellm_error("RouterRateLimitError")
    cooldown.__cause__ = answer(401, "wrong")
    assert classify(cooldown).kind == "account"
    cooldown.__cause__ = answer(429)
    assert classify(cooldown).kind == "cooling_down"
    cooldown.__cause__ = None
    assert classify(cooldown).kind == "cooling_down"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (499, "timeout"),
        (409, "overloaded"),
        (520, "overloaded"),
        (529, "overloaded"),
        (530, "unknown"),
        (501, "unknown"),
        (302, "unknown"),
        (418, "request"),
    ],
)
def test_kind_of_a_status(status: int, kind: str) -> None:
    assert classify(answer(status)).kind == kind


# --- in a sentence ---


def request_to(host: str) -> Any:
    url = type("URL", (), {"host": host, "port": 80})()
    return type("Request", (), {"url": url})()


def test_a_sentence_names_the_model_the_deployment_and_the_address() -> None:
    assert describe("m", answer(429)) == "model m: too many requests (429)"
    wrapper = litellm_error("A", model="openai/x")
    wrapper.__cause__ = with_fields(answer(429), request=request_to("host"))
    assert describe("m", wrapper) == (
        "deployment openai/x of model m at host:80: too many requests (429)"
    )
    assert describe("x", wrapper) == "deployment openai/x at host:80: too many requests (429)"
    deeper = litellm_error("A", model="openai/y/x")
    assert describe("x", deeper).startswith("deployment openai/y/x: ")
    assert describe("y/x", deeper).startswith("deployment openai/y/x of model y/x: ")


def test_a_sentence_begins_with_what_is_wrong() -> None:
    assert describe("m", answer(401)) == "the key of model m was refused (401)"
    assert describe("m", answer(400, "your credit balance is too low")) == (
        "the account of model m has no credit or quota left (400)"
    )


# --- lines of files ---


def test_codes_of_classes() -> None:
    for name, code in (
        ("KeyError", "key_error"),
        ("HTTPStatusError", "http_status_error"),
        ("APIError2Of", "api_error2_of"),
    ):
        assert code_of_class(name) == code


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, {"message": "m"}, "overloaded"),
        (429, "insufficient_quota", "account"),
        (401, None, "account"),
        (None, {"code": "connection_error"}, "unreachable"),
        (None, {"code": "local_error"}, "local"),
        (None, {"code": "no_deployment_available"}, "cooling_down"),
        (None, {"code": "timeout_error", "message": "m"}, "timeout"),
        (None, {"code": "duplicate_custom_id"}, "request"),
        (None, {"code": "empty_response"}, "answer"),
        (None, {"code": ["x"]}, "unknown"),
        (None, "connection_error", "unknown"),
        (None, None, "unknown"),
    ],
    ids=str,
)
def test_kind_of_a_line(status: int | None, error: object, kind: str) -> None:
    assert classify_line(status, error).kind == kind
