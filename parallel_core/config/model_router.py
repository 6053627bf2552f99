"""Make a Router from the name of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from .endpoints import Endpoint, endpoint_of
from .identity import describe_deployments
from .missing_keys import need_keys
from .provider_keys import secrets_sent
from .providers import known_providers, owner_of
from .proxy_values import RouterConfigError
from .quiet import quiet_litellm
from .router_members import retire
from .run_router_base import RunRouter, RunRouterRecipe, make_router


def router_from_model(
    model: str,
    *,
    api_base: str | None = None,
    api_key: str | None = None,
    others: Sequence[str] = (),
    num_retries: int | None = None,
    attempt_timeout: float | None = None,
) -> RunRouter:
    """Make a Router with one deployment for each model name.

    A line of a file that names a model keeps it; ``model`` is for the lines that name none. So
    there is a deployment of ``model`` and of each of ``others``.

    With ``api_base``, all deployments have that address and the provider of ``model``. This is the
    provider of its prefix, else the one to which the address belongs as far as litellm knows, else
    ``openai`` (any server with OpenAI's API). In other names, the text before a slash is then a
    part of the name. The server gets ``api_key``, else the key of that provider in the environment,
    else ``none``; it never gets the key of another provider. A prefix of the provider itself
    (``openai/``) is not sent.

    Without ``api_base``, a name with the prefix of a provider goes to that provider, and a name
    without a prefix goes to the provider of ``model``; each with its own key.

    Args:
        model: litellm's name of the model, for instance ``openai/gpt-4o-mini``.
        api_base: the address of the server, for instance ``http://127.0.0.1:8000/v1``.
        api_key: the key for the server.
        others: further model names.
        num_retries: retries of the Router; ``None``: litellm's default.
        attempt_timeout: seconds for each attempt of a call; ``None``: litellm's default.

    Raises:
        RouterConfigError: litellm does not know the provider of a name, the key of a provider is
            not set or is empty, ``api_base`` is not a URL, or it belongs to another provider.
    """
    names = list(dict.fromkeys([model, *others]))
    if api_base is not None and not _is_url(api_base):
        problem = "--api-base must be a URL, for instance http://127.0.0.1:8000/v1"
        raise RouterConfigError([problem])
    both = {"api_base": api_base, "api_key": api_key}
    given = {option: value for option, value in both.items() if value is not None}
    parameters = dict.fromkeys(names, given)
    return _router_of_models(model, api_base, parameters, num_retries, attempt_timeout, True)


def _router_of_models(
    model: str,
    api_base: str | None,
    given: Mapping[str, Mapping[str, Any]],
    num_retries: int | None,
    attempt_timeout: float | None,
    key_is_optional: bool,
) -> RunRouter:
    """Make the Router of :func:`router_from_model`.

    Args:
        given: the ``litellm_params`` of each name, without ``model``.
        key_is_optional: True if a deployment at ``api_base`` without a key gets the key ``none``.
            It is False in other processes: deployments with a key need the same key there.
    """
    with contextlib.ExitStack() as resources:
        resources.enter_context(quiet_litellm())
        provider = _provider_of_names(model, api_base)
        problems: list[str] = []
        without_key: list[Endpoint] = []
        endpoints: list[Endpoint] = []
        chosen: dict[str, Mapping[str, Any]] = {}  # as ``given``, with the keys "none"
        deployments: list[dict[str, Any]] = []
        for name, values in given.items():
            asked = _litellm_name(name, provider, api_base)
            try:
                endpoint = endpoint_of(name, {"model": asked, **values})
            except RouterConfigError as error:
                problems += error.problems
                continue
            if endpoint.missing_keys and api_base is not None and key_is_optional:
                values = {**values, "api_key": "none"}
                endpoint = msgspec.structs.replace(endpoint, missing_keys=())
            elif endpoint.missing_keys:
                without_key.append(endpoint)
            endpoints.append(endpoint)
            chosen[name] = values
            parameters = {"model": asked, **values}
            deployments.append({"model_name": name, "litellm_params": parameters})
        problems += need_keys(without_key)
        if problems:
            raise RouterConfigError(problems)
        all_parameters = [deployment["litellm_params"] for deployment in deployments]
        secrets = secrets_sent(all_parameters)
        settings = {} if num_retries is None else {"num_retries": num_retries}
        router = make_router(
            f"the model {model!r}", secrets, deployments, settings, attempt_timeout
        )
        resources.callback(retire, router)
        models = zip(chosen, ({"model": every["model"]} for every in all_parameters), strict=True)
        return RunRouter(
            "model",
            router,
            resources=resources.pop_all(),
            secrets=secrets,
            models=given,
            description=describe_deployments(models, {}, {}),
            endpoints=endpoints,
            recipe=RunRouterRecipe(
                *(_router_of_models, model, api_base, chosen, num_retries, attempt_timeout, False)
            ),
        )


def _provider_of_names(model: str, api_base: str | None) -> str | None:
    """Return the provider of names without a prefix; None if litellm chooses it by the name."""
    prefix, slash, _ = model.partition("/")
    if slash and prefix in known_providers():
        return prefix
    return None if api_base is None else owner_of(api_base) or "openai"


def _litellm_name(name: str, provider: str | None, api_base: str | None) -> str:
    prefix, slash, _ = name.partition("/")
    is_whole = slash and (prefix == provider if api_base else prefix in known_providers())
    return name if provider is None or is_whole else f"{provider}/{name}"


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
