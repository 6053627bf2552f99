"""What workers have in place of a Router in tests of the Ray engine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class ScriptedRouter:
    """Does what the request says. A call that waits leaves a file, until it has ended."""

    async def acompletion(self, *, model: str, messages: Any, **arguments: Any) -> Any:
        text = messages[0]["content"]
        if model == "answer":
            return os.getpid(), text
        if model == "wait":
            mark = Path(arguments["folder"]) / f"{text}-{os.getpid()}"
            mark.touch()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                mark.unlink()
        if model == "raise":
            raise LookupError(text)
        if model == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if model == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        if model == "end the loop":
            asyncio.get_running_loop().call_soon(sys.exit, 3)
            await asyncio.Event().wait()
        if model == "block":
            (Path(arguments["folder"]) / text).touch()
            time.sleep(1000)  # noqa: ASYNC251 - it is what a call must not do
        raise AssertionError(model)


def scripted() -> ScriptedRouter:
    return ScriptedRouter()


async def no_op(*, model: str, messages: Any, **arguments: Any) -> Any:
    return messages, arguments


def bare_callable() -> Any:
    return no_op


def exits_elsewhere() -> ScriptedRouter:
    if os.environ.get("DRIVER") != str(os.getpid()):
        sys.exit(3)
    return ScriptedRouter()


def broken() -> NoReturn:
    raise LookupError("the Router cannot be made")


def deadly() -> ScriptedRouter:
    if os.environ.get("DRIVER") != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    return ScriptedRouter()


class HttpRouter:
    """Makes a litellm Router of a server."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url = url
        self.settings = settings

    def __call__(self) -> Any:
        from litellm.router import Router

        parameters = {"model": "openai/fast", "api_base": self.url, "api_key": "none"}
        prices = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01}
        deployment = {"model_name": "fast", "litellm_params": {**parameters, **prices}}
        settings: Any = {"num_retries": 0, "disable_cooldowns": True, **self.settings}
        return Router(model_list=[deployment], **settings)


class DefaultRouter:
    """Makes a litellm Router of a server, with its default retries and cooldowns."""

    def __init__(self, url: str, models: Sequence[str]) -> None:
        self.url = url
        self.models = models

    def parameters(self, model: str) -> dict[str, Any]:
        return {"model": f"openai/{model}", "api_base": self.url, "api_key": "none"}

    def __call__(self) -> Any:
        from litellm.router import Router

        return Router(
            model_list=[
                {"model_name": model, "litellm_params": self.parameters(model)}
                for model in self.models
            ]
        )
