"""The provider receives the same requests, byte for byte. Hypothesis makes them up."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helpers.direct_parity import Way, router_of, send, unlike
from helpers.recording_provider import Kept, RecordingProvider, recording_provider
from helpers.sent_requests import GROUPS, REQUESTS
from parallel_core.router_hosts.litellm_loop import close_clients_of_this_loop


def normal(one: Kept) -> tuple[Any, ...]:
    """A request without what HTTP allows to differ: the case of names, and `keep-alive`."""
    headers = [(name.lower(), value) for name, value in one.headers]
    return one.path, sorted(pair for pair in headers if pair[0] != "connection"), one.body


@pytest.fixture(scope="module")
def provider() -> Iterator[RecordingProvider]:
    with recording_provider() as started:
        yield started


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Any], Any]]:
    """Run a coroutine on a loop that stays, with litellm's connections."""
    with asyncio.Runner() as runner:
        yield runner.run
        runner.run(close_clients_of_this_loop())


@pytest.fixture(scope="module")
def routers(provider: RecordingProvider) -> dict[bool, Any]:
    settings: Any = {"num_retries": 0, "disable_cooldowns": True}
    return {direct: router_of(provider.url, GROUPS, **settings) for direct in (False, True)}


@pytest.mark.thorough  # made-up requests; test_requests has each form
@settings(  # a failure is found in seconds; to make it smaller takes minutes
    max_examples=max(10, settings.default.max_examples // 4),  # type: ignore[union-attr]
    phases=[Phase.generate],
)
@given(drawn=st.lists(REQUESTS, min_size=1, max_size=3))
def test_any_request(
    drawn: list[dict[str, Any]],
    provider: RecordingProvider,
    routers: dict[bool, Any],
    run: Callable[[Any], Any],
) -> None:
    async def sent(requests: list[dict[str, Any]], direct: bool) -> tuple[Way, list[Any]]:
        provider.kept.clear()
        way = await send(routers[direct], copy.deepcopy(requests), direct, retry=None)
        return way, [normal(one) for one in provider.kept]

    plain, bodies = run(sent(drawn, False))
    ours, our_bodies = run(sent(drawn * 2, True))
    assert our_bodies == bodies * 2
    for one, other in zip(plain.outcomes * 2, ours.outcomes, strict=True):
        assert unlike(one, other) == {}
