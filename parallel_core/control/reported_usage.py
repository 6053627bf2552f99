"""Read the usage that a provider has reported with an answer, in the forms that litellm has."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from .checks import is_amount

# Names of the fields in chat, and in the other operations of OpenAI's newer form.
_CHAT = ("prompt_tokens", "completion_tokens")
_RESPONSES = ("input_tokens", "output_tokens")


class Tokens(NamedTuple):
    """Tokens that a provider has reported; :class:`parallel_core.types.Usage` describes them."""

    prompt: int
    completion: int
    cached: int
    reasoning: int


def tokens_of(value: Any) -> Tokens | None:
    """Return the tokens of an answer; None if its provider has reported none."""
    if value is None:
        return None
    reported = field_of(value, "usage")
    found = None if reported is None else _tokens_of_usage(reported)
    return _tokens_of_ranking(value) if reported is None else found


def _tokens_of_usage(reported: Any) -> Tokens | None:
    of_prompt, of_answer = _CHAT if field_of(reported, _CHAT[0]) is not None else _RESPONSES
    prompt = number_of_tokens(reported, of_prompt)
    completion = number_of_tokens(reported, of_answer, 0)
    # litellm reports zeros if a provider has reported nothing.
    if prompt is None or completion is None or prompt + completion == 0:
        return None
    return Tokens(
        prompt,
        completion,
        detail(reported, f"{of_prompt}_details", "cached_tokens"),
        detail(reported, f"{of_answer}_details", "reasoning_tokens"),
    )


def _tokens_of_ranking(value: Any) -> Tokens | None:
    """Return the tokens of a reranking, which has them in its ``meta``."""
    meta = field_of(value, "meta")
    for part in ("billed_units", "tokens"):
        units = field_of(meta, part)
        for name in ("total_tokens", "input_tokens"):
            number = number_of_tokens(units, name)
            if number:
                return Tokens(number, 0, 0, 0)
    return None


def cost_reported(value: Any) -> float | None:
    """Return the USD that litellm reports for an answer; None if it reports none, or 0.

    litellm reports 0 both for unknown prices and for free models; 1.110 also for streams of
    deployments with their own prices.
    """
    cost: Any = field_of(field_of(value, "_hidden_params"), "response_cost")
    return float(cost) if is_amount(cost) and cost > 0 else None


def field_of(value: Any, name: str) -> Any:
    if isinstance(value, dict):  # faster than Mapping, and this runs for each answer
        return cast("dict[str, Any]", value).get(name)
    return getattr(value, name, None)


def detail(reported: Any, part: str, name: str) -> int:
    details = field_of(reported, part)
    return 0 if details is None else number_of_tokens(details, name) or 0


def number_of_tokens(value: Any, name: str, missing: int | None = None) -> int | None:
    number = field_of(value, name)
    if number is None:
        return missing
    return number if is_amount(number) and isinstance(number, int) else None
