"""Contexts on asyncio, and structured code inside calls."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

import parallel_core
from helpers.bridge_checks import assert_nothing_left, guest_gone, passes
from helpers.bridge_scenarios import own_task
from helpers.hosts import Host
from parallel_core import parallel_map

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_calls_see_the_context_of_the_task_that_began_the_batch(asyncio_host: Host) -> None:
    async def main() -> None:
        async def one(name: str) -> None:
            variable.set(name)
            seen: list[tuple[str, str]] = []

            async def call(item: int) -> None:
                before = variable.get()
                variable.set(f"call {item} of {name}")
                await passes(2)
                seen.append((before, variable.get()))

            await parallel_map(call, range(10), concurrency=2)
            assert sorted(seen) == sorted((name, f"call {n} of {name}") for n in range(10))
            assert variable.get() == name

        await asyncio.gather(*(one(f"caller {number}") for number in range(5)))
        assert variable.get() == "unset"
        assert_nothing_left()

    asyncio_host.run(main)


def test_a_source_sees_the_context_of_the_caller_and_does_not_change_it(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        seen: list[str] = []

        async def async_source() -> Any:
            for number in range(3):
                seen.append(variable.get())
                await asyncio.sleep(0)
                yield number

        def sync_source() -> Iterator[int]:
            for number in range(3):
                seen.append(variable.get())
                yield number

        async def call(item: int) -> str:
            return variable.get()

        variable.set("caller")
        for source in (async_source(), sync_source()):
            results = await parallel_map(call, source, concurrency=1)
            assert [result.value for result in results] == ["caller"] * 3
        assert seen == ["caller"] * 6
        variable.set("unset")

    asyncio_host.run(main)


def test_the_current_task_of_a_call_is_a_task_of_the_loop(asyncio_host: Host) -> None:
    async def main() -> None:
        outside = asyncio.current_task()

        async def call(item: int) -> None:
            task = asyncio.current_task()
            assert task is not None
            assert task is not outside
            assert task in asyncio.all_tasks()
            assert task.get_loop() is asyncio.get_running_loop()
            await asyncio.sleep(0)
            assert asyncio.current_task() is task
            assert task.cancelling() == 0

        results = await parallel_map(call, range(20), concurrency=3)
        assert [result.exception for result in results] == [None] * 20

    asyncio_host.run(main)


async def timeout_that_fires() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    assert own_task().cancelling() == 0
    await asyncio.sleep(0)


async def timeouts_in_timeouts() -> None:
    async with asyncio.timeout(60):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                async with asyncio.timeout(60):
                    await asyncio.Event().wait()
        await asyncio.sleep(0)


async def wait_for_that_fires() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 0)
    await asyncio.sleep(0)


async def task_group() -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(0, number)) for number in range(3)]
    assert [task.result() for task in tasks] == [0, 1, 2]


async def failing_task_group() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("mine")

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(asyncio.Event().wait())
            await asyncio.Event().wait()
    assert own_task().cancelling() == 0
    await asyncio.sleep(0)


async def in_a_thread() -> None:
    variable.set("of the call")
    assert await asyncio.to_thread(variable.get) == "of the call"
    assert await asyncio.to_thread(threading.current_thread) is not threading.current_thread()


async def gathering() -> None:
    assert await asyncio.gather(*(asyncio.sleep(0, number) for number in range(3))) == [0, 1, 2]
    results = await asyncio.gather(asyncio.sleep(0, 1), failing(), return_exceptions=True)
    assert results[0] == 1
    assert isinstance(results[1], LookupError)


async def failing() -> None:
    raise LookupError("mine")


async def shielding() -> None:
    inner = asyncio.ensure_future(passes(5))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(inner), 0)
    await inner


async def anyio_scopes() -> None:
    with anyio.move_on_after(0) as scope:
        await asyncio.Event().wait()
    assert scope.cancelled_caught
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(threading.current_thread)
    await asyncio.sleep(0)


@pytest.mark.parametrize(
    "body",
    [
        timeout_that_fires,
        timeouts_in_timeouts,
        wait_for_that_fires,
        task_group,
        failing_task_group,
        in_a_thread,
        gathering,
        shielding,
        anyio_scopes,
    ],
)
def test_structured_asyncio_code_works_inside_calls(
    asyncio_host: Host, body: Callable[[], Awaitable[None]]
) -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            assert variable.get() == "unset"
            await body()
            return item

        results = await parallel_map(call, range(12), concurrency=3)
        assert [result.exception for result in results] == [None] * 12
        assert len(results) == 12
        assert own_task().cancelling() == 0

    asyncio_host.run(main)


@pytest.mark.parametrize(
    "body",
    [task_group, failing_task_group, gathering, shielding, anyio_scopes, timeouts_in_timeouts],
)
def test_structured_code_inside_calls_cancelled_at_any_pass_leaves_nothing(
    asyncio_host: Host, body: Callable[[], Awaitable[None]]
) -> None:
    async def main() -> None:
        async def run(calls: list[int]) -> int:
            async def call(item: int) -> None:
                calls.append(item)
                try:
                    await body()
                finally:
                    calls.remove(item)

            return len([r for r in await parallel_map(call, range(6), concurrency=3) if r.ok])

        for count in range(25):
            calls: list[int] = []
            task = asyncio.create_task(run(calls))
            await passes(count)
            task.cancel()
            await asyncio.wait({task})
            assert task.cancelled() or task.result() == 6
            assert calls == []
            if body is shielding:  # what is shielded goes on; it is not the batch's
                await passes(8)
            await guest_gone()

    asyncio_host.run(main)


def test_bridge_functions_and_top_level_functions_are_the_same_in_asyncio(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        from parallel_core import bridge

        async def echo(*, model: str, messages: Any) -> str:
            await asyncio.sleep(0)
            return model

        requests = [
            {"model": f"m{number}", "messages": [{"role": "user", "content": "x"}]}
            for number in range(5)
        ]
        for module in (bridge, parallel_core):
            results = await module.parallel_acompletions(echo, requests, preserve_order=True)
            assert [result.unwrap() for result in results] == [f"m{n}" for n in range(5)]
            batch = module.iter_parallel_acompletions(echo, requests)
            assert isinstance(batch, bridge.AsyncioParallelBatch)
            assert len([result async for result in batch]) == 5
            assert_nothing_left()

    asyncio_host.run(main)
