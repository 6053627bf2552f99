"""What is read off a failed call: status, error object, headers, address, deployment, chain."""

from __future__ import annotations

import errno
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest

from parallel_core.errors import RemoteCallError
from parallel_core.failures.evidence import Evidence, class_names, evidence_of


class APIStatusError(Exception):
    """An answer of HTTP, by its name."""


class Plain(Exception):
    """No answer, by its name."""


def litellm_error(name: str, text: str = "", **fields: Any) -> Exception:
    kind = type(name, (Exception,), {"__module__": "litellm.exceptions"})
    return with_fields(kind(text), **fields)


def with_fields(error: Exception, **fields: Any) -> Exception:
    error.__dict__.update(fields)
    return error


def chain(*errors: BaseException) -> Evidence:
    return Evidence(errors)


# --- which exceptions belong to the attempt ---


def test_a_cause_takes_precedence_over_a_context() -> None:
    error, cause, context = Plain(), Plain(), Plain()
    error.__context__ = context
    error.__cause__ = cause
    assert evidence_of(error).chain == (error, cause)


def test_a_chain_has_an_end() -> None:
    errors = [Plain() for _ in range(20)]
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    assert evidence_of(errors[0]).chain == tuple(errors[:16])


def test_the_copy_that_a_router_raises_belongs_to_the_same_attempt() -> None:
    error = litellm_error("RateLimitError", status_code=429)
    copy = type(error)()
    for status, belongs in ((429, True), (400, False)):
        error.__cause__ = with_fields(copy, status_code=status)
        assert (evidence_of(error).chain == (error, copy)) is belongs
    error.__cause__ = litellm_error("RateLimitError", status_code=429)  # a class of its own
    assert evidence_of(error).chain == (error,)


def test_a_wrapper_is_no_attempt() -> None:
    wrapper, error = litellm_error("MidStreamFallbackError"), litellm_error("RateLimitError")
    earlier = litellm_error("AuthenticationError")
    wrapper.__cause__, error.__cause__ = error, earlier
    assert evidence_of(wrapper).chain == (wrapper, error)


def test_what_lies_between_two_attempts_belongs_to_the_later() -> None:
    later, between, earlier = litellm_error("A"), Plain(), litellm_error("B")
    later.__cause__, between.__cause__ = between, earlier
    assert evidence_of(later).chain == (later, between)


# --- names ---


def test_names_are_those_of_classes_and_their_bases() -> None:
    assert class_names(ConnectionResetError()) >= {"ConnectionResetError", "ConnectionError"}
    assert chain(Plain(), KeyError()).names >= {"Plain", "KeyError", "LookupError"}
    far = RemoteCallError.standing_for_type("openai.deep.APITimeoutError", "")
    assert class_names(far) >= {"RemoteCallError", "APITimeoutError"}
    assert "openai.deep.APITimeoutError" not in class_names(far)


def test_real_causes_are_neither_of_litellm_nor_missing_packages() -> None:
    first, cause = OSError(), KeyError()
    found = chain(first, litellm_error("A"), ImportError(), cause).real_causes
    assert found == [cause]


def test_errno_of_any_error_in_the_chain() -> None:
    found = chain(Plain(), OSError(errno.EMFILE, "full"))
    assert found.errno_in(frozenset((errno.EMFILE,)))
    assert not found.errno_in(frozenset((errno.ENOMEM,)))
    assert not chain(with_fields(Plain(), errno=errno.EMFILE)).errno_in(frozenset((errno.EMFILE,)))


def test_attribute_is_the_first_that_is_something() -> None:
    found = chain(
        Plain(), with_fields(Plain(), x=None), with_fields(Plain(), x=0), with_fields(Plain(), x=2)
    )
    assert found.attribute("x") == 0
    assert found.attribute("y") is None


# --- status ---


@pytest.mark.parametrize("status", [300, 599])
def test_status_of_an_answer(status: int) -> None:
    assert chain(with_fields(APIStatusError(), status_code=status)).answer_status == status
    assert chain(with_fields(APIStatusError(), status=status)).answer_status == status
    response = SimpleNamespace(status_code=status)
    found = chain(with_fields(APIStatusError(), response=response, status_code=500))
    assert found.answer_status == found.status == status


@pytest.mark.parametrize("status", [99, 299, 600, True, "429", None])
def test_what_is_no_status_of_a_failure(status: object) -> None:
    found = chain(with_fields(APIStatusError(), status_code=status, body="b"))
    assert found.answer_status is found.status is None


