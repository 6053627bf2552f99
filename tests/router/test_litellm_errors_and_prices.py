"""Errors and prices that are kept by hand, compared with the litellm that is installed.

Each test here fails when a newer litellm has something that nobody has decided on yet, and its
message says what to decide. ``test_litellm_grows.py`` does the same for settings and keys.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_type_hints

import litellm
import litellm.router

from parallel_core.control import prices, token_counts
from parallel_core.files.line_failures import failure_of

# --- errors ---


def exceptions_of_litellm() -> Iterator[type[BaseException]]:
    import litellm.exceptions
    import litellm.types.router

    for module in (litellm.exceptions, litellm.types.router):
        for value in vars(module).values():
            is_error = inspect.isclass(value) and issubclass(value, BaseException)
            if is_error and value.__module__ == module.__name__:
                yield value


# Answers of a provider with a status; those below have none, or are raised before a call.
ANSWERS = {
    *(
        "AuthenticationError",
        "BadGatewayError",
        "BadRequestError",
        "CallerCredentialRateLimitError",
    ),
    *("CallerCredentialAuthenticationError", "ContentPolicyViolationError", "NotFoundError"),
    *("ContextWindowExceededError", "EndpointNotSupportedByModelError", "ImageFetchError"),
    *("InternalServerError", "InvalidRequestError", "LiteLLMUnknownProvider", "RateLimitError"),
    *("MalformedRequestFieldError", "MockException", "PaymentRequiredError", "APIError"),
    *("PermissionDeniedError", "RejectedRequestError", "ServiceUnavailableError"),
    *("UnprocessableEntityError", "UnsupportedEndpointError", "UnsupportedParamsError"),
    "VectorStoreSearchError",
}
NO_ANSWERS = {
    "APIConnectionError": "connection_error",
    "APIResponseValidationError": "invalid_response",
    "JSONSchemaValidationError": "invalid_response",
    "MidStreamFallbackError": None,  # of what has broken the stream
    "RouterRateLimitError": "no_deployment_available",
    "RouterRateLimitErrorBasic": "no_deployment_available",
    "Timeout": "request_timeout",
}
# Of the proxy server, its guardrails and budgets; and of a price that is not known.
OF_OTHERS = {
    *("BlockedPiiEntityError", "BudgetExceededError", "GuardrailRaisedException"),
    *("ModelNotMappedError", "ModifyResponseException", "SensitiveDataRouteException"),
    "OpenAIError",  # the base of others
}


def test_every_error_of_litellm_is_known() -> None:
    names = {kind.__name__ for kind in exceptions_of_litellm()}
    undecided = names - ANSWERS - set(NO_ANSWERS) - OF_OTHERS
    assert not undecided, (
        "do these errors come with an answer of the provider? Then: ANSWERS. Else give them a row "
        "in failures/table.py, and add them to NO_ANSWERS"
    )


def test_errors_without_an_answer_are_found_by_their_classes() -> None:
    codes = set(filter(None, NO_ANSWERS.values()))
    for kind in exceptions_of_litellm():
        name = kind.__name__
        error: Any = kind.__new__(kind)
        error.message = "said"
        failure = failure_of(error)
        if (code := NO_ANSWERS.get(name)) is not None:
            assert (failure.status_code, failure.code) == (None, code)
        elif name in ANSWERS:
            assert failure.code not in codes, name


# --- prices ---


def test_fallbacks_of_a_router_are_all_in_the_worst_case() -> None:
    lists = {
        name
        for name in inspect.signature(litellm.router.Router.__init__).parameters
        if name.endswith("fallbacks")
    }
    # A number; and what the Router puts into its fallbacks itself.
    assert lists - {"max_fallbacks", "default_fallbacks"} == set(prices._FALLBACKS)


def test_parameters_that_are_a_part_of_the_prompt_are_counted() -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

    names = set(get_type_hints(CompletionCreateParamsNonStreaming))
    decided = {
        *("audio", "frequency_penalty", "function_call", "logit_bias", "logprobs", "messages"),
        *("metadata", "modalities", "model", "moderation", "n", "parallel_tool_calls"),
        *("presence_penalty", "prompt_cache_key", "prompt_cache_options", "store", "stream"),
        *("prompt_cache_retention", "reasoning_effort", "safety_identifier", "seed", "stop"),
        *("service_tier", "stream_options", "temperature", "top_logprobs", "top_p", "user"),
        *("verbosity", "web_search_options"),
    }
    undecided = (
        names - decided - set(token_counts._IN_THE_PROMPT) - set(token_counts._OUTPUT_LIMITS)
    )
    assert not undecided, "do these parameters add to the prompt? Then: _IN_THE_PROMPT"
    assert set(token_counts._OUTPUT_LIMITS) <= names
