"""Each control with a real Router over real HTTP, in trio and in asyncio; and all at once.

What closes connections runs on each kind of loop.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from litellm.router import Router

import parallel_core
from helpers.hosts import ASYNCIO_HOSTS, EACH_LIBRARY, HOSTS, Host, name_of
from helpers.routers import make_router, run_with_routers
from helpers.thorough import thorough_but
from parallel_core import (
    AdaptiveConcurrency,
    BatchTimeoutError,
    Budget,
    BudgetExceededError,
    Hedge,
    Progress,
    RateLimit,
    RequestTimeoutError,
    RouterParallelRequest,
)
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

SERVER_TIMEOUT = 60.0  # seconds
ONE_OF_EACH = list(zip(EACH_LIBRARY, (True, False), strict=True))
PRICES = {"fast": (1e-6, 2e-6), "slow": (1e-6, 2e-6)}


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0)) as server:
        # The first call in a process loads much of litellm: here it is a matter of fractions.
        parallel_core.parallel_completions(make_router(server), [ask()])
        yield server


def ask(model: str = "fast", *, timeout: float | None = None, **orders: Any) -> Any:
    messages = [{"role": "user", "content": "hello"}]
    kwargs = {"extra_body": {"demo": orders}, "max_tokens": 40}
    return RouterParallelRequest(model, messages, kwargs, timeout)


def nothing_is_left(server: DemoServerThread) -> None:
    server.wait_idle(SERVER_TIMEOUT)
    assert server.stats().in_flight == 0


def test_a_timeout_closes_the_connection(host: Host, server: DemoServerThread) -> None:
    async def main() -> None:
        requests = [ask(fault="hang", timeout=0.4), ask(fault="hang"), ask(timeout=30)]
        results = await parallel_core.parallel_acompletions(
            make_router(server), requests, timeout=0.5, preserve_order=True
        )
        errors = [result.exception for result in results]
        assert isinstance(errors[0], RequestTimeoutError)
        assert isinstance(errors[1], RequestTimeoutError)
        assert [errors[0].limit, errors[1].limit, errors[2]] == [0.4, 0.5, None]
        assert errors[0].model == "fast"

    run_with_routers(host, main)
    nothing_is_left(server)
    # On a busy machine a request may not have got there before its time was over.
    assert server.stats().disconnected == server.stats().accepted - 1 <= 2


def test_a_total_timeout_closes_the_connections(host: Host, server: DemoServerThread) -> None:
    async def main(total_timeout: float) -> None:
        requests = [ask(), *(ask(fault="hang") for _ in range(30))]
        results = await parallel_core.parallel_acompletions(
            make_router(server),
            requests,
            total_timeout=total_timeout,
            concurrency=8,
            preserve_order=True,
        )
        assert results[0].ok or isinstance(results[0].exception, BatchTimeoutError)
        assert len(results) == 31
        assert all(isinstance(r.exception, BatchTimeoutError) for r in results[1:])

    for total_timeout in (0.5, 4.0, 16.0):  # a busy machine may need longer to send nine requests
        server.reset_stats()
        run_with_routers(host, functools.partial(main, total_timeout))
        nothing_is_left(server)
        if server.stats().accepted == 9:
            break
    assert server.stats().finished == 1
    assert server.stats().disconnected == 8
    assert server.stats().accepted == 9


def test_progress_tells_tokens_as_the_server_counts_them(
    either_library: Host, server: DemoServerThread
) -> None:
    snapshots: list[Progress] = []

    async def main() -> None:
        async with parallel_core.iter_parallel_acompletions(
            make_router(
                server,
                parameters={"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6},
            ),
            [ask() for _ in range(20)],
            on_progress=snapshots.append,
        ) as batch:
            answers = [result.unwrap() async for result in batch]
        usage = batch.usage
        assert usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in answers)
        assert usage.completion_tokens == sum(a.usage.completion_tokens for a in answers)
        expected = usage.prompt_tokens * 1e-6 + usage.completion_tokens * 2e-6
        assert usage.cost == pytest.approx(expected)
        assert usage.unpriced_calls == 0
        assert snapshots[-1].usage == usage

    run_with_routers(either_library, main)
    last = snapshots[-1]
    assert (last.total, last.done, last.succeeded, last.in_flight) == (20, 20, 20, 0)
    assert last.finished
    assert not any(snapshot.finished for snapshot in snapshots[:-1])


@pytest.mark.parametrize("host", thorough_but(ASYNCIO_HOSTS, EACH_LIBRARY, name_of))
def test_adaptive_concurrency_has_every_request_answered(host: Host) -> None:
    settings = DemoServerSettings(
        latency_median=0.02, latency_sigma=0.1, capacity=4, retry_after=0.05, models={"fast": 1.0}
    )
    with DemoServerThread(settings) as server:

        def release_when_one_is_rejected() -> None:
            server.wait_finished(1, SERVER_TIMEOUT)
            server.release()

        async def main() -> None:
            router = Router(
                model_list=[
                    {
                        "model_name": "fast",
                        "litellm_params": {
                            "model": "openai/fast",
                            "api_base": server.url,
                            "api_key": "none",
                        },
                    }
                ],
            )  # which would retry rate limits itself, and keep a slot waiting
            async with parallel_core.iter_parallel_acompletions(
                router,
                [ask(held=True) for _ in range(60)],
                concurrency=AdaptiveConcurrency(initial=12),
            ) as batch:
                results = [result async for result in batch]
            assert [result.exception for result in results if not result.ok] == []
            assert len(results) == 60
            rejected = batch.limit_changes[-1].rejected
            assert 0 < rejected < 60
            assert server.stats().faults == {"over_capacity": rejected}

        server.hold()  # else the first ones may have ended before the fifth is sent
        releasing = threading.Thread(target=release_when_one_is_rejected)
        releasing.start()
        run_with_routers(host, main)
        releasing.join()
        nothing_is_left(server)


def test_a_deployment_that_rejects_is_never_sent_too_much(
    either_library: Host, server: DemoServerThread
) -> None:
    async def main() -> None:
        router = make_router(server, parameters={"max_parallel_requests": 3})
        requests = [ask(model, latency=0.01) for model in ("fast", "slow") * 20]
        async with parallel_core.iter_parallel_acompletions(
            router, requests, concurrency=AdaptiveConcurrency(initial=32)
        ) as batch:
            results = [result async for result in batch]
        assert all(result.ok for result in results)
        assert max(change.limit for change in batch.limit_changes) <= 6
        assert batch.limit_changes[-1].rejected == 0

    run_with_routers(either_library, main)
    assert server.stats().max_in_flight <= 6


def test_a_rate_limit_paces_the_calls(either_library: Host, server: DemoServerThread) -> None:
    async def main() -> None:
        limits = {"fast": RateLimit(requests_per_minute=1200, burst=5)}
        began = asyncio.get_running_loop().time() if either_library.library == "asyncio" else _now()
        results = await parallel_core.parallel_acompletions(
            make_router(server), [ask() for _ in range(15)], rate_limit=limits, concurrency=15
        )
        now = asyncio.get_running_loop().time() if either_library.library == "asyncio" else _now()
        assert all(result.ok for result in results)
        assert now - began >= 10 / 20  # ten of them had to wait

    run_with_routers(either_library, main)


def _now() -> float:
    import trio

    return trio.current_time()


def test_a_budget_is_never_exceeded(either_library: Host, server: DemoServerThread) -> None:
    async def main() -> None:
        # The worst case of each request is 40 tokens of answer and the bytes of its prompt.
        budget = Budget(max_cost=0.001, prices=PRICES)
        async with parallel_core.iter_parallel_acompletions(
            make_router(server), [ask() for _ in range(50)], budget=budget, concurrency=8
        ) as batch:
            results = [result async for result in batch]
        refused = [r for r in results if isinstance(r.exception, BudgetExceededError)]
        answered = [r for r in results if r.ok]
        assert len(refused) + len(answered) == 50
        assert refused
        assert server.stats().accepted == len(answered)
        spent = sum(
            r.response.usage.prompt_tokens * 1e-6 + r.response.usage.completion_tokens * 2e-6
            for r in answered
        )
        assert budget.spent_cost == pytest.approx(spent)
        assert budget.spent_cost <= 0.001
        assert budget.reserved_cost == 0
        assert batch.usage.cost == pytest.approx(spent)
        with pytest.raises(BudgetExceededError):
            await parallel_core.parallel_acompletions(
                make_router(server), [ask()], budget=budget, return_exceptions=False
            )

    run_with_routers(either_library, main)


def test_a_hung_model_leaves_the_other_its_slots(
    either_library: Host, server: DemoServerThread
) -> None:
    async def main() -> None:
        requests = [ask("slow", fault="hang"), ask("fast")] * 20
        async with parallel_core.iter_parallel_acompletions(
            make_router(server), requests, fair_by="model", concurrency_per_key=4
        ) as batch:
            for _ in range(20):
                result = await anext(batch)
                assert result.ok
                assert result.request.model == "fast"
                assert result.index % 2 == 1
            assert batch.in_flight == 4  # of the hung model

    run_with_routers(either_library, main)
    nothing_is_left(server)
    assert server.stats().models["slow"].disconnected == 4


def test_a_straggler_is_overtaken_by_its_second_attempt(
    either_library: Host, server: DemoServerThread
) -> None:
    async def main() -> None:
        requests = [ask() for _ in range(20)]
        # The server draws a fault for the second attempt as well: only the first one hangs.
        results = await parallel_core.parallel_acompletions(
            Stalling(make_router(server)), requests, hedge=Hedge(after=0.3, max_extra=1.0)
        )
        assert all(result.ok for result in results)

    run_with_routers(either_library, main)
    nothing_is_left(server)
    stats = server.stats()
    # On a busy machine others may be so slow that they get one, too.
    assert stats.finished >= 20
    assert stats.disconnected >= 1


class Stalling:
    """A Router whose third call hangs at the server."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._calls = 0

    async def acompletion(self, **kwargs: Any) -> Any:
        self._calls += 1
        if self._calls == 3:
            kwargs["extra_body"] = {"demo": {"fault": "hang"}}
        return await self._router.acompletion(**kwargs)


