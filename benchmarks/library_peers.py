"""Libraries that make many calls at once, each in the form that its documentation recommends."""

from __future__ import annotations

import functools
import io
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from .adapter import MODEL, Adapter, Call, Messages, Send, Target
from .plain_peers import call_limited, limited


class Aiometer(Adapter):
    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        import aiometer

        return await aiometer.run_all(
            [functools.partial(call, item) for item in items], max_at_once=concurrency
        )

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        import aiometer

        async with aiometer.amap(call, list(items), max_at_once=concurrency) as results:
            yield results


class Aiostream(Adapter):
    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        from aiostream import stream

        return await stream.list(self._pipeline(call, items, concurrency))

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        async with self._pipeline(call, items, concurrency).stream() as results:
            yield results

    def _pipeline(self, call: Call, items: Iterable[Any], concurrency: int) -> Any:
        from aiostream import stream

        # A bound method or a partial would be called as a plain function.
        async def awaited(item: Any) -> Any:
            return await call(item)

        return stream.map(stream.iterate(items), awaited, ordered=False, task_limit=concurrency)


class AnyioTaskGroup(Adapter):
    """A task for each call in an anyio task group, with a CapacityLimiter."""

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        import anyio

        limiter = anyio.CapacityLimiter(concurrency)
        results: list[Any] = []
        async with anyio.create_task_group() as group:
            for item in items:
                group.start_soon(call_limited, limiter, call, item, results)
        return results


class Tqdm(Adapter):
    """``tqdm.asyncio.tqdm.gather`` with a semaphore; its bar goes nowhere."""

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        from tqdm.asyncio import tqdm

        nowhere = io.StringIO()
        return await tqdm.gather(*limited(call, items, concurrency), file=nowhere)


class Langchain(Adapter):
    streams = True

    def _runnable(self, call: Call) -> Any:
        from langchain_core.runnables import RunnableLambda

        async def awaited(item: Any) -> Any:
            return await call(item)

        return RunnableLambda(awaited)

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        return await self._runnable(call).abatch(
            list(items), config={"max_concurrency": concurrency}
        )

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        results = self._runnable(call).abatch_as_completed(
            list(items), config={"max_concurrency": concurrency}
        )
        async with aclosing(results) as running:
            yield running


class AsyncBatchLlm(Adapter):
    """async-batch-llm with a strategy of one's own, one attempt and no ramp or cooldown."""

    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        from async_batch_llm import process_prompts

        batch = await process_prompts(*self._arguments(call, items), **self._options(concurrency))
        for result in batch.results:
            if not result.success:
                raise RuntimeError(result.error)
        return batch.results

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        from async_batch_llm import process_stream

        results = process_stream(*self._arguments(call, items), **self._options(concurrency))
        async with aclosing(results) as running:
            yield running

    def _arguments(self, call: Call, items: Iterable[Any]) -> tuple[Any, Any]:
        from async_batch_llm import CallableStrategy, CallOutcome

        # It takes texts for its prompts: a number stands for what the call is given.
        waiting: dict[str, Any] = {}

        def prompts() -> Iterator[str]:
            for number, item in enumerate(items):
                waiting[str(number)] = item
                yield str(number)

        async def invoke(prompt: str, *, attempt: int, timeout: float, state: object) -> Any:
            return CallOutcome(await call(waiting.pop(prompt)))

        return CallableStrategy(invoke), prompts()

    def _options(self, concurrency: int) -> dict[str, Any]:
        from async_batch_llm import ProcessorConfig, RetryConfig
        from async_batch_llm.categories import ErrorCategory
        from async_batch_llm.core.config import AbortMode, GuardrailConfig

        fail_fast = GuardrailConfig(
            abort_on_error_categories=frozenset(map(str, ErrorCategory)),
            abort_mode=AbortMode.CANCEL_ACTIVE,
        )
        return {
            "config": ProcessorConfig(
                concurrency=concurrency,
                retry=RetryConfig(max_attempts=1),
                guardrails=fail_fast,
                max_queue_size=concurrency,
                max_result_queue_size=concurrency,
            )
        }


class Infermesh(Adapter):
    """infermesh has a client of its own: it sends requests, and makes no calls of others."""

    not_for_calls = "only sends requests over HTTP"

    @asynccontextmanager
    async def sender(self, target: Target, in_flight: int) -> AsyncGenerator[Send, None]:
        from infermesh import LMClient

        client = LMClient(
            model=f"openai/{MODEL}",
            api_base=target.url,
            api_key="none",
            max_parallel_requests=in_flight,
            max_retries=0,
            # Else the client of OpenAI beneath it tries again.
            default_request_kwargs={"num_retries": 0},
        )

        async def send(conversations: list[Messages], orders: Mapping[str, object]) -> object:
            return await client.agenerate_batch(
                conversations, return_exceptions=False, extra_body={"demo": orders}
            )

        async with client:
            yield send


class LitellmBatch(Adapter):
    """``Router.abatch_completion``: a gather over all requests, which gives errors as results."""

    not_for_calls = "only sends requests over HTTP"
    limits = False
    fails_fast = False

    @asynccontextmanager
    async def sender(self, target: Target, in_flight: int) -> AsyncGenerator[Send, None]:
        async def send(conversations: list[Messages], orders: Mapping[str, object]) -> object:
            results: list[object] = await target.router.abatch_completion(
                models=[MODEL], messages=conversations, extra_body={"demo": orders}
            )
            for result in results:
                if isinstance(result, Exception):
                    raise result
            return results

        yield send