def test_the_status_of_the_deepest_answer_counts() -> None:
    found = chain(
        litellm_error("InternalServerError", status_code=500),
        with_fields(APIStatusError(), status_code=503),
        with_fields(APIStatusError(), status_code=529),
        Plain(),
    )
    assert found.answer_status == 529


def test_an_answer_by_name_alone_is_not_one_of_litellm() -> None:
    found = chain(litellm_error("APIStatusError", status_code=503))
    assert found.answer_status is None
    assert found.status == 503  # it is what litellm claims


def test_a_status_counts_where_something_of_an_answer_is_there() -> None:
    for fields in ({"litellm_response_headers": {"a": "b"}}, {"body": "text"}):
        assert chain(litellm_error("A", status_code=418, **fields)).answer_status == 418
    unknown = chain(Plain(), litellm_error("A", status_code=418))
    assert (unknown.answer_status, unknown.status) == (None, 418)


def test_litellm_gives_500_to_answers_that_it_cannot_read() -> None:
    text = "Unable to get json response - Expecting value"
    for status, known in ((499, 499), (500, None), (502, None)):
        found = chain(litellm_error("A", text, status_code=status, body="x"))
        assert found.unreadable
        assert found.quotes_an_answer
        assert found.answer_status == known
    readable = chain(litellm_error("A", "broken", status_code=500, body="x"))
    assert not readable.unreadable
    assert readable.answer_status == 500


def test_a_class_that_reads_answers_has_found_one_unreadable() -> None:
    found = chain(Plain(), json.JSONDecodeError("m", "d", 0))
    assert found.unreadable
    assert not found.quotes_an_answer


def test_an_error_inside_of_an_answer_has_its_status_in_its_code() -> None:
    for code, status in ((429, 429), (200, None), ("429", None), (700, None)):
        assert chain(with_fields(Plain(), body={"error": {"code": code}})).answer_status == status


# --- the error object ---


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"error": {"code": "c"}}, {"code": "c"}),
        ([{"error": {"code": "c"}}, {"error": {"code": "d"}}], {"code": "c"}),
        ({"error": "words", "detail": "more"}, {"detail": "more", "message": "words"}),
        ({"message": "m", "x": 1}, {"message": "m", "x": 1}),
        ({"code": 3, "x": 1}, {"code": 3, "x": 1}),
        ({"detail": "m"}, {"detail": "m"}),
        ([], {}),
        ("text", {}),
        (None, {}),
    ],
    ids=str,
)
def test_the_error_object_of_a_body(body: object, error: object) -> None:
    found = chain(Plain(), with_fields(Plain(), body=body))
    assert found.sent_error == found.error == error


def test_the_first_body_with_something_in_it_counts() -> None:
    bodies = [None, {}, {"code": "first"}, {"code": "second"}]
    assert chain(*(with_fields(Plain(), body=body) for body in bodies)).error == {"code": "first"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('Error: {"error": {"code": "c"}} (again)', {"code": "c"}),
        ("Error: {'error': {'code': 'c', 'x': None}}", {"code": "c", "x": None}),
        ("Error: [{'message': 'm'}]", {"message": "m"}),
        ("Error: {'a': 1}", {}),
        ("Error: {broken}", {}),
        ("Error", {}),
    ],
)
def test_an_error_object_that_is_quoted(text: str, error: object) -> None:
    quoted = chain(Plain(), Plain(text))
    assert quoted.error == error
    assert quoted.sent_error == {}
    assert chain(Plain(), with_fields(Plain(), body=text)).error == error
    assert chain(with_fields(Plain("x"), message=text)).error == error


def test_a_body_takes_precedence_over_what_is_quoted() -> None:
    sent = with_fields(Plain("{'code': 'quoted'}"), body={"code": "sent"})
    assert chain(sent).error == {"code": "sent"}
    as_text = with_fields(Plain("{'code': 'quoted'}"), body="{'code': 'sent'}")
    assert chain(Plain("{'code': 'first'}"), as_text).error == {"code": "sent"}


def of_body(body: object) -> Evidence:
    return chain(with_fields(Plain("Words"), body=body))


