"""Requests and tokens per minute that the deployments of a Router allow, by model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

from parallel_core.config import aliases, deployments, deployments_for, unwrap_router

RateKind: TypeAlias = Literal["rpm", "tpm"]
KINDS: Final[tuple[RateKind, ...]] = ("rpm", "tpm")


class ModelRates(NamedTuple):
    """The rates of one model, which requests may name in several ways.

    Attributes:
        models: the model's name, its aliases, and names that its pattern serves.
        deployments: number of its deployments.
        rates: rates of all its deployments together; a missing rate is unlimited.
        unlimited: by rate, number of deployments without it if others of this model have it.
    """

    models: list[str]
    deployments: int
    rates: dict[RateKind, float]
    unlimited: dict[RateKind, int]


def rates_of(router: object, models: Iterable[str] = ()) -> list[ModelRates]:
    """Return the rates of each model of a Router.

    Args:
        router: a litellm Router, or a wrapper around one.
        models: further names that requests use, which a pattern serves.

    Raises:
        TypeError: it is not a Router.
        ValueError: a rate is not a number, or is below 0.
    """
    router = unwrap_router(router)
    if not (hasattr(router, "registry") or hasattr(router, "model_list")):
        raise TypeError(f"router must be a litellm Router, not {type(router).__qualname__}")
    named: dict[str, list[Any]] = {}
    for deployment in deployments(router):
        named.setdefault(deployment["model_name"], []).append(deployment)
    found: dict[frozenset[object], ModelRates] = {}
    for model in dict.fromkeys([*named, *aliases(router), *models]):
        group = named.get(model) or deployments_for(router, model)
        # An alias, and each name that a pattern serves, use the deployments of another name.
        key = frozenset(map(_identity, group)) or frozenset([model])
        if key not in found:
            found[key] = _rates_of_group(model, group)
        found[key].models.append(model)
    return list(found.values())


def _identity(deployment: Mapping[str, Any]) -> object:
    information: Mapping[str, Any] = deployment.get("model_info") or {}
    return information.get("id") or id(deployment)


def _rates_of_group(model: str, group: list[Any]) -> ModelRates:
    sums: dict[RateKind, float] = {}
    unlimited: dict[RateKind, int] = {}
    for kind in KINDS:
        rates = [_rate(kind, model, deployment) for deployment in group]
        given = [rate for rate in rates if rate is not None]
        if len(given) < len(rates):
            if given:
                unlimited[kind] = len(rates) - len(given)
        elif total := sum(given):
            sums[kind] = total
    return ModelRates([], len(group), sums, unlimited)


def _rate(kind: RateKind, model: str, deployment: Mapping[str, Any]) -> float | None:
    """Return a rate of a deployment; None if it has none."""
    # The same order as in the Router.
    places = (deployment, deployment.get("litellm_params"), deployment.get("model_info"))
    for settings in places:
        value = None if settings is None else cast("Any", settings).get(kind)
        if value is None:
            continue
        try:
            rate = float(value)
        except (TypeError, ValueError, OverflowError):
            rate = math.nan
        if isinstance(value, bool) or not 0 <= rate < math.inf:
            raise ValueError(
                f"{kind} of a deployment of {model!r} must be a number of at least 0, not {value!r}"
            )
        return rate
    return None
