"""Counts of the attempts that workers make directly."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import litellm
import pytest

import parallel_core
from helpers.local_workers import LocalWorkers, fleet_of, request, run
from helpers.ray_requests import fast
from helpers.ray_routers import HttpRouter
from helpers.ray_runtime import IGNORED_WARNINGS
from parallel_core import Retry
from parallel_core.demo_server import DemoServerThread
from parallel_core.ray_engine import open_ray_router
from parallel_core.router import DIRECT, DirectCounts

_LISTENERS = ("callbacks", "success_callback", "_async_success_callback", "input_callback")


@pytest.fixture(autouse=True)
def _nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away the callbacks that other tests have left in litellm's lists."""
    for name in _LISTENERS:
        monkeypatch.setattr(litellm, name, [])


@pytest.fixture
def source(server: DemoServerThread) -> Iterator[LocalWorkers]:
    server.reset_stats()
    yield LocalWorkers(HttpRouter(server.url))
    server.release()


def direct_request(name: str, demo: dict[str, Any] | None = None, **arguments: Any) -> bytes:
    if demo is not None:
        arguments["extra_body"] = {"demo": demo}
    return request(name, "fast", **{DIRECT: True, **arguments})


def test_each_batch_has_the_counts_of_its_own_calls(source: LocalWorkers) -> None:
    async def main() -> None:
        one, other = DirectCounts(), DirectCounts()
        async with fleet_of(source, workers=2, concurrency=4) as fleet:
            await asyncio.gather(
                *(fleet.call(direct_request(f"one {n}"), counts=one) for n in range(12)),
                *(fleet.call(direct_request(f"other {n}"), counts=other) for n in range(7)),
                fleet.call(direct_request("x", mock_response="made up"), counts=other),
                fleet.call(request("not direct", "fast"), counts=other),
            )
        assert (one.direct_calls, one.indirect_calls) == (12, {})
        assert (other.direct_calls, other.indirect_calls) == (7, {"it has mock_response": 1})
        assert one.differences == other.differences == {}

    run(main)


def test_an_attempt_that_fails_counts_and_so_does_the_next_one(source: LocalWorkers) -> None:
    async def main() -> None:
        counts = DirectCounts()
        async with fleet_of(source, workers=1) as fleet:
            for _ in range(2):
                with pytest.raises(litellm.exceptions.InternalServerError):
                    await fleet.call(direct_request("x", {"fault": "server_error"}), counts=counts)
        assert counts.direct_calls == 2

    run(main)


def test_a_cancelled_call_counts(source: LocalWorkers, server: DemoServerThread) -> None:
    async def main() -> None:
        counts = DirectCounts()
        async with fleet_of(source, workers=1) as fleet:
            call = asyncio.create_task(
                fleet.call(direct_request("x", {"fault": "hang"}), counts=counts)
            )
            await asyncio.to_thread(server.wait_in_flight, 1, 30)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
        assert counts.direct_calls == 1

    run(main)


def test_what_a_dead_worker_had_sent_is_not_counted(
    source: LocalWorkers, server: DemoServerThread
) -> None:
    async def main() -> None:
        counts = DirectCounts()
        server.hold()
        async with fleet_of(source, workers=1, concurrency=1) as fleet:
            call = asyncio.create_task(
                fleet.call(direct_request("x", {"held": True}), counts=counts)
            )
            await asyncio.to_thread(server.wait_in_flight, 1, 30)
            source.spawned[0].kill()
            server.release()
            await call
            assert fleet.resent_requests == 1
        assert counts.direct_calls == 1

    run(main)


@pytest.mark.thorough
@pytest.mark.usefixtures("ray")
@pytest.mark.filterwarnings(*IGNORED_WARNINGS)
def test_a_batch_on_ray_has_the_counts_of_its_attempts(server: DemoServerThread) -> None:
    server.reset_stats()

    async def main() -> None:
        make = HttpRouter(server.url, num_retries=1)
        async with open_ray_router(make, workers=2, concurrency=4) as router:
            async with parallel_core.iter_parallel_acompletions(
                router,
                [*(fast(n) for n in range(20)), fast("bad", {"fault": "server_error"})],
                concurrency=router.slots,
                direct=True,
                retry=Retry(max_attempts=2),
            ) as batch:
                async for _ in batch:
                    pass
            assert batch.failed == 1
            assert batch.direct_calls == 22  # the failed request was sent twice
            assert batch.indirect_calls == {}
            async with parallel_core.iter_parallel_acompletions(
                router, [fast("a"), fast("b")], concurrency=router.slots, direct="verify"
            ) as verified:
                async for _ in verified:
                    pass
            assert (verified.direct_calls, verified.direct_differences) == (2, {})

    asyncio.run(main())
