"""Prices and answer limits of models, as the user and litellm know them.

litellm is imported lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from parallel_core.config import aliases, deployments, setting
from parallel_core.errors import RebuiltError

from .checks import checked_number, is_amount
from .token_counts import asked_output, choices

_FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


class Price(NamedTuple):
    """USD per token."""

    of_input: float
    of_output: float

    def of(self, prompt: int, completion: int) -> float:
        """Return the cost of these tokens in USD."""
        return prompt * self.of_input + completion * self.of_output


class UnpricedError(RebuiltError, ValueError):
    """A budget in USD cannot cap calls whose price is unknown.

    Attributes:
        what: names the calls, for the message.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"Budget.max_cost: the price of {what} is unknown; give "
            "it as Budget(prices={model: (USD per prompt token, USD per answer token)})"
        )
        self.what = what


def checked_prices(
    prices: Mapping[str, tuple[float, float]] | None,
) -> dict[str, tuple[float, float]]:
    if prices is not None and not isinstance(cast("object", prices), Mapping):
        raise TypeError(
            f"Budget.prices must be a mapping from model to prices, not {type(prices).__qualname__}"
        )
    checked: dict[str, tuple[float, float]] = {}
    for model, price in (prices or {}).items():
        try:
            of_prompt, of_answer = price
        except (TypeError, ValueError):
            raise ValueError(
                f"Budget.prices[{model!r}] must be (USD per prompt token, USD per answer token)"
            ) from None
        checked[model] = (
            checked_number(f"Budget.prices[{model!r}][0]", of_prompt, zero=True),
            checked_number(f"Budget.prices[{model!r}][1]", of_answer, zero=True),
        )
    return checked


class PriceList:
    """Prices and answer limits of the models of a Router, or of a callable in its place.

    Args:
        router: the Router.
        prices: USD per token of the prompt and per token of the answer, by model. They take
            precedence over all other prices.
        entry_price: returns the price in litellm's data of a model; None if it has none.

    Attributes:
        given: these prices.
    """

    def __init__(
        self,
        router: object,
        prices: Mapping[str, tuple[float, float]] | None,
        entry_price: Callable[[Mapping[str, Any]], Price | None],
    ) -> None:
        self._router = router
        self._entry_price = entry_price
        self.given = {model: Price(*price) for model, price in (prices or {}).items()}
        self._prices: dict[str, Price | None] = {}
        self._answer_limits: dict[str, int | None] = {}

    def price_of(self, model: str) -> Price | None:
        """Return the highest price that a Router may choose for a model, fallbacks included.

        Return None if one of these prices is unknown.
        """
        if model in self.given:
            return self.given[model]
        if model not in self._prices:
            prices: list[Price | None] = []
            for group in _with_fallbacks(self._router, model):
                if group in self.given:
                    prices.append(self.given[group])
                elif group not in aliases(self._router):
                    entries = self._entries({group})
                    prices += [self._entry_price(entry) for entry in entries] or [None]
            self._prices[model] = _dearest(prices)
        return self._prices[model]

    def price_of_all(self, models: Iterable[str]) -> Price | None:
        """Return the highest of the prices of these models; None if one is unknown."""
        return _dearest([self.price_of(model) for model in models])

    def answer_limit(self, model: str) -> int | None:
        """Return the tokens of the longest answer, fallbacks included; None if unknown."""
        if model not in self._answer_limits:
            limits = [
                entry.get("max_output_tokens") or entry.get("max_tokens")
                for entry in self._entries(_with_fallbacks(self._router, model))
            ]
            known = all(isinstance(limit, int) for limit in limits) and bool(limits)
            self._answer_limits[model] = max(cast("list[int]", limits)) if known else None
        return self._answer_limits[model]

    def _entries(self, groups: set[str]) -> list[dict[str, Any]]:
        """Return litellm's data of each model that may answer for these."""
        known = deployments(self._router)
        if not known:
            return [_known_of(group) for group in groups]
        entries: list[dict[str, Any]] = []
        for deployment in known:
            if deployment["model_name"] in groups:
                parameters = deployment["litellm_params"]
                own: dict[str, Any] = {**(deployment.get("model_info") or {}), **parameters}
                provider = parameters.get("custom_llm_provider")
                entry = dict(_known_of(own.get("base_model") or parameters["model"], provider))
                if own.get("input_cost_per_token") is not None:
                    entry = {name: value for name, value in entry.items() if "cost" not in name}
                entry.update({name: value for name, value in own.items() if value is not None})
                # A deployment sends its own max_tokens if the request has none.
                sent = asked_output(parameters)
                if sent is not None:
                    entry["max_output_tokens"] = sent * choices(parameters)
                entries.append(entry)
        return entries


