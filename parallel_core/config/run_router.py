"""Make the Router of a file run: from a file of litellm's proxy, a model name, or a demo.

Each of the three functions returns a :class:`RunRouter`. All problems that can be found are found
before the first call. Only the functions import litellm, since the import takes seconds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias, cast
from urllib.parse import urlsplit

import msgspec

from .endpoints import Endpoint as Endpoint
from .endpoints import endpoint_of, known_providers, owner_of, quiet_litellm, secrets_sent
from .identity import describe_deployments, describe_models
from .in_place import config_in_place, resolved_settings, unknown_litellm_settings
from .litellm_settings import router_settings
from .proxy_config import Deployment, ProxyConfig, read_proxy_config
from .proxy_values import RouterConfigError as RouterConfigError
from .proxy_values import nearest, resolved
from .redaction import Redactor
from .router_members import deployments_for, retire

if TYPE_CHECKING:
    from litellm.router import Router

    from parallel_core.demo_server import DemoServerProcess

RouterKind: TypeAlias = Literal["config", "model", "demo"]

_MOST_NAMED: Final = 3  # models in a message about one missing key
_MANY_MODELS: Final = 1000  # names that fit on the command line of the demo server


class RunRouter:
    """A Router for a run of a file, with data about it. A context manager.

    While it is open, the settings of its config apply to the process: environment variables and
    attributes of the module ``litellm``, as in litellm's proxy. Closing restores the previous
    values and stops the demo server. Close RunRouters in the reverse order of opening.

    Attributes:
        kind: source of the Router.
        router: the Router. Its ``repr`` is litellm's: never log it.
        secrets: every key that it sends or that its config contains, for redaction of errors. It
            includes those of the environment variables that the config refers to, and of the
            variable that litellm uses for a deployment without a key, such as ``OPENAI_API_KEY``.
        models: the names that requests can use, sorted. Some may be patterns such as ``openai/*``.
        description: what the answers depend on, for the manifest of a run: the models that answer
            for each name, and a digest of their parameters. A run may be resumed with another key,
            address, region or number of retries.
        endpoints: addresses and keys of the deployments.
        warnings: warnings for the user before the run, a line each.
        key_warnings: models without a key, a line for each missing variable.
        recipe: makes such a RunRouter in another process, with the same servers. It can be
            pickled. It uses the environment of that process. A demo server remains the one of this
            process.
        server: the demo server, or None.
    """

    def __init__(
        self,
        kind: RouterKind,
        router: Router,
        *,
        resources: contextlib.ExitStack,
        secrets: Iterable[str] = (),
        models: Iterable[str] = (),
        description: Mapping[str, str | int | float | bool | None],
        endpoints: Iterable[Endpoint] = (),
        warnings: Iterable[str] = (),
        recipe: RunRouterRecipe,
        server: DemoServerProcess | None = None,
        has_fallbacks: bool = False,
    ) -> None:
        self.kind: RouterKind = kind
        self.router = router
        self.secrets = frozenset(secrets)
        self.models = sorted(set(models))
        self.description = dict(description)
        self.endpoints = list(endpoints)
        self.warnings = list(warnings)
        self.key_warnings = _missing_key_warnings(self.endpoints)
        self.recipe = recipe
        self.server = server
        self._resources = resources
        self._has_fallbacks = has_fallbacks

    def serves(self, model: str) -> bool:
        """Return True if the Router has a deployment for this model: by its name, an alias or a
        pattern."""
        return model in self.models or bool(deployments_for(self.router, model))

    def describe(self, models: Iterable[str]) -> dict[str, Any]:
        """Return the part of the description that concerns requests for these models."""
        return describe_models(self.description, models)

    def missing_keys(self, models: Iterable[str]) -> list[str]:
        """Report which of these models cannot be called because all their deployments lack a key:
        a line for each missing variable."""
        if self._has_fallbacks:  # another model may answer for one without a key
            return []
        asked = set(models)
        by_model: dict[str, list[Endpoint]] = {}
        for endpoint in self.endpoints:
            by_model.setdefault(endpoint.model_name, []).append(endpoint)
        return _need_keys(
            endpoints[0]
            for name, endpoints in by_model.items()
            if name in asked and all(endpoint.missing_keys for endpoint in endpoints)
        )

    def close(self) -> None:
        """Restore the previous settings, and stop the demo server.

        All calls in flight must have ended.
        """
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<RunRouter kind={self.kind!r} models={self.models}>"


class RunRouterRecipe:
    """Opens a RunRouter when it is called, in any process.

    It can be pickled with the arguments of the Router. These may contain keys, so its ``repr`` does
    not show them.
    """

    def __init__(self, open_router: Callable[..., RunRouter], *arguments: Any) -> None:
        self._open_router = open_router
        self._arguments = arguments

    def __call__(self) -> RunRouter:
        return self._open_router(*self._arguments)

    def __repr__(self) -> str:
        return f"<RunRouterRecipe {self._open_router.__name__}>"


# --- the file of litellm's proxy ---


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
        resources.enter_context(config_in_place(config))
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


def _need_keys(endpoints: Iterable[Endpoint]) -> list[str]:
    """Return a problem for each missing variable, with all models that need it."""
    return [
        f"{'the models' if len(names) > 1 else 'the model'} {_first_names(map(repr, names))} "
        f"{'need' if len(names) > 1 else 'needs'} a key: set the environment variable {variable}, "
        "which is not set or empty"
        for variable, names in _models_by_missing_key(endpoints).items()
    ]


def _missing_key_warnings(endpoints: Iterable[Endpoint]) -> list[str]:
    return [
        f"{_first_names(names)}: {variable} is not set or empty"
        for variable, names in _models_by_missing_key(endpoints).items()
    ]


def _models_by_missing_key(endpoints: Iterable[Endpoint]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for endpoint in endpoints:
        if endpoint.missing_keys:
            found.setdefault(" or ".join(endpoint.missing_keys), {})[endpoint.model_name] = None
    return {variable: list(names) for variable, names in found.items()}


def _first_names(names: Iterable[str]) -> str:
    listed = list(names)
    if len(listed) == 1:
        return listed[0]
    shown, more = listed[:_MOST_NAMED], len(listed) - _MOST_NAMED
    if more <= 0:
        return f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{', '.join(shown)} and {more:,} more"


def _describe_config(config: ProxyConfig, settings: Mapping[str, Any]) -> dict[str, str]:
    """Describe the models of each name and their parameters. ``settings`` are the Router's."""
    for_all = cast("dict[str, Any]", settings.get("default_litellm_params") or {})
    aliases = cast("dict[str, Any]", settings.get("model_group_alias") or {})
    deployments = [(deployment.name, deployment.parameters) for deployment in config.deployments]
    return describe_deployments(deployments, aliases, for_all)


# --- a model's name ---


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
        provider = _provider_of(model, api_base)
        problems: list[str] = []
        without_key: list[Endpoint] = []
        deployments: list[dict[str, Any]] = []
        endpoints: list[Endpoint] = []
        for name, values in given.items():
            parameters = {"model": _litellm_name(name, provider, api_base), **values}
            try:
                endpoint = endpoint_of(name, parameters)
            except RouterConfigError as error:
                problems += error.problems
                continue
            if endpoint.missing_keys and api_base is not None and key_is_optional:
                parameters["api_key"] = "none"
                endpoint = msgspec.structs.replace(endpoint, missing_keys=())
            elif endpoint.missing_keys:
                without_key.append(endpoint)
            endpoints.append(endpoint)
            deployments.append({"model_name": name, "litellm_params": parameters})
        problems += _need_keys(without_key)
        if problems:
            raise RouterConfigError(problems)
        secrets = secrets_sent(deployment["litellm_params"] for deployment in deployments)
        settings = {} if num_retries is None else {"num_retries": num_retries}
        router = make_router(
            f"the model {model!r}", secrets, deployments, settings, attempt_timeout
        )
        resources.callback(retire, router)
        chosen = {
            deployment["model_name"]: {
                name: value
                for name, value in deployment["litellm_params"].items()
                if name != "model"
            }
            for deployment in deployments
        }
        asked = {entry["model_name"]: entry["litellm_params"]["model"] for entry in deployments}
        return RunRouter(
            "model",
            router,
            resources=resources.pop_all(),
            secrets=secrets,
            models=given,
            description=describe_deployments(
                ((name, {"model": model}) for name, model in asked.items()), {}, {}
            ),
            endpoints=endpoints,
            recipe=RunRouterRecipe(
                *(_router_of_models, model, api_base, chosen, num_retries, attempt_timeout, False)
            ),
        )


def _provider_of(model: str, api_base: str | None) -> str | None:
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


# --- the demo ---


def demo_router(
    model_names: Sequence[str],
    *,
    seed: int = 7,
    latency: float = 0.3,
    rate_limited: float = 0.0,
    server_error: float = 0.0,
    num_retries: int | None = None,
    attempt_timeout: float | None = None,
) -> RunRouter:
    """Make a Router whose models are all served by a demo server.

    The server runs in its own process until the Router is closed. Its answers are synthetic and
    cost nothing.

    Args:
        model_names: every model name of the requests; if empty, those of the demo server.
        seed: seed of its latencies, answers and faults.
        latency: median of the time to an answer, in seconds.
        rate_limited: share of requests (0 to 1) that it answers with 429.
        server_error: share of requests (0 to 1) that it answers with 500.
        num_retries: retries of the Router; ``None``: litellm's default.
        attempt_timeout: seconds for each attempt of a call; ``None``: litellm's default.

    Raises:
        RouterConfigError: the demo server cannot have these names, or there are too many of them.
    """
    from parallel_core.demo_server.servers import DemoServerSettings, demo_server_process

    usual = DemoServerSettings().models
    names = list(dict.fromkeys(model_names)) or list(usual)
    if len(names) > _MANY_MODELS:
        problem = (
            f"the demo server has at most {_MANY_MODELS} models, but the requests name {len(names)}"
        )
        raise RouterConfigError([problem])
    try:
        settings = DemoServerSettings(
            seed=seed,
            latency_median=latency,
            rate_limited=rate_limited,
            server_error=server_error,
            models={name: usual.get(name, 1.0) for name in names},
        )
    except ValueError as error:
        raise RouterConfigError([f"the demo server cannot serve this: {error}"]) from None
    with contextlib.ExitStack() as resources:
        # Otherwise litellm fetches its price map over the network at import.
        os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        server = resources.enter_context(demo_server_process(settings))
        return _router_of_demo(
            server, seed, names, num_retries, attempt_timeout, resources.pop_all()
        )


def _router_of_demo(
    server: DemoServerProcess,
    seed: int,
    names: Sequence[str],
    num_retries: int | None,
    attempt_timeout: float | None,
    resources: contextlib.ExitStack | None = None,
) -> RunRouter:
    """Make the Router of :func:`demo_router` for a running server.

    ``resources`` are closed with the Router.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    with resources or contextlib.ExitStack() as held:
        held.enter_context(quiet_litellm())
        deployments: list[dict[str, Any]] = [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": server.url,
                    "api_key": "none",
                },
            }
            for name in names
        ]
        router = make_router(
            "the demo",
            frozenset(),
            deployments,
            {} if num_retries is None else {"num_retries": num_retries},
            attempt_timeout,
        )
        held.callback(retire, router)
        return RunRouter(
            "demo",
            router,
            resources=held.pop_all(),
            models=names,
            description={"router": "demo", "seed": seed},
            endpoints=[Endpoint(name, f"openai/{name}", "openai", server.url) for name in names],
            recipe=RunRouterRecipe(
                _router_of_demo, server, seed, tuple(names), num_retries, attempt_timeout
            ),
            server=server,
        )


def make_router(
    source: str,
    secrets: Iterable[str],
    model_list: list[dict[str, Any]],
    settings: Mapping[str, Any],
    attempt_timeout: float | None = None,
) -> Router:
    """Make a Router of litellm.

    Args:
        source: the name for error messages.
        attempt_timeout: seconds for each attempt without its own timeout, instead of litellm's
            6,000.

    Raises:
        RouterConfigError: litellm cannot make it. The text contains neither ``secrets`` nor
            anything that looks like a key.
    """
    from litellm.litellm_core_utils.request_timeout_resolver import get_configured_request_timeout
    from litellm.router import Router

    is_set = get_configured_request_timeout() is not None
    if attempt_timeout is not None and settings.get("timeout") is None and not is_set:
        settings = {**settings, "timeout": attempt_timeout}
    try:
        router: Router = Router(model_list=model_list, **settings)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        needed_by = [name for name in settings if module and module in name]
        problem = (
            f"{source}: {', '.join(needed_by) or 'one of its settings'} "
            f"{'need' if len(needed_by) > 1 else 'needs'} the package "
            f"{module or 'of a provider'}, which is not installed: pip install {module}"
        )
    except Exception as error:  # noqa: BLE001 - litellm may raise anything for a wrong setting
        reason = Redactor(secrets).redact(f"{type(error).__name__}: {error}")
        # The first line of an error of pydantic has the reason; the others quote values.
        first_line = reason.strip().splitlines()[0]
        problem = f"{source}: litellm cannot make a Router of it: {first_line}"
    else:
        return router
    raise RouterConfigError([problem])
