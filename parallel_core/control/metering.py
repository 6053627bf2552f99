"""Usage of calls: the worst case before, the real usage after. litellm is imported lazily."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import msgspec

from parallel_core.types import Meter, RouterParallelRequest, StreamedResponse, Usage

from .checks import is_amount
from .prices import Price, PriceList, named_fallbacks
from .token_counts import (
    TokenCounter,
    about_prompt_tokens,
    about_tokens,
    asked_output,
    choices,
    most_prompt_tokens,
)

# Expected tokens of an answer before the first one.
_FIRST_ANSWERS = 500


class ItemMeter:
    """A meter that the user supplies."""

    def __init__(self, meter: Meter) -> None:
        for name in ("worst_case", "usage"):
            if not callable(getattr(meter, name, None)):
                raise TypeError(
                    f"meter must have a method {name}, and {type(meter).__qualname__} has none"
                )
        self._meter = meter

    def price_of(self, model: str | None) -> Price | None:
        return Price(0.0, 0.0)  # the meter itself reports costs

    def worst_case(self, item: Any) -> Usage:
        return _checked("meter.worst_case", self._meter.worst_case(item))

    def usage_of(self, item: Any, value: Any) -> Usage | None:
        if type(value) is StreamedResponse:
            value = value.response
        usage = self._meter.usage(value)
        return None if usage is None else _checked("meter.usage", usage)

    def usage_of_part(self, item: Any, usage: Usage | None) -> Usage | None:
        """Return None: the user's meter knows only whole answers."""
        return None

    async def expected_tokens(self, item: Any) -> int:
        return self.worst_case(item).total_tokens


def _checked(origin: str, usage: object) -> Usage:
    """Return the usage that a meter of the user reported. A negative one would raise the cap.

    Raises:
        TypeError: it is not a Usage.
        ValueError: one of its numbers is negative or not finite.
    """
    if not isinstance(usage, Usage):
        raise TypeError(f"{origin} must return a Usage, not {type(usage).__qualname__}")
    for name, value in zip(usage.__struct_fields__, msgspec.structs.astuple(usage), strict=True):
        if not is_amount(value):
            raise ValueError(
                f"{origin} must return a Usage of finite numbers >= 0, not {name}={value!r}"
            )
    return usage


