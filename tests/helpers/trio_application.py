"""Shared parts of the scripts that are trio applications with a Router."""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from typing import Any

from litellm.router import Router

from parallel_core import parallel_acompletions

# Python reports what is left open on the standard error, which the tests check.
warnings.simplefilter("default", ResourceWarning)


def router_of_the_demo() -> Any:
    """A Router whose one model is that of the demo server at ``DEMO_URL``."""
    deployment = {"model": "openai/fast", "api_base": os.environ["DEMO_URL"], "api_key": "none"}
    return Router(model_list=[{"model_name": "fast", "litellm_params": deployment}], num_retries=0)


def ask(**orders: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "fast", "messages": messages, "extra_body": {"demo": orders}}


async def check_batch(router: Any, **options: Any) -> None:
    """Send ten requests; all of them must be answered."""
    results = await parallel_acompletions(router, [ask()] * 10, concurrency=4, **options)
    assert [result.exception for result in results] == [None] * 10, results[0].exception


def import_trio_asyncio() -> Any:
    with warnings.catch_warnings():  # it uses what Python 3.12 has deprecated
        warnings.simplefilter("ignore")
        return importlib.import_module("trio_asyncio")


def threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if not t.name.startswith("Trio thread"))
