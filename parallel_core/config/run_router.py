"""Make the Router of a file run: from a file of litellm's proxy, a model name, or a demo.

Each of the three functions returns a :class:`RunRouter`. All problems that can be found are found
before the first call. Only the functions import litellm, since the import takes seconds.
"""

from .config_router import router_from_config, router_of_config
from .demo_router import demo_router
from .endpoints import Endpoint
from .model_router import router_from_model
from .proxy_values import RouterConfigError
from .run_router_base import RouterKind, RunRouter, RunRouterRecipe, make_router

__all__ = [
    "Endpoint",
    "RouterConfigError",
    "RouterKind",
    "RunRouter",
    "RunRouterRecipe",
    "demo_router",
    "make_router",
    "router_from_config",
    "router_from_model",
    "router_of_config",
]
