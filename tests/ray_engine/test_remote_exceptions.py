"""Exceptions as they arrive from another process."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import multiprocessing
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import litellm
import litellm.exceptions
import msgspec
import openai
import pydantic
import pytest
from litellm.router import Router

from helpers.remote_values import SECRET, FailsToLoad, answer, brought, needs_cloudpickle
from parallel_core import (
    BatchDeadlineError,
    BudgetExceededError,
    CallCancelledError,
    InvalidRequestError,
    RemoteCallError,
    RequestTimeoutError,
    StreamInterruptedError,
    Usage,
    classify_failure,
)
from parallel_core._failures import failure_of
from parallel_core._pickling import LeftOut
from parallel_core._remote_values import (
    pack_exception,
    pack_response,
    unpack_outcome,
)


def raised(exception: Exception) -> Exception:
    try:
        raise exception
    except Exception as error:
        return error


def comparable(value: Any) -> Any:
    """A value with what httpx has no equality for, by its contents."""
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


# Exceptions: every class of litellm and of openai
def classes_of(module: Any) -> list[type[Exception]]:
    found = {kind for _, kind in inspect.getmembers(module, inspect.isclass)}
    exceptions = [kind for kind in found if issubclass(kind, Exception)]
    return sorted(exceptions, key=lambda kind: (kind.__module__, kind.__name__))


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
    """One of this class, with all that its constructor takes."""
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


def _id(kind: type[Exception]) -> str:
    return f"{kind.__module__}.{kind.__name__}"


EVERY_CLASS = sorted({*classes_of(litellm.exceptions), *classes_of(openai)}, key=_id)


assert {litellm.exceptions.RateLimitError, openai.RateLimitError} < set(EVERY_CLASS)


@needs_cloudpickle
@pytest.mark.parametrize("kind", EVERY_CLASS, ids=_id)
def test_every_class_of_litellm_and_openai_arrives(kind: type[Exception]) -> None:
    sent = raised(made(kind))
    arrived = brought(sent)
    is_the_same(arrived, sent)
    assert type(arrived) is kind
    assert classify_failure(arrived) == classify_failure(sent)


# ... and as a Router raises them
class _Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, code = int(asked["model"].partition("-")[0]), asked["model"].partition("-")[2]
        error = {"message": f"refused: {code}", "type": "t", "param": "p", "code": code or None}
        if code == "hang":
            self.server.released.wait()  # type: ignore[attr-defined]
        if code == "too-long":
            error["message"] = "This model's maximum context length is 10 tokens."
        body = json.dumps({"error": error}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after", "7")
        self.send_header("x-request-id", "request-1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    server.released = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def refused(url: str, model: str) -> Exception:
    parameters = {"model": f"openai/{model}", "api_base": url, "api_key": "sk-x"}
    timeout = 0.2 if model.endswith("hang") else 20.0
    router = Router(
        model_list=[{"model_name": "m", "litellm_params": {**parameters, "timeout": timeout}}],
        num_retries=0,
    )

    async def main() -> Exception:
        from parallel_core._litellm_loop import close_clients_of_this_loop

        try:
            await router.acompletion(model="m", messages=[{"role": "user", "content": "hello"}])
        except Exception as error:
            return error
        finally:
            await close_clients_of_this_loop()
        raise AssertionError("it was not refused")

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("400", litellm.exceptions.BadRequestError),
        ("400-too-long", litellm.exceptions.ContextWindowExceededError),
        ("401", litellm.exceptions.AuthenticationError),
        ("403", litellm.exceptions.APIError),
        ("404", litellm.exceptions.NotFoundError),
        ("408", litellm.exceptions.Timeout),
        ("422", litellm.exceptions.BadRequestError),
        ("429", litellm.exceptions.RateLimitError),
        ("500", litellm.exceptions.InternalServerError),
        ("503", litellm.exceptions.ServiceUnavailableError),
        ("200-hang", litellm.exceptions.Timeout),
        ("connection", litellm.exceptions.InternalServerError),
    ],
)
def test_what_a_router_raises_arrives(model: str, kind: type[Exception], refusing: str) -> None:
    sent = refused("http://127.0.0.1:1" if model == "connection" else refusing, model)
    arrived = brought(sent)
    assert type(arrived) is kind
    is_the_same(arrived, sent)
    assert chain(arrived) == chain(sent)
    assert len(chain(arrived)) > 1
    assert failure_of(arrived) == failure_of(sent)
    assert classify_failure(arrived) == classify_failure(sent)
    if model == "429":
        assert classify_failure(arrived).retry_after == 7.0


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


def validation_error() -> Exception:
    class Answer(pydantic.BaseModel):
        number: int

    with pytest.raises(pydantic.ValidationError) as caught:
        Answer.model_validate({"number": "x"})
    return caught.value


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
    BatchDeadlineError(None, 2.0),
    BudgetExceededError(1, "max_cost of 2 USD", 3.0, 1.0),
    StreamInterruptedError(1, "m", "what came", Usage(1, 2, cost=0.5), 0.5),
    RemoteCallError("a problem", "a.Type", "its text"),
]


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


# Another process
def _sent_from_there(connection: Any) -> None:
    for make in (answer, lambda: made(litellm.exceptions.RateLimitError), lambda: OTHERS[-2]):
        value = make()
        pack: Callable[[Any], bytes] = (
            pack_exception if isinstance(value, Exception) else pack_response
        )
        connection.send_bytes(pack(value))
    connection.close()


@pytest.mark.thorough
def test_values_arrive_from_a_process_that_was_spawned() -> None:
    here, there = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_sent_from_there, args=(there,))
    process.start()
    there.close()
    try:
        response, rate_limit, interrupted = [unpack_outcome(here.recv_bytes()) for _ in range(3)]
    finally:
        process.join()
        here.close()
    assert response.value._hidden_params["response_cost"] == 0.25
    assert rate_limit.exception is not None
    assert interrupted.exception is not None
    is_the_same(rate_limit.exception, made(litellm.exceptions.RateLimitError))
    is_the_same(interrupted.exception, OTHERS[-2])


def test_what_an_exception_shares_with_its_cause_stays_one() -> None:
    response: Any = RESPONSE  # openai 3 says httpx2, and takes what httpx has made
    sent = openai.RateLimitError("it is said", response=response, body=None)
    sent.__cause__ = httpx.HTTPStatusError("429", request=REQUEST, response=RESPONSE)
    arrived = brought(sent)
    assert isinstance(arrived, openai.RateLimitError)
    assert isinstance(arrived.__cause__, httpx.HTTPStatusError)
    of_the_cause: object = arrived.__cause__.response
    assert of_the_cause is arrived.response
