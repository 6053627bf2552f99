"""What calls use: the worst case before, the truth after. litellm is imported where needed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import anyio.to_thread

from parallel_core.types import Meter, RouterParallelRequest, Usage

# Of what is not text: more than any provider counts for an image of usual size.
_TOKENS_OF_A_PART = 4096
_TOKENS_AROUND_A_MESSAGE = 16
# Characters from which counting tokens would hold the event loop for too long.
_LONG = 20_000

_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")
_FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


class Price(NamedTuple):
    """USD for each token."""

    of_input: float
    of_output: float


class ItemMeter:
    """A meter of the user."""

    def __init__(self, meter: Meter) -> None:
        for name in ("worst_case", "usage"):
            if not callable(getattr(meter, name, None)):
                raise TypeError(
                    f"meter must have a method {name}, and {type(meter).__qualname__} has none"
                )
        self._meter = meter

    def price_of(self, model: str | None) -> Price | None:
        return Price(0.0, 0.0)  # the meter itself tells costs

    def worst_case(self, item: Any) -> Usage:
        return self._meter.worst_case(item)

    def usage_of(self, item: Any, value: Any) -> Usage | None:
        return self._meter.usage(value)

    async def expected_tokens(self, item: Any) -> int:
        return self._meter.worst_case(item).total_tokens


class RouterMeter:
    """Tells what requests to a Router, or to a callable in its place, use.

    Args:
        router: its deployments tell models and prices.
        prices: USD for each token of prompt and of answer, by model; they go before all others.
        assume_output_tokens: tokens of an answer at most, where the request does not say.
    """

    def __init__(
        self,
        router: object,
        prices: Mapping[str, tuple[float, float]] | None = None,
        assume_output_tokens: int | None = None,
    ) -> None:
        self._router = router
        self._given = {model: Price(*price) for model, price in (prices or {}).items()}
        self._assume_output_tokens = assume_output_tokens
        self._prices: dict[str, Price | None] = {}
        self._output_limits: dict[str, int | None] = {}
        self._answers = 0
        self._answer_tokens = 0

    # --- before the call ---

    def worst_case(self, item: RouterParallelRequest) -> Usage:
        """The most that a request can use.

        A token is at least a byte, so the bytes of a prompt are more than its tokens, with any
        tokenizer.

        Raises:
            ValueError: nothing says how long the answer may be.
        """
        arguments = item.kwargs or {}
        output = self._output_limit(item.model, arguments)
        if output is None:
            raise ValueError(
                f"nothing says how many tokens an answer of model {item.model!r} has at most: give "
                "the request max_tokens, or the budget assume_output_tokens"
            )
        prompt = _prompt_bytes(item)
        output *= _choices(arguments)
        price = self.price_of(item.model)
        cost = 0.0 if price is None else prompt * price.of_input + output * price.of_output
        return Usage(prompt, output, cost=cost, unpriced_calls=int(price is None))

    def _output_limit(self, model: str, arguments: Mapping[str, Any]) -> int | None:
        asked = _asked_output(arguments)
        if asked is not None:
            return asked
        if self._assume_output_tokens is not None:
            return self._assume_output_tokens
        if model not in self._output_limits:
            limits = [
                entry.get("max_output_tokens") or entry.get("max_tokens")
                for entry in self._entries(model)
            ]
            known = all(isinstance(limit, int) for limit in limits) and bool(limits)
            self._output_limits[model] = max(cast("list[int]", limits)) if known else None
        return self._output_limits[model]

    def price_of(self, model: str) -> Price | None:
        """The dearest of what a Router may choose for a model, fallbacks included; None where the
        price of one is unknown."""
        if model in self._given:
            return self._given[model]
        if model not in self._prices:
            prices = [_price_of_entry(entry) for entry in self._entries(model)]
            if not prices or any(price is None for price in prices):
                self._prices[model] = None
            else:
                known = [price for price in prices if price is not None]
                self._prices[model] = Price(
                    max(price.of_input for price in known),
                    max(price.of_output for price in known),
                )
        return self._prices[model]

    def _entries(self, model: str) -> list[dict[str, Any]]:
        """What is known of each model that may answer."""
        deployments: list[Any] = list(getattr(self._router, "model_list", None) or [])
        if not deployments:
            return [_known_of(model)]
        groups = _with_fallbacks(self._router, model)
        entries: list[dict[str, Any]] = []
        for deployment in deployments:
            if deployment["model_name"] in groups:
                parameters = deployment["litellm_params"]
                own: dict[str, Any] = {**(deployment.get("model_info") or {}), **parameters}
                entry = dict(_known_of(own.get("base_model") or parameters["model"]))
                if own.get("input_cost_per_token") is not None:
                    entry = {k: v for k, v in entry.items() if "cost_per_token" not in k}
                entry.update({name: value for name, value in own.items() if value is not None})
                # A deployment's max_tokens is what it sends where the request says nothing.
                entries.append(entry)
        return entries

    async def expected_tokens(self, item: RouterParallelRequest) -> int:
        """An estimate: the tokens of the prompt, and of the answer as many as the request allows,
        or as the answers so far have had."""
        if _length_of_text(item) > _LONG:
            prompt = await anyio.to_thread.run_sync(_count_prompt_tokens, item)
        else:
            prompt = _count_prompt_tokens(item)
        arguments = item.kwargs or {}
        asked = _asked_output(arguments)
        if asked is not None:
            return prompt + asked * _choices(arguments)
        return prompt + (self._answer_tokens // self._answers if self._answers else 0)

    # --- after the call ---

    def usage_of(self, item: RouterParallelRequest, value: Any) -> Usage | None:
        """What the provider says that a call has used; None where it says nothing."""
        reported = _field(value, "usage")
        if reported is None:
            return None
        prompt = _count(reported, "prompt_tokens")
        completion = _count(reported, "completion_tokens")
        self._answers += 1
        self._answer_tokens += completion
        cost = self._cost(item, value, prompt, completion)
        return Usage(
            prompt,
            completion,
            _count(_field(reported, "prompt_tokens_details"), "cached_tokens"),
            _count(_field(reported, "completion_tokens_details"), "reasoning_tokens"),
            cost or 0.0,
            int(cost is None),
        )

    def _cost(
        self, item: RouterParallelRequest, value: Any, prompt: int, completion: int
    ) -> float | None:
        given = self._given.get(item.model)
        if given is not None:
            return prompt * given.of_input + completion * given.of_output
        cost: Any = _field(getattr(value, "_hidden_params", None), "response_cost")
        # litellm says 0 for what it does not know as well as for what is free.
        return float(cost) if isinstance(cost, int | float) and cost > 0 else None


def _with_fallbacks(router: object, model: str) -> set[str]:
    groups: set[str] = set()
    waiting = [model]
    while waiting:
        group = waiting.pop()
        if group in groups:
            continue
        groups.add(group)
        for name in _FALLBACKS:
            for mapping in cast("Iterable[Any]", getattr(router, name, None) or []):
                if isinstance(mapping, Mapping):
                    for others in (mapping.get(group), mapping.get("*")):  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
                        waiting += [other for other in others or [] if isinstance(other, str)]  # pyright: ignore[reportUnknownVariableType]
    return groups


def _known_of(model: str) -> dict[str, Any]:
    """What litellm's map of models has."""
    import litellm

    models = cast("dict[str, dict[str, Any]]", cast("Any", litellm).model_cost)
    return models.get(model) or models.get(model.partition("/")[2]) or {}


