"""Cooldowns of a Router, as it comes: of a batch, of the user's own calls beside it, of a callable.

A deployment that has answered 429 pauses for 5 s, or for ``cooldown_time``. A pause of ten minutes
is one that no test waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from litellm import Router

from helpers.hosts import ASYNCIO_HOSTS
from helpers.routers import run_with_routers
from parallel_core import NotSentError, Retry, classify_failure, parallel_acompletions
from parallel_core.demo_server import DemoServerSettings, DemoServerThread, Trouble

MESSAGES = [{"role": "user", "content": "hi"}]
REQUESTS = [{"model": "m", "messages": MESSAGES}] * 10
LONG = 600  # seconds


@pytest.fixture
def server() -> Iterator[DemoServerThread]:
    """Each of two keys is refused once."""
    trouble = [Trouble("rate_limited", key=f"sk-{n}", count=1, retry_after=0.1) for n in (1, 2)]
    with DemoServerThread(DemoServerSettings(latency_median=0.0, trouble=trouble)) as started:
        yield started


def router_of(server: DemoServerThread, **settings: Any) -> Router:
    router: Router = Router(
        model_list=[
            {
                "model_name": "m",
                "litellm_params": {
                    "model": "openai/fast",
                    "api_base": server.url,
                    "api_key": f"sk-{n}",
                },
            }
            for n in (1, 2)
        ],
        **settings,
    )
    return router


async def own_call(router: Router, **kwargs: Any) -> str:
    """Make a call of the user's own; return what has become of it."""
    try:
        await router.acompletion("m", MESSAGES, num_retries=0, **kwargs)  # type: ignore[arg-type]
    except Exception as error:
        return type(error).__name__
    return "answered"


def run(main: Callable[[], Awaitable[None]]) -> None:
    run_with_routers(ASYNCIO_HOSTS[0], main)


def test_a_batch_makes_no_deployment_pause(server: DemoServerThread) -> None:
    async def main() -> None:
        router = router_of(server)
        # A pause would be longer than this.
        results = await parallel_acompletions(router, REQUESTS, retry=Retry(max_wait=4))
        assert [result.exception for result in results] == [None] * 10
        assert server.stats().accepted == 12  # the two that were refused were sent again
        assert await own_call(router) == "answered"

    run(main)


def test_without_a_batch_they_do_pause(server: DemoServerThread) -> None:
    """Else the test above would see nothing."""

    async def main() -> None:
        router = router_of(server)
        calls = [await own_call(router, cooldown_time=LONG) for _ in range(3)]
        assert calls == ["RateLimitError", "RateLimitError", "RouterRateLimitError"]
        assert server.stats().accepted == 2

    run(main)


def test_a_batch_asks_no_deployment_that_pauses_after_a_call_of_the_user() -> None:
    trouble = [Trouble("rate_limited", key="sk-1", count=1)]
    with DemoServerThread(DemoServerSettings(latency_median=0.0, trouble=trouble)) as server:

        async def main() -> None:
            router = router_of(server)
            while await own_call(router, cooldown_time=LONG) == "answered":
                pass  # by the other one: the Router has drawn it
            server.reset_stats()
            results = await parallel_acompletions(router, REQUESTS)
            assert [result.exception for result in results] == [None] * 10
            assert server.stats().of_key("sk-2").accepted == server.stats().accepted == 10

        run(main)


def test_a_batch_waits_for_a_pause_that_calls_of_the_user_have_caused(
    server: DemoServerThread,
) -> None:
    async def main() -> None:
        router = router_of(server)
        while server.stats().faults.get("rate_limited", 0) < 2:
            await own_call(router, cooldown_time=1)
        before = server.stats().accepted
        results = await parallel_acompletions(router, REQUESTS)
        assert [result.exception for result in results] == [None] * 10
        assert server.stats().accepted == before + 10

    run(main)


def test_a_pause_of_one_deployment_does_not_hold_what_another_refuses_for_a_moment(
    server: DemoServerThread,
) -> None:
    async def main() -> None:
        router = router_of(server)
        assert await own_call(router, cooldown_time=LONG) == "RateLimitError"
        # The other one refuses the first request for a tenth of a second. To wait for the pause
        # would take longer than max_wait.
        results = await parallel_acompletions(
            router, REQUESTS, retry=Retry(max_wait=60), concurrency=1
        )
        assert [result.exception for result in results] == [None] * 10
        assert server.stats().accepted == 1 + 1 + 10

    run(main)


@pytest.mark.parametrize(("whose", "kind"), [("user", "cooling_down"), ("router", "overloaded")])
def test_a_pause_beyond_max_wait_is_not_waited_for(
    server: DemoServerThread, whose: str, kind: str
) -> None:
    """Of calls of the user's own, or of a Router on which its user has set one."""

    async def main() -> None:
        router = router_of(server, **({"cooldown_time": LONG} if whose == "router" else {}))
        if whose == "user":
            for _ in range(2):
                assert await own_call(router, cooldown_time=LONG) == "RateLimitError"
        results = await parallel_acompletions(
            router, REQUESTS, retry=Retry(max_wait=60), concurrency=1
        )
        assert server.stats().accepted == 2
        for result in results:
            error = result.exception
            assert isinstance(error, NotSentError)
            assert f"the Router asks to wait {LONG} s, more than Retry.max_wait (60 s" in str(error)
            # Why it pauses, as far as the batch has seen it.
            assert classify_failure(error).kind == kind

    run(main)


def test_calls_of_a_callable_make_deployments_pause(server: DemoServerThread) -> None:
    """What the Router would do is left to it: nothing is known of a callable."""

    async def main() -> None:
        router = router_of(server, num_retries=0, cooldown_time=LONG)
        results = await parallel_acompletions(router.acompletion, REQUESTS, concurrency=1)
        kinds = Counter(type(result.exception).__name__ for result in results)
        assert kinds == {"RateLimitError": 2, "RouterRateLimitError": 8}
        assert server.stats().accepted == 2
        assert await own_call(router) == "RouterRateLimitError"

    run(main)


def test_calls_of_a_callable_wait_for_a_pause_where_they_are_sent_again(
    server: DemoServerThread,
) -> None:
    async def main() -> None:
        router = router_of(server, num_retries=0, cooldown_time=1)
        results = await parallel_acompletions(router.acompletion, REQUESTS, retry=Retry())
        assert [result.exception for result in results] == [None] * 10
        assert server.stats().accepted == 2 + 10

    run(main)
