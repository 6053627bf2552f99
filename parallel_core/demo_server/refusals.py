"""Error responses of the demo server: each kind of trouble with the text of its provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web


@dataclass(frozen=True)
class _Refusal:
    """An HTTP error.

    Attributes:
        body: makes the JSON from the model's name and the seconds to wait. A string is HTML.
        says_when: True if the header Retry-After has the seconds to wait.
    """

    status: int
    body: Callable[[str, float | None], Any]
    says_when: bool = True


def refusal_response(fault: str, model: str, retry_after: float | None) -> web.Response:
    """Make the error response of a fault.

    Args:
        fault: one of ``REFUSALS``, or ``over_capacity``.
        retry_after: seconds that it asks the client to wait; None: it does not ask.
    """
    refusal = _REFUSALS[fault]
    body = refusal.body(model, retry_after)
    if isinstance(body, str):
        response = web.Response(text=body, status=refusal.status, content_type="text/html")
    else:
        response = web.json_response(body, status=refusal.status)
    if retry_after is not None and refusal.says_when:
        response.headers["Retry-After"] = _seconds(retry_after)
    return response


def error_response(
    message: str, *, status: int, code: str | None = None, param: str | None = None
) -> web.Response:
    """Make an error response in the form of OpenAI's API."""
    kind = {429: "rate_limit_error", 500: "server_error"}.get(status, "invalid_request_error")
    return web.json_response(_openai(message, kind, code, param), status=status)


def _openai(
    message: str, kind: str = "invalid_request_error", code: str | None = None, param: Any = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _anthropic(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


def _too_many(code: str) -> Callable[[str, float | None], Any]:
    message = f"Too many requests ({code})."
    return lambda model, wait: _openai(message, "rate_limit_error", code)


def _gemini(model: str, wait: float | None) -> list[Any]:
    """Make the body of Gemini's OpenAI-compatible endpoint, which is a list."""
    google = "type.googleapis.com/google.rpc."
    metric = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
    message = (
        "You exceeded your current quota, please check your plan and billing details. "
        f"\n* Quota exceeded for metric: {metric}, limit: 15, model: {model}"
    )
    violation = {
        "quotaMetric": metric,
        "quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier",
        "quotaDimensions": {"location": "global", "model": model},
        "quotaValue": "15",
    }
    details: list[Any] = [{"@type": f"{google}QuotaFailure", "violations": [violation]}]
    if wait is not None:
        message += f"\nPlease retry in {_seconds(wait)}s."
        details.append({"@type": f"{google}RetryInfo", "retryDelay": f"{_seconds(wait)}s"})
    error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}
    return [{"error": error}]


def _page(title: str) -> Callable[[str, float | None], Any]:
    page = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )
    return lambda model, wait: page


def _seconds(value: float) -> str:
    """Format seconds to the millisecond, never with an exponent."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _of_openai(
    status: int,
    code: str,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
) -> _Refusal:
    def body(model: str, wait: float | None) -> Any:
        return _openai(message.replace("{model}", model), kind, code, param)

    return _Refusal(status, body, says_when=False)


_REFUSALS: Final[Mapping[str, _Refusal]] = {
    "bad_key": _of_openai(
        401,
        "invalid_api_key",
        "Incorrect API key provided. You can find your API key at "
        "https://platform.openai.com/account/api-keys.",
    ),
    "forbidden": _of_openai(
        403, "model_not_found", "The project does not have access to the model `{model}`."
    ),
    "unknown_model": _of_openai(
        404,
        "model_not_found",
        "The model `{model}` does not exist or you do not have access to it.",
    ),
    "quota": _of_openai(
        429,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
        kind="insufficient_quota",
    ),
    "request_too_large": _of_openai(
        429,
        "rate_limit_exceeded",
        "Request too large for {model} in organization org-demo on tokens per min (TPM): Limit "
        "30000, Requested 36055. The input or output tokens must be reduced in order to run "
        "successfully.",
        kind="tokens",
    ),
    "context_length": _of_openai(
        400,
        "context_length_exceeded",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in "
        "36055 tokens. Please reduce the length of the messages.",
        param="messages",
    ),
    "content_refused": _of_openai(
        400,
        "content_policy_violation",
        "Your request was rejected as a result of our safety system.",
    ),
    "rate_limited": _Refusal(429, _too_many("rate_limited")),
    "over_capacity": _Refusal(429, _too_many("over_capacity")),
    "gemini_quota": _Refusal(429, _gemini, says_when=False),
    "overloaded": _Refusal(529, lambda model, wait: _anthropic("overloaded_error", "Overloaded")),
    "no_credit": _Refusal(
        400,
        lambda model, wait: _anthropic(
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API. Please go to Plans & "
            "Billing to upgrade or purchase credits.",
        ),
        says_when=False,
    ),
    "bad_gateway": _Refusal(502, _page("502 Bad Gateway")),
    "unavailable": _Refusal(503, _page("503 Service Temporarily Unavailable")),
}
