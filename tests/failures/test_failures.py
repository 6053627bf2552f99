"""Kinds of failures: rows of the table, real answers through litellm, every class there is."""

import asyncio
import contextlib
import errno
import inspect
import json
import pickle
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from aiohttp import web

from parallel_core import RouterParallelRequest, RouterParallelResult, errors
from parallel_core._result_lines import read_result_line
from parallel_core.batch_output import Redactor, parse_output_line, result_line
from parallel_core.failures import (
    KINDS,
    NOT_FINAL,
    FailureKind,
    checked_kinds,
    classify,
    classify_line,
)
from parallel_core.failures.evidence import evidence_of
from parallel_core.failures.told_waits import duration, told_wait


class HTTPStatusError(Exception):
    """An answer with a status, as httpx and openai raise it."""

    def __init__(
        self, status: int, body: object = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"Error code: {status}")
        self.status_code = status
        self.body = body
        self.litellm_response_headers = headers or {"server": "test"}


def answer(status: int, message: str = "", *, code: str | None = None, **headers: str) -> Exception:
    body = {"error": {"message": message, "code": code}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HTTPStatusError(status, body, named)


def raised_from(error: Exception, *causes: BaseException) -> Exception:
    current: BaseException = error
    for cause in causes:
        current.__cause__ = cause
        current = cause
    return error


NAMED: list[tuple[Exception, FailureKind]] = [
    (errors.InvalidRequestError({0: "messages is empty"}), "request"),
    (errors.RequestTimeoutError(0, "m", 1.0), "timeout"),
    (errors.StreamStalledError(0, "m", 1.0), "timeout"),
    (errors.StreamInterruptedError(0, "m", "half"), "answer"),
    (errors.EmptyResponseError(0, "m"), "answer"),
    (errors.NoCompletionError(), "answer"),
    (errors.BudgetExceededError(0, "max_cost", 1.0, 0.5), "unknown"),
    (errors.BatchDeadlineError(0, 1.0), "unknown"),
    (errors.StoppedError(0), "unknown"),
    (errors.BatchAbortedError(), "unknown"),
    (errors.CallCancelledError(), "unknown"),
    (ImportError("No module named 'mcp'"), "unknown"),
    (KeyError("content"), "unknown"),
    (MemoryError(), "local"),
    (OSError(errno.EMFILE, "Too many open files"), "local"),
    (raised_from(RuntimeError(), OSError(errno.EADDRNOTAVAIL, "no port")), "local"),
    (ConnectionRefusedError(), "unreachable"),
    (ConnectionResetError(), "unreachable"),
    (TimeoutError(), "timeout"),
    (answer(429), "overloaded"),
    (answer(429, "You exceeded your current quota", code="insufficient_quota"), "account"),
    (answer(429, "Rate limit reached for requests per day (RPD): Limit 200"), "account"),
    (answer(429, "Quota exceeded for metric: free_tier_requests, limit: 0"), "account"),
    (answer(429, "Request too large for gpt-4o. Limit 30000, Requested 36055."), "request"),
    (answer(429, "Rate limit reached. Limit 30000, Used 29000, Requested 2000."), "overloaded"),
    (answer(529), "overloaded"),
    (answer(500), "unknown"),
    (answer(500, "Overloaded", code="overloaded_error"), "overloaded"),
    (answer(502), "overloaded"),
    (answer(424), "overloaded"),
    (answer(498), "overloaded"),
    (answer(401), "account"),
    (answer(402), "account"),
    (answer(403), "account"),
    (answer(403, "Your input was flagged by moderation"), "request"),
    (answer(404), "account"),
    (answer(400, "Your credit balance is too low to access the Anthropic API."), "account"),
    (answer(400, "API key not valid. Please pass a valid API key."), "account"),
    (answer(400), "request"),
    (answer(413), "request"),
    (answer(422), "request"),
    (answer(408), "timeout"),
]


def quota_of_gemini(period: str, *, says_when: bool = True) -> Exception:
    """A 429 as its endpoint for OpenAI's clients words it."""
    violation = {"quotaId": f"GenerateRequestsPer{period}PerProjectPerModel-FreeTier"}
    details: list[dict[str, Any]] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37s"},
    ]
    message = "You exceeded your current quota, please check your plan and billing details."
    error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED"}
    return HTTPStatusError(429, [{"error": {**error, "details": details[: 1 + says_when]}}])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (quota_of_gemini("Minute"), "overloaded"),
        (quota_of_gemini("Day"), "account"),  # though it says to come back in 37 s
        (quota_of_gemini("Day", says_when=False), "account"),
    ],
    ids=["minute", "day", "day without RetryInfo"],
)
def test_quotas_of_gemini(error: Exception, kind: FailureKind) -> None:
    """It words a quota per minute as OpenAI does one that is used up."""
    assert classify(error).kind == kind


