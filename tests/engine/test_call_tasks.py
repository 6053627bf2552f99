"""A call is a task: what is kept for a task does not leak from one call to the next."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

import parallel_core
from helpers.hosts import Host, settle
from parallel_core import RouterParallelRequest


def current_task() -> Any:
    if trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_task()
    return asyncio.current_task()


def name_of(task: Any) -> str:
    name: str = task.get_name() if isinstance(task, asyncio.Task) else task.name
    return name


def test_each_call_has_a_task_of_its_own(host: Host) -> None:
    seen: list[Any] = []

    async def call(item: int) -> None:
        seen.append(current_task())
        await anyio.lowlevel.checkpoint()
        assert current_task() is seen[item] or host.library == "trio"

    async def main() -> None:
        own = current_task()
        await parallel_core.parallel_map(call, range(20), concurrency=2)
        assert len(set(map(id, seen))) == 20
        assert own not in seen

    host.run(main)


def test_a_registry_of_tasks_has_nothing_of_an_earlier_call(host: Host) -> None:
    registry: dict[Any, int] = {}

    async def call(item: int) -> None:
        assert registry.setdefault(current_task(), item) == item
        await anyio.lowlevel.checkpoint()

    async def main() -> None:
        results = await parallel_core.parallel_map(call, range(20), concurrency=2)
        assert [result.exception for result in results] == [None] * 20

    host.run(main)


def test_a_limiter_that_a_call_does_not_give_back_is_not_held_by_the_next(host: Host) -> None:
    """CapacityLimiter keeps its borrowers by task, and refuses one that borrows twice."""

    async def main() -> None:
        limiter = anyio.CapacityLimiter(20)

        async def call(item: int) -> None:
            await limiter.acquire()

        results = await parallel_core.parallel_map(call, range(20), concurrency=2)
        assert [result.exception for result in results] == [None] * 20
        assert limiter.borrowed_tokens == 20

    host.run(main)


def test_a_stuck_call_is_found_by_its_name_and_its_await_chain(host: Host) -> None:
    requests = [
        RouterParallelRequest(f"m{index}", [{"role": "user", "content": "hi"}])
        for index in range(3)
    ]
    tasks: list[Any] = []

    async def main() -> None:
        stuck = anyio.Event()

        async def deep_inside() -> None:
            await stuck.wait()

        async def complete(**_: Any) -> dict[str, Any]:
            tasks.append(current_task())
            await deep_inside()
            return {"choices": [{"message": {"content": "yes"}}]}

        async with parallel_core.iter_parallel_acompletions(complete, requests) as batch:
            await settle()
            names = sorted(map(name_of, tasks))
            assert names == [f"request {index} (model 'm{index}')" for index in range(3)]
            assert all("deep_inside" in await_chain(task) for task in tasks)
            stuck.set()
            assert len([result async for result in batch]) == 3

    host.run(main)


def await_chain(task: Any) -> list[str]:
    """Names of the coroutines in which a task waits, the outermost first."""
    coroutine: Any = task.get_coro() if isinstance(task, asyncio.Task) else task.coro
    names: list[str] = []
    while coroutine is not None and hasattr(coroutine, "cr_code"):
        names.append(coroutine.cr_code.co_name)
        coroutine = coroutine.cr_await
    return names


# --- the source ---


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("ending", ["end", "break", "error"])
@pytest.mark.parametrize("concurrency", [1, 3, 20])
def test_a_sync_source_is_iterated_and_closed_in_one_context(
    host: Host, ending: str, concurrency: int
) -> None:
    """It may hold the token of a context variable, and no call sees what it sets."""
    tasks: set[int] = set()
    closed: list[str] = []

    def source() -> Iterator[int]:
        token = variable.set("of the source")
        try:
            for number in range(12):
                tasks.add(id(current_task()))
                yield number
        finally:
            tasks.add(id(current_task()))
            variable.reset(token)  # a ValueError in another context
            closed.append(variable.get())

    async def call(item: int) -> str:
        await anyio.lowlevel.checkpoint()
        if ending == "error" and item == 5:
            raise LookupError
        return variable.get()

    async def main() -> None:
        variable.set("of the caller")
        for _ in range(5):
            batch: Any = parallel_core.iter_parallel_map(
                call, source(), concurrency=concurrency, return_exceptions=ending != "error"
            )
            seen: list[str] = []
            try:
                async with batch:
                    async for result in batch:
                        seen.append(result.unwrap())
                        if ending == "break":
                            break
            except LookupError:
                assert ending == "error"
            assert set(seen) <= {"of the caller"}
        assert closed == ["of the caller"] * 5
        assert len(tasks) <= 5

    host.run(main)


def test_a_sync_source_is_no_step_of_trio_in_asyncio(asyncio_host: Host) -> None:
    def source() -> Iterator[int]:
        for number in range(3):
            assert asyncio.current_task() is not None
            assert not trio.lowlevel.in_trio_task()
            yield number

    async def call(item: int) -> int:
        return item

    async def main() -> None:
        results = await parallel_core.parallel_map(call, source())
        assert [result.value for result in results] == [0, 1, 2]

    asyncio_host.run(main)


# --- the consumer ---


def test_the_iterator_is_a_checkpoint_in_trio() -> None:
    """Also where a result is there already."""

    async def call(item: int) -> int:
        return item

    async def main() -> None:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with (
            parallel_core.iter_parallel_map(call, range(50), concurrency=50) as batch,
            trio.open_nursery() as nursery,
        ):
            await trio.testing.wait_all_tasks_blocked()
            assert batch.succeeded == 50
            nursery.start_soon(others)
            for _ in range(20):
                await anext(batch)
            assert turns >= 19
            with trio.CancelScope() as scope:
                scope.cancel()
                await anext(batch)
            assert scope.cancelled_caught
            assert batch.delivered == 20
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_making_a_batch_starts_nothing(host: Host) -> None:
    drawn: list[int] = []

    def source() -> Iterator[int]:
        drawn.append(1)
        yield 1

    async def async_source() -> AsyncIterator[int]:
        drawn.append(1)
        yield 1

    async def call(item: int) -> int:
        drawn.append(item)
        return item

    async def main() -> None:
        batches = [
            parallel_core.iter_parallel_map(call, items) for items in (source(), async_source())
        ]
        await settle()
        assert drawn == []
        assert [batch.started for batch in batches] == [0, 0]

    host.run(main)


def test_results_and_errors_leave_no_reference_cycle(host: Host) -> None:
    class MyError(Exception):
        pass

    async def call(item: int) -> None:
        raise MyError

    async def crashing(item: int) -> None:
        await anyio.lowlevel.checkpoint()

    class BadSource:
        def __iter__(self) -> Iterator[int]:
            return self._items()

        def _items(self) -> Iterator[int]:
            try:
                yield from range(100)
            finally:
                raise MyError

    async def main() -> None:
        (result,) = await parallel_core.parallel_map(call, [1])
        with pytest.raises(MyError):
            result.unwrap()
        del result
        with pytest.raises(MyError):
            async with parallel_core.iter_parallel_map(crashing, BadSource()) as batch:
                await anext(batch)

    gc.collect()
    host.run(main)
    gc.disable()
    try:
        gc.collect()
        host.run(main)
        left = [one for one in gc.get_objects() if type(one).__name__ == "MyError"]
    finally:
        gc.enable()
    if not host.debug:
        assert left == []
