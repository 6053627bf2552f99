"""Facts about a Router that a batch needs: its models, limits, timeouts, and who retries."""

from __future__ import annotations

import functools
import math
from collections.abc import (
    Iterable,
    Mapping,
    Set,
)
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import msgspec

from parallel_core.config import (
    LAYERS,
    aliases,
    deployments,
    deployments_for,
    setting,
    unwrap_router,
)
from parallel_core.control import Failover, RouterTraits
from parallel_core.types import RouterParallelRequest, StreamedResponse

_EXCLUDED = "_excluded_deployment_ids"  # litellm's argument: deployments that a call must not use
ATTEMPT_TIMEOUTS = ("timeout", "request_timeout", "stream_timeout")
"""Arguments of a call, and parameters of a deployment, with litellm's timeouts of an attempt."""

RETRIED = "parallel_core_retried"
"""Argument of a call that the batch sends again after a temporary failure."""


def calls_run_in_workers(router: object) -> bool:
    """Return True if workers make the calls of a Router. They read each stream to its end."""
    for _ in range(LAYERS):
        if getattr(router, "calls_run_in_workers", False) is True:
            return True
        router = getattr(router, "router", router)
    return False


class _NoRetries(int):
    """Zero that is true. litellm takes a ``max_retries`` that is false for its default of 2."""

    def __bool__(self) -> bool:
        return True


_NO_RETRIES = _NoRetries(0)
_EMBEDDING = "aembedding"


class RouterOverrides(NamedTuple):
    """Settings of a Router that the calls of a batch override, because the batch itself retries.

    Attributes:
        retries: the Router's retries by kind of error, all 0; None: the Router retries itself.
        no_cooldowns: True if no failure of a call makes a deployment pause.
        no_client_retries: True if OpenAI's client, with which litellm sends embeddings, does not
            send a failed request again by itself.
    """

    retries: dict[str, int] | None
    no_cooldowns: bool
    no_client_retries: bool = False

    def add_to(self, arguments: dict[str, Any], model: str, operation: str) -> None:
        """Add these settings to the arguments of a call, unless the request has its own."""
        if self.retries is not None:
            arguments.setdefault("model_group_retry_policy", {model: dict(self.retries)})
        if self.no_client_retries and operation == _EMBEDDING:
            arguments.setdefault("max_retries", _NO_RETRIES)
        if self.no_cooldowns:
            arguments.setdefault("cooldown_time", 0)


def router_overrides(router: object) -> RouterOverrides:
    """Return the settings that a batch overrides: those that the user has not configured.

    The Router's retries would occupy a slot and multiply the retries of the batch. Its cooldowns
    disable all deployments of a model for seconds as soon as each has answered one 429.
    """
    itself = unwrap_router(router)
    if not hasattr(itself, "model_group_retry_policy"):
        return RouterOverrides(None, False)
    from litellm.types.router import RetryPolicy

    has_policy = setting(itself, "retry_policy") or setting(itself, "model_group_retry_policy")
    retries = None if has_policy else dict.fromkeys(RetryPolicy.model_fields, 0)
    has_own = any(
        one["litellm_params"].get("max_retries") is not None for one in deployments(itself)
    )
    no_client_retries = retries is not None and not has_own
    return RouterOverrides(retries, _has_default_cooldowns(itself), no_client_retries)


def _has_default_cooldowns(router: object) -> bool:
    """Return True if neither the Router nor any of its deployments has a configured cooldown."""
    from litellm.constants import DEFAULT_COOLDOWN_TIME_SECONDS

    parts: list[Any] = []
    for deployment in deployments(router):
        parts += (deployment["litellm_params"], deployment.get("model_info") or {})
    is_default = setting(router, "cooldown_time") == DEFAULT_COOLDOWN_TIME_SECONDS
    return is_default and all(part.get("cooldown_time") is None for part in parts)


def router_traits(router: object) -> RouterTraits:
    """Return the facts about a Router that a batch with retries needs."""
    itself = unwrap_router(router)

    def deployments_of(model: str) -> dict[str, float]:
        orders: dict[str, float] = {}
        for one in deployments_for(itself, model):
            order: object = one["litellm_params"].get("order")
            info: Mapping[str, Any] = one.get("model_info") or {}
            if "id" in info:
                orders[info["id"]] = order if isinstance(order, int) else math.inf
        return orders

    number = setting(itself, "num_retries")
    retries = number if type(number) is int and number > 0 else 0
    return RouterTraits(
        is_router=hasattr(router, "acompletion"),
        server_errors=1 + retries,
        failover=Failover(
            deployments_of,
            _without_deployments,
            _answered_by,
            functools.partial(_falls_back, itself),
        ),
        endpoint_of=functools.partial(endpoint_of, router),
    )


def _falls_back(router: object, model: str) -> bool:
    return any(model in one or "*" in one for one in setting(router, "fallbacks") or ())


