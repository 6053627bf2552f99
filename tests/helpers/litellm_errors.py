"""Exceptions as litellm raises them."""

import errno
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from parallel_core import errors
from parallel_core.failures import FailureKind


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


NEED_MORE = "Need more tokens? Upgrade at https://console.example.com/settings/billing"
NAMED: list[tuple[Exception, FailureKind]] = [
    (errors.InvalidRequestError({0: "messages is empty"}), "request"),
    (errors.RequestTimeoutError(0, "m", 1.0), "timeout"),
    (errors.StreamStalledError(0, "m", 1.0), "timeout"),
    (errors.StreamInterruptedError(0, "m", "half"), "answer"),
    (errors.EmptyResponseError(0, "m"), "answer"),
    (errors.NoCompletionError(), "answer"),
    (errors.BudgetExceededError(0, "max_cost", 1.0, 0.5), "unknown"),
    (errors.BatchTimeoutError(0, 1.0), "unknown"),
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
    # Some providers end with advice to pay for a higher limit.
    (answer(429, f"Rate limit reached (TPM). Try again in 2s. {NEED_MORE}"), "overloaded"),
    (answer(413, f"Request too large. {NEED_MORE}"), "request"),
    (answer(400, "Invalid schema for function 'get_billing_address'"), "request"),
    (answer(400, "Billing hard limit has been reached", code="billing_hard_limit"), "account"),
    (answer(429, "Your account is not active, check your billing details"), "account"),
    (answer(403, "This API method requires billing to be enabled."), "account"),
    (answer(400, "Please enable billing on your project"), "account"),
    (answer(412, "Account acme is suspended, possibly due to past invoices"), "account"),
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
