"""What crosses from trio to the loop of a Router and back: contexts, errors, cancellation."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio
import trio.lowlevel
import trio.testing

import parallel_core
from helpers.router_stands import REQUEST, Stand, at_once, forever, run
from parallel_core import CallCancelledError, open_router_host, parallel_acompletions


@pytest.mark.parametrize("name", ["thread", "thread-uvloop"])
def test_the_kind_of_the_loop(name: Any) -> None:
    if name == "thread-uvloop":
        pytest.importorskip("uvloop")

    async def kind() -> str:
        return type(asyncio.get_running_loop()).__module__.partition(".")[0]

    async def main() -> None:
        async with open_router_host(Stand(at_once), name) as host:
            assert await host.run(kind) == ("uvloop" if name == "thread-uvloop" else "asyncio")

    run(main)


# --- contexts ---
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.parametrize("start", [trio.run, lambda main: anyio.run(main, backend="trio")])
def test_context_variables_are_those_of_the_call(start: Callable[..., Any]) -> None:
    """Also where trio was started through anyio, which leaves word of it in a variable."""
    seen: list[tuple[str, str]] = []

    async def look(index: int) -> None:
        seen.append((variable.get(), sniffio.current_async_library()))
        await anyio.lowlevel.checkpoint()
        variable.set(f"of call {index}")

    async def main() -> None:
        variable.set("of the caller")
        results = await parallel_acompletions(Stand(look), [REQUEST] * 5, concurrency=2)
        assert [result.exception for result in results] == [None] * 5
        assert variable.get() == "of the caller"
        assert sniffio.current_async_library() == "trio"
        async with open_router_host(Stand(look)) as host:
            variable.set("later")
            await host.acompletion(index=9)

    start(main)
    assert seen == [("of the caller", "asyncio")] * 5 + [("later", "asyncio")]


# --- errors ---
def test_the_traceback_begins_in_the_call() -> None:
    async def fail(index: int) -> None:
        await asyncio.sleep(0)
        raise LookupError("mine")

    async def main() -> None:
        (result,) = await parallel_acompletions(Stand(fail), [REQUEST])
        assert result.exception is not None
        traceback = result.exception.__traceback__
        assert traceback is not None
        assert traceback.tb_frame.f_code is Stand.acompletion.__code__
        with pytest.raises(LookupError, match="mine") as caught:
            await parallel_acompletions(Stand(fail), [REQUEST], return_exceptions=False)
        assert caught.value.__notes__ == ["parallel_core: raised by request 0 (model 'm')"]
        assert caught.value.__context__ is None

    run(main)


def test_a_call_that_cancels_itself_has_failed_alone() -> None:
    async def cancel_one(index: int) -> int:
        if index == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        if index == 2:
            raise asyncio.CancelledError
        return index

    async def main() -> None:
        results = await parallel_acompletions(
            Stand(cancel_one), [REQUEST] * 5, concurrency=2, preserve_order=True
        )
        assert [result.ok for result in results] == [True, False, False, True, True]
        for result in results[1:3]:
            assert type(result.exception) is CallCancelledError
            assert isinstance(result.exception.__cause__, asyncio.CancelledError)

    run(main)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_call_goes_to_trio_and_the_host_lives_on(
    kind: type[BaseException],
) -> None:
    async def interrupt(index: int) -> int:
        if index == 3:
            raise kind("mine")
        if index > 3:
            await forever(index)
        return index

    stand = Stand(interrupt)

    async def main() -> None:
        with pytest.raises(kind, match="mine"):
            await parallel_acompletions(stand, [REQUEST] * 9, concurrency=3)
        assert not stand.running
        after = Stand(at_once)
        results = await parallel_acompletions(after, [REQUEST] * 9, concurrency=3)
        assert all(result.ok for result in results)
        assert after.loops == stand.loops

    run(main)


def test_what_is_no_coroutine_function_is_an_error_of_the_call() -> None:
    class Synchronous:
        def acompletion(self, **arguments: Any) -> Any:
            return 3

    class Raising:
        def acompletion(self, **arguments: Any) -> Any:
            raise LookupError("mine")

    async def main() -> None:
        (result,) = await parallel_acompletions(Synchronous(), [REQUEST])
        assert isinstance(result.exception, TypeError)
        (result,) = await parallel_acompletions(Raising(), [REQUEST])
        assert isinstance(result.exception, LookupError)

    run(main)


# --- cancellation ---
def test_trio_waits_for_calls_that_take_their_time_to_end() -> None:
    cleaned_up: list[int] = []

    async def slow_to_end(index: int) -> None:
        try:
            await forever(index)
        finally:
            # The task was cancelled, and not the future that it waits for: litellm takes that for
            # a broken connection and tries again.
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 1
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned_up.append(index)

    stand = Stand(slow_to_end)

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: parallel_acompletions(stand, [REQUEST] * 9))
                await stand.have_started(8)
                scope.cancel()
        assert scope.cancelled_caught
        assert sorted(cleaned_up) == list(range(8))
        assert not stand.running

    run(main)


def test_a_result_that_is_there_in_spite_of_the_cancellation_is_returned() -> None:
    async def stubborn(index: int) -> str:
        try:
            await forever(index)
        except asyncio.CancelledError:
            return "kept"
        raise AssertionError

    stand = Stand(stubborn)

    async def main() -> None:
        async with open_router_host(stand) as host, trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await stand.have_started(1)
                    scope.cancel()

                nursery.start_soon(cancel)
                assert await host.acompletion(index=0) == "kept"
            assert not scope.cancelled_caught

    run(main)


def test_an_error_while_it_is_cancelled_is_raised() -> None:
    async def sore(index: int) -> None:
        try:
            await forever(index)
        finally:
            raise LookupError("mine")

    stand = Stand(sore)

    async def main() -> None:
        async with open_router_host(stand) as host, trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:

                async def cancel() -> None:
                    await stand.have_started(1)
                    scope.cancel()

                nursery.start_soon(cancel)
                with pytest.raises(LookupError, match="mine"):
                    await host.acompletion(index=0)

    run(main)


def test_a_call_in_a_cancelled_scope_does_not_begin() -> None:
    stand = Stand(at_once)

    async def main() -> None:
        async with open_router_host(stand) as host:
            with trio.CancelScope() as scope:
                scope.cancel()
                await host.acompletion(index=0)
            assert scope.cancelled_caught
        assert not stand.started

    run(main)


@pytest.mark.parametrize("how", ["break", "scope", "error"])
def test_a_batch_ended_at_any_moment_leaves_nothing_running(how: str) -> None:
    """Ended from trio after more and more steps, while the other thread goes its own pace."""

    async def brief(index: int) -> int:
        for _ in range(index % 4):
            await asyncio.sleep(0)
        return index

    async def main() -> None:
        for steps in range(60):
            stand = Stand(brief)
            with trio.CancelScope() as scope:

                async def end(scope: trio.CancelScope, steps: int) -> None:
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    if how == "error":
                        raise LookupError("mine")
                    scope.cancel()

                try:
                    async with trio.open_nursery() as nursery:
                        if how != "break":
                            nursery.start_soon(end, scope, steps)
                        batch = parallel_core.iter_parallel_acompletions(
                            stand, (REQUEST for _ in range(100)), concurrency=8
                        )
                        async with batch:
                            async for _ in batch:
                                if how == "break" and batch.delivered >= steps:
                                    break
                        nursery.cancel_scope.cancel()
                except* LookupError:
                    pass
            assert not stand.running
            assert batch.in_flight == 0

    run(main)
