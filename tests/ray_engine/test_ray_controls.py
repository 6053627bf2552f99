"""One limit for all workers on Ray, and what the driver and Ray's logs are left with.

``make test`` has one run, one kill, one cancellation and one cap with Ray. What the driver and a
worker do has tests without Ray (``test_fleet…``, ``test_worker``), and CI runs these as well.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import parallel_core
from helpers.hosts import Host
from helpers.ray_requests import fast, request, until
from helpers.ray_routers import HttpRouter, scripted
from helpers.ray_runtime import IGNORED_WARNINGS
from parallel_core import (
    AdaptiveConcurrency,
    Budget,
    Hedge,
    RateLimit,
    Usage,
)
from parallel_core.demo_server import DemoServerThread
from parallel_core.errors import (
    BudgetExceededError,
    WorkerDiedError,
)
from parallel_core.ray_engine import (
    iter_parallel_acompletions,
    open_ray_router,
    parallel_acompletions,
)

pytestmark = [
    pytest.mark.usefixtures("ray"),
    *(pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS),
]


@pytest.mark.thorough  # needs Ray: see the head of this file
@pytest.mark.parametrize(
    ("room", "attempts", "ends"),
    [
        pytest.param(3, 3, WorkerDiedError, marks=pytest.mark.thorough),
        (2, 2, BudgetExceededError),
    ],
)
def test_a_budget_counts_what_was_lost_with_workers(
    room: int, attempts: int, ends: type[Exception], asyncio_only: Host
) -> None:
    class Meter:
        def worst_case(self, item: Any) -> Usage:
            return Usage(cost=1.0)

        def usage(self, response: Any) -> Usage:
            return Usage(cost=0.0)

    async def main() -> None:
        budget = Budget(max_cost=room)
        batch = iter_parallel_acompletions(
            scripted, [request(1, "die")], workers=1, concurrency=1, budget=budget, meter=Meter()
        )
        async with batch:
            (result,) = [result async for result in batch]
        assert isinstance(result.exception, ends)
        assert batch.lost_workers == attempts
        assert (budget.spent_cost, budget.reserved_cost) == (attempts, 0)

    asyncio_only.run(main)


@pytest.mark.thorough  # needs Ray: see the head of this file
def test_no_hedged_call_waits_in_a_worker(asyncio_only: Host, tmp_path: Path) -> None:
    async def main() -> None:
        batch = iter_parallel_acompletions(
            scripted,
            [request(n, "wait", folder=str(tmp_path)) for n in range(20)],
            workers=2,
            concurrency=3,
            hedge=Hedge(after=60.0),
        )
        async with batch:
            taking = asyncio.ensure_future(anext(batch))
            await until(lambda: len(list(tmp_path.iterdir())) == 6)
            assert batch.in_flight == 6
            taking.cancel()

    asyncio_only.run(main)


@pytest.mark.thorough  # needs Ray: see the head of this file
def test_streams_have_the_prices_of_the_budget_and_the_meter_of_the_batch(
    server: DemoServerThread,
) -> None:
    told = {"fault": "reset", "reply": "one two three four"}
    requests = [fast(1, {"reply": "one two"}, stream=True), fast(2, told, stream=True)]

    class Meter:
        def worst_case(self, item: Any) -> Usage:
            return Usage(cost=2.0)

        def usage(self, response: Any) -> Usage:
            return Usage(cost=2.0)

    async def main() -> None:
        async with open_ray_router(HttpRouter(server.url), workers=1, concurrency=4) as router:
            prices = {"fast": (1.0, 2.0)}
            whole, part = await parallel_core.parallel_acompletions(
                router,
                requests,
                preserve_order=True,
                budget=Budget(max_cost=1e6, prices=prices, assume_output_tokens=1000),
            )
            for usage in (whole.usage, part.usage):
                assert usage is not None
                assert usage.cost == usage.prompt_tokens + 2.0 * usage.completion_tokens > 0
            whole, part = await parallel_core.parallel_acompletions(
                router, requests, preserve_order=True, meter=Meter()
            )
            assert whole.usage == Usage(cost=2.0)
            assert (part.ok, part.usage) == (False, None)
            answer = await router.acompletion(**requests[0])
            assert answer.choices[0].message.content == "one two"

    asyncio.run(main())  # the Router of this process leaves a task of litellm's


def test_logs_of_ray_hold_no_contents(server: DemoServerThread, ray: Any) -> None:
    async def main() -> None:
        requests = [
            fast("a very secret prompt", {"fault": "server_error"}),
            fast("a very secret prompt", {"fault": "server_error"}, stream=True),
            fast("a very secret prompt", {"reply": "a very secret answer"}),
        ]
        results = await parallel_acompletions(HttpRouter(server.url), requests, workers=1)
        assert sum(result.ok for result in results) == 1

    asyncio.run(main())
    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    logs = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("worker-") for path in logs)
    said = {path.name: path.read_text(errors="replace") for path in logs}
    assert [name for name, text in said.items() if "very secret" in text] == []
    # What litellm logs quotes errors of providers, who quote prompts.
    assert [name for name, text in said.items() if "LiteLLM" in text] == []


@pytest.mark.thorough  # needs Ray: see the head of this file
def test_the_driver_stays_as_it_was(asyncio_only: Host) -> None:
    hooks = sys.excepthook, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    async def main() -> None:
        async with open_ray_router(scripted, workers=1):
            assert signal.getsignal(signal.SIGTERM) == hooks[1]

    asyncio_only.run(main)
    assert hooks == (
        sys.excepthook,
        signal.getsignal(signal.SIGTERM),
        signal.getsignal(signal.SIGINT),
    )


def test_a_budget_is_a_hard_cap_of_all_workers(
    asyncio_only: Host, server: DemoServerThread
) -> None:
    server.reset_stats()

    async def main() -> None:
        batch = iter_parallel_acompletions(
            HttpRouter(server.url),
            [fast(n, {"reply": "one two three"}, max_tokens=10) for n in range(200)],
            workers=2,
            concurrency=8,
            budget=Budget(max_cost=3.0),
        )
        async with batch:
            results = [result async for result in batch]
        kinds = Counter(type(result.exception) for result in results)
        assert kinds.keys() == {type(None), BudgetExceededError}
        assert 0 < batch.usage.cost <= 3.0
        assert server.stats().accepted == kinds[type(None)]

    asyncio_only.run(main)


@pytest.mark.thorough  # needs Ray: see the head of this file
def test_an_adaptive_limit_and_a_rate_limit_are_of_all_workers(
    asyncio_only: Host, server: DemoServerThread
) -> None:
    server.reset_stats()

    async def main() -> None:
        results = await parallel_acompletions(
            HttpRouter(server.url),
            [fast(n, {"latency": 0.01}) for n in range(100)],
            workers=2,
            concurrency=AdaptiveConcurrency(initial=1, minimum=1, maximum=3),
            rate_limit=RateLimit(requests_per_minute=6e6, burst=1000),
        )
        assert all(result.ok for result in results)

    asyncio_only.run(main)
    assert server.stats().max_in_flight <= 3
