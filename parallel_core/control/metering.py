"""Usage of calls: the worst case before, the real usage after. litellm is imported lazily."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec

from parallel_core.types import CHAT, Meter, RouterParallelRequest, StreamedResponse, Usage

from .checks import is_amount
from .prices import Price, PriceList, named_fallbacks, price_of_input, price_of_tokens
from .reported_usage import cost_reported, detail, number_of_tokens, tokens_of
from .token_counts import (
    TokenCounter,
    about_prompt_tokens,
    about_tokens,
    asked_output,
    choices,
    most_prompt_tokens,
    unseen_prompt,
)

# Operations that answer with text, with the arguments that limit its tokens, and operations whose
# answers have no tokens. What others use (images, sound) is not known before they answer.
_TEXT_LIMITS: Final = {
    CHAT: ("max_completion_tokens", "max_tokens"),
    "atext_completion": ("max_tokens",),
    "aresponses": ("max_output_tokens",),
}
_WITHOUT_ANSWER_TOKENS: Final = frozenset(("aembedding", "arerank", "amoderation"))
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

    def price_of_request(self, item: Any) -> Price | None:
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
    """A meter of requests to a Router, or to a callable in its place. Each request counts as its
    operation asks.

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
        self._prices = PriceList(router, prices, price_of_tokens)
        self._input_prices = PriceList(router, prices, price_of_input)
        self._assume_output_tokens = assume_output_tokens
        self._counter = TokenCounter()
        self._answers = 0
        self._answer_tokens = 0

    def price_of_request(self, item: RouterParallelRequest) -> Price | None:
        """Return the highest price of a request's model; None if it is unknown."""
        return self.price_of(item.model, item.operation or CHAT)

    def price_of(self, model: str, operation: str = CHAT) -> Price | None:
        """Return the highest price of a model for an operation; None if it is unknown."""
        return self._prices_for(operation).price_of(model)

    def _prices_for(self, operation: str) -> PriceList:
        return self._prices if operation in _TEXT_LIMITS else self._input_prices

    # --- before the call ---

    def worst_case(self, item: RouterParallelRequest) -> Usage:
        """Return the most that a request can use.

        Raises:
            ValueError: it is unknown, for instance because an answer may have any length.
        """
        arguments = item.kwargs or {}
        output = self._longest_answer(item)
        prompt = most_prompt_tokens(item)
        fallbacks = named_fallbacks(arguments.get("fallbacks"))
        price = self._prices_for(item.operation or CHAT).price_of_all([item.model, *fallbacks])
        cost = 0.0 if price is None else price.of(prompt, output)
        return Usage(prompt, output, cost=cost, unpriced_calls=int(price is None))

    def _longest_answer(self, item: RouterParallelRequest) -> int:
        """Return the most tokens of all answers to a request."""
        arguments = item.kwargs or {}
        operation = item.operation or CHAT
        limits = _TEXT_LIMITS.get(operation)
        if operation != CHAT:
            unseen = unseen_prompt(arguments)
            if unseen is not None:
                raise ValueError(
                    f"it is unknown how many tokens {unseen!r} adds to a request of model "
                    f"{item.model!r}: leave it out, or give the batch a meter of your own"
                )
        if operation in _WITHOUT_ANSWER_TOKENS:
            return 0
        if limits is None:
            raise ValueError(
                f"it is unknown what a call of {operation} may use: give the batch a meter of "
                "your own"
            )
        output = asked_output(arguments, limits)
        if output is None:
            output = self._assume_output_tokens
        if output is None:
            output = self._prices.answer_limit(item.model)
        if output is None:
            raise ValueError(
                f"it is unknown how many tokens an answer of model {item.model!r} may have: set "
                f"{limits[-1]} in the request, or assume_output_tokens in the budget"
            )
        return output * choices(arguments)

    def likely_cost(self, item: RouterParallelRequest, answer_tokens: int) -> float | None:
        """Return the cost in USD of a request whose answer has this many tokens.

        The answer counts with no more tokens than the request allows. Return None if the price is
        unknown. This is a guess, made without a tokenizer.
        """
        price = self.price_of_request(item)
        if price is None:
            return None
        arguments, limits = item.kwargs or {}, _TEXT_LIMITS.get(item.operation or CHAT)
        prompt = about_prompt_tokens(item)
        if limits is None:
            return price.of(prompt, 0)
        asked = asked_output(arguments, limits)
        completion = answer_tokens if asked is None else min(asked, answer_tokens)
        return price.of(prompt, completion * choices(arguments))

    async def expected_tokens(self, item: RouterParallelRequest) -> int:
        """Return an estimate of the tokens of the prompt and of the answer.

        The answer counts with the limit of the request, else with the average of the answers so
        far, and with 500 tokens before the first one.
        """
        prompt = await self._counter.of_prompt(item)
        operation = item.operation or CHAT
        if operation in _WITHOUT_ANSWER_TOKENS:
            return prompt
        arguments, limits = item.kwargs or {}, _TEXT_LIMITS.get(operation)
        asked = None if limits is None else asked_output(arguments, limits)
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
        completion = number_of_tokens(reported, "completion_tokens") or 0
        usage = Usage(
            number_of_tokens(reported, "prompt_tokens") or 0,
            max(completion, completion_estimated),
            detail(reported, "prompt_tokens_details", "cached_tokens"),
            detail(reported, "completion_tokens_details", "reasoning_tokens"),
            estimated_calls=int(completion_estimated > 0),
        )
        return self._priced(item, usage)

    def _priced(self, item: RouterParallelRequest, usage: Usage) -> Usage:
        """Return the usage with a cost, at the highest price that the call may have had."""
        price = self.price_of_request(item)
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
        tokens = tokens_of(value)
        if tokens is None:
            return self._usage_without_tokens(item, value)
        if (item.operation or CHAT) not in _WITHOUT_ANSWER_TOKENS:
            self._answers += 1
            self._answer_tokens += tokens.completion
        cost = self._cost(item, value, tokens.prompt, tokens.completion)
        return Usage(*tokens, cost or 0.0, int(cost is None))

    def _usage_without_tokens(self, item: RouterParallelRequest, value: Any) -> Usage | None:
        """Return the usage of an answer that has a price, and no tokens: an image, a reranking.

        Moderations are free at most providers, which report nothing about them.
        """
        operation = item.operation or CHAT
        if operation == CHAT:
            return None
        cost = cost_reported(value)
        if cost is None:
            if operation not in _WITHOUT_ANSWER_TOKENS or not self._is_free(item):
                return None
            cost = 0.0
        if operation not in _WITHOUT_ANSWER_TOKENS:
            return Usage(cost=cost)
        return Usage(about_prompt_tokens(item), cost=cost, estimated_calls=1)

    def _is_free(self, item: RouterParallelRequest) -> bool:
        """Return True if the price of a request is known to be 0."""
        # Without litellm, its prices are not known, and its import blocks for seconds.
        is_known = item.model in self._prices.given or "litellm" in sys.modules
        return is_known and self.price_of_request(item) == Price(0.0, 0.0)

    def _cost(
        self, item: RouterParallelRequest, value: Any, prompt: int, completion: int
    ) -> float | None:
        given = self._prices.given.get(item.model)
        if given is not None:
            return given.of(prompt, completion)
        cost = cost_reported(value)
        if cost is not None or "litellm" not in sys.modules:
            # Without litellm, prices were not needed so far, and its import would block the event
            # loop for seconds.
            return cost
        price = self.price_of_request(item)
        return None if price is None else price.of(prompt, completion)


BatchMeter: TypeAlias = RouterMeter | ItemMeter
