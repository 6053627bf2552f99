"""Make a Router whose models are served by a demo server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from .endpoints import Endpoint
from .proxy_values import RouterConfigError
from .quiet import quiet_litellm
from .router_members import retire
from .run_router_base import RunRouter, RunRouterRecipe, make_router

if TYPE_CHECKING:
    from parallel_core.demo_server import DemoServerProcess

_MANY_MODELS: Final = 1000  # names that fit on the command line of the demo server


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
    from parallel_core.demo_server import DemoServerSettings, demo_server_process

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
        server = resources.enter_context(
            demo_server_process(settings, meanwhile=lambda: import_module("litellm"))
        )
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