@pytest.mark.parametrize(("error", "kind"), NAMED, ids=lambda value: str(value)[:40])
def test_kind(error: Exception, kind: FailureKind) -> None:
    assert classify(error).kind == kind


def test_kinds_are_those_of_the_type() -> None:
    assert get_args(FailureKind) == KINDS


def test_what_was_not_sent_cost_nothing() -> None:
    assert classify(ConnectionRefusedError()).sent is False
    assert classify(ConnectionResetError()).sent is None
    assert classify(errors.RequestTimeoutError(0, "m", 1.0)).sent is True


def test_status_of_the_provider_wins_over_that_of_litellm() -> None:
    masked = HTTPStatusError(529, json.dumps({"error": {"type": "overloaded_error"}}))
    wrapper = type("InternalServerError", (Exception,), {"status_code": 500})()
    failure = classify(raised_from(wrapper, masked))
    assert (failure.kind, failure.status_code) == ("overloaded", 529)


def test_an_earlier_attempt_does_not_count() -> None:
    """A Router raises the last error while it handles the one before."""
    litellm = pytest.importorskip("litellm")
    last = litellm.AuthenticationError("wrong key", llm_provider="openai", model="m")
    earlier = litellm.RateLimitError("slow down", llm_provider="openai", model="m")
    last.__context__ = earlier
    assert evidence_of(last).chain == (last,)
    assert classify(last).kind == "account"


def test_a_chain_that_is_a_circle_ends() -> None:
    first, second = RuntimeError(), RuntimeError()
    first.__context__, second.__context__ = second, first
    assert classify(first).kind == "unknown"


def test_an_exception_whose_text_raises() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert classify(Odd()).kind == "unknown"


def test_reason_has_neither_contents_nor_keys() -> None:
    error = answer(400, "Invalid content: 'my secret prompt', key sk-abcdef", code="a b: prompt!")
    assert classify(error).reason == "the provider refused the request (400)"


def test_failure_survives_pickling() -> None:
    failure = classify(answer(429, retry_after="3"))
    assert pickle.loads(pickle.dumps(failure)) == failure


