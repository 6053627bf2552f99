"""Every class of litellm has a kind, and so have answers of real providers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from helpers.litellm_errors import WITHOUT_A_KIND, exception_classes, instance_of
from parallel_core.failures import FailureKind, classify


def test_every_class_has_a_row() -> None:
    without = dict[str, str]()
    for kind in exception_classes():
        try:
            error = instance_of(kind)
        except Exception as problem:
            if kind.__name__ not in WITHOUT_A_KIND:
                without[kind.__name__] = f"this test cannot make one: {problem!r}"
            continue
        if classify(error).kind == "unknown" and kind.__name__ not in WITHOUT_A_KIND:
            without[kind.__name__] = "unknown: give it a row in failures/table.py"
    assert not without


ANSWERS: dict[str, tuple[int, dict[str, str], object, FailureKind, float | None]] = {
    "rate": (
        429,
        {},
        {"error": {"message": "Please try again in 7.66s.", "code": "rate_limit_exceeded"}},
        "overloaded",
        7.66,
    ),
    "retry-after": (429, {"Retry-After": "37"}, {"error": {"message": "slow"}}, "overloaded", 37.0),
    "gemini": (
        429,
        {},
        [{"error": {"code": 429, "message": "m", "details": [{"retryDelay": "37s"}]}}],
        "overloaded",
        37.0,
    ),
    "quota": (
        429,
        {},
        {"error": {"message": "m", "type": "insufficient_quota", "code": "insufficient_quota"}},
        "account",
        None,
    ),
    "too-large": (
        429,
        {},
        {"error": {"message": "Request too large: Limit 30000, Requested 36055."}},
        "request",
        None,
    ),
    "529": (
        529,
        {},
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "overloaded",
        None,
    ),
    "html": (502, {}, "<html>Bad Gateway</html>", "overloaded", None),
    "520": (520, {}, "<html>origin</html>", "overloaded", None),
    "401": (401, {}, {"error": {"message": "m", "code": "invalid_api_key"}}, "account", None),
    "403": (403, {}, {"error": {"message": "m"}}, "account", None),
    "404": (404, {}, {"error": {"message": "m", "code": "model_not_found"}}, "account", None),
    "credit": (
        400,
        {},
        {"error": {"message": "Your credit balance is too low to access the API."}},
        "account",
        None,
    ),
    "400": (400, {}, {"error": {"message": "bad"}}, "request", None),
    "413": (413, {}, {"error": {"message": "bad"}}, "request", None),
    "422": (422, {}, {"error": {"message": "bad"}}, "request", None),
    "500": (500, {}, {"error": {"message": "bad"}}, "unknown", None),
    "error-in-200": (200, {}, {"error": {"code": 429, "message": "rate"}}, "overloaded", None),
    "page-in-200": (200, {}, "<html>login</html>", "answer", None),
}


@contextlib.asynccontextmanager
async def provider() -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.StreamResponse:
        name = (await request.json())["model"]
        if name == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, headers, body, _, _ = ANSWERS[name]
        if isinstance(body, str):
            return web.Response(status=status, text=body, content_type="text/html")
        return web.json_response(body, status=status, headers=headers)

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_real_answers() -> None:
    import litellm

    async def main() -> dict[tuple[str, str], tuple[object, ...]]:
        found = dict[tuple[str, str], tuple[object, ...]]()
        async with provider() as url:
            for protocol, base in (("openai", f"{url}/v1"), ("anthropic", url)):
                for name in (*ANSWERS, "reset", "refused"):
                    try:
                        await litellm.acompletion(
                            model=f"{protocol}/{name}",
                            messages=[{"role": "user", "content": "hi"}],
                            api_base="http://127.0.0.1:1/v1" if name == "refused" else base,
                            api_key="sk-test-0000",
                            max_retries=0,
                        )
                    except Exception as error:
                        failure = classify(error)
                        found[protocol, name] = (failure.kind, failure.retry_after)
            await litellm.close_litellm_async_clients()  # type: ignore[no-untyped-call]
        return found

    expected: dict[tuple[str, str], tuple[object, ...]] = {}
    for protocol in ("openai", "anthropic"):
        for name, (_, _, _, kind, wait) in ANSWERS.items():
            expected[protocol, name] = (kind, wait)
        expected[protocol, "reset"] = expected[protocol, "refused"] = ("unreachable", None)
    assert asyncio.run(main()) == expected
