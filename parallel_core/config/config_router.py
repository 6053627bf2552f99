"""Make a Router from a config file of litellm's proxy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from .applied_config import applied_config, resolved_settings, unknown_litellm_settings
from .endpoints import Endpoint, endpoint_of
from .identity import describe_deployments
from .litellm_settings import router_settings
from .provider_keys import secrets_sent
from .proxy_config import Deployment, ProxyConfig, read_proxy_config
from .proxy_values import RouterConfigError, nearest, resolved
from .router_members import retire
from .run_router_base import RunRouter, RunRouterRecipe, make_router


def router_from_config(path: Path, *, attempt_timeout: float | None = None) -> RunRouter:
    """Make the Router that litellm's proxy would make from its config file.

    It reads ``model_list``, ``router_settings``, ``credential_list``, ``environment_variables``,
    ``include`` and ``litellm_settings``. Settings of the installed litellm are passed to it.
    Settings that only the proxy server uses (callbacks, cache, budgets of users, guardrails,
    ``general_settings``) are ignored, and listed in ``warnings``. ``environment_variables`` are set
    first, so that ``os.environ/NAME`` can refer to them.

    Args:
        path: the file.
        attempt_timeout: seconds for each attempt of a call, unless the file or the deployment has a
            timeout; None: litellm's default.

    Raises:
        RouterConfigError: the file has problems; it lists all of them, including each variable of
            an ``os.environ/NAME`` that is not set.
    """
    return router_of_config(read_proxy_config(path), attempt_timeout)


def router_of_config(config: ProxyConfig, attempt_timeout: float | None = None) -> RunRouter:
    """Make the Router of :func:`router_from_config` from a file that has been read already.

    It may have been read on another machine.

    Raises:
        RouterConfigError: the file has problems; it lists all of them.
    """
    with contextlib.ExitStack() as resources:
        # This imports litellm, which may read an .env file into the environment.
        resources.enter_context(applied_config(config))
        problems = [str(missing) for missing in config.missing(os.environ)]
        problems += _unknown_router_settings(config)
        secrets = config.secrets(os.environ) | secrets_sent(
            deployment.parameters for deployment in config.deployments
        )
        endpoints: list[Endpoint] = []
        for deployment in config.deployments:
            try:
                endpoints.append(endpoint_of(deployment.name, deployment.parameters))
            except RouterConfigError as error:
                problems += [f"{deployment.place}: {problem}" for problem in error.problems]
        if problems:
            raise RouterConfigError(problems)
        settings = resolved_settings(config.router_settings, router_settings())
        router = make_router(
            f"{config.path}",
            secrets,
            [_for_router(deployment) for deployment in config.deployments],
            settings,
            attempt_timeout,
        )
        resources.callback(retire, router)
        aliases = cast("dict[str, Any]", settings.get("model_group_alias") or {})
        return RunRouter(
            "config",
            router,
            resources=resources.pop_all(),
            secrets=secrets,
            models=[*(deployment.name for deployment in config.deployments), *aliases],
            description=_describe_config(config, settings),
            endpoints=endpoints,
            warnings=[*config.warnings, *unknown_litellm_settings(config)],
            recipe=RunRouterRecipe(router_of_config, config, attempt_timeout),
            has_fallbacks=any(
                name.endswith("fallbacks") and name != "max_fallbacks" and bool(setting.value)
                for settings_of in (config.router_settings, config.litellm_settings)
                for name, setting in settings_of.items()
            ),
        )


def _unknown_router_settings(config: ProxyConfig) -> Iterator[str]:
    valid = router_settings()
    for name, setting in config.router_settings.items():
        if name in valid:
            continue
        near = nearest(name, valid)
        hint = f"; is {near} meant?" if near else "; see the settings of a litellm Router"
        yield f"{setting.place}: unknown setting{hint}"


def _for_router(deployment: Deployment) -> dict[str, Any]:
    """Return the entry in the form that the Router takes.

    The Router itself resolves ``os.environ/NAME`` at the top level. Nested ones, for instance in
    headers, are resolved here.
    """
    parameters = {
        name: value if isinstance(value, str) else resolved(value, os.environ)
        for name, value in deployment.parameters.items()
    }
    return {**deployment.values, "litellm_params": parameters}


def _describe_config(config: ProxyConfig, settings: Mapping[str, Any]) -> dict[str, str]:
    """Describe the models of each name and their parameters. ``settings`` are the Router's."""
    for_all = cast("dict[str, Any]", settings.get("default_litellm_params") or {})
    aliases = cast("dict[str, Any]", settings.get("model_group_alias") or {})
    deployments = [(deployment.name, deployment.parameters) for deployment in config.deployments]
    return describe_deployments(deployments, aliases, for_all)
