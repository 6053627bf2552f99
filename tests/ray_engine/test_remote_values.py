"""Requests and responses as they arrive in another process."""

from __future__ import annotations

import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import litellm
import litellm.exceptions
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.remote_values import SECRET, FailsToLoad, answer, brought, needs_cloudpickle
from parallel_core import (
    RemoteCallError,
    Usage,
)
from parallel_core.ray_engine.pickling import LeftOut
from parallel_core.ray_engine.remote_values import (
    pack_request,
    pack_response,
    unpack_outcome,
    unpack_request,
)
from parallel_core.types import StreamedResponse

# Requests
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@needs_cloudpickle
@given(st.dictionaries(st.text(), plain | st.just("__main__"), max_size=5))
def test_plain_requests_arrive(request: dict[str, Any]) -> None:
    assert unpack_request(pack_request(request)) == request


@needs_cloudpickle
def test_classes_and_functions_of_a_function_arrive_by_value() -> None:
    class Answer(pydantic.BaseModel):
        number: int

    def double(number: int) -> int:
        return 2 * number

    arrived = unpack_request(pack_request({"response_format": Answer, "tools": [double]}))
    assert arrived["response_format"].model_validate_json('{"number": 3}').number == 3
    assert arrived["tools"][0](4) == 8


@needs_cloudpickle
def test_an_argument_that_cannot_be_sent_is_named_without_its_contents() -> None:
    class Refusing:
        def __reduce__(self) -> str:
            raise ValueError(SECRET)

    with pytest.raises(TypeError, match=r"'stop' \(a .*Refusing\).*raises a ValueError") as caught:
        pack_request({"model": "m", "stop": Refusing(), "messages": [SECRET]})
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
    with pytest.raises(TypeError, match=r"'lock' \(a _thread.lock\).*cannot pickle '_thread.lock'"):
        pack_request({"lock": threading.Lock()})


def test_a_response_of_litellm_arrives_with_its_cost() -> None:
    sent = answer()
    outcome = unpack_outcome(pack_response(sent))
    assert outcome.exception is None
    assert outcome.value == sent
    assert outcome.value._hidden_params == sent._hidden_params
    assert outcome.value._hidden_params["response_cost"] == 0.25


def test_a_streamed_response_arrives() -> None:
    sent = StreamedResponse(answer(), Usage(1, 2, cost=0.5), 0.125)
    arrived = unpack_outcome(pack_response(sent)).value
    assert type(arrived) is StreamedResponse
    assert [arrived.response, arrived.usage, arrived.time_to_first_chunk] == [
        sent.response,
        sent.usage,
        sent.time_to_first_chunk,
    ]


def test_a_response_that_is_an_exception_is_a_value() -> None:
    outcome = unpack_outcome(pack_response(ValueError("a value")))
    assert outcome.exception is None
    assert str(outcome.value) == "a value"


@needs_cloudpickle
def test_a_response_that_cannot_be_brought_is_an_error() -> None:
    error = unpack_outcome(pack_response(threading.Lock())).exception
    assert isinstance(error, RemoteCallError)
    assert error.type_name == "_thread.lock"
    assert "cannot pickle '_thread.lock' object" in str(error)
    error = unpack_outcome(pack_response(FailsToLoad())).exception
    assert isinstance(error, RemoteCallError)
    assert "the response of a worker cannot be loaded here (LookupError)" in str(error)
    assert unpack_outcome(b"").exception is not None


@needs_cloudpickle
def test_an_answer_is_not_lost_for_something_inside_of_it_that_cannot_be_brought() -> None:
    answer = litellm.ModelResponse(model="m", choices=[{"message": {"content": "paid for"}}])
    answer._hidden_params["lock"] = threading.Lock()
    answer._hidden_params["function"] = lambda: answer._hidden_params["lock"]
    outcome = unpack_outcome(pack_response(answer))
    assert outcome.exception is None
    assert (outcome.value.id, outcome.value.choices) == (answer.id, answer.choices)
    hidden = outcome.value._hidden_params
    assert "lock object at" in repr(hidden["lock"])
    assert isinstance(hidden["function"], LeftOut)


@needs_cloudpickle
def test_nor_is_one_whose_class_is_of_the_main_module() -> None:
    answer = type("Answer", (), {"__module__": "__main__"})()
    answer.text, answer.lock = "paid for", threading.Lock()
    outcome = unpack_outcome(pack_response(answer))
    assert outcome.exception is None
    assert (type(outcome.value), outcome.value.text) == (type(answer), "paid for")
    assert isinstance(outcome.value.lock, LeftOut)


@needs_cloudpickle
def test_what_is_of_main_arrives_from_another_process() -> None:
    script = Path(__file__).with_name("scripts") / "values_of_main.py"
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, timeout=60
    )
    request, response, exception = [bytes.fromhex(line) for line in ended.stdout.split()]
    assert unpack_request(request)["tool"](4) == 8
    kind = unpack_outcome(response).value
    arrived = unpack_outcome(exception).exception
    assert [kind.__module__, kind.__name__] == ["__main__", "Mine"]
    assert isinstance(arrived, kind)
    assert [str(arrived), vars(arrived)] == ["mine", {"number": 3}]


def test_a_value_of_which_something_cannot_be_pickled_keeps_the_rest() -> None:
    sent = ValueError("text")
    sent.parts = [1, threading.Lock()]  # type: ignore[attr-defined]
    number, gap = vars(brought(sent))["parts"]
    assert number == 1
    assert isinstance(gap, LeftOut)


class LeavesWhenLoaded:
    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return sys.exit, (3,)


def test_a_response_that_exits_when_it_is_loaded_is_an_error() -> None:
    outcome = unpack_outcome(pack_response(LeavesWhenLoaded()))
    assert isinstance(outcome.exception, RemoteCallError)
    assert "SystemExit" in str(outcome.exception)
