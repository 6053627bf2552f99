"""Usage of calls: the worst case before, the real usage after. litellm is imported lazily."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import anyio
import anyio.to_thread
import msgspec

from parallel_core.config import aliases, deployments, setting
from parallel_core.types import Meter, RouterParallelRequest, StreamedResponse, Usage

# Tokens of a part that is not text: more than any provider counts for an image of usual size.
_TOKENS_OF_A_PART = 65_536
_TOKENS_AROUND_A_MESSAGE = 16
# Texts with more characters are counted in a thread: they would block the event loop too long.
_LONG = 20_000

# Expected tokens of an answer before the first one.
_FIRST_ANSWERS = 500

_OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens")
# Parts whose tokens do not depend on the length of their data.
_PICTURES = ("image", "image_url", "input_image")
_RECORDINGS = ("audio", "audio_url", "input_audio", "video", "video_url")
_BYTES_OF_A_RECORDED_TOKEN = 32  # at the lowest bit rates in use
# Arguments that count as part of the prompt.
_IN_THE_PROMPT = (
    "tools", "functions", "tool_choice", "response_format", "prediction", "system", "extra_body",
)  # fmt: skip
_BYTES_OF_A_TOKEN = 4  # about
_FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


class Price(NamedTuple):
    """USD per token."""

    of_input: float
    of_output: float

    def of(self, prompt: int, completion: int) -> float:
        """Return the cost of these tokens in USD."""
        return prompt * self.of_input + completion * self.of_output


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
        if not _is_amount(value):
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
        self._router = router
        self._given = {model: Price(*price) for model, price in (prices or {}).items()}
        self._assume_output_tokens = assume_output_tokens
        self._prices: dict[str, Price | None] = {}
        self._output_limits: dict[str, int | None] = {}
        self._counted: set[str] = set()  # models whose tokenizer has been loaded
        self._loading = anyio.Lock()
        self._answers = 0
        self._answer_tokens = 0

    # --- before the call ---

    def worst_case(self, item: RouterParallelRequest) -> Usage:
        """Return the most that a request can use.

        A token has at least one byte, so a prompt has at least as many bytes as tokens, with any
        tokenizer.

        Raises:
            ValueError: the length of the longest answer is unknown.
        """
        arguments = item.kwargs or {}
        output = self._output_limit(item.model, arguments)
        if output is None:
            raise ValueError(
                f"it is unknown how many tokens an answer of model {item.model!r} may have: set "
                "max_tokens in the request, or assume_output_tokens in the budget"
            )
        prompt = _prompt_bytes(item)
        output *= _choices(arguments)
        price = self._price_of_any(item.model, *_named_fallbacks(arguments.get("fallbacks")))
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
        asked = _asked_output(arguments)
        completion = answer_tokens if asked is None else min(asked, answer_tokens)
        prompt = _prompt_bytes(item) // _BYTES_OF_A_TOKEN
        return price.of(prompt, completion * _choices(arguments))

    def _output_limit(self, model: str, arguments: Mapping[str, Any]) -> int | None:
        asked = _asked_output(arguments)
        if asked is not None:
            return asked
        if self._assume_output_tokens is not None:
            return self._assume_output_tokens
        if model not in self._output_limits:
            limits = [
                entry.get("max_output_tokens") or entry.get("max_tokens")
                for entry in self._entries(_with_fallbacks(self._router, model))
            ]
            known = all(isinstance(limit, int) for limit in limits) and bool(limits)
            self._output_limits[model] = max(cast("list[int]", limits)) if known else None
        return self._output_limits[model]

    def price_of(self, model: str) -> Price | None:
        """Return the highest price that a Router may choose for a model, fallbacks included.

        Return None if one of these prices is unknown.
        """
        if model in self._given:
            return self._given[model]
        if model not in self._prices:
            prices: list[Price | None] = []
            for group in _with_fallbacks(self._router, model):
                if group in self._given:
                    prices.append(self._given[group])
                elif group not in aliases(self._router):
                    prices += [_price_of_entry(entry) for entry in self._entries({group})] or [None]
            self._prices[model] = _dearest(prices)
        return self._prices[model]

    def _price_of_any(self, *models: str) -> Price | None:
        return _dearest([self.price_of(model) for model in models])

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
                sent = _asked_output(parameters)
                if sent is not None:
                    entry["max_output_tokens"] = sent * _choices(parameters)
                entries.append(entry)
        return entries

    async def expected_tokens(self, item: RouterParallelRequest) -> int:
        """Return an estimate of the tokens of the prompt and of the answer.

        The answer counts with the limit of the request, else with the average of the answers so
        far, and with 500 tokens before the first one.
        """
        prompt = await self._count(item)
        arguments = item.kwargs or {}
        asked = _asked_output(arguments)
        if asked is not None:
            return prompt + asked * _choices(arguments)
        return prompt + (self._answer_tokens // self._answers if self._answers else _FIRST_ANSWERS)

    async def _count(self, item: RouterParallelRequest) -> int:
        if item.model not in self._counted:
            # The first count loads a tokenizer and may import litellm: do it once, in a thread.
            async with self._loading:
                if item.model not in self._counted:
                    prompt = await anyio.to_thread.run_sync(_count_prompt_tokens, item)
                    self._counted.add(item.model)
                    return prompt
        if _prompt_bytes(item) > _LONG:
            return await anyio.to_thread.run_sync(_count_prompt_tokens, item)
        return _count_prompt_tokens(item)

    # --- after the call ---

    async def estimate(
        self, item: RouterParallelRequest, text: str, *, at_once: bool = False
    ) -> Usage:
        """Estimate the usage of an answer with this text, if the provider did not report it.

        ``at_once``: do not take the time to load a tokenizer or to count a long text.
        """
        if at_once and (item.model not in self._counted or len(text) > _LONG):
            prompt = _prompt_bytes(item) // _BYTES_OF_A_TOKEN
            completion = _bytes_of(text) // _BYTES_OF_A_TOKEN
            return Usage(prompt, completion, unpriced_calls=1, estimated_calls=1)
        prompt = await self._count(item)
        if len(text) > _LONG:
            completion = await anyio.to_thread.run_sync(_count_tokens, item.model, text)
        else:
            completion = _count_tokens(item.model, text)
        return self._priced(item, Usage(prompt, completion, estimated_calls=1))

    def usage_told(
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
        given = self._given.get(item.model)
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
        given = self._given.get(item.model)
        if given is not None:
            return given.of(prompt, completion)
        cost: Any = _field(_field(value, "_hidden_params"), "response_cost")
        if _is_amount(cost) and cost > 0:
            return float(cost)
        if "litellm" not in sys.modules:
            # Prices were not needed so far, and the import would block the event loop for seconds.
            return None
        # litellm reports 0 both for unknown prices and for free models; 1.110 also for streams of
        # deployments with their own prices.
        price = self.price_of(item.model)
        return None if price is None else price.of(prompt, completion)


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
        waiting += _named_fallbacks([aliases(router).get(group)])
        for name in _FALLBACKS:
            for mapping in cast("Iterable[Any]", setting(router, name) or []):
                if isinstance(mapping, Mapping):
                    for others in (mapping.get(group), mapping.get("*")):  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
                        waiting += _named_fallbacks(others)
    return groups


def _named_fallbacks(others: Any) -> list[str]:
    """Return the models in a list of fallbacks; each is a name or a mapping of arguments."""
    if isinstance(others, str):
        return [others]
    names: list[str] = []
    for other in cast("Iterable[Any]", others or []):
        name: Any = _field(other, "model") if isinstance(other, Mapping) else other
        if isinstance(name, str):
            names.append(name)
    return names


def _known_of(model: str, provider: object = None) -> dict[str, Any]:
    """Return the entry of a model in litellm's map of models."""
    import litellm

    models = cast("dict[str, dict[str, Any]]", cast("Any", litellm).model_cost)
    entry = models.get(f"{provider}/{model}") or models.get(model)
    if entry is not None:
        return entry
    provider, _, name = model.partition("/")
    entry = models.get(name) or {}
    # A model of the same name at another provider has another price.
    return entry if str(entry.get("litellm_provider", "")).startswith(provider) else {}


