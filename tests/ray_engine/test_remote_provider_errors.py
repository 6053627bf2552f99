"""Exceptions of litellm and openai as they arrive from another process."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import litellm
import litellm.exceptions
import openai
import pytest
from litellm.router import Router

from helpers.remote_exceptions import (
    OTHERS,
    chain,
    is_the_same,
    made,
    raised,
)
from helpers.remote_values import answer, brought, needs_cloudpickle
from parallel_core import classify_failure
from parallel_core.files.line_failures import failure_of
from parallel_core.ray_engine.remote_values import pack_exception, pack_response, unpack_outcome


def classes_of(module: Any) -> list[type[Exception]]:
    # Not isinstance: it would import what openai imports when it is needed, for three seconds.
    found = {kind for kind in vars(module).values() if issubclass(type(kind), type)}
    exceptions = [kind for kind in found if issubclass(kind, Exception)]
    return sorted(exceptions, key=lambda kind: (kind.__module__, kind.__name__))


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
        from parallel_core.router_hosts.litellm_loop import close_clients_of_this_loop

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