# --- waits ---

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (answer(429, Retry_After="37"), 37.0),
        (answer(429, Retry_After="0.5"), 0.5),
        (answer(429, Retry_After="Fri, 15 Jan 2027 08:00:09 GMT"), 9.0),
        (answer(429, Retry_After="Fri, 15 Jan 2027 07:00:00 GMT"), 0.0),
        (answer(429, retry_after_ms="250", Retry_After="1"), 0.25),
        (answer(429, Retry_After="-5"), None),
        (answer(429, Retry_After="soon"), None),
        (answer(429, Retry_After="9999999"), None),
        (answer(429, "Please try again in 7.66s. Visit …"), 7.66),
        (answer(429, "Please try again in 1m30s."), 90.0),
        (answer(429, "Please try again in 120ms."), 0.12),
        (answer(429, "Please retry after 37 seconds."), 37.0),
        (answer(429, "try again later"), None),
        (answer(429, x_ratelimit_reset_requests="1m30s"), 90.0),
        (
            answer(
                429,
                x_ratelimit_remaining_requests="3",
                x_ratelimit_reset_requests="1m30s",
                x_ratelimit_remaining_tokens="0",
                x_ratelimit_reset_tokens="6s",
            ),
            6.0,
        ),
        (answer(429, X_RateLimit_Reset=str(int((NOW + 12) * 1000))), 12.0),
        (answer(429, X_RateLimit_Reset=str(int(NOW + 12))), 12.0),
        (answer(429, anthropic_ratelimit_requests_reset="2027-01-15T08:00:20Z"), 20.0),
        (
            HTTPStatusError(
                429,
                [
                    {
                        "error": {
                            "code": 429,
                            "details": [
                                {
                                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                                    "retryDelay": "37s",
                                }
                            ],
                        }
                    }
                ],
            ),
            37.0,
        ),
        (RuntimeError(), None),
    ],
)
def test_told_wait(error: Exception, seconds: float | None) -> None:
    assert told_wait(evidence_of(error), now=lambda: NOW) == (
        None if seconds is None else pytest.approx(seconds, abs=0.01)
    )


