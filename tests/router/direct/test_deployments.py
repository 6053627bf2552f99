"""What the lane has learnt of one deployment is not used for another."""

from __future__ import annotations

from typing import Any

from helpers.direct_parity import Way, router_of, send, unlike
from helpers.hosts import ASYNCIO_HOSTS
from helpers.recording_provider import recording_provider
from helpers.routers import run_with_routers

ASYNCIO = ASYNCIO_HOSTS[0]


def ask(model: str, **arguments: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "a"}], **arguments}


def compare(groups: Any, requests: list[dict[str, Any]], **settings: Any) -> Way:
    """Check that both ways have the same outcomes. Return the direct one."""
    ways: list[Way] = []

    async def main() -> None:
        for direct in (False, True):
            with recording_provider() as provider:
                router = router_of(provider.url, groups, **settings)
                ways.append(await send(router, requests, direct, retry=None))
                ways[-1].outcomes.append({"sent": [one.body for one in provider.kept]})

    run_with_routers(ASYNCIO, main)
    plain, direct = ways
    for request, one, other in zip([*requests, {}], plain.outcomes, direct.outcomes, strict=True):
        assert unlike(one, other) == {}, request
    return direct


def test_deployments_with_equal_parameters() -> None:
    groups = {name: [{"model": "openai/fast"}] for name in ("one", "two")}
    way = compare(groups, [ask(name) for name in ("one", "two") * 3])
    assert way.direct_calls == 6


def test_deployments_with_equal_parameters_and_other_prices() -> None:
    groups = {
        name: [{"model": "openai/gpt-4o-mini", **prices}]
        for name, prices in {
            "listed": {},
            "dear": {"input_cost_per_token": 1.0, "output_cost_per_token": 2.0},
            "free": {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0},
        }.items()
    }
    way = compare(groups, [ask(name) for name in ("listed", "dear", "free") * 3])
    assert way.direct_calls == 9
    # The listed price is litellm's, which other tests of this process may have changed.
    costs = [outcome["hidden"]["response_cost"] for outcome in way.outcomes[:3]]
    assert costs[1:] == [19.0, 0.0]


def test_what_one_model_accepts_another_may_refuse() -> None:
    """A temperature is passed on to one model, and refused for the other, as litellm knows."""
    groups = {name: [{"model": f"openai/{name}"}] for name in ("fast", "gpt-5-mini")}
    requests = [ask("fast", temperature=number / 10) for number in range(20)]
    requests += [ask("gpt-5-mini", temperature=number) for number in (1.0, 0.5, 1.0)]
    way = compare(groups, requests, num_retries=0)
    assert [outcome.get("class").__name__ for outcome in way.outcomes[20:23]] == [  # type: ignore[union-attr]
        "ModelResponse",
        "UnsupportedParamsError",
        "ModelResponse",
    ]
    assert way.direct_calls == 22
    assert way.indirect_calls == {"litellm refuses it": 1}
