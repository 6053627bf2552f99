"""The answer of a direct call, made of the provider's JSON by litellm's own functions."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import httpx

from parallel_core.router.answers import PROVIDER_BODY, read_provider_json

from .shapes import Structure, equal, structure
from .wire import Answer

# Members of the hidden parameters that differ from call to call in litellm, too.
_OF_ONE_CALL = frozenset(
    {
        "_response_ms",
        "litellm_overhead_time_ms",
        "callback_duration_ms",
        "litellm_call_id",
        PROVIDER_BODY,
    }
)


class _Litellm(NamedTuple):
    """Functions of litellm that make a response."""

    response_class: Any
    convert: Any
    process_headers: Any
    told_cost: Any


@functools.cache
def _litellm() -> _Litellm:
    from litellm import ModelResponse, cost_calculator
    from litellm.litellm_core_utils import core_helpers
    from litellm.litellm_core_utils.llm_response_utils import convert_dict_to_response as convert

    functions: Any = (convert, core_helpers, cost_calculator)
    return _Litellm(
        ModelResponse,
        functions[0].convert_to_model_response_object,
        functions[1].process_response_headers,
        functions[2].get_response_cost_from_hidden_params,
    )


Price: TypeAlias = Callable[[Any], float | None]


class Completion(NamedTuple):
    """A completion as the provider sent it.

    Attributes:
        headers: names in lower case, the values of repeated ones joined.
        body: its JSON, not compressed.
        data: the body, decoded.
        structure: the structure of the body (:func:`.structure`), and names of headers by which
            another litellm tells what the answer costs.
        seconds: time that the provider took.
    """

    headers: dict[str, str]
    body: bytes
    data: Any
    structure: Structure
    seconds: float

    @classmethod
    def of(cls, answer: Answer, seconds: float) -> Completion | None:
        """Read an answer. None if it is not a plain completion: litellm reads it."""
        if answer.status != 200:
            return None
        headers: dict[str, str] = {}
        for raw_name, raw_value in answer.headers:
            if not raw_value.isascii():
                return None
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("ascii")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        try:
            compressed = "content-encoding" in headers
            body = answer.response(_NO_REQUEST).content if compressed else answer.content
            data: object = read_provider_json(body)
            form = (structure(data), *sorted(name for name in headers if "litellm" in name))
        except (ValueError, RecursionError, httpx.DecodingError):
            return None
        if not isinstance(data, dict):
            return None
        members = cast("dict[str, Any]", data)
        if not members.get("choices") or members.get("error") is not None:
            return None
        return cls(headers, body, members, form, seconds)


_NO_REQUEST = httpx.Request("POST", "http://localhost")


@dataclass(frozen=True)
class AnswerTemplate:
    """The parts of litellm's answers that are alike for all calls of a shape.

    Attributes:
        constants: hidden parameters that depend on the deployment alone.
        price: returns the cost of an answer in USD as litellm counts it.
        believes: litellm takes the cost that another litellm, its proxy, tells in a header.
        model: the name with which litellm begins, where it puts the provider in front of the
            provider's own name; else None.
    """

    constants: Mapping[str, Any]
    price: Price
    believes: bool
    model: str | None

    def make(self, completion: Completion, arguments: Mapping[str, Any]) -> Any:
        """Return litellm's ``ModelResponse`` for a completion.

        Args:
            completion: the provider's answer.
            arguments: arguments of the attempt.
        """
        litellm = _litellm()
        headers = completion.headers
        response = litellm.convert(
            response_object=completion.data,
            model_response_object=litellm.response_class(model=self.model),
            hidden_params={"headers": headers},
            _response_headers=headers,
        )
        milliseconds = completion.seconds * 1000
        response._response_ms = milliseconds
        hidden = {**self.constants, **response._hidden_params}
        hidden["additional_headers"] = litellm.process_headers(
            hidden["additional_headers"], preserve_litellm_internal_headers=True
        )
        # A header that is no number raises, also where it does not count: litellm reads the answer.
        told = litellm.told_cost(hidden)
        cost = told if self.believes else None
        hidden |= {
            "_response_ms": milliseconds,
            "litellm_overhead_time_ms": 0.0,
            "callback_duration_ms": 0.0,
            "litellm_call_id": arguments.get("litellm_call_id") or str(uuid.uuid4()),
            "provider_response_model": response.model,
            "response_cost": self.price(response) if cost is None else cost,
            PROVIDER_BODY: completion.body,
        }
        response._hidden_params = hidden
        return response


def has_tokens(response: Any) -> bool:
    """Return True if the price of a response shows how litellm prices others."""
    usage: Any = getattr(response, "usage", None)
    return bool(usage and usage.prompt_tokens and usage.completion_tokens)


_COMMON_READERS = ("OpenAIGPTConfig", "OpenAILikeChatConfig", "AzureOpenAIConfig")


def reads_in_its_own_way(theirs: Any, arguments: Mapping[str, Any]) -> bool:
    """Return True for a provider whose answers litellm changes by rules of the provider.

    They may depend on values, for example on whether the counts of tokens add up.
    """
    from litellm.types.utils import LlmProviders
    from litellm.utils import ProviderConfigManager as Configs

    provider = theirs._hidden_params.get("custom_llm_provider")
    if provider is None:  # litellm's reader of another provider made the hidden parameters
        return True
    configs: Any = Configs
    config = configs.get_provider_chat_config(
        model=arguments["model"].removeprefix(f"{provider}/"), provider=LlmProviders(provider)
    )
    reader = getattr(config, "transform_response", None)
    return reader is not None and reader.__qualname__.partition(".")[0] not in _COMMON_READERS


def answer_template(
    theirs: Any, completion: Completion, arguments: Mapping[str, Any]
) -> AnswerTemplate:
    """Find out what litellm adds to the answers of a deployment, from one that it made."""
    from litellm.litellm_core_utils import litellm_logging

    logging: Any = litellm_logging
    hidden: Mapping[str, Any] = theirs._hidden_params
    varying = {*_OF_ONE_CALL, "headers", "additional_headers", "response_cost"}
    constants = {name: value for name, value in hidden.items() if name not in varying}
    prefixed = theirs.model != completion.data.get("model") and "/" in theirs.model
    return AnswerTemplate(
        constants,
        _price(theirs, hidden, arguments),
        # Prices that the user has set come first.
        believes=not logging.use_custom_pricing_for_model({**arguments}),
        model=theirs.model if prefixed else None,
    )


def _price(theirs: Any, hidden: Mapping[str, Any], arguments: Mapping[str, Any]) -> Price:
    """Return the first way of pricing an answer that gives the cost which litellm found."""
    import litellm
    from litellm.litellm_core_utils.llm_cost_calc.utils import generic_cost_per_token

    cost = hidden.get("response_cost")
    if cost is None:
        return _unknown
    model, provider = arguments["model"], hidden.get("custom_llm_provider")
    info: Mapping[str, Any] = arguments.get("model_info") or {}
    base = arguments.get("base_model") or info.get("base_model") or model

    def of_tokens(name: str) -> Price:
        bare = name.removeprefix(f"{provider}/")
        return lambda response: sum(
            generic_cost_per_token(
                model=bare, usage=response.usage, custom_llm_provider=provider or ""
            )
        )

    def by_deployment(response: Any) -> float | None:
        return litellm.completion_cost(
            completion_response=response,
            model=model,
            router_model_id=hidden.get("model_id"),
            custom_pricing=True,
        )

    def by_model(response: Any) -> float | None:
        return litellm.completion_cost(completion_response=response, model=model)

    for price in (of_tokens(model), of_tokens(base), by_deployment, by_model):
        try:
            if price(theirs) == cost:
                return price
        except Exception:  # noqa: BLE001, S112 - litellm raises Exception for unknown models
            continue
    return _unknown


def _unknown(response: Any) -> float | None:
    return None


def complete(theirs: Any, completion: Completion) -> None:
    """Add to a response of litellm what litellm cannot know: it got the answer from us."""
    hidden = theirs._hidden_params
    theirs._response_ms = hidden["_response_ms"] = completion.seconds * 1000
    hidden[PROVIDER_BODY] = completion.body


def difference(ours: Any, theirs: Any) -> str | None:
    """Return the first member in which two answers differ; None if they are equal."""
    mine, other = ours.model_dump(warnings=False), theirs.model_dump(warnings=False)
    for name in sorted(mine.keys() | other.keys()):
        if not equal(mine.get(name), other.get(name)):
            return str(name)
    mine, other = ours._hidden_params, theirs._hidden_params
    for name in sorted((mine.keys() | other.keys()) - _OF_ONE_CALL):
        if name not in mine or name not in other or mine[name] != other[name]:
            return f"_hidden_params[{name!r}]"
    return None