def test_cooldown_of_a_router() -> None:
    error = type("RouterRateLimitError", (ValueError,), {"cooldown_time": 5.0})()
    failure = classify(error)
    assert (failure.kind, failure.retry_after, failure.sent) == ("cooling_down", 5.0, False)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h2m3s", 3723.0), ("2 minutes", 120.0), ("", None), ("5", 5.0)]
)
def test_duration(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds


# --- every class of litellm and openai ---

# Neither a provider nor a Router raises these for a chat completion that was sent, or nothing is
# known about why.
WITHOUT_A_KIND = {
    "APIError",  # the base class, without a status
    "InternalServerError",
    "BlockedPiiEntityError",
    "CredentialExchangeError",
    "InvalidWebhookSignatureError",
    "ToolLoopMaxRoundsExceeded",
    "VectorStoreSearchError",
    "MockException",
    "ModelNotMappedError",
    "OAuthError",
    "OpenAIError",
    "WebSocketConnectionClosedError",
    "WebSocketQueueFullError",
}


def exception_classes() -> Iterator[type[Exception]]:
    import litellm
    import openai
    from litellm import exceptions as litellm_exceptions
    from litellm.types import router

    seen = set[type[Exception]]()
    for module in (litellm_exceptions, openai, litellm, router):
        for value in list(vars(module).values()):
            if (
                inspect.isclass(value)
                and issubclass(value, Exception)
                and not issubclass(value, Warning)
                and value.__module__.partition(".")[0] in ("litellm", "openai")
                and not value.__name__.startswith("_")
                and value not in seen
            ):
                seen.add(value)
                yield value


def instance_of(kind: type[Exception]) -> Exception:
    import httpx

    request = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")
    known: dict[str, Any] = {
        "message": "something",
        "llm_provider": "openai",
        "model": "m",
        "request": request,
        "response": httpx.Response(int(getattr(kind, "status_code", 400) or 400), request=request),
        "body": None,
        "status_code": 500,
        "cooldown_time": 5.0,
        "enable_pre_call_checks": False,
        "cooldown_list": [],
        "current_cost": 1.0,
        "max_budget": 1.0,
        "raw_response": "x",
        "schema": "{}",
        "request_data": {},
        "completion": SimpleNamespace(usage=None),
    }
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # of a class without an __init__ of its own
        return kind("something")
    needed = {
        parameter.name: known.get(parameter.name, "x")
        for parameter in parameters
        if parameter.default is inspect.Parameter.empty
        and parameter.kind
        in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    }
    return kind(**needed)


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


# --- real answers, as litellm shows them ---

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


# --- lines in files of results ---

REQUEST = RouterParallelRequest("m", [{"role": "user", "content": "hi"}])
# Codes of lines that were not sent, because they are no requests.
BAD_LINES = {
    "invalid_json_line",
    "invalid_csv_row",
    "invalid_encoding",
    "missing_required_parameter",
    "duplicate_custom_id",
    "invalid_type",
    "invalid_request",
    "invalid_method",
    "unsupported_url",
    "forbidden_parameter",
}
# Errors of which a line has less than the exception, and the kind that is left.
LESS_IN_A_LINE: dict[str, FailureKind] = {
    "litellm.ServiceUnavailableError: something": "unknown",
    "litellm.BadGatewayError: something": "unknown",
    "litellm.MidStreamFallbackError: something": "unknown",
}


def in_a_line(error: Exception) -> tuple[FailureKind, str]:
    """The kind and the message of a failure in a file of results."""
    line = result_line("a", RouterParallelResult(0, REQUEST, None, error), Redactor())
    return read_result_line(line).failure.kind, parse_output_line(line).error_message or ""


def every_instance() -> Iterator[Exception]:
    for kind in exception_classes():
        if kind.__name__ not in WITHOUT_A_KIND:
            yield instance_of(kind)


def test_a_line_has_the_kind_of_its_exception() -> None:
    found = dict[str, FailureKind]()
    for error in [*(error for error, _ in NAMED), *every_instance()]:
        kind, message = in_a_line(error)
        if kind != classify(error).kind:
            found[message] = kind
            assert {kind, classify(error).kind} <= NOT_FINAL
    assert found == LESS_IN_A_LINE


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        # Of this version and earlier ones.
        ({"error": {"code": "connection_error", "message": "Connection error."}}, "unreachable"),
        ({"error": {"code": "no_deployment_available", "message": "m"}}, "cooling_down"),
        ({"error": {"code": "request_timeout", "message": "m"}}, "timeout"),
        ({"error": {"code": "invalid_response", "message": "m"}}, "answer"),
        ({"error": {"code": "empty_response", "message": "m"}}, "answer"),
        ({"error": {"code": "missing_dependency", "message": "m"}}, "unknown"),
        ({"error": {"code": "key_error", "message": "'content'"}}, "unknown"),
        # Of OpenAI, and of vLLM.
        ({"error": {"code": "batch_expired", "message": "m"}}, "unknown"),
        ({"response": {"status_code": 400, "body": {"error": {"message": "bad"}}}}, "request"),
        ({"response": {"status_code": 429, "body": None}}, "overloaded"),
        ({"response": {"status_code": 500, "body": {"error": {"code": None}}}}, "unknown"),
        ({"response": {"status_code": 200, "body": None}}, "unknown"),
        ({"error": "The model does not exist"}, "unknown"),
        ({"error": {"message": "m", "type": "BadRequestError", "code": 400}}, "request"),
        ({"error": {"code": ["?"], "message": 5}}, "unknown"),
        ({"error": 5}, "unknown"),
    ],
)
def test_kind_of_a_line(line: dict[str, object], kind: FailureKind) -> None:
    written = json.dumps({"custom_id": "a", **line}).encode()
    assert read_result_line(written).failure.kind == kind


def test_every_code_of_the_documentation_is_known() -> None:
    text = (Path(__file__).parents[2] / "docs" / "file-formats.md").read_text()
    codes = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    assert codes >= BAD_LINES - {"invalid_request"} | {"stream_stalled"}
    for code in codes:
        kind = classify_line(None, {"code": code, "message": "m"}).kind
        assert (kind == "request") == (code in BAD_LINES), code


def test_kinds_of_an_option() -> None:
    assert checked_kinds("x", True) == NOT_FINAL == set(KINDS) - {"request"}
    assert checked_kinds("x", False) == checked_kinds("x", []) == set()
    assert checked_kinds("x", ["timeout", "answer"]) == {"timeout", "answer"}
    with pytest.raises(ValueError, match=r"^x: there is no kind of failure 'late'; .* overloaded,"):
        checked_kinds("x", ["timeout", "late"])
    for bad in ("timeout", None, 3):
        with pytest.raises(TypeError, match=r"x must be True, False or a collection of kinds"):
            checked_kinds("x", bad)
