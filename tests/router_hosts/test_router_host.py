"""The hosts of Routers in trio: what crosses from trio to their loop and back, and how they end."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import importlib.util
import os
import signal
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio
import trio.lowlevel
import trio.testing

import parallel_core
from helpers.hosts import thread_names
from parallel_core import (
    CallCancelledError,
    RouterHostClosedError,
    nursery_engine,
    open_router_host,
    parallel_acompletions,
)
from parallel_core._router_members import deployments

REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Stand:
    """In the place of a Router: calls that wait, end and count as a test wants them to."""

    def __init__(self, call: Callable[[int], Awaitable[Any]]) -> None:
        self._call = call
        self.running: set[int] = set()
        self.started: list[int] = []
        self.threads: set[threading.Thread] = set()
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.some_started = threading.Semaphore(0)

    async def acompletion(self, *, metadata: Any = None, **arguments: Any) -> Any:
        index: int = arguments["index"] if metadata is None else metadata["parallel_index"]
        self.threads.add(threading.current_thread())
        self.loops.add(asyncio.get_running_loop())
        self.started.append(index)
        self.running.add(index)
        self.some_started.release()
        try:
            return await self._call(index)
        finally:
            self.running.discard(index)

    async def have_started(self, count: int) -> None:
        for _ in range(count):
            await trio.to_thread.run_sync(self.some_started.acquire)


async def forever(index: int) -> None:
    await asyncio.Event().wait()


async def at_once(index: int) -> int:
    return index


def run(function: Callable[[], Awaitable[None]]) -> None:
    threads = thread_names()
    trio.run(function)
    assert thread_names() == threads


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


# --- which host ---


def test_all_batches_of_a_run_share_a_thread_and_every_run_has_its_own() -> None:
    stands = [Stand(at_once) for _ in range(2)]

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for stand in stands:
                for _ in range(3):
                    nursery.start_soon(parallel_acompletions, stand, [REQUEST] * 20)
        assert thread_names().count("parallel_core router host") == 1

    for runs in range(1, 4):
        run(main)
        assert stands[0].loops == stands[1].loops
        assert len(stands[0].loops) == runs
    assert all(loop.is_closed() for loop in stands[0].loops)


def test_a_run_that_needs_no_host_has_none() -> None:
    async def main() -> None:
        async def acompletion(**arguments: Any) -> str:
            await trio.lowlevel.checkpoint()
            return "native"

        (result,) = await parallel_acompletions(acompletion, [REQUEST])
        assert result.unwrap() == "native"
        assert "parallel_core router host" not in thread_names()

    run(main)


def test_two_runs_in_two_threads_share_nothing() -> None:
    stands = [Stand(forever), Stand(at_once)]
    both_run, second_done = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    async def first() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: parallel_acompletions(stands[0], [REQUEST] * 8))
                await stands[0].have_started(8)
                both_run.set()
                await trio.to_thread.run_sync(second_done.wait)
                assert len(stands[0].running) == 8
                scope.cancel()
        assert scope.cancelled_caught

    async def second() -> None:
        results = await parallel_acompletions(stands[1], [REQUEST] * 50)
        assert all(result.ok for result in results)

    def in_a_thread(main: Callable[[], Awaitable[None]]) -> None:
        try:
            trio.run(main)
        except BaseException as error:
            errors.append(error)

    threads = thread_names()
    other = threading.Thread(target=in_a_thread, args=(first,))
    other.start()
    both_run.wait()
    try:
        in_a_thread(second)
    finally:
        second_done.set()
        other.join()
    assert not errors
    assert thread_names() == threads
    assert stands[0].loops.isdisjoint(stands[1].loops)
    assert stands[0].threads.isdisjoint(stands[1].threads)


def test_an_opened_host_is_used_by_batches_of_its_router_in_any_task() -> None:
    mine, other = Stand(at_once), Stand(at_once)
    begin = trio.Event()

    async def later() -> None:
        await begin.wait()
        await parallel_acompletions(mine, [REQUEST] * 3)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            async with open_router_host(mine) as host:
                await nursery_engine.parallel_acompletions(mine, [REQUEST] * 3)
                await parallel_acompletions(mine, [REQUEST] * 3, router_host="thread")
                await parallel_acompletions(host, [REQUEST] * 3)
                await parallel_acompletions(host, [REQUEST] * 3, router_host=host)
                begin.set()
                await trio.testing.wait_all_tasks_blocked()
                assert await host.run(at_once, 3) == 3
                (loop,) = mine.loops
                await parallel_acompletions(other, [REQUEST] * 3)
                assert loop not in other.loops
                await parallel_acompletions(other, [REQUEST] * 3, router_host=host)
                await parallel_acompletions(host.with_router(other), [REQUEST] * 3)
                assert len(other.loops) == 2
                assert loop in other.loops
                assert repr(host) == "<RouterHost thread open>"
                # A host inside a host: the inner one, for as long as it is there.
                async with open_router_host(mine):
                    await parallel_acompletions(mine, [REQUEST])
                assert len(mine.loops) == 2
                await parallel_acompletions(mine, [REQUEST])
                assert len(mine.loops) == 2
            assert repr(host) == "<RouterHost thread closed>"
            assert loop.is_closed()
            await parallel_acompletions(mine, [REQUEST])
            assert len(mine.loops) == 3

    run(main)


def test_a_host_that_closes_ends_the_calls_of_other_tasks() -> None:
    stand = Stand(forever)
    outcomes: list[object] = []

    async def call(host: parallel_core.RouterHost) -> None:
        try:
            await host.acompletion(index=99)
        except RouterHostClosedError as error:
            outcomes.append(error)

    async def batch() -> None:
        results = await parallel_acompletions(stand, (REQUEST for _ in range(20)), concurrency=4)
        outcomes.extend(result.exception for result in results)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            async with open_router_host(stand) as host:
                nursery.start_soon(call, host)
                nursery.start_soon(batch)
                await stand.have_started(5)
            assert not stand.running
        # Those of the batch that came after the end found the host closed.
        assert len(outcomes) == 21
        assert {type(error) for error in outcomes} == {RouterHostClosedError}
        with pytest.raises(RouterHostClosedError, match="inside its async with block"):
            await host.acompletion()
        with pytest.raises(RouterHostClosedError):
            await host.run(at_once, 3)

    run(main)


def test_a_cancelled_block_closes_its_host() -> None:
    stand = Stand(forever)

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with open_router_host(stand) as host, trio.open_nursery() as nursery:
                nursery.start_soon(lambda: host.acompletion(index=0))
                await stand.have_started(1)
                scope.cancel()
        assert scope.cancelled_caught
        assert not stand.running
        assert thread_names().count("parallel_core router host") == 0

    run(main)


def test_a_broken_loop_ends_its_calls_and_the_next_batch_gets_another() -> None:
    async def break_the_loop(index: int) -> None:
        if index == 3:
            asyncio.get_running_loop().stop()
        await forever(index)

    stand = Stand(break_the_loop)
    after = Stand(at_once)

    async def main() -> None:
        results = await parallel_acompletions(stand, [REQUEST] * 6, concurrency=6)
        assert {type(result.exception) for result in results} == {RouterHostClosedError}
        results = await parallel_acompletions(after, [REQUEST] * 6, concurrency=6)
        assert all(result.ok for result in results)
        assert after.loops.isdisjoint(stand.loops)

    run(main)


# --- where trio code is called from ---


def test_threads_guests_and_nested_batches() -> None:
    stand = Stand(at_once)

    async def main() -> None:
        async def fan_out(number: int) -> int:
            results = await parallel_acompletions(stand, [REQUEST] * number)
            return len([result for result in results if result.ok])

        def in_a_worker_thread() -> int:
            return trio.from_thread.run(fan_out, 5)

        assert await trio.to_thread.run_sync(in_a_worker_thread) == 5
        nested = await parallel_core.parallel_map(fan_out, [1, 2, 3], preserve_order=True)
        assert [result.value for result in nested] == [1, 2, 3]
        # The synchronous form, in a worker thread, has a loop of its own.
        results = await trio.to_thread.run_sync(
            parallel_core.parallel_completions, stand, [REQUEST] * 4
        )
        assert len(results) == 4
        assert len(stand.loops) == 2

    run(main)

    async def in_asyncio() -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=done.set_result,
        )
        (await done).unwrap()

    stand.loops.clear()
    threads = thread_names()
    asyncio.run(in_asyncio())
    assert thread_names() == threads


def test_an_asyncio_batch_in_a_call_of_a_trio_batch() -> None:
    """A Router that fans out itself: its loop carries a guest run of trio in the helper thread."""

    async def fan_out(index: int) -> int:
        async def call(item: int) -> int:
            await asyncio.sleep(0)
            return item

        results = await parallel_core.parallel_map(call, range(10), concurrency=3)
        return sum(result.unwrap() for result in results)

    async def main() -> None:
        results = await parallel_acompletions(Stand(fan_out), [REQUEST] * 5, concurrency=2)
        assert [result.unwrap() for result in results] == [45] * 5

    run(main)


def test_results_are_not_kept_alive() -> None:
    class Answer:
        pass

    answers: list[weakref.ref[Answer]] = []

    async def answer(index: int) -> Answer:
        made = Answer()
        answers.append(weakref.ref(made))
        return made

    async def main() -> None:
        stand = Stand(answer)
        results = await parallel_acompletions(stand, [REQUEST] * 5)
        assert all(reference() is not None for reference in answers)
        del results
        # The other thread has turned to something else, and so has trio.
        await parallel_acompletions(Stand(at_once), [REQUEST])
        await trio.testing.wait_all_tasks_blocked()
        gc.collect()
        assert all(reference() is None for reference in answers)

    run(main)


# --- bad input ---


def test_bad_hosts_are_refused_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    stand: Any = Stand(at_once)

    async def native(**arguments: Any) -> None:
        raise AssertionError("it was called")

    async def main() -> None:
        for bad in ("threads", "", 3, ["thread"]):
            with pytest.raises(ValueError, match="must be one of 'thread', 'thread-uvloop'"):
                await parallel_acompletions(stand, [REQUEST], router_host=bad)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="must be one of"):
                parallel_core.iter_parallel_acompletions(stand, [REQUEST], router_host=bad)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="must be one of"):
                async with open_router_host(stand, bad):  # type: ignore[arg-type]
                    pass
        with pytest.raises(ValueError, match="a bare callable is called in trio"):
            await parallel_acompletions(native, [REQUEST], router_host="thread")
        with pytest.raises(TypeError, match="anything with an acompletion coroutine method"):
            async with open_router_host(native):  # type: ignore[arg-type]
                pass
        with pytest.raises(RuntimeError, match="no loop of trio-asyncio is open in this task"):
            await parallel_acompletions(stand, [REQUEST], router_host="trio-asyncio")
        async with open_router_host(stand) as host:
            with pytest.raises(ValueError, match="is a RouterHost already"):
                await parallel_acompletions(host, [REQUEST], router_host="thread")
            for no_router in (None, host, native):
                with pytest.raises(TypeError, match="anything with an acompletion"):
                    host.with_router(no_router)  # type: ignore[arg-type]
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(RuntimeError, match="needs uvloop: pip install"):
            await parallel_acompletions(stand, [REQUEST], router_host="thread-uvloop")
        assert not stand.started

    run(main)


def test_asyncio_functions_of_litellm_are_refused_in_trio() -> None:
    import litellm

    router = litellm.Router(
        model_list=[{"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "x"}}]
    )

    async def main() -> None:
        class Own(parallel_core.ParallelRouter):
            async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
                raise AssertionError("it was called")

        own = Own(model_list=deployments(router))
        functions: list[Any] = [router.acompletion, litellm.acompletion, own.acompletion]
        for function in [*functions, functools.partial(router.acompletion)]:
            with pytest.raises(TypeError, match=r"asyncio code .* pass the Router itself"):
                await parallel_acompletions(function, [REQUEST])

    run(main)


def test_hosts_are_for_trio_and_for_the_run_that_has_opened_them() -> None:
    stand = Stand(at_once)
    kept: list[parallel_core.RouterHost] = []

    async def main() -> None:
        async with open_router_host(stand) as host:
            kept.append(host)

            def in_another_run() -> None:
                async def other() -> None:
                    for use in (
                        host.acompletion,
                        lambda: parallel_acompletions(host, [REQUEST]),
                        lambda: parallel_acompletions(stand, [REQUEST], router_host=host),
                    ):
                        with pytest.raises(RuntimeError, match="belongs to another trio run"):
                            await use()

                trio.run(other)

            await trio.to_thread.run_sync(in_another_run)

    run(main)

    async def in_asyncio() -> None:
        with pytest.raises(ValueError, match="router_host is for trio"):
            await parallel_acompletions(stand, [REQUEST], router_host="thread")
        with pytest.raises(ValueError, match="router_host is for trio"):
            parallel_core.iter_parallel_acompletions(stand, [REQUEST], router_host="thread")
        with pytest.raises(TypeError, match="a RouterHost is for trio"):
            await parallel_acompletions(kept[0], [REQUEST])
        with pytest.raises(TypeError, match="a RouterHost is for trio"):
            parallel_core.parallel_completions(kept[0], [REQUEST])

        async def refused(_: int) -> None:
            # Also while a guest run of trio is there.
            with pytest.raises(RuntimeError, match="for trio, and asyncio is running here"):
                async with open_router_host(stand):
                    pass
            with pytest.raises(RuntimeError, match="for trio, and asyncio is running here"):
                async with parallel_core.open_trio_asyncio():
                    pass
            with pytest.raises(RuntimeError, match="for trio, and asyncio is running here"):
                nursery_engine.iter_parallel_acompletions(stand, [REQUEST])

        await refused(0)
        (result,) = await parallel_core.parallel_map(refused, [0])
        result.unwrap()

    threads = thread_names()
    asyncio.run(in_asyncio())
    assert thread_names() == threads
    assert "trio_asyncio" not in sys.modules
    assert not stand.started


def test_trio_asyncio_is_refused_where_it_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
        with pytest.raises(RuntimeError, match=r"does not work on Python 3\.14 and newer"):
            await parallel_acompletions(Stand(at_once), [REQUEST], router_host="trio-asyncio")
        with pytest.raises(RuntimeError, match=r"does not work on Python 3\.14 and newer"):
            async with parallel_core.open_trio_asyncio():
                pass
        monkeypatch.undo()

    run(main)
    assert "trio_asyncio" not in sys.modules


# --- found by attacks ---


def test_an_interrupt_that_waits_does_not_leave_the_host_behind() -> None:
    """Ctrl-C cancels a call, which answers all the same: KeyboardInterrupt is raised later."""

    async def stubborn(index: int) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await forever(index)
        except asyncio.CancelledError:
            return "kept"
        raise AssertionError

    answers: list[object] = []

    async def main() -> None:
        async with open_router_host(Stand(stubborn)) as host:
            answers.append(await host.acompletion(index=0))

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(main)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert answers == ["kept"]
    assert "parallel_core router host" not in thread_names()


def test_a_run_that_is_ending_starts_no_host() -> None:
    errors: list[BaseException] = []

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            with trio.CancelScope(shield=True):
                try:
                    await parallel_acompletions(Stand(at_once), [REQUEST])
                except RuntimeError as error:
                    errors.append(error)

    kept = generator()

    async def main() -> None:
        await anext(kept)

    run(main)
    assert [str(error) for error in errors] == [
        "this trio run is ending: it is too late for a Router's calls"
    ]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_in_the_background_of_the_loop_end_its_calls(
    kind: type[BaseException],
) -> None:
    """They end the loop, and those that come while it is shut down even without its order."""

    async def bomb(index: int) -> None:
        def explode() -> None:
            raise kind("in a callback")

        asyncio.get_running_loop().call_soon(explode)
        await forever(index)

    async def main() -> None:
        results = await parallel_acompletions(Stand(bomb), [REQUEST] * 4)
        assert {type(result.exception) for result in results} == {RouterHostClosedError}
        results = await parallel_acompletions(Stand(at_once), [REQUEST] * 4)
        assert all(result.ok for result in results)

    run(main)
    gc.collect()


class Streaming:
    """A Router whose answers are streams; the first chunk is there at once, the next one never."""

    def __init__(self) -> None:
        self.closed = 0

    async def acompletion(self, **arguments: Any) -> AsyncIterator[int]:
        async def chunks() -> AsyncIterator[int]:
            try:
                yield 1
                await forever(0)
            finally:
                await asyncio.sleep(0)
                self.closed += 1

        return chunks()


def test_a_second_reader_of_a_stream_is_refused_and_the_first_one_reads_on() -> None:
    router = Streaming()

    async def main() -> None:
        async with open_router_host(router) as host, trio.open_nursery() as nursery:
            stream = await host.acompletion()
            assert await anext(stream) == 1

            async def read() -> None:
                with pytest.raises(trio.ClosedResourceError, match="another task has closed"):
                    await anext(stream)

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match="another task is reading"):
                await anext(stream)
            assert router.closed == 0
            await stream.aclose()
            assert router.closed == 1
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert router.closed == 1

    run(main)


def test_a_client_that_fails_to_close_keeps_nothing_else_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    import litellm

    closed: list[str] = []

    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        async def aclose(self) -> None:
            closed.append(self.name)
            if self.name == "bad":
                raise ValueError("a secret")

    async def cache_clients(index: int) -> None:
        for name in ("bad", "good"):
            litellm.in_memory_llm_clients_cache.set_cache(name, Client(name))

    async def main() -> None:
        async with open_router_host(Stand(cache_clients)) as host:
            await host.acompletion(index=0)
        assert closed == ["bad", "good"]

    run(main)
    assert "a client of litellm failed to close: ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_a_stream_whose_chunk_fails_is_closed() -> None:
    closed: list[bool] = []

    class Chunks:
        """Not a generator, which would end itself when it fails."""

        def __aiter__(self) -> Chunks:
            return self

        async def __anext__(self) -> int:
            raise LookupError("mine")

        async def aclose(self) -> None:
            closed.append(True)

    async def answer(index: int) -> Chunks:
        return Chunks()

    async def main() -> None:
        async with open_router_host(Stand(answer)) as host:
            stream = await host.acompletion(index=0)
            with pytest.raises(LookupError, match="mine"):
                await anext(stream)
            assert closed == [True]
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        assert closed == [True]

    run(main)


def test_a_host_closes_while_the_threads_of_the_application_are_all_taken() -> None:
    closed = threading.Event()

    async def main() -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        limiter.total_tokens = 1
        async with trio.open_nursery() as nursery:
            async with open_router_host(Stand(at_once)) as host:
                assert await host.acompletion(index=3) == 3
                nursery.start_soon(lambda: trio.to_thread.run_sync(closed.wait))
                await trio.testing.wait_all_tasks_blocked()
            closed.set()

    run(main)


def test_a_host_that_closes_lets_a_stream_finish_closing() -> None:
    steps: list[str] = []

    class SlowToClose:
        def __aiter__(self) -> SlowToClose:
            return self

        async def __anext__(self) -> int:
            return 1

        async def aclose(self) -> None:
            steps.append("closing")
            for _ in range(20):
                await asyncio.sleep(0)
            steps.append("closed")

    async def answer(index: int) -> SlowToClose:
        return SlowToClose()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            async with open_router_host(Stand(answer)) as host:
                stream = await host.acompletion(index=0)
                nursery.start_soon(stream.aclose)
                await trio.lowlevel.checkpoint()
            assert steps == ["closing", "closed"]

    run(main)
