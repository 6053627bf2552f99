"""Exceptions of users and of Python as they arrive from another process."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
from typing import Any

import httpx
import litellm
import litellm.exceptions
import openai
import pydantic
import pytest

from helpers.remote_exceptions import (
    OTHERS,
    REQUEST,
    RESPONSE,
    chain,
    is_the_same,
    made,
    raised,
)
from helpers.remote_values import SECRET, FailsToLoad, brought
from parallel_core import (
    RemoteCallError,
    classify_failure,
)
from parallel_core.ray_engine.remote_values import pack_exception, unpack_outcome


def validation_error() -> Exception:
    class Answer(pydantic.BaseModel):
        number: int

    with pytest.raises(pydantic.ValidationError) as caught:
        Answer.model_validate({"number": "x"})
    return caught.value


@pytest.mark.parametrize("sent", OTHERS, ids=lambda sent: type(sent).__name__)
def test_others_arrive(sent: Exception) -> None:
    arrived = brought(sent)
    is_the_same(arrived, sent)
    for name in ("errno", "filename", "filename2", "start", "reason", "name", "path", "shown"):
        assert getattr(arrived, name, None) == getattr(sent, name, None)


def test_an_error_of_pydantic_arrives() -> None:
    sent = validation_error()
    arrived = brought(sent)
    assert isinstance(arrived, pydantic.ValidationError)
    assert isinstance(sent, pydantic.ValidationError)
    assert str(arrived) == str(sent)
    assert arrived.errors() == sent.errors()


def test_a_cyclic_chain_arrives() -> None:
    first, second, third = KeyError("first"), ValueError("second"), asyncio.CancelledError("third")
    first.__cause__, second.__context__, third.__context__ = second, third, first
    second.__suppress_context__ = True
    arrived = brought(first)
    assert isinstance(arrived.__cause__, ValueError)
    assert arrived.__suppress_context__
    assert arrived.__context__ is None
    assert arrived.__cause__.__suppress_context__
    assert isinstance(arrived.__cause__.__context__, asyncio.CancelledError)
    assert arrived.__cause__.__context__.__context__ is arrived
    assert not arrived.__cause__.__context__.__suppress_context__


def test_an_endless_chain_is_cut() -> None:
    sent = last = ValueError("0")
    for number in range(1, 1000):
        last.__context__ = ValueError(str(number))
        last = last.__context__
    assert [text for (_, text, *_), _ in chain(brought(sent))] == [str(n) for n in range(20)]


def test_groups_arrive_with_the_causes_of_their_members() -> None:
    member = ValueError("member")
    member.__cause__ = KeyError("cause")
    inner = ExceptionGroup("inner", [made(litellm.exceptions.RateLimitError)])
    sent = ExceptionGroup("outer", [member, inner])
    sent.add_note("a note")
    arrived = brought(sent)
    assert type(arrived) is ExceptionGroup
    assert str(arrived) == str(sent)
    assert arrived.__notes__ == ["a note"]
    assert isinstance(arrived.exceptions[0].__cause__, KeyError)
    assert isinstance(arrived.exceptions[1], ExceptionGroup)
    is_the_same(arrived.exceptions[1].exceptions[0], inner.exceptions[0])


def test_an_attribute_that_cannot_be_pickled_is_left_out_alone() -> None:
    sent = ValueError("text", threading.Lock())
    sent.lock = threading.Lock()  # type: ignore[attr-defined]
    sent.status_code = 429  # type: ignore[attr-defined]
    sent.wrong = FailsToLoad()  # type: ignore[attr-defined]
    sent.other = other = KeyError("other")  # type: ignore[attr-defined]
    sent.__cause__ = other
    arrived = brought(sent)
    assert type(arrived) is ValueError
    assert str(arrived) == str(sent)
    assert set(vars(arrived)) == {"status_code", "other"}
    assert vars(arrived)["other"] is arrived.__cause__


def test_where_an_exception_comes_from_is_noted_once() -> None:
    def raise_it() -> None:
        raise ValueError(SECRET)

    with pytest.raises(ValueError) as caught:
        raise_it()
    caught.value.add_note("its own")
    arrived = brought(caught.value)
    own, note = arrived.__notes__
    assert own == "its own"
    assert note.startswith("in worker process ")
    assert ", in raise_it\n    raise ValueError(SECRET)" in note
    assert SECRET not in note
    assert brought(raised(arrived)).__notes__ == arrived.__notes__
    assert caught.value.__notes__ == ["its own"]  # what was sent has not changed


class Hostile(Exception):
    def __str__(self) -> str:
        raise LookupError("no")

    def __getstate__(self) -> Any:
        raise LookupError("no")

    def __reduce__(self) -> Any:
        raise LookupError("no")


def test_an_exception_whose_own_code_fails_arrives() -> None:
    arrived = brought(Hostile("x"))
    assert type(arrived) is Hostile
    assert arrived.args == ("x",)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int
    text: str


def test_an_exception_that_lets_nothing_be_set_arrives_as_itself() -> None:
    sent = Frozen(3, "hello")
    try:
        try:
            raise ValueError("cause")
        except ValueError as cause:
            raise sent from cause
    except Frozen:
        pass
    arrived = brought(sent)
    assert isinstance(arrived, Frozen)
    assert (arrived.code, arrived.text, str(arrived)) == (3, "hello", str(sent))
    assert isinstance(arrived.__cause__, ValueError)
    assert "in worker process" in arrived.__notes__[0]


class Dependent(Exception):
    def __str__(self) -> str:
        return f"with {self.lock}"  # type: ignore[attr-defined]


def test_an_exception_that_is_not_usable_without_what_is_left_out_is_replaced() -> None:
    sent = Dependent()
    sent.lock = threading.Lock()  # type: ignore[attr-defined]
    sent.status_code = 503  # type: ignore[attr-defined]
    sent.__cause__ = KeyError("cause")
    arrived = brought(sent)
    assert isinstance(arrived, RemoteCallError)
    assert arrived.text == str(sent)
    assert arrived.type_name == f"{__name__}.Dependent"
    assert isinstance(arrived.__cause__, KeyError)
    assert classify_failure(arrived).kind == "overloaded"  # by its status_code


def test_a_class_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("elsewhere")
    exec("class Special(Exception): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    sent = module.Special("what it says")
    sent.status_code = 429
    packed = pack_exception(sent)
    monkeypatch.delitem(sys.modules, "elsewhere")
    arrived = unpack_outcome(packed).exception
    assert isinstance(arrived, RemoteCallError)
    assert [arrived.type_name, arrived.text] == ["elsewhere.Special", "what it says"]
    assert "elsewhere.Special" in str(arrived)
    assert classify_failure(arrived).kind == "overloaded"


def test_what_an_exception_shares_with_its_cause_stays_one() -> None:
    response: Any = RESPONSE  # openai 3 says httpx2, and takes what httpx has made
    sent = openai.RateLimitError("it is said", response=response, body=None)
    sent.__cause__ = httpx.HTTPStatusError("429", request=REQUEST, response=RESPONSE)
    arrived = brought(sent)
    assert isinstance(arrived, openai.RateLimitError)
    assert isinstance(arrived.__cause__, httpx.HTTPStatusError)
    of_the_cause: object = arrived.__cause__.response
    assert of_the_cause is arrived.response
