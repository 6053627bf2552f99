"""The answer of a direct call, made of the provider's JSON by litellm's own functions."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from .shapes import equal
from .wire import Answer

# Members of the hidden parameters that differ from call to call in litellm, too.
_OF_ONE_CALL = frozenset(
    {"_response_ms", "litellm_overhead_time_ms", "callback_duration_ms", "litellm_call_id"}
)


class _Litellm(NamedTuple):
    """Functions of litellm that make a response."""

    response_class: Any
    convert: Any
    process_headers: Any


@functools.cache
def _litellm() -> _Litellm:
    from litellm import ModelResponse
    from litellm.litellm_core_utils import core_helpers
    from litellm.litellm_core_utils.llm_response_utils import convert_dict_to_response as convert

    functions: Any = (convert, core_helpers)
    return _Litellm(
        ModelResponse,
        functions[0].convert_to_model_response_object,
        functions[1].process_response_headers,
    )


Price: TypeAlias = Callable[[Any], float | None]


@dataclass(frozen=True)
class AnswerTemplate:
    """The parts of litellm's answers that are alike for all calls of a shape.

    Attributes:
        constants: hidden parameters that depend on the deployment alone.
        price: returns the cost of an answer in USD as litellm counts it.
    """

    constants: Mapping[str, Any]
    price: Price

    def make(self, answer: Answer, data: Any, arguments: Mapping[str, Any], seconds: float) -> Any:
        """Return litellm's ``ModelResponse`` for an answer.

        Args:
            answer: the answer as it came.
            data: its body, decoded.
            arguments: arguments of the attempt.
            seconds: time that the provider took.
        """
        litellm = _litellm()
        headers = _headers(answer)
        response = litellm.convert(
            response_object=data,
            model_response_object=litellm.response_class(),
            hidden_params={"headers": headers},
            _response_headers=headers,
        )
        milliseconds = seconds * 1000
        response._response_ms = milliseconds
        hidden = {**self.constants, **response._hidden_params}
        hidden["additional_headers"] = litellm.process_headers(
            hidden["additional_headers"], preserve_litellm_internal_headers=True
        )
        hidden |= {
            "_response_ms": milliseconds,
            "litellm_overhead_time_ms": 0.0,
            "callback_duration_ms": 0.0,
            "litellm_call_id": arguments.get("litellm_call_id") or str(uuid.uuid4()),
            "provider_response_model": response.model,
            "response_cost": self.price(response),
        }
        response._hidden_params = hidden
        return response


def has_tokens(response: Any) -> bool:
    """Return True if the price of a response shows how litellm prices others."""
    usage: Any = getattr(response, "usage", None)
    return bool(usage and usage.prompt_tokens and usage.completion_tokens)


def answer_template(theirs: Any, arguments: Mapping[str, Any]) -> AnswerTemplate:
    """Find out what litellm adds to the answers of a deployment, from one that it made."""
    hidden: Mapping[str, Any] = theirs._hidden_params
    varying = {*_OF_ONE_CALL, "headers", "additional_headers", "response_cost"}
    constants = {name: value for name, value in hidden.items() if name not in varying}
    return AnswerTemplate(constants, _price(theirs, hidden, arguments))


def _price(theirs: Any, hidden: Mapping[str, Any], arguments: Mapping[str, Any]) -> Price:
    """Return the first way of pricing an answer that gives the cost which litellm found."""
    import litellm
    from litellm.litellm_core_utils.llm_cost_calc.utils import generic_cost_per_token

    cost = hidden.get("response_cost")
    if cost is None:
        return _unknown
    model, provider = arguments["model"], hidden.get("custom_llm_provider")
    bare = model.removeprefix(f"{provider}/")

    def by_token(response: Any) -> float | None:
        return sum(
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

    for price in (by_token, by_deployment, by_model):
        try:
            if price(theirs) == cost:
                return price
        except Exception:  # noqa: BLE001, S112 - litellm raises Exception for unknown models
            continue
    return _unknown


def _unknown(response: Any) -> float | None:
    return None


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


def _headers(answer: Answer) -> dict[str, str]:
    """Return the headers as litellm reads them: names in lower case, repeated ones joined."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in answer.headers:
        name, value = raw_name.decode("ascii").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
