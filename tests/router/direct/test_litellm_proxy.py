"""A client and a server that nobody here wrote: litellm's proxy answers litellm and the lane alike.

The proxy stands in front of a demo server, which makes the trouble that it passes on.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

import parallel_core
from helpers.direct_parity import (
    Way,
    failure_of,
    normal,
    router_of,
    send,
    unlike,
    without_seconds,
)
from helpers.hosts import ASYNCIO_HOSTS
from helpers.litellm_proxy import Proxy, litellm_proxy
from helpers.ports import held_port
from helpers.routers import run_with_routers
from helpers.streams import events_of
from helpers.wire_cases import TOOLS, cases
from parallel_core import Retry
from parallel_core.demo_server import (
    TROUBLE_KINDS,
    DemoServerSettings,
    DemoServerThread,
    Trouble,
)

pytestmark = pytest.mark.thorough

ASYNCIO = ASYNCIO_HOSTS[0]
PROVIDERS = ("litellm_proxy", "openai")
KINDS = [kind for kind in TROUBLE_KINDS if kind not in ("away", "hang")]
MODELS = ("fast", "gpt-4o-mini", "gpt-5-mini")
QUESTION = [{"role": "user", "content": "a"}]
# Headers of the proxy with what differs from call to call.
OF_ONE_CALL = ("-duration-ms", "-key-spend", "-call-id", "date")
PARTS = 4
TIMES = 2  # litellm reads the first answer of each structure, the lane the second
PRICES = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01}


@dataclass(frozen=True)
class Stand:
    """The proxy, and the demo server that it asks."""

    server: DemoServerThread
    proxy: Proxy


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    settings = DemoServerSettings(
        latency_median=0.0,
        time_to_first_token=0.0,
        chunk_gap=0.0,
        models=dict.fromkeys((*KINDS, *MODELS, "hang"), 1.0),
        trouble=[Trouble(kind, kind) for kind in (*KINDS, "hang")],
    )
    with DemoServerThread(settings) as server, held_port() as port:
        deployments: dict[str, Mapping[str, Any]] = {
            name: {"model": f"openai/{name}", "api_base": server.url, "api_key": "sk-behind"}
            for name in (*KINDS, *MODELS, "hang")
        }
        deployments["slow"] = {**deployments["hang"], "timeout": 0.5}
        deployments["priced"] = {**deployments["fast"], **PRICES}
        deployments["mocked"] = {"model": "openai/gpt-4o-mini", "mock_response": "mocked"}
        deployments["away"] = {**deployments["fast"], "api_base": f"http://127.0.0.1:{port}/v1"}
        # Each request comes to the demo server, whatever came before.
        folder = tmp_path_factory.mktemp("proxy")
        with litellm_proxy(deployments, folder, num_retries=0, disable_cooldowns=True) as proxy:
            yield Stand(server, proxy)


def router_for(stand: Stand, provider: str, names: Any, **parameters: Any) -> Any:
    """A Router as it comes, with a deployment of each model of the proxy."""
    own = {"api_key": stand.proxy.key, **parameters}
    groups = {name: [{"model": f"{provider}/{name}", **own}] for name in names}
    return router_of(stand.proxy.url, groups)


def alike(outcome: Any) -> Any:
    """An outcome without durations, and without what the proxy's headers say of one call."""
    if isinstance(outcome, dict):
        members: Mapping[str, Any] = outcome
        return {
            name: alike(member)
            for name, member in members.items()
            if not name.endswith(OF_ONE_CALL)
        }
    if isinstance(outcome, str) and "time taken" in outcome:
        return without_seconds(outcome)
    return outcome


def both_ways(
    stand: Stand, provider: str, requests: list[Any], *, direct: Any = True, **options: Any
) -> tuple[Way, Way]:
    """Send requests plain and direct, and check that their outcomes are equal."""
    parameters = options.pop("parameters", {})
    names = dict.fromkeys(request["model"] for request in requests)
    ways: list[Way] = []

    async def main() -> None:
        for way in (False, direct):
            stand.server.reset_stats()
            router = router_for(stand, provider, names, **parameters)
            ways.append(await send(router, copy.deepcopy(requests), way, **options))

    run_with_routers(ASYNCIO, main)
    plain, ours = ways
    for request, one, other in zip(requests, plain.outcomes, ours.outcomes, strict=True):
        assert unlike(alike(one), alike(other)) == {}, request
    assert not ours.differences
    return plain, ours


def ask(model: str = "fast", **arguments: Any) -> dict[str, Any]:
    return {"model": model, "messages": QUESTION, **arguments}


def classes(way: Way) -> list[str]:
    return [outcome["class"].__name__ for outcome in way.outcomes]


