"""What a user would pick instead, each through its own public API in its recommended form.

A :class:`Peer` names a way to make many calls at once. Its adapter is imported only in the process
that measures it. ``collect`` makes every call and raises the first error (or what the peer raises);
``stream`` gives results as they finish, to a consumer that may leave.
"""

from __future__ import annotations

import asyncio
import functools
import io
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

Call = Callable[[Any], Awaitable[Any]]


class Adapter(ABC):
    """One peer. Every method runs in the peer's own world."""

    streams = False

    @abstractmethod
    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        """Make every call, at most ``concurrency`` at a time; the first error ends it."""

    def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Results as they finish. Leaving the block is how this peer is told to stop."""
        raise NotImplementedError(f"{type(self).__name__} has no results before the end")


@dataclass(frozen=True)
class Peer:
    """A way to make many calls at once.

    Attributes:
        key: its name on the command line and in JSON.
        title: its name in tables and charts.
        world: the library that runs it.
        distribution: the package whose version is reported; None: what Python brings.
        adapter: the name of its adapter.
    """

    key: str
    title: str
    world: Literal["asyncio", "trio"]
    distribution: str | None
    adapter: type[Adapter]

    @property
    def version(self) -> str | None:
        """The installed version, or None where the peer is not installed."""
        if self.distribution is None:
            return "-"
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


# --- with what Python brings ---


class Gather(Adapter):
    """A semaphore and ``asyncio.gather``, as in most tutorials."""

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        return await asyncio.gather(*_limited(call, items, concurrency))


class Original(Adapter):
    """The algorithm of the proposal to litellm, from its description.

    A task for every request and a semaphore; the list form gathers and cancels on an error, the
    iterator yields as tasks are completed.
    """

    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        tasks = [asyncio.create_task(one) for one in _limited(call, items, concurrency)]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            await _cancel(tasks)
            raise

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        async def results() -> AsyncGenerator[Any, None]:
            tasks = [asyncio.create_task(one) for one in _limited(call, items, concurrency)]
            try:
                for finished in asyncio.as_completed(tasks):
                    yield await finished
            finally:
                await _cancel(tasks)

        async with aclosing(results()) as running:
            yield running


def _limited(call: Call, items: Iterable[Any], concurrency: int) -> list[Any]:
    semaphore = asyncio.Semaphore(concurrency)

    async def one(item: object) -> object:
        async with semaphore:
            return await call(item)

    return [one(item) for item in items]


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Pool(Adapter):
    """Hand-written workers in a TaskGroup: the least that keeps what is promised. The floor."""

    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        source = iter(items)
        results: list[Any] = []

        async def work() -> None:
            for item in source:
                results.append(await call(item))  # noqa: PERF401 - the workers share them

        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
        return results

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        source = iter(items)
        end = object()
        queue: asyncio.Queue[Any] = asyncio.Queue(concurrency)

        async def work() -> None:
            for item in source:
                await queue.put(await call(item))

        async def work_all() -> None:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(work())
            await queue.put(end)

        async def results() -> AsyncIterator[Any]:
            while (result := await queue.get()) is not end:
                yield result

        working = asyncio.create_task(work_all())
        try:
            yield results()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


# --- libraries ---


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

        async def one(item: object) -> None:
            async with limiter:
                results.append(await call(item))

        async with anyio.create_task_group() as group:
            for item in items:
                group.start_soon(one, item)
        return results


class TrioTaskPerCall(Adapter):
    """A task for each call in a trio nursery, with a CapacityLimiter."""

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        import trio

        limiter = trio.CapacityLimiter(concurrency)
        results: list[Any] = []

        async def one(item: object) -> None:
            async with limiter:
                results.append(await call(item))

        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(one, item)
        return results


class Tqdm(Adapter):
    """``tqdm.asyncio.tqdm.gather`` with a semaphore; its bar goes nowhere."""

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        from tqdm.asyncio import tqdm

        nowhere = io.StringIO()
        return await tqdm.gather(*_limited(call, items, concurrency), file=nowhere)


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

        async def invoke(prompt: str, *, attempt: int, timeout: float, state: object) -> Any:
            return CallOutcome(await call(int(prompt)))

        return CallableStrategy(invoke), (str(item) for item in items)

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


# --- ours ---


class ParallelCoreAsyncio(Adapter):
    """The bridge."""

    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        from parallel_core import bridge

        return await bridge.parallel_map(
            call, items, concurrency=concurrency, return_exceptions=False
        )

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        from parallel_core import bridge

        batch = bridge.iter_parallel_map(
            call, items, concurrency=concurrency, return_exceptions=False
        )
        async with batch:
            yield batch


class ParallelCoreTrio(Adapter):
    """The engine."""

    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        from parallel_core import nursery_engine

        return await nursery_engine.parallel_map(
            call, items, concurrency=concurrency, return_exceptions=False
        )

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        from parallel_core import nursery_engine

        batch = nursery_engine.iter_parallel_map(
            call, items, concurrency=concurrency, return_exceptions=False
        )
        async with batch:
            yield batch


ORIGINAL = "original"
FLOOR = "pool"

PEERS = {
    peer.key: peer
    for peer in (
        Peer("gather", "semaphore + gather", "asyncio", None, Gather),
        Peer(ORIGINAL, "original proposal", "asyncio", None, Original),
        Peer(FLOOR, "TaskGroup pool (floor)", "asyncio", None, Pool),
        Peer("aiometer", "aiometer", "asyncio", "aiometer", Aiometer),
        Peer("aiostream", "aiostream", "asyncio", "aiostream", Aiostream),
        Peer("anyio", "anyio task group", "asyncio", "anyio", AnyioTaskGroup),
        Peer("tqdm", "tqdm.asyncio.gather", "asyncio", "tqdm", Tqdm),
        Peer("langchain", "langchain-core abatch", "asyncio", "langchain-core", Langchain),
        Peer("async-batch-llm", "async-batch-llm", "asyncio", "async-batch-llm", AsyncBatchLlm),
        Peer("trio-tasks", "trio, a task per call", "trio", "trio", TrioTaskPerCall),
        Peer(
            "ours-asyncio",
            "parallel_core, asyncio",
            "asyncio",
            "parallel_core",
            ParallelCoreAsyncio,
        ),
        Peer("ours-trio", "parallel_core, trio", "trio", "parallel_core", ParallelCoreTrio),
    )
}
