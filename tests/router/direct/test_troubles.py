"""Every kind of trouble ends in the same way, whether litellm has sent a request or the lane."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from helpers.direct_parity import router_of, send, unlike, without_seconds
from helpers.direct_troubles import COLUMNS, UNREACHABLE, Told, send_column
from helpers.hosts import ASYNCIO_HOSTS
from helpers.ports import held_port
from helpers.routers import run_with_routers
from parallel_core import Retry
from parallel_core.demo_server import DemoServerSettings, DemoServerThread, Trouble

ASYNCIO = ASYNCIO_HOSTS[0]
SERVER_TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Pair:
    """The same requests on both ways."""

    plain: Told
    direct: Told


def both_ways(column: str, direct: Any) -> Pair:
    told: list[Told] = []

    async def main() -> None:
        with held_port() as port:
            told.extend(
                await asyncio.gather(
                    *(send_column(COLUMNS[column], port, way) for way in (False, direct))
                )
            )

    run_with_routers(ASYNCIO, main)
    return Pair(*told)


# Of most others, each attempt is one of these, too; and the headers of a retry differ.
DAILY = {("router retries", True)}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            (column, direct),
            id=f"{column}-{direct}",
            marks=[] if (column, direct) in DAILY else pytest.mark.thorough,
        )
        for column in COLUMNS
        for direct in (True, "verify")
    ],
)
def pair(request: pytest.FixtureRequest) -> Pair:
    return both_ways(*request.param)


def test_every_request_has_the_same_outcome(pair: Pair) -> None:
    assert pair.plain.outcomes.keys() == pair.direct.outcomes.keys()
    for kind, outcome in pair.plain.outcomes.items():
        assert unlike(outcome, pair.direct.outcomes[kind]) == {}, kind


def test_the_server_gets_the_same_attempts(pair: Pair) -> None:
    assert pair.direct.attempts == pair.plain.attempts


def test_the_same_deployments_cool_down(pair: Pair) -> None:
    assert pair.direct.cooldowns == pair.plain.cooldowns


def test_every_attempt_is_direct_and_no_answer_differs(pair: Pair) -> None:
    assert (pair.plain.direct_calls, pair.plain.indirect_calls) == (0, {})
    attempts = sum(pair.direct.attempts.values())
    if UNREACHABLE not in pair.direct.outcomes:
        assert pair.direct.direct_calls == attempts
    assert pair.direct.direct_calls >= attempts
    assert pair.direct.indirect_calls == {}
    assert pair.direct.differences == {}


@pytest.mark.parametrize("direct", [True, pytest.param("verify", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("trouble", "deployment"),
    [
        pytest.param(Trouble("hang"), {"timeout": 1.0}, marks=pytest.mark.thorough),
        (Trouble("away", seconds=0.1), {}),
    ],
    ids=["hang", "away"],
)
def test_trouble_that_takes_time(trouble: Trouble, deployment: Any, direct: Any) -> None:
    """A request that is never answered, and a server that goes away."""
    settings = DemoServerSettings(latency_median=0.0, trouble=[trouble])
    ways: list[Any] = []
    attempts: list[int] = []

    async def send_one(direct: Any) -> None:
        with DemoServerThread(settings) as server:
            router = router_of(server.url, {"fast": [{"model": "openai/fast", **deployment}]})
            request = {"model": "fast", "messages": [{"role": "user", "content": "a"}]}
            way = await send(router, [request], direct, retry=Retry(max_attempts=2))
            ways.append(way.outcomes[0])
            assert way.direct_calls == (2 if direct else 0)
            assert not way.differences
            await asyncio.to_thread(server.wait_idle, SERVER_TIMEOUT)
            attempts.append(server.stats().accepted)

    async def main() -> None:
        await asyncio.gather(send_one(False), send_one(direct))

    run_with_routers(ASYNCIO, main)
    assert attempts == [2, 2]
    for outcome in ways:
        if "message" in outcome:
            outcome["message"] = without_seconds(outcome["message"])
    assert unlike(*ways) == {}