def _price_of_entry(entry: Mapping[str, Any]) -> Price | None:
    """The highest price of each kind, over all tiers (long contexts, priorities, reasoning)."""
    of_input = _highest(entry, "input_cost_per_token")
    of_output = _highest(entry, "output_cost_per_token", "output_cost_per_reasoning_token")
    return None if of_input is None or of_output is None else Price(of_input, of_output)


def _highest(entry: Mapping[str, Any], *prefixes: str) -> float | None:
    prices = [
        float(value)
        for name, value in entry.items()
        if name.startswith(prefixes) and isinstance(value, int | float)
    ]
    return max(prices) if prices else None


def _asked_output(arguments: Mapping[str, Any]) -> int | None:
    for source in (arguments, arguments.get("extra_body")):
        if isinstance(source, Mapping):
            for name in _OUTPUT_LIMITS:
                value = cast("Mapping[str, object]", source).get(name)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
    return None


def _choices(arguments: Mapping[str, Any]) -> int:
    choices = arguments.get("n")
    return choices if isinstance(choices, int) and choices > 1 else 1


def _prompt_bytes(request: RouterParallelRequest) -> int:
    total = 0
    for message in request.messages:
        total += _TOKENS_AROUND_A_MESSAGE + _bytes_of(_fields_of(message))
    for name in ("tools", "functions", "response_format"):
        value = (request.kwargs or {}).get(name)
        if value is not None:
            total += _bytes_of(value)
    return total


def _fields_of(message: Any) -> Any:
    # Answers of litellm (pydantic objects) are messages of the next turn.
    dump = getattr(message, "model_dump", None)
    return message if dump is None else dump()


def _bytes_of(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        kind = fields.get("type")
        if isinstance(kind, str) and kind != "function" and isinstance(fields.get(kind), Mapping):
            return _TOKENS_OF_A_PART  # {"type": "image_url", "image_url": {…}}
        return sum(len(str(name)) + 4 + _bytes_of(member) for name, member in fields.items())
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return sum(2 + _bytes_of(member) for member in cast("Any", value))
    try:
        return len(json.dumps(value))
    except (TypeError, ValueError):  # a class of pydantic as response_format
        schema = getattr(value, "model_json_schema", None)
        return len(json.dumps(schema())) if callable(schema) else len(repr(value))


def _length_of_text(request: RouterParallelRequest) -> int:
    return sum(_bytes_of(_fields_of(message)) for message in request.messages)


def _count_prompt_tokens(request: RouterParallelRequest) -> int:
    import litellm

    arguments = request.kwargs or {}
    count: Any = cast("Any", litellm).token_counter
    try:
        return int(
            count(
                model=request.model,
                messages=[_fields_of(message) for message in request.messages],
                tools=arguments.get("tools"),
            )
        )
    except Exception:  # noqa: BLE001 - of messages that the counter does not understand
        return _prompt_bytes(request) // 4


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).get(name)
    return getattr(value, name, None)


def _count(value: Any, name: str) -> int:
    number = _field(value, name)
    return number if isinstance(number, int) else 0
