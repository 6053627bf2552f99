"""Requests of every form get the same answers on both ways."""

from __future__ import annotations

import copy
from typing import Any

import pydantic
import pytest

from helpers.direct_parity import Way, router_of, send, unlike
from helpers.hosts import ASYNCIO_HOSTS, TRIO, Host
from helpers.recording_provider import recording_provider
from helpers.routers import run_with_routers
from helpers.wire_cases import PIXEL, cases
from parallel_core import ParallelRouter, parallel_completions
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

ASYNCIO = ASYNCIO_HOSTS[0]
MODELS = ("fast", "gpt-4o-mini", "gpt-5-mini")
SERVER_SETTINGS = DemoServerSettings(latency_median=0.0, models=dict.fromkeys(MODELS, 1.0))
# What litellm changes in the messages of these requests depends on the messages, so it sends them.
REWRITTEN = {"developer"}
TIMES = 2  # the lane learns from the first of each
REFUSED = {"verbosity", "thinking"}


class Weather(pydantic.BaseModel):
    city: str
    degrees: float | None = None


def requests() -> dict[str, dict[str, Any]]:
    bodies = cases()
    del bodies["half-a-character"]  # litellm sends it again and again
    question = {"role": "user", "content": "a"}
    image = {"type": "image_url", "image_url": {"url": PIXEL}}
    more: dict[str, Any] = {
        "class": {"response_format": Weather},
        "headers": {"extra_headers": {"X-One": "1", "User-Agent": "mine"}},
        "roles": {
            "messages": [
                {"role": "system", "content": "Be brief."},
                question,
                {"role": "assistant", "content": "b"},
                question,
            ]
        },
        "images": {"messages": [{"role": "user", "content": [image, image]}]},
        "timeout": {"timeout": 30.0},
        "own-key": {"api_key": "sk-own"},
    }
    bodies |= {
        name: {"model": "fast", "messages": [question], **body} for name, body in more.items()
    }
    return bodies


async def send_cases(direct: Any) -> Way:
    """Send each request several times."""
    bodies = requests()
    groups = {model: [{"model": f"openai/{model}"}] for model in MODELS}
    with DemoServerThread(SERVER_SETTINGS) as server:
        router = router_of(server.url, groups)
        every = [copy.deepcopy(body) for body in bodies.values() for _ in range(TIMES)]
        return await send(router, every, direct)


@pytest.mark.parametrize(
    ("host", "direct"),
    [
        (ASYNCIO, True),
        pytest.param(TRIO, True, marks=pytest.mark.thorough),
        pytest.param(ASYNCIO, "verify", marks=pytest.mark.thorough),
    ],
    ids=["asyncio", "trio", "verify"],
)
def test_requests_of_every_form(host: Host, direct: Any) -> None:
    ways: list[Way] = []

    async def main() -> None:
        ways.extend([await send_cases(False), await send_cases(direct)])

    run_with_routers(host, main)
    plain, ours = ways
    names = [name for name in requests() for _ in range(TIMES)]
    for name, one, other in zip(names, plain.outcomes, ours.outcomes, strict=True):
        assert unlike(one, other) == {}, name
    assert ours.indirect_calls == {
        "litellm rewrites its messages": TIMES * len(REWRITTEN),
        "litellm refuses it": TIMES * len(REFUSED),
    }
    assert ours.direct_calls == len(names) - sum(ours.indirect_calls.values())
    assert not ours.differences


# --- other ways to send a batch ---


def test_synchronous_code_and_a_parallel_router() -> None:
    parameters = {"model": "openai/fast", "api_key": "sk-1"}
    request = {"model": "fast", "messages": [{"role": "user", "content": "a"}]}
    with recording_provider() as provider:

        def send_synchronously(direct: bool) -> list[bytes]:
            router = ParallelRouter(
                model_list=[
                    {
                        "model_name": "fast",
                        "litellm_params": {**parameters, "api_base": provider.url},
                        "model_info": {"id": f"synchronous-{direct}"},
                    }
                ]
            )
            results = parallel_completions(router, [request] * 3, direct=direct)

            async def main() -> None:
                results.extend(await router.parallel_acompletions([request] * 3, direct=direct))

            run_with_routers(ASYNCIO, main)
            assert [each.unwrap().choices[0].message.content for each in results] == ["answer"] * 6
            bodies = [one.body for one in provider.kept]
            provider.kept.clear()
            return bodies

        assert send_synchronously(True) == send_synchronously(False)


@pytest.mark.parametrize("name", ["headers", "extra_headers"])
def test_headers_that_differ_from_call_to_call_are_sent(name: str) -> None:
    values = ["one", "two", "three"]
    sent: list[Any] = []

    async def main() -> None:
        with recording_provider() as provider:
            router = router_of(provider.url, {"fast": [{"model": "openai/fast"}]})
            question = [{"role": "user", "content": "a"}]
            requests = [
                {"model": "fast", "messages": question, name: {"X-Value": value}}
                for value in values
            ]
            way = await send(router, requests, True, concurrency=1)
            assert way.indirect_calls == {}
            for kept in provider.kept:
                sent.extend(value for name, value in kept.headers if name.lower() == "x-value")

    run_with_routers(ASYNCIO, main)
    assert sent == values
