"""A Router, and the demo server in a process of its own, for what is asked over HTTP."""

from __future__ import annotations

import itertools
from typing import Any

from parallel_core.demo_server import DemoServerSettings
from parallel_core.demo_server.settings import RequestOverride, plan_request

from .adapter import MODEL, Messages

AT_ONCE = {"fault": "none", "latency": 0.0}
"""Orders for a request that is answered without delay, whatever the server does otherwise."""


def make_router(url: str) -> Any:
    from litellm import Router

    deployment = {"model": f"openai/{MODEL}", "api_base": url, "api_key": "none"}
    return Router(model_list=[{"model_name": MODEL, "litellm_params": deployment}], num_retries=0)


def conversations(count: int) -> list[Messages]:
    return [[{"role": "user", "content": f"Question {number}"}] for number in range(count)]


def one_of_them_fails(before: int, in_flight: int, after: float) -> DemoServerSettings:
    """A server on which, ``before`` requests having been answered, all hang but one.

    That one, among the next ``in_flight``, is answered with an error ``after`` seconds.
    """
    numbers = range(before + 1, before + in_flight + 1)
    for seed in itertools.count():
        settings = DemoServerSettings(
            seed=seed,
            latency_median=after,
            latency_sigma=0.0,
            hang=1 - 1 / in_flight,
            server_error=1 / in_flight,
            models={MODEL: 1.0},
        )
        plans = [plan_request(settings, MODEL, number, RequestOverride()) for number in numbers]
        if sum(plan.fault == "server_error" for plan in plans) == 1:
            return settings
    raise AssertionError  # there is always a next seed