def _answered_by(value: object) -> tuple[str, bool]:
    """Return the id of the deployment that answered, and True if a fallback was tried."""
    response = value.response if isinstance(value, StreamedResponse) else value
    hidden: object = getattr(response, "_hidden_params", None)
    if not isinstance(hidden, Mapping):
        return "", False
    known = cast("Mapping[str, Any]", hidden)
    deployment: object = known.get("model_id")
    headers: Mapping[str, Any] = known.get("additional_headers") or {}
    fell_back = bool(headers.get("x-litellm-attempted-fallbacks"))
    return (deployment, fell_back) if isinstance(deployment, str) else ("", False)


def _without_deployments(request: RouterParallelRequest, ids: Set[str]) -> RouterParallelRequest:
    kwargs = {**(request.kwargs or {}), _EXCLUDED: sorted(ids)}
    return msgspec.structs.replace(request, kwargs=kwargs)


def endpoint_of(router: object, model: str) -> str | None:
    """Return the address of a model's calls: scheme, host and port, without user and path.

    Return None if its deployments have no address, or different ones.
    """
    found = {
        _origin(deployment["litellm_params"])
        for deployment in deployments_for(unwrap_router(router), model)
    }
    return found.pop() if len(found) == 1 else None


def _origin(parameters: Mapping[str, Any]) -> str | None:
    try:
        parts = urlsplit(str(parameters.get("api_base") or parameters.get("base_url") or ""))
        host, port = parts.hostname, parts.port
    except ValueError:  # not an address
        return None
    if not (parts.scheme and host):
        return None
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")


def has_timeouts(router: object) -> bool:
    """Return True if a timeout is configured on a Router or one of its deployments.

    Also return True if it is not a Router of litellm. In litellm the argument of a call takes
    precedence over all these timeouts, and a call may fall back from one deployment to another.
    """
    itself = unwrap_router(router)
    if not hasattr(itself, "model_group_retry_policy"):
        return True
    from litellm.constants import DEFAULT_REQUEST_TIMEOUT_SECONDS
    from litellm.litellm_core_utils.request_timeout_resolver import get_configured_request_timeout

    of_all: Mapping[str, Any] = setting(itself, "default_litellm_params") or {}
    parts = [of_all, *(deployment["litellm_params"] for deployment in deployments(itself))]
    return (
        get_configured_request_timeout() is not None
        or setting(itself, "timeout") not in (None, DEFAULT_REQUEST_TIMEOUT_SECONDS)
        or setting(itself, "stream_timeout") is not None
        or any(part.get(name) is not None for part in parts for name in ATTEMPT_TIMEOUTS)
    )


def model_groups(router: object) -> set[str]:
    """Return the model names of a Router's deployments."""
    return {deployment["model_name"] for deployment in deployments(unwrap_router(router))}


def check_models(by_model: object, router: object) -> None:
    """Check that the Router has each model that an option by model names.

    Raises:
        ValueError: a model is unknown. The message lists it and the Router's models.
    """
    if not isinstance(by_model, Mapping):
        return
    unknown = unknown_models(router, cast("Mapping[Any, object]", by_model))
    if unknown:
        raise ValueError(
            f"rate_limit: the Router has no model {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(map(repr, sorted(_names_of_models(router))))}"
        )


def unknown_models(router: object, models: Iterable[Any]) -> list[Any]:
    """Return the models for which a Router has no deployment; empty if it accepts every name."""
    known = _names_of_models(router)
    takes_all = setting(unwrap_router(router), "default_deployment") is not None
    if not model_groups(router) or takes_all or any("*" in name for name in known):
        return []
    return [model for model in models if model not in known]


def problem_of_name(router: object, model: str) -> str | None:
    """Return the reason why no deployment of a Router can serve a model; None if one can."""
    itself = unwrap_router(router)
    if not unknown_models(router, [model]) or deployments_for(itself, model):
        return None
    for deployment in deployments(itself):
        info: Mapping[str, Any] = deployment.get("model_info") or {}
        if info.get("id") == model:
            return None
    if _falls_back(itself, model):
        return None
    return (
        f"the Router has no model {model!r}; it has "
        f"{', '.join(map(repr, sorted(_names_of_models(router))))}"
    )


def _names_of_models(router: object) -> set[str]:
    return model_groups(router).union(aliases(unwrap_router(router)))


def parallel_limits(router: object) -> dict[str, int]:
    """Return the calls in flight that a Router allows per model, if it rejects further calls.

    The Router derives such a limit from a deployment's ``rpm`` and ``tpm``, too. It rejects by
    deployment and chooses the deployment at random. So the limit of a model is the smallest of its
    deployments' limits.
    """
    default = setting(unwrap_router(router), "default_max_parallel_requests")
    limits: dict[str, int] = {}
    for deployment in deployments(unwrap_router(router)):
        from litellm.utils import calculate_max_parallel_requests

        parameters = deployment["litellm_params"]
        number = calculate_max_parallel_requests(
            max_parallel_requests=parameters.get("max_parallel_requests"),
            rpm=parameters.get("rpm"),
            tpm=parameters.get("tpm"),
            default_max_parallel_requests=default,
        )
        if number:
            model = deployment["model_name"]
            limits[model] = min(number, limits.get(model, number))
    return limits
