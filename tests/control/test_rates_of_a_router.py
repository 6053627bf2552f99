"""Rate limits that are read from the deployments of a Router."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from litellm import Router

from helpers.hosts import in_virtual_time
from parallel_core import parallel_acompletions
from parallel_core.control.rate_limit import RateLimit


def deployment(name: str, **places: Any) -> dict[str, Any]:
    parameters = {"model": "openai/gpt-4o", "api_key": "x", **places.pop("params", {})}
    info = places.pop("info", {})
    return {"model_name": name, "litellm_params": parameters, "model_info": info, **places}


def test_from_router() -> None:
    router = Router(
        model_list=[
            deployment("params", params={"rpm": 10, "tpm": 1000}),
            deployment("info", info={"rpm": 20, "tpm": 2000}),
            deployment("top", rpm=30, tpm=3000),
            deployment("order", rpm=1, params={"rpm": 2, "tpm": 5}, info={"rpm": 3, "tpm": 6}),
            deployment("sum", params={"rpm": 10, "tpm": 7}),
            deployment("sum", info={"rpm": 5}),
            deployment("none"),
        ]
    )
    limits = RateLimit.from_router(router)
    assert {
        name: (limit.requests_per_minute, limit.tokens_per_minute) for name, limit in limits.items()
    } == {
        "params": (10, 1000),
        "info": (20, 2000),
        "top": (30, 3000),
        "order": (1, 5),
        "sum": (15, None),
    }

    class Around:
        def __init__(self) -> None:
            self.router = router

    assert RateLimit.from_router(Around()).keys() == limits.keys()
    with pytest.raises(TypeError, match="router must be a litellm Router, not object"):
        RateLimit.from_router(object())


def test_names_of_the_same_deployments_share_a_limit() -> None:
    """In a batch, too: an alias and its model have their turns one after another."""
    router = Router(
        model_list=[
            deployment("gpt", params={"rpm": 4}),
            deployment("gpt", params={"rpm": 2}),
            deployment("free"),
            deployment("openai/*", params={"model": "openai/*", "rpm": 60, "tpm": 600}),
        ],
        model_group_alias={
            "fast": "gpt",
            "hidden": {"model": "gpt", "hidden": True},
        },
    )
    limits = RateLimit.from_router(router, ["openai/a", "openai/b", "nobody/c"])
    assert limits["gpt"] is limits["fast"] is limits["hidden"]
    assert limits["openai/*"] is limits["openai/a"] is limits["openai/b"]
    assert limits.keys() == {"gpt", "fast", "hidden", "openai/*", "openai/a", "openai/b"}
    times: list[tuple[str, float]] = []

    async def fake(model: str, **_: Any) -> Any:
        times.append((model, trio.current_time()))
        return {"usage": {"prompt_tokens": 5, "completion_tokens": 5}}

    async def main() -> None:
        began = trio.current_time()
        requests = [
            {"model": model, "messages": [{"role": "user", "content": "x"}]}
            for model in ("gpt", "fast", "hidden", "free")
        ]
        results = await parallel_acompletions(fake, requests, rate_limit=limits)
        assert all(result.ok for result in results)
        assert sorted((model, round(at - began)) for model, at in times) == [
            ("fast", 10),
            ("free", 0),
            ("gpt", 0),
            ("hidden", 20),
        ]

    in_virtual_time(main)


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf"), "many", True, [5]])
def test_a_rate_of_a_router_that_is_none_is_refused(rate: object) -> None:
    class StandIn:
        model_list: ClassVar = [deployment("gpt", info={"tpm": rate})]

    router = StandIn()
    with pytest.raises(
        ValueError, match=r"tpm of a deployment of 'gpt' must be a number of at least 0"
    ):
        RateLimit.from_router(router)


def test_a_rate_of_zero_adds_nothing() -> None:
    router = Router(
        model_list=[
            deployment("one", params={"rpm": 0}),
            deployment("two", params={"rpm": 0}),
            deployment("two", info={"rpm": "5"}),
        ]
    )
    limits = RateLimit.from_router(router)
    assert {name: limit.requests_per_minute for name, limit in limits.items()} == {"two": 5}