def _dearest(prices: Sequence[Price | None]) -> Price | None:
    known = [price for price in prices if price is not None]
    if not known or len(known) < len(prices):
        return None
    return Price(max(price.of_input for price in known), max(price.of_output for price in known))


def _with_fallbacks(router: object, model: str) -> set[str]:
    groups: set[str] = set()
    waiting = [model]
    while waiting:
        group = waiting.pop()
        if group in groups:
            continue
        groups.add(group)
        waiting += named_fallbacks([aliases(router).get(group)])
        for name in _FALLBACKS:
            for mapping in cast("Iterable[Any]", setting(router, name) or []):
                if isinstance(mapping, Mapping):
                    for others in (mapping.get(group), mapping.get("*")):  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
                        waiting += named_fallbacks(others)
    return groups


def named_fallbacks(others: Any) -> list[str]:
    """Return the models in a list of fallbacks; each is a name or a mapping of arguments."""
    if isinstance(others, str):
        return [others]
    names: list[str] = []
    for other in cast("Iterable[Any]", others or []):
        is_mapping = isinstance(other, Mapping)
        name = cast("Mapping[str, Any]", other).get("model") if is_mapping else other
        if isinstance(name, str):
            names.append(name)
    return names


def _known_of(model: str, provider: object = None) -> dict[str, Any]:
    """Return the entry of a model in litellm's map of models."""
    import litellm

    models = cast("dict[str, dict[str, Any]]", cast("Any", litellm).model_cost)
    entry = models.get(f"{provider}/{model}") or models.get(model)
    if entry:  # a Router registers an empty one for a model that litellm has under another name
        return entry
    provider, _, name = model.partition("/")
    entry = models.get(name) or {}
    # A model of the same name at another provider has another price. litellm names the text
    # completions of a provider like a provider of their own: text-completion-openai.
    its_provider = str(entry.get("litellm_provider", "")).removeprefix("text-completion-")
    return entry if its_provider.startswith(provider) else {}


def price_of_input(entry: Mapping[str, Any]) -> Price | None:
    """Return the price of calls whose answers are not counted in tokens, as those of embeddings.

    Return None if other things than tokens are billed: queries, images, seconds.
    """
    for name, value in entry.items():
        _, is_price, unit = name.partition("_cost_per_")
        if is_price and "token" not in unit and is_amount(value) and value > 0:
            return None
    of_input = _highest(entry, "input_cost_per_token", "cache_creation_input_token_cost")
    return None if of_input is None else Price(of_input, 0.0)


def price_of_tokens(entry: Mapping[str, Any]) -> Price | None:
    """Return the highest price of each kind, over all tiers (long context, priority, reasoning)."""
    if _highest(entry, "input_cost_per_token") is None:
        return None
    of_input = _highest(entry, "input_cost_per_token", "cache_creation_input_token_cost")
    of_output = _highest(entry, "output_cost_per_token", "output_cost_per_reasoning_token")
    return None if of_input is None or of_output is None else Price(of_input, of_output)


def _highest(entry: Mapping[str, Any], *prefixes: str) -> float | None:
    prices = [
        float(value)
        for name, value in entry.items()
        if name.startswith(prefixes) and is_amount(value)
    ]
    return max(prices) if prices else None
