"""Answers are read and priced as litellm does it, whatever a provider sends."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from helpers import answer_sequences
from helpers.direct_parity import Way, router_of, send, unlike
from helpers.hosts import ASYNCIO_HOSTS
from helpers.odd_answers import ODD_ANSWERS
from helpers.recording_provider import (
    Canned,
    Kept,
    by_last_message,
    completion,
    recording_provider,
)
from helpers.routers import run_with_routers

ASYNCIO = ASYNCIO_HOSTS[0]
PRICES = {"input_cost_per_token": 0.001, "output_cost_per_token": 0.01}
DEPLOYMENTS: Mapping[str, Mapping[str, Any]] = {
    "without a price": {"model": "openai/unknown"},
    "with litellm's price": {"model": "openai/gpt-4o-mini"},
    "with prices of tiers": {"model": "openai/gpt-5-mini"},
    "with a price": {"model": "openai/priced", **PRICES},
    "with another price": {
        "model": "openai/gpt-4o-mini",
        **PRICES,
        "input_cost_per_token_above_128k_tokens": 1.0,
        "cache_read_input_token_cost": 0.5,
    },
    "with half a price": {"model": "openai/gpt-4o-mini", "output_cost_per_token": 0.5},
    "with a price of its provider": {"model": "mistral/mistral-small-latest"},
}
DAILY = {"with prices of tiers", "with another price"}


@pytest.fixture(autouse=True)
def _no_log(caplog: pytest.LogCaptureFixture) -> None:
    """litellm logs each finish reason that it does not know."""
    caplog.set_level(logging.CRITICAL + 1, logger="LiteLLM")


async def ask(
    texts: Sequence[str], answers: Mapping[str, Canned], deployment: Any, direct: Any
) -> tuple[Way, list[Kept]]:
    """Ask for answers one after another. No failure is sent again."""
    requests = [{"model": "group", "messages": [{"role": "user", "content": t}]} for t in texts]
    with recording_provider(by_last_message(answers)) as provider:
        settings = {"num_retries": 0, "disable_cooldowns": True}
        router = router_of(provider.url, {"group": [deployment]}, **settings)
        way = await send(router, requests, direct, retry=None)
        return way, provider.kept


@pytest.mark.thorough  # every odd answer, twice
@pytest.mark.parametrize("direct", [True, pytest.param("verify", marks=pytest.mark.thorough)])
def test_odd_answers(direct: Any) -> None:
    """Each comes twice: litellm reads the first of a structure, and the lane the second."""
    texts = list(ODD_ANSWERS)
    again = [text for text in texts for _ in range(1 + (ODD_ANSWERS[text].status == 200))]

    async def main() -> None:
        deployment = {"model": "openai/fast"}
        plain, kept = await ask(texts, ODD_ANSWERS, deployment, False)
        ours, kept_ours = await ask(again, ODD_ANSWERS, deployment, direct)
        assert ours.indirect_calls == {}
        assert ours.direct_calls == len(again)
        assert {one.body for one in kept_ours} == {one.body for one in kept}
        expected = dict(zip(texts, plain.outcomes, strict=True))
        for text, outcome in zip(again, ours.outcomes, strict=True):
            assert unlike(expected[text], outcome) == {}, text

    run_with_routers(ASYNCIO, main)


def test_a_redirect_is_followed_by_litellm() -> None:
    answers = {
        "here": Canned(b"", 307, [("Location", "/v1/elsewhere")]),
        "elsewhere": Canned(completion()),
    }

    def answer(path: str, body: Any) -> Canned:
        return answers["elsewhere" if path.endswith("elsewhere") else "here"]

    async def main() -> None:
        request = {"model": "group", "messages": [{"role": "user", "content": "a"}]}
        with recording_provider(answer) as provider:
            router = router_of(provider.url, {"group": [{"model": "openai/fast"}]})
            plain = await send(router, [request], False)
            ours = await send(router, [request] * 2, True)
        assert ours.direct_calls == 0
        assert ours.indirect_calls == {"the provider redirects it": 2}
        for outcome in ours.outcomes:
            assert unlike(plain.outcomes[0], outcome) == {}

    run_with_routers(ASYNCIO, main)


@pytest.mark.parametrize(
    "name",
    [
        name if name in DAILY else pytest.param(name, marks=pytest.mark.thorough)
        for name in DEPLOYMENTS
    ],
)
def test_answers_of_one_structure(name: str) -> None:
    """They are priced and read by their values. Each sequence has a model group of its own."""
    deployment = DEPLOYMENTS[name]
    requests = [
        {"model": sequence, "messages": [{"role": "user", "content": text}]}
        for sequence in answer_sequences.names()
        for text in answer_sequences.of_sequence(sequence)
    ]
    groups = {sequence: [deployment] for sequence in answer_sequences.names()}

    async def ask_all(direct: Any) -> Way:
        with recording_provider(by_last_message(answer_sequences.SEQUENCES)) as provider:
            return await send(router_of(provider.url, groups), requests, direct, retry=None)

    async def main() -> None:
        plain, ours = await ask_all(False), await ask_all(True)
        for request, one, other in zip(requests, plain.outcomes, ours.outcomes, strict=True):
            assert unlike(one, other) == {}, request
        assert ours.direct_calls == len(requests)

    run_with_routers(ASYNCIO, main)


def test_a_price_by_the_second_is_not_that_of_the_lane() -> None:
    deployment = {"model": "openai/fast", "input_cost_per_second": 0.1}

    async def main() -> None:
        way, _ = await ask(["plain"] * 3, ODD_ANSWERS, deployment, True)
        assert way.indirect_calls == {"it is priced by its duration": 3}
        assert all(outcome["hidden"]["response_cost"] > 0 for outcome in way.outcomes)

    run_with_routers(ASYNCIO, main)
