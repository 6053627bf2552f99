"""The Router of a run of a file while it is open, and how litellm makes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from .endpoints import Endpoint
from .identity import describe_models
from .missing_keys import missing_key_warnings, need_keys
from .proxy_values import RouterConfigError
from .redaction import Redactor
from .router_members import deployments_for

if TYPE_CHECKING:
    from litellm.router import Router

    from parallel_core.demo_server import DemoServerProcess

RouterKind: TypeAlias = Literal["config", "model", "demo"]


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
        self.key_warnings = missing_key_warnings(self.endpoints)
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
        return need_keys(
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
