"""Exceptions that are sent, and what is compared of those that arrive."""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
from typing import Any

import httpx
import msgspec
import pytest

from parallel_core import (
    BatchTimeoutError,
    BudgetExceededError,
    CallCancelledError,
    InvalidRequestError,
    RemoteCallError,
    RequestTimeoutError,
    StreamInterruptedError,
    Usage,
)
from parallel_core.ray_engine.pickling import LeftOut


def raised(exception: Exception) -> Exception:
    try:
        raise exception
    except Exception as error:
        return error


def comparable(value: Any) -> Any:
    """Replace httpx objects, which have no equality, by their contents."""
    if isinstance(value, httpx.Response):
        return value.status_code, dict(value.headers), value.content, comparable(value._request)
    if isinstance(value, httpx.Request):
        return value.method, value.url, dict(value.headers)
    if isinstance(value, BaseException):
        return type(value), str(value), comparable(value.args), comparable(value.__dict__)
    if isinstance(value, dict):
        return {name: comparable(of) for name, of in value.items() if name != "__notes__"}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, ssl.SSLContext | LeftOut):
        return repr(value)
    if type(value).__module__.startswith("openai."):
        return type(value), comparable(getattr(value, "__dict__", None))
    return value


def is_the_same(arrived: Exception, sent: Exception) -> None:
    assert arrived is not sent
    assert comparable(arrived) == comparable(sent)
    assert repr(arrived) == repr(sent)


REQUEST = httpx.Request("POST", "http://localhost/v1", headers={"x-of": "the request"})


RESPONSE = httpx.Response(429, headers={"retry-after": "7"}, content=b"{}", request=REQUEST)


ARGUMENTS: dict[str, Any] = {
    "message": "it is said",
    "llm_provider": "openai",
    "model": "fast",
    "status_code": 418,
    "response": RESPONSE,
    "request": REQUEST,
    "body": {"error": {"code": "c", "param": "p", "type": "t"}},
    "num_retries": 2,
    "max_retries": 3,
    "headers": {"retry-after": "7"},
    "current_cost": 2.0,
    "max_budget": 1.0,
    "raw_response": "{",
    "failures": [{"vector_store_id": "v", "error": "e"}],
    "schema": "{}",
    "original_exception": ValueError("what it was"),
    "completion": type("Completion", (), {"usage": "none", "__eq__": lambda *_: True})(),
}


def made(kind: type[Exception]) -> Exception:
    """Make an exception of this class with every argument that its constructor takes."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # it has the constructor of Exception
        return kind("it is said")
    known = {
        parameter.name: ARGUMENTS.get(parameter.name, f"the {parameter.name}")
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and (parameter.default is parameter.empty or parameter.name in ARGUMENTS)
    }
    return kind(**known)


def chain(exception: BaseException | None) -> list[Any]:
    found: list[Any] = []
    while exception is not None and len(found) < 20:
        found.append((comparable(exception), exception.__suppress_context__))
        exception = exception.__cause__ or exception.__context__
    return found


# Exceptions of others
class Slotted(Exception):
    __slots__ = ("__hidden", "shown")

    def __init__(self, shown: str, hidden: str, *, required: bool) -> None:
        super().__init__(shown)
        self.shown = shown
        self.__hidden = hidden

    def __str__(self) -> str:
        return f"{self.shown} {self.__hidden}"


class FileTrouble(OSError):
    def __init__(self, *, name: str) -> None:
        super().__init__(2, "no such thing", name)


class Reduced(Exception):
    def __init__(self, number: int) -> None:
        super().__init__("always the same")
        self._secret_number = number

    def __reduce__(self) -> Any:
        return Reduced, (self._secret_number,)


class ReducedWrongly(Exception):
    def __reduce__(self) -> Any:
        return ReducedWrongly, ("another text",)


def of_msgspec() -> Exception:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.json.decode(b'"x"', type=int)
    return caught.value


def decoding() -> Exception:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    return caught.value


OTHERS: list[Exception] = [
    FileNotFoundError(2, "No such file", "a/file"),
    OSError(5, "read", "a", None, "b"),
    FileTrouble(name="here"),
    decoding(),
    KeyError("key"),
    TimeoutError(),
    asyncio.QueueFull(),
    ImportError("no", name="n", path="p"),
    StopAsyncIteration(3),
    of_msgspec(),
    httpx.ConnectError("refused", request=REQUEST),
    json.JSONDecodeError("no", "doc", 1),
    Slotted("shown", "hidden", required=True),
    Reduced(4),
    ReducedWrongly("the text"),
    InvalidRequestError({3: "bad"}),
    CallCancelledError("a call ended"),
    RequestTimeoutError(1, "m", 2.0, "part", Usage(1, 2), 0.5),
    BatchTimeoutError(None, 2.0),
    BudgetExceededError(1, "max_cost of 2 USD", 3.0, 1.0),
    StreamInterruptedError(1, "m", "what came", Usage(1, 2, cost=0.5), 0.5),
    RemoteCallError("a problem", "a.Type", "its text"),
]
