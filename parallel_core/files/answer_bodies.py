"""Bodies of answers, in the form in which a provider writes them.

litellm's objects have more than the provider has sent, and some of it in another form. What cannot
be restored is listed on the page ``docs/file-formats.md``.
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from parallel_core.router import PROVIDER_BODY, read_provider_json
from parallel_core.types import CHAT, RouterParallelRequest

_COUNTS_OF_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")
_ID_OF_RESPONSE: Final = "resp_"
_ID_INSIDE: Final = ";response_id:"
_OF_CATEGORIES: Final = ("categories", "category_scores", "category_applied_input_types")


def answer_body(request: RouterParallelRequest, response: Any) -> Mapping[str, Any]:
    """Return the body of an answer as its endpoint writes it.

    A mapping, from a user's callable, is returned unchanged. An answer on the direct lane is
    returned as the provider sent it.
    """
    if isinstance(response, Mapping):
        return cast("Mapping[str, Any]", response)
    sent = hidden_parameters(response).get(PROVIDER_BODY)
    if isinstance(sent, bytes):
        return cast("Mapping[str, Any]", read_provider_json(sent))
    return _OF_OPERATIONS.get(request.operation or CHAT, _as_sent)(response)


def hidden_parameters(response: Any) -> Mapping[str, Any]:
    """Return the hidden parameters with which litellm describes a call."""
    hidden = getattr(response, "_hidden_params", None)
    return cast("Mapping[str, Any]", hidden) if isinstance(hidden, Mapping) else {}


def _as_sent(response: Any) -> dict[str, Any]:
    """Return the members that litellm has read. Those that it did not read are not set."""
    body: dict[str, Any] = response.model_dump(warnings=False, by_alias=True, exclude_unset=True)
    return body


def _embeddings(response: Any) -> dict[str, Any]:
    body: dict[str, Any] = _without_nulls(_as_sent(response))
    _clean_usage(body)
    usage: dict[str, Any] | None = body.get("usage")
    if usage and not usage.get("completion_tokens"):
        usage.pop("completion_tokens", None)  # litellm's: an embedding has no answer in tokens
    return body


def _text_completion(response: Any) -> dict[str, Any]:
    body: dict[str, Any] = _without_nulls(_as_sent(response))
    _clean_usage(body)
    choices: list[Any] = body.get("choices") or []
    body["choices"] = [{"logprobs": None, **_without_nulls(choice)} for choice in choices]
    return body


def _response(response: Any) -> dict[str, Any]:
    body = _as_sent(response)
    body["id"] = _id_of_provider(body.get("id"))
    if body.get("previous_response_id") is not None:
        body["previous_response_id"] = _id_of_provider(body["previous_response_id"])
    return body


def _id_of_provider(given: Any) -> Any:
    """Return the id that the provider has sent. litellm puts it into one of its own, in base64."""
    if not isinstance(given, str) or not given.startswith(_ID_OF_RESPONSE):
        return given
    try:
        packed = base64.b64decode(given.removeprefix(_ID_OF_RESPONSE), validate=True).decode()
    except (binascii.Error, ValueError):
        return given
    around, _, own = packed.partition(_ID_INSIDE)
    return own if own and around.startswith("litellm:") else given


def _moderation(response: Any) -> dict[str, Any]:
    body = _as_sent(response)
    results: list[dict[str, Any]] = body.get("results") or []
    for result in results:
        for name in _OF_CATEGORIES:
            found = result.get(name)
            if isinstance(found, Mapping):
                given = _without_nulls(found)
                result[name] = {_category(one): value for one, value in given.items()}
            elif found is None:
                result.pop(name, None)
    return body


def _category(name: str) -> str:
    """Return OpenAI's name of a category. litellm has the name of its field in Python."""
    return _names_of_categories().get(name, name)


@functools.cache
def _names_of_categories() -> dict[str, str]:
    from openai.types.moderation import Categories

    return {name: field.alias for name, field in Categories.model_fields.items() if field.alias}


def _clean_usage(body: dict[str, Any]) -> None:
    """Remove what litellm adds to a usage, and a usage that the provider did not send."""
    usage = body.get("usage")
    # No prompt has 0 tokens: litellm writes 0 if the provider reported nothing.
    if usage and not any(usage.get(count) for count in _COUNTS_OF_USAGE):
        del body["usage"]
    elif usage:
        body["usage"] = {
            name: _without_nulls(value) if name.endswith("_details") else value
            for name, value in _without_nulls(usage).items()
        }


def _chat(response: Any) -> dict[str, Any]:
    """Convert a chat completion of litellm to the form in which OpenAI writes one.

    litellm adds nulls, empty members and a usage of zeros to every answer, even if the provider did
    not send them: these are removed. OpenAI always writes some nulls: these are added.
    """
    body: dict[str, Any] = _without_nulls(response.model_dump(warnings=False))
    _clean_usage(body)
    if body.get("choices"):
        body["choices"] = [_choice(choice) for choice in body["choices"]]
    return body


def _choice(dumped: Mapping[str, Any]) -> dict[str, Any]:
    choice = {"logprobs": None, **_without_empty_extras(dumped)}
    message: Mapping[str, Any] | None = choice.get("message")
    if message is not None:
        extras: dict[str, Any] = dict(message.get("provider_specific_fields") or {})
        refusal = extras.pop("refusal", None)  # older versions of litellm have it here
        given = _without_empty_extras({**message, "provider_specific_fields": extras})
        choice["message"] = {"content": None, "refusal": refusal, **given}
    return choice


def _without_empty_extras(value: Mapping[str, Any]) -> dict[str, Any]:
    filled = _without_nulls(value)
    extras = _without_nulls(filled.pop("provider_specific_fields", {}))
    return {**filled, "provider_specific_fields": extras} if extras else filled


def _without_nulls(value: Any) -> Any:
    """Return an object without the members that are null. Nested members are unchanged."""
    if not isinstance(value, Mapping):
        return value
    members = cast("Mapping[str, Any]", value)
    return {name: member for name, member in members.items() if member is not None}


_OF_OPERATIONS: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    CHAT: _chat,
    "aembedding": _embeddings,
    "atext_completion": _text_completion,
    "aresponses": _response,
    "amoderation": _moderation,
}
