"""Recipes of Routers, and what answers in their place."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from parallel_core.demo_server import DemoServerThread
from parallel_core.ray_engine.router_recipe import Recipe

pytest.importorskip("ray")


KEY = "sk-of-the-recipe-0123456789"


def sent(recipe: Recipe) -> Recipe:
    """The recipe as it comes out in another process."""
    copy: Recipe = pickle.loads(pickle.dumps(recipe))
    return copy


def arguments_of(server: DemoServerThread, **parameters: object) -> dict[str, Any]:
    shared = {"model": "openai/fast", "api_base": server.url, "api_key": KEY, **parameters}
    return {"model_list": [{"model_name": "gpt", "litellm_params": shared}], "num_retries": 0}


class Answers:
    """Stands for a Router."""

    def __init__(self, name: str = "of a class") -> None:
        self.name = name
        self.discarded = False

    async def acompletion(self, **arguments: Any) -> str:
        return f"{self.name}: {arguments['model']}"

    def discard(self) -> None:
        self.discarded = True


async def answer(*, model: str, messages: Any) -> str:
    return f"{len(messages)} for {model}"