@pytest.mark.parametrize(
    ("host", "preserve_order"),
    [
        pytest.param(
            host,
            preserve_order,
            marks=[] if (host, preserve_order) in ONE_OF_EACH else pytest.mark.thorough,
            id=f"{host.name}-{preserve_order}",
        )
        for host in HOSTS
        for preserve_order in (False, True)
    ],
)
def test_all_controls_at_once(host: Host, preserve_order: bool) -> None:
    settings = DemoServerSettings(
        latency_median=0.01, capacity=8, retry_after=0.05, server_error=0.05, hang=0.02
    )
    snapshots: list[Progress] = []
    with DemoServerThread(settings) as server:

        async def main() -> None:
            budget = Budget(max_cost=1.0, prices=PRICES)
            async with parallel_core.iter_parallel_acompletions(
                make_router(server),
                (ask("fast" if index % 3 else "slow") for index in range(90)),
                concurrency=AdaptiveConcurrency(initial=4, maximum=16),
                preserve_order=preserve_order,
                timeout=1.5,
                total_timeout=60,
                on_progress=snapshots.append,
                progress=True,
                rate_limit=RateLimit(requests_per_minute=60_000, tokens_per_minute=6_000_000),
                budget=budget,
                fair_by="model",
                concurrency_per_key=12,
                hedge=Hedge(after=0.5, max_extra=0.1),
            ) as batch:
                results = [result async for result in batch]
            assert {result.index for result in results} == set(range(90))
            if preserve_order:
                assert [result.index for result in results] == list(range(90))
            answered = [result for result in results if result.ok]
            assert len(answered) >= 60
            assert batch.usage.completion_tokens == sum(
                result.response.usage.completion_tokens for result in answered
            )
            assert budget.reserved_cost == 0
            assert batch.usage.cost <= budget.spent_cost + 1e-9 <= 1.0
            assert batch.in_flight == 0
            assert max(change.limit for change in batch.limit_changes) <= 16

        run_with_routers(host, main)
        nothing_is_left(server)
    assert snapshots[-1].done == 90
    assert snapshots[-1].finished
