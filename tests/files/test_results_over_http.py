"""Lines of results of real calls through a Router."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

import parallel_core
from helpers.batch_files import KEY, MESSAGES, read
from helpers.hosts import ASYNCIO_HOSTS
from helpers.routers import make_router, run_with_routers
from parallel_core import (
    RouterParallelRequest,
    RouterParallelResult,
)
from parallel_core.config import Redactor
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.files.batch_output import call_statistics, has_answer, result_line


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as running:
        yield running


def run_over_http(
    server: DemoServerThread, *requests: RouterParallelRequest, **settings: Any
) -> list[RouterParallelResult]:
    results: list[RouterParallelResult] = []

    async def main() -> None:
        router = make_router(server, ("fast",), **settings)
        router.add_deployment(deployment("refused", "http://127.0.0.1:9/v1"))  # the discard port
        results.extend(
            await parallel_core.parallel_acompletions(
                router, requests, preserve_order=True, retry=None
            )
        )

    run_with_routers(ASYNCIO_HOSTS[0], main)
    return results


def deployment(name: str, address: str) -> Any:
    from litellm.types.router import Deployment, LiteLLM_Params

    return Deployment(
        model_name=name,
        litellm_params=LiteLLM_Params(model=f"openai/{name}", api_base=address, api_key=KEY),
    )


def ask(model: str = "fast", kwargs: dict[str, Any] | None = None, **orders: Any) -> Any:
    arguments = {"extra_body": {"demo": orders}, **(kwargs or {})}
    return RouterParallelRequest(model, MESSAGES, arguments)


def test_what_really_fails_is_written_as_what_it_is(server: DemoServerThread) -> None:
    expected: list[tuple[RouterParallelRequest, int | None, str | None]] = [
        (ask(kwargs={"n": 200}), 400, "invalid_request_error"),
        (ask(fault="rate_limited"), 429, "rate_limited"),
        (ask(fault="server_error"), 500, "server_error"),
        (ask("unknown"), 400, None),
        (ask("refused"), None, "connection_error"),
        (ask(fault="reset"), None, "connection_error"),
        (ask(fault="truncated"), None, "connection_error"),
        (ask(fault="invalid_json"), None, "invalid_response"),
        (ask(fault="hang", kwargs={"timeout": 1.0}), None, "request_timeout"),
        (ask(fault="reset", kwargs={"stream": True}), None, "stream_interrupted"),
        (ask(cut_after=0, kwargs={"stream": True}), None, "stream_interrupted"),
        (ask(cut_after=3, kwargs={"stream": True}), None, "stream_interrupted"),
    ]
    results = run_over_http(server, *(request for request, *_ in expected))
    found: list[tuple[int | None, str | None]] = []
    for number, result in enumerate(results):
        whole = result_line(str(number), result, Redactor([KEY]))
        line, fields = read(whole)
        assert (line.custom_id, line.ok, has_answer(result)) == (str(number), False, False)
        assert line.error_message
        assert (fields["response"] is None) != (fields["error"] is None)
        assert "secret" not in whole.decode()
        found.append((line.status_code, line.error_code))
        measured = call_statistics(str(number), result, None)
        assert (measured.status_code, measured.attempts) == (line.status_code, 1)
        assert measured.error == type(result.exception).__name__
    assert found == [(status, code) for _, status, code in expected]


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "hosted_vllm/model"])
def test_an_answer_that_litellm_cannot_read_is_an_invalid_response(model: str) -> None:
    message = {"role": "assistant", "content": "secret words"}
    citation = {"start_index": 0, "end_index": 1, "url": "u", "title": None}
    messages = [
        None,
        {**message, "annotations": [{"type": "url_citation", "url_citation": citation}]},
    ]
    answers = ["<html>secret words</html>", "null", "[]", '{"choices": [{"message": "secret words']
    answers += [
        json.dumps({"id": "a", "choices": [{"message": message, "finish_reason": "stop"}]})
        for message in messages
    ]
    waiting = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = waiting.pop(0).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as unreadable:
        thread = threading.Thread(target=unreadable.serve_forever)
        thread.start()
        try:
            parameters = {
                "model": model,
                "api_key": KEY,
                "api_base": f"http://127.0.0.1:{unreadable.server_port}/v1",
            }
            router = parallel_core.ParallelRouter(
                model_list=[{"model_name": "fast", "litellm_params": parameters}],
                num_retries=0,
                disable_cooldowns=True,
            )
            results = parallel_core.parallel_completions(
                router,
                [RouterParallelRequest("fast", MESSAGES) for _ in answers],
                concurrency=1,
                preserve_order=True,
            )
            assert not waiting  # each was asked for, and paid for, once
        finally:
            unreadable.shutdown()
            thread.join()
    for number, result in enumerate(results):
        line, fields = read(result_line(str(number), result, Redactor([KEY])))
        assert (fields["response"], line.error_code) == (None, "invalid_response"), fields
        text = fields["error"]["message"]
        assert len(text) < 200
        assert not any(found in text for found in ("Traceback", "secret words", "site-packages"))


def test_real_answers_are_chat_completions_of_openai(server: DemoServerThread) -> None:
    from openai.types.chat import ChatCompletion

    results = run_over_http(
        server,
        ask(reply="plain"),
        ask(tool_arguments="{}"),
        ask(reply="streamed", kwargs={"stream": True}),
        ask(reply=f"the key is {KEY}"),
    )
    for result in results:
        line, _ = read(result_line("a", result, Redactor([KEY])))
        assert (line.ok, line.status_code, line.error_code) == (True, 200, None)
        assert line.body is not None
        text = bytes(line.body).decode()
        completion = ChatCompletion.model_validate_json(text)
        (choice,) = completion.choices
        assert (choice.message.content is None) == (choice.message.tool_calls is not None)
        assert {"content", "refusal", "role"} <= set(json.loads(text)["choices"][0]["message"])
        for foreign in ("provider_specific", "hidden", "127.0.0.1"):
            assert foreign not in text
        measured = call_statistics("a", result, None)
        assert (measured.ok, measured.status_code, measured.attempts) == (True, 200, 1)
        assert completion.usage is not None
        assert measured.prompt_tokens == completion.usage.prompt_tokens > 0
        assert measured.completion_tokens == completion.usage.completion_tokens > 0
        assert measured.cost is None  # litellm knows no price of the demo server's models
        if "the key" in text:
            assert f"the key is {KEY}" in text


def test_an_answer_without_usage_is_written_without(server: DemoServerThread) -> None:
    """An estimate is in the statistics alone."""
    streamed = {"stream": True}
    results = run_over_http(
        server, ask(usage=False), ask(), ask(usage=False, kwargs=streamed), ask(kwargs=streamed)
    )
    bodies = [
        read(result_line("a", result, Redactor()))[1]["response"]["body"] for result in results
    ]
    assert ["usage" in body for body in bodies] == [False, True, False, True]
    assert set(bodies[3]["usage"]) == set(bodies[1]["usage"])
    measured = [call_statistics("a", result, None) for result in results]
    assert [one.estimated for one in measured] == [False, False, True, False]
    assert measured[2].prompt_tokens > 0


def test_what_a_provider_answers_is_written_as_it_is_but_for_keys() -> None:
    """Of all statuses: litellm keeps the error object of some only."""
    statuses = (200, 400, 401, 402, 403, 404, 418, 422, 429, 500, 503, 529)
    error = {"message": "as it is", "type": "t", "param": "p", "code": "c"}
    token = {"token": "yes", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    logprobs = {"content": [token], "refusal": None}
    usage: Any = {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "vendor": {"a": None},
    }

    async def answer(request: web.Request) -> web.Response:
        status = (await request.json())["seed"]
        message = {"role": "assistant", "content": f"yes {KEY}", "vendor": [{"b": None}]}
        choices = [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}]
        body: dict[str, Any] = {"id": "1", "object": "chat.completion", "model": "x"}
        body |= {"choices": choices, "created": 1, "usage": usage, "own": {"c": None}}
        key = request.headers["Authorization"].split()[-1]
        return web.json_response(
            body if status == 200 else {"error": error},
            status=status,
            headers={"x-request-id": f"req {key}"},
        )

    results: list[RouterParallelResult] = []

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            router = parallel_core.ParallelRouter(
                model_list=[], num_retries=0, disable_cooldowns=True
            )
            router.add_deployment(deployment("gpt", f"http://127.0.0.1:{site.port}/v1"))
            requests = [
                RouterParallelRequest("gpt", MESSAGES, {"seed": status}) for status in statuses
            ]
            results.extend(
                await parallel_core.parallel_acompletions(
                    router, requests, preserve_order=True, retry=None
                )
            )
        finally:
            await runner.cleanup()

    run_with_routers(ASYNCIO_HOSTS[0], main)
    for status, result in zip(statuses, results, strict=True):
        line, fields = read(result_line("a", result, Redactor([KEY])))
        assert line.status_code == status
        assert fields["response"]["request_id"] == "req [redacted]"
        if status != 200:
            assert fields["response"]["body"] == {"error": error}
            continue
        body = fields["response"]["body"]
        assert (body["usage"], body["own"], body["created"]) == (usage, {"c": None}, 1)
        (choice,) = body["choices"]
        assert choice["logprobs"] == logprobs
        assert choice["message"]["content"] == f"yes {KEY}"
        assert choice["message"]["provider_specific_fields"] == {"vendor": [{"b": None}]}


def test_attempts_are_those_that_the_provider_has_seen(server: DemoServerThread) -> None:
    server.reset_stats()
    (result,) = run_over_http(server, ask(fault="server_error"), num_retries=1, retry_after=0)
    assert server.stats().accepted == 2
    assert call_statistics("a", result, None).attempts == 2