class RouterMeter:
    """A meter of requests to a Router, or to a callable in its place.

    Args:
        router: the Router; its deployments provide models and prices.
        prices: USD per token of the prompt and per token of the answer, by model. They take
            precedence over all other prices.
        assume_output_tokens: length of the longest answer in tokens, if the request has no limit.
    """

    def __init__(
        self,
        router: object,
        prices: Mapping[str, tuple[float, float]] | None = None,
        assume_output_tokens: int | None = None,
    ) -> None:
        self._prices = PriceList(router, prices)
        self.price_of = self._prices.price_of
        self._assume_output_tokens = assume_output_tokens
        self._counter = TokenCounter()
        self._answers = 0
        self._answer_tokens = 0

    # --- before the call ---

    def worst_case(self, item: RouterParallelRequest) -> Usage:
        """Return the most that a request can use.

        Raises:
            ValueError: the length of the longest answer is unknown.
        """
        arguments = item.kwargs or {}
        output = asked_output(arguments)
        if output is None:
            output = self._assume_output_tokens
        if output is None:
            output = self._prices.answer_limit(item.model)
        if output is None:
            raise ValueError(
                f"it is unknown how many tokens an answer of model {item.model!r} may have: set "
                "max_tokens in the request, or assume_output_tokens in the budget"
            )
        prompt = most_prompt_tokens(item)
        output *= choices(arguments)
        fallbacks = named_fallbacks(arguments.get("fallbacks"))
        price = self._prices.price_of_all([item.model, *fallbacks])
        cost = 0.0 if price is None else price.of(prompt, output)
        return Usage(prompt, output, cost=cost, unpriced_calls=int(price is None))

    def likely_cost(self, item: RouterParallelRequest, answer_tokens: int) -> float | None:
        """Return the cost in USD of a request whose answer has this many tokens.

        The answer counts with no more tokens than the request allows. Return None if the price is
        unknown. This is a guess, made without a tokenizer.
        """
        price = self.price_of(item.model)
        if price is None:
            return None
        arguments = item.kwargs or {}
        asked = asked_output(arguments)
        completion = answer_tokens if asked is None else min(asked, answer_tokens)
        prompt = about_prompt_tokens(item)
        return price.of(prompt, completion * choices(arguments))

    async def expected_tokens(self, item: RouterParallelRequest) -> int:
        """Return an estimate of the tokens of the prompt and of the answer.

        The answer counts with the limit of the request, else with the average of the answers so
        far, and with 500 tokens before the first one.
        """
        prompt = await self._counter.of_prompt(item)
        arguments = item.kwargs or {}
        asked = asked_output(arguments)
        if asked is not None:
            return prompt + asked * choices(arguments)
        return prompt + (self._answer_tokens // self._answers if self._answers else _FIRST_ANSWERS)

    # --- after the call ---

    async def estimate(
        self, item: RouterParallelRequest, text: str, *, at_once: bool = False
    ) -> Usage:
        """Estimate the usage of an answer with this text, if the provider did not report it.

        ``at_once``: do not take the time to load a tokenizer or to count a long text.
        """
        if at_once and not self._counter.is_quick(item.model, text):
            prompt = about_prompt_tokens(item)
            completion = about_tokens(text)
            return Usage(prompt, completion, unpriced_calls=1, estimated_calls=1)
        prompt = await self._counter.of_prompt(item)
        completion = await self._counter.of_text(item.model, text)
        return self._priced(item, Usage(prompt, completion, estimated_calls=1))

    def usage_reported(
        self, item: RouterParallelRequest, reported: Any, completion_estimated: int
    ) -> Usage:
        """Return the usage of a call that failed after its provider had reported this usage.

        ``completion_estimated``: tokens of the answer, if more of it came after the report; else 0.
        """
        completion = _number_of_tokens(reported, "completion_tokens") or 0
        usage = Usage(
            _number_of_tokens(reported, "prompt_tokens") or 0,
            max(completion, completion_estimated),
            _detail(reported, "prompt_tokens_details", "cached_tokens"),
            _detail(reported, "completion_tokens_details", "reasoning_tokens"),
            estimated_calls=int(completion_estimated > 0),
        )
        return self._priced(item, usage)

    def _priced(self, item: RouterParallelRequest, usage: Usage) -> Usage:
        """Return the usage with a cost, at the highest price that the call may have had."""
        price = self.price_of(item.model)
        if price is None:
            return msgspec.structs.replace(usage, unpriced_calls=1)
        cost = price.of(usage.prompt_tokens, usage.completion_tokens)
        return msgspec.structs.replace(usage, cost=cost)

    def usage_of(self, item: RouterParallelRequest, value: Any) -> Usage | None:
        """Return the usage of a call as the provider reported it; None if it did not."""
        if type(value) is StreamedResponse:
            return self.usage_of_part(item, value.usage)
        try:
            return self._usage_of(item, value)
        except Exception:  # noqa: BLE001 - the attributes of a provider's object may raise
            return None

    def usage_of_part(self, item: RouterParallelRequest, usage: Usage | None) -> Usage | None:
        """Add the user's price to the usage of a stream; another process may have read it."""
        given = self._prices.given.get(item.model)
        if usage is None or given is None:
            return usage
        cost = given.of(usage.prompt_tokens, usage.completion_tokens)
        return msgspec.structs.replace(usage, cost=cost, unpriced_calls=0)

    def _usage_of(self, item: RouterParallelRequest, value: Any) -> Usage | None:
        reported = None if value is None else _field(value, "usage")
        if reported is None:
            return None
        prompt = _number_of_tokens(reported, "prompt_tokens")
        completion = _number_of_tokens(reported, "completion_tokens", 0)
        # litellm reports zeros if a provider has reported nothing.
        if prompt is None or completion is None or prompt + completion == 0:
            return None
        self._answers += 1
        self._answer_tokens += completion
        cost = self._cost(item, value, prompt, completion)
        cached = _detail(reported, "prompt_tokens_details", "cached_tokens")
        reasoning = _detail(reported, "completion_tokens_details", "reasoning_tokens")
        return Usage(prompt, completion, cached, reasoning, cost or 0.0, int(cost is None))

    def _cost(
        self, item: RouterParallelRequest, value: Any, prompt: int, completion: int
    ) -> float | None:
        given = self._prices.given.get(item.model)
        if given is not None:
            return given.of(prompt, completion)
        cost: Any = _field(_field(value, "_hidden_params"), "response_cost")
        if is_amount(cost) and cost > 0:
            return float(cost)
        if "litellm" not in sys.modules:
            # Prices were not needed so far, and the import would block the event loop for seconds.
            return None
        # litellm reports 0 both for unknown prices and for free models; 1.110 also for streams of
        # deployments with their own prices.
        price = self.price_of(item.model)
        return None if price is None else price.of(prompt, completion)


BatchMeter: TypeAlias = RouterMeter | ItemMeter


def _field(value: Any, name: str) -> Any:
    if isinstance(value, dict):  # faster than Mapping, and this runs for each answer
        return cast("dict[str, Any]", value).get(name)
    return getattr(value, name, None)


def _detail(reported: Any, part: str, name: str) -> int:
    details = _field(reported, part)
    return 0 if details is None else _number_of_tokens(details, name) or 0


def _number_of_tokens(value: Any, name: str, missing: int | None = None) -> int | None:
    number = _field(value, name)
    if number is None:
        return missing
    return number if is_amount(number) and isinstance(number, int) else None