def _price_of_entry(entry: Mapping[str, Any]) -> Price | None:
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
        if name.startswith(prefixes) and _is_amount(value)
    ]
    return max(prices) if prices else None


def _asked_output(arguments: Mapping[str, Any]) -> int | None:
    return _largest(arguments, _OUTPUT_LIMITS)


def _choices(arguments: Mapping[str, Any]) -> int:
    return max(1, _largest(arguments, ("n",)) or 1)


def _largest(arguments: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """Return the largest of these arguments; ``extra_body`` overrides others only sometimes."""
    found = [
        value
        for source in (arguments, arguments.get("extra_body"))
        if isinstance(source, Mapping)
        for name in names
        if _is_amount(value := cast("Mapping[str, Any]", source).get(name))
        and isinstance(value, int)
    ]
    return max(found, default=None)


def _is_amount(value: object) -> bool:
    """Return True if it is a finite number >= 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _prompt_bytes(request: RouterParallelRequest) -> int:
    total = 0
    for message in request.messages:
        total += _TOKENS_AROUND_A_MESSAGE + _bytes_of(_fields_of(message))
    for name in _IN_THE_PROMPT:
        value = (request.kwargs or {}).get(name)
        if value is not None:
            total += _bytes_of(value)
    return total


def _fields_of(message: Any) -> Any:
    # A message may be an answer of litellm (a pydantic object) from an earlier turn.
    if isinstance(message, Mapping):
        return cast("Any", message)
    dump = getattr(message, "model_dump", None)
    return dict(getattr(message, "__dict__", {})) if dump is None else dump()


def _bytes_of(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, Any]", value)
        kind = fields.get("type")
        if isinstance(kind, str) and kind in _PICTURES:
            return _TOKENS_OF_A_PART
        size = sum(_bytes_of(str(name)) + 4 + _bytes_of(part) for name, part in fields.items())
        if isinstance(kind, str) and kind in _RECORDINGS:
            return _TOKENS_OF_A_PART + size // _BYTES_OF_A_RECORDED_TOKEN
        return size
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return sum(2 + _bytes_of(member) for member in cast("Any", value))
    try:
        return len(json.dumps(value))
    except (TypeError, ValueError):  # a pydantic class as response_format
        schema = getattr(value, "model_json_schema", None)
        return len(json.dumps(schema())) if callable(schema) else len(repr(value))


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
                use_default_image_token_count=True,  # otherwise it downloads the images
            )
        )
    except Exception:  # noqa: BLE001 - the counter does not understand the messages
        return _prompt_bytes(request) // _BYTES_OF_A_TOKEN


def _count_tokens(model: str, text: str) -> int:
    import litellm

    try:
        return int(cast("Any", litellm).token_counter(model=model, text=text))
    except Exception:  # noqa: BLE001 - the tokenizer does not accept the text
        return _bytes_of(text) // _BYTES_OF_A_TOKEN


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
    return number if _is_amount(number) and isinstance(number, int) else None