def test_code_is_a_word() -> None:
    for code, known in (
        ("a", None),
        ("ab", "ab"),
        ("rate_limit.x-y", "rate_limit.x-y"),
        ("two words", None),
        ("1ab", None),
        (12, None),
        ("a" * 64, "a" * 64),
        ("a" * 65, None),
    ):
        assert of_body({"code": code}).code == known
    assert of_body({"message": "m", "type": "kind"}).code == "kind"
    assert of_body({"code": "word", "type": "kind"}).code == "word"
    assert of_body({"message": "m"}).code is None


def test_message_is_a_text() -> None:
    assert of_body({"message": "m", "detail": "d"}).message == "m"
    assert of_body({"message": "", "detail": "d"}).message == "d"
    assert of_body({"message": 3, "detail": ["d"]}).message is None
    assert of_body({"message": "m" * 20_001}).message == "m" * 20_000


def test_text_is_the_message_or_that_of_the_exception() -> None:
    assert of_body({"message": "Told"}).text == "told"
    assert of_body({"code": 1}).text == "words"
    assert chain(with_fields(Plain("x"), message="Own")).text == "own"
    assert chain(with_fields(Plain("X"), message="")).text == "x"
    assert chain(with_fields(Plain("X"), message=3)).text == "x"
    assert chain(Plain("y" * 20_001)).text == "y" * 20_000
    assert chain(Plain("First"), Plain("second")).text == "first"


def test_codes_and_details() -> None:
    details = [
        {"reason": "API_KEY_INVALID", "retryDelay": "3s"},
        {"violations": [{"quotaId": "PerDay"}, "x", {"other": 1}]},
        {"violations": "none"},
        "x",
    ]
    found = of_body({"code": "A", "type": 3, "status": "Down", "details": details})
    assert found.codes == {"a", "3", "down", "api_key_invalid", "perday"}
    assert found.details == details[:3]
    assert of_body({"code": "A", "details": {"reason": "b"}}).details == []
    assert of_body({"message": "A"}).codes == frozenset()


# --- headers, address, deployment ---


def test_headers_are_the_first_there_are() -> None:
    response = SimpleNamespace(headers={"Retry-After": 3})
    for error in (
        with_fields(Plain(), litellm_response_headers={"Retry-After": 3}),
        with_fields(Plain(), headers={"Retry-After": 3}),
        with_fields(Plain(), response=response),
        with_fields(Plain(), headers={}, response=response),
        with_fields(Plain(), headers=["no mapping"], response=response),
        with_fields(Plain(), litellm_response_headers={"Retry-After": "3"}, headers={"b": "c"}),
    ):
        assert chain(Plain(), error, with_fields(Plain(), headers={"a": "b"})).headers == {
            "retry-after": "3"
        }
    assert chain(Plain()).headers == {}


def request_to(host: object, port: object = None) -> SimpleNamespace:
    return SimpleNamespace(url=SimpleNamespace(host=host, port=port))


@pytest.mark.parametrize(
    ("request_", "address"),
    [
        (request_to("host", 80), "host:80"),
        (request_to("host"), "host"),
        (request_to("host", "80"), "host"),
        (request_to("::1", 80), "[::1]:80"),
        (request_to("::1"), "[::1]"),
        (request_to(""), None),
        (request_to(3), None),
        (None, None),
    ],
    ids=str,
)
def test_address(request_: object, address: str | None) -> None:
    assert chain(with_fields(Plain(), request=request_)).address == address


def test_the_deepest_address_counts_and_none_of_litellm() -> None:
    outer, inner = (with_fields(Plain(), request=request_to(host)) for host in ("outer", "inner"))
    made_up = litellm_error("A", request=request_to("made.up"))
    assert chain(outer, inner, Plain(), made_up).address == "inner"
    assert chain(made_up).address is None


def test_deployment_is_what_litellm_names() -> None:
    named = litellm_error("A", model="openai/m")
    other = litellm_error("A", model="other")
    for nameless in (with_fields(Plain(), model="x"), litellm_error("B", model="")):
        assert chain(nameless, litellm_error("C", model=3), named, other).deployment == "openai/m"
    assert chain(Plain()).deployment is None


def test_a_missing_package_is_none_where_somebody_answered() -> None:
    error = ImportError("No module named 'nowhere'", name="nowhere")
    package = chain(error).missing_package
    assert package is not None
    assert package.requirement == "nowhere"
    assert chain(with_fields(error, status_code=500, body="x")).missing_package is None


def test_fields_that_raise_are_not_there() -> None:
    class Odd(Exception):
        @property
        def request(self) -> object:
            raise RuntimeError("no request")

    assert chain(Odd()).address is None
