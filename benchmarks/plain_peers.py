"""Ways to make many calls at once with what Python and trio bring."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

from .adapter import Adapter, Call


class Gather(Adapter):
    """A semaphore and ``asyncio.gather``, as in most tutorials."""

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        return await asyncio.gather(*limited(call, items, concurrency))


class Original(Adapter):
    """The algorithm of the proposal to litellm, from its description.

    A task for every request and a semaphore; the list form gathers and cancels on an error, the
    iterator yields as tasks are completed.
    """

    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        tasks = [asyncio.create_task(one) for one in limited(call, items, concurrency)]
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
            tasks = [asyncio.create_task(one) for one in limited(call, items, concurrency)]
            try:
                for finished in asyncio.as_completed(tasks):
                    yield await finished
            finally:
                await _cancel(tasks)

        async with aclosing(results()) as running:
            yield running


def limited(call: Call, items: Iterable[Any], concurrency: int) -> list[Any]:
    semaphore = asyncio.Semaphore(concurrency)

    async def one(item: object) -> object:
        async with semaphore:
            return await call(item)

    return [one(item) for item in items]


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def call_limited(
    limiter: AbstractAsyncContextManager[object], call: Call, item: object, results: list[Any]
) -> None:
    """One of many tasks, each with one call."""
    async with limiter:
        results.append(await call(item))


async def call_for_each(source: Iterator[Any], call: Call, results: list[Any]) -> None:
    """One of a few workers that share a source."""
    for item in source:
        results.append(await call(item))  # noqa: PERF401 - the workers share them


class Pool(Adapter):
    """Hand-written workers in a TaskGroup: the least that keeps what is promised. The floor."""

    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        source = iter(items)
        results: list[Any] = []
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(call_for_each(source, call, results))
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


class TrioTaskPerCall(Adapter):
    """A task for each call in a trio nursery, with a CapacityLimiter."""

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        import trio

        limiter = trio.CapacityLimiter(concurrency)
        results: list[Any] = []
        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(call_limited, limiter, call, item, results)
        return results


class TrioPool(Adapter):
    """Hand-written workers in a trio nursery: what trio itself costs."""

    streams = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        import trio

        source = iter(items)
        results: list[Any] = []
        async with trio.open_nursery() as nursery:
            for _ in range(concurrency):
                nursery.start_soon(call_for_each, source, call, results)
        return results

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        import trio

        source = iter(items)
        send_channel, results = trio.open_memory_channel[Any](concurrency)

        async def work(channel: trio.MemorySendChannel[Any]) -> None:
            with channel:
                for item in source:
                    await channel.send(await call(item))

        async with trio.open_nursery() as nursery:
            with send_channel:
                for _ in range(concurrency):
                    nursery.start_soon(work, send_channel.clone())
            yield results
            nursery.cancel_scope.cancel()
