"""Trio applications that live with trio-asyncio. The argument names what is checked."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import trio
import trio.testing
from litellm import close_litellm_async_clients

import parallel_core
from helpers.trio_application import ask, check_batch, import_trio_asyncio, router_of_the_demo
from parallel_core import open_router_host, parallel_acompletions

trio_asyncio = import_trio_asyncio()


class Hanging:
    """In the place of a Router."""

    async def acompletion(self, **arguments: Any) -> None:
        await asyncio.Event().wait()


class Watched:
    """Not the Router itself, whose background tasks suffer when it changes loops."""

    def __init__(self) -> None:
        self.loops = set[asyncio.AbstractEventLoop]()

    async def acompletion(self, **arguments: Any) -> None:
        self.loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)

    async def check_where(self, expected: Any, **options: Any) -> None:
        self.loops.clear()
        results = await parallel_acompletions(self, [ask()] * 5, **options)
        assert all(result.ok for result in results), results[0].exception
        assert (self.loops == {expected}) == (expected is not None), self.loops


def opened_by_the_application() -> None:
    router = router_of_the_demo()
    check_where = Watched().check_where

    async def main() -> None:
        # None is open yet: a helper thread.
        await check_where(None)
        async with trio_asyncio.open_loop() as loop:
            await check_where(loop)
            await check_where(loop, router_host="trio-asyncio")
            await check_where(None, router_host="thread")  # by name, all the same
            executor = loop._default_executor
            async with open_router_host(router) as host:
                assert host.name == "trio-asyncio", host
                await host.run(asyncio.sleep, 0)
            await check_where(loop)
            assert loop._default_executor is executor
            tasks = trio.lowlevel.current_statistics().tasks_living
            for _ in range(5):
                await check_where(loop)
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            async with trio_asyncio.open_loop() as inner:
                await check_where(inner)
            await check_where(loop)
        await check_where(None)

    trio.run(main)

    async def in_a_thread() -> None:
        await check_batch(router, router_host="thread")

    # The helper thread has a plain loop all the same.
    trio.run(in_a_thread)


def with_an_executor_of_its_own() -> None:
    """It keeps doing the work."""
    router = router_of_the_demo()

    class Counting(trio_asyncio.TrioExecutor):  # type: ignore[name-defined, misc]
        count = 0

        async def submit(self, *args: Any) -> Any:
            self.count += 1
            return await super().submit(*args)

    async def main() -> None:
        async with trio_asyncio.open_loop() as loop:
            executor = Counting()
            loop.set_default_executor(executor)
            await check_batch(router)
            assert executor.count >= 10
            await trio_asyncio.aio_as_trio(close_litellm_async_clients)()
            in_executor = trio_asyncio.aio_as_trio(lambda: loop.run_in_executor(None, sum, (1, 2)))
            assert await in_executor() == 3

    trio.run(main)


def asyncio_code() -> None:
    """It uses the asyncio API, and the trio run that is there."""
    router = router_of_the_demo()

    async def in_asyncio() -> None:
        await check_batch(router)
        response = await router.acompletion(**ask(reply="plain"))
        assert "plain" in response.choices[0].message.content

    async def main() -> None:
        async with trio_asyncio.open_loop():
            await trio_asyncio.aio_as_trio(in_asyncio)()
            await trio_asyncio.aio_as_trio(close_litellm_async_clients)()
        async with parallel_core.open_trio_asyncio():
            await trio_asyncio.aio_as_trio(in_asyncio)()
            await check_batch(router)

    trio.run(main)


def closed_under_a_batch() -> None:
    seen: list[str] = []

    async def batch() -> None:
        results = await parallel_acompletions(Hanging(), [ask()] * 20, concurrency=4)
        seen.extend(type(result.exception).__name__ for result in results)

    async def main() -> None:
        for opener in (parallel_core.open_trio_asyncio, trio_asyncio.open_loop):
            seen.clear()
            async with trio.open_nursery() as nursery, opener():
                nursery.start_soon(batch)
                await trio.testing.wait_all_tasks_blocked()
                await trio.testing.wait_all_tasks_blocked()
            assert seen == ["RouterHostClosedError"] * 20, seen

    trio.run(main)


def cancelled_in_the_executor() -> None:
    """litellm begins every call there. Trio cannot cancel the thread; the call must not go on."""
    begun, go_on = threading.Event(), threading.Event()
    steps: list[str] = []

    class InTheExecutor:
        async def acompletion(self, **arguments: Any) -> None:
            def function() -> Any:
                async def coroutine() -> None:
                    steps.append("awaited")

                begun.set()
                go_on.wait()
                return coroutine()

            await (await asyncio.get_running_loop().run_in_executor(None, function))
            steps.append("went on")

    async def main() -> None:
        async with parallel_core.open_trio_asyncio():
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(parallel_acompletions, InTheExecutor(), [ask()])
                    await trio.to_thread.run_sync(begun.wait)
                    scope.cancel()
                    go_on.set()
            assert scope.cancelled_caught
            assert not steps, steps

    warnings.simplefilter("error")
    trio.run(main)


def closed_with_its_host() -> None:
    """A host and its loop that are closed at once."""
    outcomes: list[str] = []

    class SlowToEnd:
        async def acompletion(self, **arguments: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(20):
                    await asyncio.sleep(0)

    async def call(host: Any) -> None:
        try:
            await host.acompletion()
        except parallel_core.RouterHostClosedError:
            outcomes.append("call")

    async def use(nursery: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        async with open_router_host(SlowToEnd(), "trio-asyncio") as host:
            nursery.start_soon(call, host)
            await trio.testing.wait_all_tasks_blocked()
            task_status.started()
        outcomes.append("host")

    async def main() -> None:
        for opener in (trio_asyncio.open_loop, parallel_core.open_trio_asyncio):
            outcomes.clear()
            async with trio.open_nursery() as nursery, opener():
                await nursery.start(use, nursery)
            assert sorted(outcomes) == ["call", "host"], outcomes

    trio.run(main)


CHECKS: list[Callable[[], None]] = [
    opened_by_the_application,
    with_an_executor_of_its_own,
    asyncio_code,
    closed_under_a_batch,
    cancelled_in_the_executor,
    closed_with_its_host,
]

if __name__ == "__main__":
    {check.__name__: check for check in CHECKS}[sys.argv[1]]()
    print("fine")