@pytest.mark.parametrize("part", range(PARTS))  # all of them take longer than a test may
@pytest.mark.parametrize(("provider", "direct"), [("litellm_proxy", True), ("openai", "verify")])
def test_requests_of_every_form(stand: Stand, provider: str, direct: Any, part: int) -> None:
    bodies = cases()
    del bodies["half-a-character"]  # litellm sends it again and again
    names = [name for name in list(bodies)[part::PARTS] for _ in range(TIMES)]
    plain, ours = both_ways(
        stand, provider, [bodies[name] for name in names], direct=direct, retry=None
    )
    # A client of openai/… refuses two parameters that one of litellm_proxy/… passes on.
    refused = {"verbosity", "thinking"} if provider == "openai" else set[str]()
    reasons = {
        "litellm rewrites its messages": names.count("developer"),
        "litellm refuses it": sum(name in refused for name in names),
    }
    assert ours.indirect_calls == {reason: times for reason, times in reasons.items() if times}
    assert ours.direct_calls == len(names) - sum(reasons.values())
    assert classes(plain).count("ModelResponse") >= ours.direct_calls - 4


@pytest.mark.parametrize("name", ["priced", "mocked"])
@pytest.mark.parametrize("provider", PROVIDERS)
def test_costs_that_the_proxy_tells(stand: Stand, provider: str, name: str) -> None:
    plain, ours = both_ways(stand, provider, [ask(name)] * 3)
    assert (ours.direct_calls, ours.indirect_calls) == (3, {})
    told = "llm_provider-x-litellm-response-cost"
    for outcome in plain.outcomes:
        hidden = outcome["hidden"]
        assert hidden["response_cost"] == float(hidden["additional_headers"][told]) > 0


@pytest.mark.parametrize(
    ("provider", "retry"),
    [("litellm_proxy", None), ("openai", Retry(max_attempts=2))],
    ids=["the Router retries", "the batch retries"],
)
def test_trouble_that_the_proxy_passes_on(stand: Stand, provider: str, retry: Any) -> None:
    requests = [ask(kind) for kind in (*KINDS, "away", "slow")]
    plain, ours = both_ways(stand, provider, requests, retry=retry, concurrency=len(requests))
    assert ours.direct_calls >= len(requests)
    assert ours.indirect_calls == {}
    found = {
        request["model"]: outcome.get("status_code")
        for request, outcome in zip(requests, plain.outcomes, strict=True)
    }
    expected = {
        "bad_key": 401,
        "unknown_model": 404,
        "rate_limited": 429,
        "context_length": 400,
        "slow": 408,
    }
    assert {name: found[name] for name in expected} == expected
    assert (found["server_error"] or 0) >= 500


@pytest.mark.parametrize("provider", PROVIDERS)
def test_refusals_of_the_proxy_itself(stand: Stand, provider: str) -> None:
    requests = [
        ask(api_key="sk-of-nobody"),
        ask("nowhere"),
        ask(extra_body={"temperature": "hot"}),
        ask(extra_body={"messages": []}),
    ]
    plain, ours = both_ways(stand, provider, requests)
    assert "ModelResponse" not in (classes(plain)[0], classes(plain)[1])
    assert ours.indirect_calls == {"litellm rewrites its messages": 1}  # there are others to send
    assert ours.direct_calls >= len(requests) - 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_timeout_of_the_client(stand: Stand, provider: str) -> None:
    options = {"parameters": {"timeout": 0.5}, "retry": Retry(max_attempts=2)}
    plain, ours = both_ways(stand, provider, [ask("hang")], **options)
    assert classes(plain) == ["Timeout"]
    assert (ours.direct_calls, ours.indirect_calls) == (2, {})


@pytest.mark.parametrize("provider", PROVIDERS)
def test_streams(stand: Stand, provider: str) -> None:
    requests = [
        ask(),
        ask(),
        ask(n=2),
        ask(tools=TOOLS),
        ask("rate_limited"),
        ask("unknown_model"),
        ask("server_error"),
    ]
    ways: list[tuple[Any, Any]] = []

    async def stream(direct: bool) -> None:
        stand.server.reset_stats()
        router = router_for(stand, provider, dict.fromkeys(each["model"] for each in requests))
        batch = parallel_core.iter_parallel_streams(
            router, copy.deepcopy(requests), direct=direct, concurrency=1, retry=None
        )
        texts, ends = await events_of(batch)
        whole: dict[int, Any] = {}
        for index, result in ends.items():
            error, usage = result.exception, result.usage
            response: Any = result.response
            shown = None if response is None else response.model_dump(warnings=False)
            whole[index] = normal(shown) if error is None else alike(failure_of(error)), usage
        ways.append((texts, whole))

    async def main() -> None:
        await stream(False)
        await stream(True)

    run_with_routers(ASYNCIO, main)
    (texts, ends), (our_texts, our_ends) = ways
    assert our_texts == texts
    assert our_ends == ends
    assert len(ends) == len(requests)
    assert all(texts[index] for index in range(3))
