"""What calls see around them, what they leave to others, and what a batch keeps of them."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import anyio
import sniffio
import trio
import trio.testing

import parallel_core
from helpers.hosts import Host, settle
from parallel_core.nursery_engine import DRAWS_IN_A_TURN

# --- context ---


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_each_call_has_its_own_copy_of_the_callers_context(host: Host) -> None:
    async def main() -> None:
        seen: list[str] = []

        async def call(item: int) -> None:
            seen.append(variable.get())
            variable.set(f"call {item}")
            await anyio.lowlevel.checkpoint()
            assert variable.get() == f"call {item}"

        variable.set("caller")
        await parallel_core.parallel_map(call, range(20), concurrency=2)
        assert seen == ["caller"] * 20
        assert variable.get() == "caller"

    host.run(main)


def test_libraries_see_the_host_inside_calls_and_sources(host: Host) -> None:
    async def main() -> None:
        seen: set[str] = set()

        async def source() -> AsyncIterator[int]:
            for item in range(3):
                seen.add(sniffio.current_async_library())
                await anyio.lowlevel.checkpoint()
                yield item

        async def call(item: int) -> None:
            seen.add(sniffio.current_async_library())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.lowlevel.checkpoint)
            with anyio.move_on_after(60):
                await anyio.lowlevel.checkpoint()
            seen.add(sniffio.current_async_library())

        results = await parallel_core.parallel_map(call, source())
        assert all(result.ok for result in results), results
        assert seen == {host.library}

    host.run(main)


# --- what a busy batch does to others, and what it keeps ---


def test_calls_that_do_not_wait_leave_a_turn_to_others(host: Host) -> None:
    """Some hundred calls are made between two turns of others, in the list form too."""
    concurrency = 64
    made = 0

    async def call(item: int) -> None:
        nonlocal made
        made += 1
        if item < concurrency:
            for _ in range(30):  # a cache that has these not yet: now every slot is open
                await anyio.lowlevel.checkpoint()

    async def main() -> None:
        most = 0
        ended = False

        async def watch() -> None:
            nonlocal most
            while not ended:
                before = made
                await anyio.lowlevel.checkpoint()
                most = max(most, made - before)

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            await parallel_core.parallel_map(call, range(5_000), concurrency=concurrency)
            ended = True
        assert made == 5_000
        assert most <= 4 * (DRAWS_IN_A_TURN + concurrency)

    host.run(main)


class Large:
    """Something that should not be kept longer than its user keeps it."""


def test_a_list_that_is_dropped_is_gone_without_a_collection(host: Host) -> None:
    seen: list[weakref.ref[Large]] = []

    async def call(item: int) -> Large:
        large = Large()
        seen.append(weakref.ref(large))
        await anyio.lowlevel.checkpoint()
        return large

    async def main() -> None:
        results = await parallel_core.parallel_map(call, range(10), concurrency=2)
        assert len(results) == len(seen) == 10
        del results
        if not host.debug:  # there, asyncio itself remembers where coroutines came from
            assert [reference() for reference in seen if reference() is not None] == []

    gc.disable()
    try:
        host.run(main)
    finally:
        gc.enable()


def test_what_a_call_leaves_to_the_collector_does_not_grow_with_their_number(host: Host) -> None:
    """Each call is woken by an exception that it catches, whose traceback knows the slot."""

    async def call(item: int) -> None:
        with anyio.move_on_after(0):
            await anyio.sleep_forever()

    def garbage(calls: int) -> int:
        async def main() -> None:
            await parallel_core.parallel_map(call, range(calls), concurrency=4)

        gc.collect()
        if host.library == "trio":
            trio.run(main)
        else:  # not host.run, which collects
            with asyncio.Runner(loop_factory=host.loop_factory, debug=host.debug) as runner:
                runner.run(main())
        return gc.collect()

    gc.disable()
    try:
        garbage(10)  # what comes once
        few, many = garbage(10), garbage(110)
    finally:
        gc.enable()
    assert many - few < 100


def test_a_call_does_not_keep_what_it_has_first_waited_for(asyncio_host: Host) -> None:
    seen: list[weakref.ref[Large]] = []

    async def load() -> Large:
        large = Large()
        seen.append(weakref.ref(large))
        return large

    async def call(item: int) -> None:
        await asyncio.create_task(load())
        await settle()
        assert [reference() for reference in seen] == [None]

    async def main() -> None:
        (result,) = await parallel_core.parallel_map(call, [1])
        result.unwrap()

    asyncio_host.run(main)


def test_a_function_that_raises_stop_iteration(host: Host) -> None:
    def call(item: int) -> Any:
        raise StopIteration(item)

    async def main() -> None:
        (result,) = await parallel_core.parallel_map(call, [5])
        assert isinstance(result.exception, RuntimeError)
        assert isinstance(result.exception.__cause__, StopIteration)

    host.run(main)
