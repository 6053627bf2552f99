"""What litellm and its Router keep of an attempt, and who listens to it."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from types import MethodType
from typing import Any

from parallel_core.config import setting, unwrap_router

_CALLBACKS = ("callback", "callbacks")
_SUCCESS_LISTS = ("success_callback", "_async_success_callback")
_OTHER_LISTS = (
    "callbacks",
    "input_callback",
    "_async_input_callback",
    "pre_call_rules",
    "post_call_rules",
    "service_callback",
)
# Every cache of litellm leaves it in the lists, also that which the first call of Gemini makes.
# Nothing listens by this name; whether answers are cached is in litellm.cache.
_MARK_OF_A_CACHE = "cache"
_SETTINGS = ("max_budget", "modify_params", "enable_json_schema_validation")

METADATA = frozenset({"metadata", "litellm_metadata"})


def follows_call(name: str) -> bool:
    """Return True for an argument by which litellm and the Router follow a call.

    It differs from call to call. A recording with another value shows that it is not sent.
    """
    is_id = name.startswith("litellm_") and name.endswith("_id")
    return name in METADATA or name == "model_info" or is_id or name.startswith("_")


class Bookkeeping:
    """The listeners to the attempts of one Router."""

    def __init__(self, router: object) -> None:
        self._litellm: Any = sys.modules["litellm"]
        self._of_router = _reason_of(unwrap_router(router))

    def varied(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return arguments of the same shape with other texts, numbers, ids and metadata."""
        for name, value in arguments.items():
            if not follows_call(name):
                continue
            if value.__class__ is str:
                arguments[name] = str(uuid.uuid4())
            elif name in METADATA:
                arguments[name] = _other_values(value)
        arguments["messages"] = _other_values(arguments["messages"])
        return arguments

    def reason(self) -> str:
        """Return why no attempt can be direct at the moment; empty if it can."""
        if self._of_router:
            return self._of_router
        litellm = self._litellm
        for name in _OTHER_LISTS:
            if any(callback != _MARK_OF_A_CACHE for callback in getattr(litellm, name, None) or ()):
                return f"litellm.{name} is set"
        for name in _SUCCESS_LISTS:
            if any(not _is_inert(callback) for callback in getattr(litellm, name)):
                return f"litellm.{name} has a callback"
        if litellm.cache is not None:
            return "litellm.cache is set"
        for name in _SETTINGS:
            if getattr(litellm, name):
                return f"litellm.{name} is set"
        return ""

    def succeeded(self, arguments: Mapping[str, Any], response: Any) -> None:
        """Report a success to Routers that count those of their deployments by callbacks.

        Routers up to litellm 1.109 do. (They count tokens themselves, when the attempt returns.)
        """
        event = {
            "call_type": "acompletion",
            "litellm_params": {
                "metadata": arguments.get("metadata"),
                "model_info": arguments.get("model_info"),
            },
        }
        for callback in self._litellm.success_callback:
            if callback != _MARK_OF_A_CACHE:
                callback(event, response, None, None)


def _reason_of(router: object) -> str:
    """Return why attempts of a Router are never direct; empty if they may be."""
    if setting(router, "routing_strategy") not in (None, "simple-shuffle"):
        return "the routing strategy listens to answers"
    for name in ("optional_callbacks", "provider_budget_config", "alerting_config"):
        if setting(router, name):
            return f"the Router has {name}"
    return ""


def _is_inert(callback: object) -> bool:
    """Return True for methods by which a Router hears of its attempts, and for a cache's mark."""
    if callback == _MARK_OF_A_CACHE:
        return True
    litellm = sys.modules["litellm"]
    return isinstance(callback, MethodType) and isinstance(callback.__self__, litellm.Router)


def reason_for_litellm(arguments: Mapping[str, Any]) -> str:
    """Return why an attempt with these arguments goes through litellm; empty if it need not."""
    for name, value in arguments.items():
        if name.startswith("mock_") and value is not None:
            return f"it has {name}"
        if name.endswith(_CALLBACKS) and value:
            return f"it has {name}"
    if arguments.get("caching") or arguments.get("cache"):
        return "answers are cached"
    if arguments.get("enable_json_schema_validation"):
        return "its answer is checked"
    if arguments.get("client") is not None:
        return "it has a client of its own"
    info: Mapping[str, Any] = arguments.get("model_info") or {}
    for prices in (arguments, info):
        if any(name.endswith("_cost_per_second") and prices[name] for name in prices):
            return "it is priced by its duration"
    return ""


def _other_values(value: Any, name: str = "") -> Any:
    """Return a JSON value of the same structure with other texts and numbers."""
    from .shapes import structure

    kind = value.__class__
    if kind is str:
        other = f"{value} {uuid.uuid4()}"
        return other if structure(other, name) == structure(value, name) else value
    if kind is dict:
        return {key: _other_values(member, key) for key, member in value.items()}
    if kind is list or kind is tuple:
        others = [_other_values(member, name) for member in value]
        return others if kind is list else tuple(others)
    return value * 2 if kind is int or kind is float else value
