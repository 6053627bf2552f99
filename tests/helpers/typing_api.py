# pyright: basic
"""The public API as its users' type checkers see it: checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, assert_type

from litellm.router import Router

import parallel_core
from parallel_core import (
    AdaptiveConcurrency,
    Budget,
    Hedge,
    InvalidRequestError,
    LimitChange,
    ParallelBatch,
    ParallelResult,
    ParallelRouter,
    Progress,
    RateLimit,
    RouterHost,
    RouterParallelRequest,
    RouterParallelResult,
    RouterStream,
    Usage,
    bridge,
    nursery_engine,
    ray_engine,
)


async def length(text: str) -> int:
    return len(text)


async def texts() -> AsyncIterator[str]:
    yield "text"


def requests() -> Iterator[Mapping[str, Any]]:
    yield {"model": "gpt", "messages": []}


async def maps() -> None:
    assert_type(
        await parallel_core.parallel_map(length, ["a"], concurrency=3),
        list[ParallelResult[str, int]],
    )
    assert_type(
        parallel_core.iter_parallel_map(length, texts()), ParallelBatch[ParallelResult[str, int]]
    )
    async with parallel_core.iter_parallel_map(length, iter("abc")) as batch:
        assert_type(batch, ParallelBatch[ParallelResult[str, int]])
        async for result in batch:
            assert_type(result, ParallelResult[str, int])
            assert_type(result.index, int)
            assert_type(result.item, str)
            assert_type(result.value, int | None)
            assert_type(result.exception, Exception | None)
            assert_type(result.unwrap(), int)
            assert_type(result.ok, bool)
            assert_type(result.started_at, float)
            assert_type(result.duration, float)
        assert_type(batch.started, int)
        assert_type(batch.in_flight, int)
        batch.cancel()
        await batch.aclose()
    await nursery_engine.parallel_map(length, ["a"])
    async for result in bridge.iter_parallel_map(length, ["a"]):
        assert_type(result, ParallelResult[str, int])


async def completions(router: Router, own: ParallelRouter) -> None:
    request = RouterParallelRequest("gpt", [{"role": "user", "content": "hi"}], {"n": 1})
    mapping = {"model": "gpt", "messages": [{"role": "user", "content": "hi"}]}
    assert_type(
        await parallel_core.parallel_acompletions(router, [request], preserve_order=True),
        list[RouterParallelResult],
    )
    await parallel_core.parallel_acompletions(router, [mapping], return_exceptions=False)
    await parallel_core.parallel_acompletions(router, [request, mapping])
    await parallel_core.parallel_acompletions(router, requests())
    await parallel_core.parallel_acompletions(router.acompletion, (request,))
    assert_type(parallel_core.parallel_completions(own, [mapping]), list[RouterParallelResult])
    texts = {"model": "small", "input": ["hi"]}
    assert_type(
        await parallel_core.parallel_calls(router, [texts], operation="aembedding", budget=None),
        list[RouterParallelResult],
    )
    assert_type(await own.parallel_calls([texts], operation="x"), list[RouterParallelResult])
    assert_type(own.iter_parallel_calls([texts]), ParallelBatch[RouterParallelResult])
    assert_type(parallel_core.parallel_calls_sync(own, [texts]), list[RouterParallelResult])
    assert_type(RouterParallelRequest("small", kwargs=texts).arguments, dict[str, Any])
    assert_type(await own.parallel_acompletions([request]), list[RouterParallelResult])
    async for result in own.iter_parallel_acompletions([request], concurrency=2):
        assert_type(result, RouterParallelResult)
        assert_type(result.request, RouterParallelRequest)
        assert_type(result.request.model, str)
        assert_type(result.exception, Exception | None)


def key(request: RouterParallelRequest) -> str:
    return request.model


def show(progress: Progress) -> None:
    assert_type(progress.eta, float | None)
    assert_type(progress.usage, Usage)


async def controls(router: Router, own: ParallelRouter) -> None:
    request = RouterParallelRequest("gpt", [{"role": "user", "content": "hi"}], timeout=3)
    async with parallel_core.iter_parallel_acompletions(
        router,
        [request],
        concurrency="auto",
        timeout=3,
        total_timeout=60.0,
        progress=True,
        on_progress=show,
        rate_limit=RateLimit.from_router(router),
        budget=Budget(max_cost=1, prices={"gpt": (1e-6, 2e-6)}),
        fair_by=key,
        concurrency_per_key=3,
        hedge=Hedge(after="p95"),
    ) as batch:
        assert_type(batch.usage, Usage)
        assert_type(batch.limit, int)
        assert_type(batch.limit_changes, list[LimitChange])
    await own.parallel_acompletions([request], concurrency=AdaptiveConcurrency(maximum=9))
    await parallel_core.parallel_map(length, ["a"], rate_limit=RateLimit(requests_per_minute=9))
    await bridge.parallel_map(length, ["a"], timeout=None, fair_by=len)
    await nursery_engine.parallel_map(length, ["a"], hedge=Hedge(after=0.5))
    parallel_core.parallel_completions(router, [request], fair_by="model")


async def in_trio(router: Router, own: ParallelRouter) -> None:
    request = RouterParallelRequest("gpt", [{"role": "user", "content": "hi"}])
    assert_type(
        await parallel_core.parallel_acompletions(router, [request], router_host="thread"),
        list[RouterParallelResult],
    )
    await nursery_engine.parallel_acompletions(router, [request], router_host="trio-asyncio")
    await own.parallel_acompletions([request], router_host="thread-uvloop")
    async with parallel_core.open_router_host(router, "thread") as host:
        assert_type(host, RouterHost)
        assert_type(await host.run(length, "text"), int)
        assert_type(host.with_router(own), RouterHost)
        await parallel_core.parallel_acompletions(host, [request])
        await parallel_core.parallel_acompletions(own, [request], router_host=host)
        stream: RouterStream = await host.acompletion(model="gpt", messages=[], stream=True)
        async with stream:
            async for _ in stream:
                pass
        await stream.aclose()
    async with parallel_core.open_trio_asyncio():
        pass
    await parallel_core.parallel_acompletions(router, [request], router_host="process")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def make_router() -> Router:
    router: Router = Router(model_list=[])
    return router


def make_parallel_router() -> ParallelRouter:
    router = ParallelRouter(model_list=[], num_retries=0)
    assert_type(router, ParallelRouter)
    return router


async def workers(request: RouterParallelRequest) -> None:
    batch = ray_engine.iter_parallel_acompletions(make_router, [request], workers=2, timeout=60.0)
    assert_type(batch, ray_engine.RayBatch)
    async with batch:
        async for result in batch:
            assert_type(result, RouterParallelResult)
    assert_type(batch.lost_workers, int)
    async with ray_engine.open_ray_router({"model_list": []}, workers=2) as router:
        assert_type(router, ray_engine.RayRouter)
        results = await parallel_core.parallel_acompletions(
            router, [request], concurrency=router.slots
        )
        assert_type(results, list[RouterParallelResult])
    ray_engine.ParallelCompletions("config.yaml", concurrency="auto", total_timeout=60.0)
    await ray_engine.parallel_acompletions(make_router, [request])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def errors(error: InvalidRequestError) -> None:
    assert_type(error.problems, dict[int, str])


async def mistakes(router: Router) -> None:
    await parallel_core.parallel_map(length, [1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await parallel_core.parallel_map(length, ["a"], timout=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await parallel_core.parallel_map(length, ["a"], timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await parallel_core.parallel_map(length, ["a"], concurrency="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await parallel_core.parallel_acompletions(router, [3])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    RouterParallelRequest()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
