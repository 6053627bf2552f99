"""A server of one answer, whose stream ends as a test wants it to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from aiohttp import web

import parallel_core
from helpers.streams import request
from parallel_core import RouterParallelResult


async def answer_of_server(
    events: list[dict[str, Any]],
    fallback: list[dict[str, Any]] | None = None,
    *,
    provider: str = "openai",
    end: Literal["done", "eof", "drop"] = "done",
    around: Callable[[Any], Any] | None = None,
    **arguments: Any,
) -> RouterParallelResult:
    """What a Router makes of these events of a server; with a fallback, the first model breaks.

    Args:
        provider: litellm's name of it.
        end: how the server ends: with ``[DONE]``, without, or by closing the connection.
        around: makes the callable of the batch from the Router.
    """

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        is_first = (await request.json()).get("model", "gpt") == "gpt"
        if is_first and fallback is not None:
            await response.write(b'data: {"error": {"message": "overloaded", "code": 503}}\n\n')
            return response
        for event in events if is_first else fallback or ():
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if end == "done":
            await response.write(b"data: [DONE]\n\n")
        elif end == "drop" and request.transport is not None:
            request.transport.abort()
        return response

    app = web.Application()
    app.router.add_post("/{path:.*}", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address = runner.addresses[0]
        path = "" if provider == "gemini" else "/v1"
        shared = {"api_base": f"http://127.0.0.1:{address[1]}{path}", "api_key": "none"}
        router = parallel_core.ParallelRouter(
            model_list=[
                {"model_name": model, "litellm_params": {"model": f"{provider}/{model}", **shared}}
                for model in ("gpt", "other")
            ],
            num_retries=0,
            fallbacks=[{"gpt": ["other"]}] if fallback is not None else [],
        )
        (result,) = await parallel_core.parallel_acompletions(
            router if around is None else around(router), [request(0, stream=True, **arguments)]
        )
        return result
    finally:
        await runner.cleanup()


ENVELOPE = {"object": "chat.completion.chunk", "created": 1}


def event(
    text: str | None, finish: str | None = None, logprobs: Any = None, index: int = 0
) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    choices = [{**choice, "logprobs": logprobs}]
    return {"id": "1", **ENVELOPE, "model": "gpt", "choices": choices}
