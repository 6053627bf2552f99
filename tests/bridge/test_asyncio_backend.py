"""The asyncio backend: scopes around a part of a task, the tasks of calls, interrupts."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
import trio

from helpers.hosts import Host
from parallel_core import BatchAbortedError, CallCancelledError, bridge
from parallel_core.engine import AsyncioBackend, asyncio_scopes
from parallel_core.engine.asyncio_scopes import Scopes, TaskScope
from parallel_core.engine.guest import TrioRun, raise_


async def in_scope(scope: TaskScope, entered: asyncio.Event) -> str:
    with scope:
        entered.set()
        await asyncio.sleep(60)
    await asyncio.sleep(0)  # a request that was left over would be raised here
    return "went on"


def test_a_scope_ends_a_part_of_a_task(asyncio_host: Host) -> None:
    async def main() -> None:
        scope, entered = TaskScope(), asyncio.Event()
        task = asyncio.ensure_future(in_scope(scope, entered))
        await entered.wait()
        scope.cancel()
        scope.cancel()
        assert await task == "went on"
        assert task.cancelling() == 0

    asyncio_host.run(main)


def test_a_scope_that_is_cancelled_before_it_is_entered(asyncio_host: Host) -> None:
    async def main() -> None:
        scope = TaskScope()
        scope.cancel()
        assert scope.cancelled
        assert await in_scope(scope, asyncio.Event()) == "went on"

    asyncio_host.run(main)


def test_another_cancellation_is_not_the_scopes(asyncio_host: Host) -> None:
    async def main() -> None:
        scope, entered = TaskScope(), asyncio.Event()
        task = asyncio.ensure_future(in_scope(scope, entered))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        scope.cancel()  # it is empty: nothing happens
        with pytest.raises(KeyError), TaskScope() as scope:
            scope.cancel()
            raise KeyError

    asyncio_host.run(main)


def test_a_task_that_cancels_the_scope_it_is_in_is_not_cancelled_behind_it(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        with TaskScope() as scope:
            scope.cancel()
        await asyncio.sleep(0)

    asyncio_host.run(main)


@pytest.mark.parametrize("shutting_down", [True, False])
def test_a_task_is_not_cancelled_again_by_a_shutdown(
    asyncio_host: Host, shutting_down: bool
) -> None:
    async def main() -> None:
        cleaning_up, cleaned_up = asyncio.Event(), False

        async def call() -> None:
            nonlocal cleaned_up
            try:
                await asyncio.sleep(60)
            finally:
                cleaning_up.set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                cleaned_up = True

        task = asyncio.ensure_future(call())
        await asyncio.sleep(0)
        scopes = Scopes()
        scopes.shutting_down = lambda: shutting_down
        task.cancel()  # by whoever shuts the loop down, or somebody else
        await cleaning_up.wait()
        assert scopes.cancel(task) is not shutting_down
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned_up is shutting_down

    asyncio_host.run(main)


def test_a_scope_has_a_time(asyncio_host: Host) -> None:
    async def main() -> None:
        with TaskScope(0.01) as scope:
            await asyncio.sleep(60)
        assert scope.cancelled
        with TaskScope(60) as scope:
            await asyncio.sleep(0)
        assert not scope.cancelled

    asyncio_host.run(main)


@pytest.mark.parametrize("last", ["inner", "outer", "batch", "somebody else"])
def test_a_task_is_cancelled_once_by_scopes_and_by_its_batch(asyncio_host: Host, last: str) -> None:
    """Clean-up may await; the cancellation goes on to whoever was the last to ask for it."""

    async def main() -> None:
        scopes = Scopes()
        inner, outer = TaskScope(None, scopes), TaskScope(None, scopes)
        cleaning_up, log = asyncio.Event(), list[str]()

        async def run() -> None:
            with outer:
                with inner:
                    try:
                        await asyncio.sleep(60)
                    finally:
                        cleaning_up.set()
                        await asyncio.sleep(0)
                        await asyncio.sleep(0)
                        log.append("cleaned up")
                log.append("behind the inner one")
            log.append("behind the outer one")

        task = asyncio.ensure_future(run())
        await asyncio.sleep(0)
        inner.cancel()
        await cleaning_up.wait()
        if last == "outer":
            outer.cancel()
        elif last == "batch":
            scopes.all_cancelled = True
            assert not scopes.cancel(task)
        elif last == "somebody else":
            task.cancel()
        await asyncio.wait([task])
        behind = {"inner": 2, "outer": 1}.get(last, 0)
        said = ["behind the inner one", "behind the outer one"][2 - behind :]
        assert log == ([] if last == "somebody else" else ["cleaned up"]) + said
        assert task.cancelled() is (behind == 0)
        assert not scopes.innermost

    asyncio_host.run(main)


def test_a_scope_that_was_cancelled_before_its_entry_is_left_without_a_step(
    asyncio_host: Host,
) -> None:
    async def main() -> None:
        scope = TaskScope()
        scope.cancel()
        with scope:
            pass
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio_host.run(main)


@pytest.mark.parametrize("next_one", ["outer scope", "batch"])
def test_a_body_that_absorbs_one_cancellation_gets_the_next(
    asyncio_host: Host, next_one: str
) -> None:
    async def main() -> None:
        scopes = Scopes()
        inner, outer = TaskScope(None, scopes), TaskScope(None, scopes)
        absorbed = asyncio.Event()

        async def run() -> None:
            with outer:
                with inner:
                    try:
                        await asyncio.sleep(60)
                    except asyncio.CancelledError:
                        absorbed.set()
                        await asyncio.sleep(0)
                await asyncio.sleep(60)

        task = asyncio.ensure_future(run())
        await asyncio.sleep(0)
        inner.cancel()
        await absorbed.wait()
        if next_one == "batch":
            scopes.all_cancelled = True
        else:
            outer.cancel()
        await asyncio.wait([task])
        assert task.cancelled() is (next_one == "batch")

    asyncio_host.run(main)


def test_where_there_is_no_task() -> None:
    assert asyncio_scopes._current_task() is None


# --- the backend ---


class Loop:
    """Takes what is to be called soon."""

    def __init__(self) -> None:
        self.soon: list[tuple[Any, ...]] = []

    def call_soon(self, *arguments: Any) -> None:
        self.soon.append(arguments)

    def time(self) -> float:
        return 3.5

    def is_closed(self) -> bool:
        return True


def test_an_interrupt_of_trio_is_raised_in_the_loop() -> None:
    backend = AsyncioBackend()
    loop: Any = Loop()
    backend.loop = loop
    interrupt = KeyboardInterrupt()
    backend.interrupted(interrupt)
    assert loop.soon == [(raise_, interrupt)]
    with pytest.raises(KeyboardInterrupt) as raised:
        raise_(interrupt)
    assert raised.value is interrupt
    assert backend.current_time() == 3.5


def test_a_loop_that_is_closed_has_no_timers() -> None:
    backend = AsyncioBackend()
    loop: Any = Loop()
    backend.loop = loop
    nursery: Any = None
    backend.call_later(nursery, 1.0, lambda: None)()
    assert loop.soon == []


def test_which_errors_are_a_calls_own() -> None:
    backend = AsyncioBackend()
    error, cancelled = KeyError("x"), asyncio.CancelledError()
    assert backend.error_of(error, "the call", True) is error
    assert backend.error_of(KeyboardInterrupt(), "the call", False) is None
    assert backend.error_of(cancelled, "the call", True) is None
    own = backend.error_of(cancelled, "the source", False)
    assert isinstance(own, CallCancelledError)
    assert "the source" in str(own)
    backend.scopes.shutting_down = lambda: True
    assert backend.error_of(cancelled, "the call", False) is None
    backend.scopes.shutting_down = lambda: False
    backend.scopes.all_cancelled = True
    assert backend.error_of(cancelled, "the call", False) is None


def test_a_cancellation_and_an_error_in_a_group_are_the_calls_error() -> None:
    backend = AsyncioBackend()
    error, cancelled = KeyError("x"), asyncio.CancelledError()
    found = backend.error_of(BaseExceptionGroup("g", [cancelled, error]), "the call", False)
    assert isinstance(found, ExceptionGroup)
    assert found.exceptions == (error,)
    interrupt = BaseExceptionGroup("g", [cancelled, KeyboardInterrupt()])
    assert backend.error_of(interrupt, "the call", False) is None
    alone = backend.error_of(BaseExceptionGroup("g", [cancelled]), "the call", False)
    assert isinstance(alone, CallCancelledError)
    assert backend.error_of(BaseExceptionGroup("g", [cancelled]), "the call", True) is None


def test_calls_are_named_tasks_in_a_copy_of_the_context(asyncio_host: Host) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")

    async def main() -> None:
        seen: list[tuple[str, str]] = []

        async def call(item: str) -> None:
            task = asyncio.current_task()
            assert task is not None
            seen.append((task.get_name(), variable.get()))
            variable.set(item)
            await asyncio.sleep(0)

        variable.set("of the caller")
        async for _ in bridge.iter_parallel_map(call, ["a", "b"], concurrency=2):
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert "parallel_core keeper" in names
        assert seen == [("request 0", "of the caller"), ("request 1", "of the caller")]
        assert variable.get() == "of the caller"

    asyncio_host.run(main)


# --- the batch ---


async def call(item: int) -> int:
    await asyncio.sleep(0)
    return item


def test_a_batch_is_entered_once_and_closed_before_its_start(asyncio_host: Host) -> None:
    async def main() -> None:
        batch = bridge.iter_parallel_map(call, [1])
        async with batch:
            with pytest.raises(RuntimeError, match=r"^a batch can be entered only once: make"):
                await batch.__aenter__()
            assert [result.item async for result in batch] == [1]
        closed = bridge.iter_parallel_map(call, [1])
        await closed.aclose()
        await closed.aclose()
        assert [result async for result in closed] == []
        with pytest.raises(RuntimeError, match=r"^a batch can be entered only once: make"):
            await closed.__aenter__()

    asyncio_host.run(main)


def test_a_batch_stays_on_its_loop() -> None:
    async def forever(item: int) -> None:
        await asyncio.sleep(60)

    batches: list[Any] = []

    async def begin() -> None:
        batches.append(batch := bridge.iter_parallel_map(forever, [1]))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(batch)

    async def use() -> None:
        with pytest.raises(RuntimeError, match=r"started on another event loop: use it there$"):
            await anext(batches[0])

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first.run_until_complete(begin())
        second.run_until_complete(use())
        first.run_until_complete(batches[0].aclose())
    finally:
        first.close()
        second.close()


def test_a_batch_that_its_trio_run_gave_up(asyncio_host: Host) -> None:
    """Its consumer is told why, and its calls are cancelled."""

    async def main() -> None:
        begun, cancelled = asyncio.Event(), asyncio.Event()

        async def forever(item: int) -> None:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        batch: Any = bridge.iter_parallel_map(forever, [1, 2])
        waiting = asyncio.ensure_future(anext(batch))
        await begun.wait()
        batch._carried.abort("a reason")
        with pytest.raises(BatchAbortedError, match=r"^the batch was cancelled: a reason$"):
            await waiting
        assert cancelled.is_set()
        await batch.aclose()

    asyncio_host.run(main)


def test_an_interrupt_that_broke_the_run_is_handed_to_the_loop(asyncio_host: Host) -> None:
    complaints: list[BaseException] = []

    class CarriedBatch:
        async def run(self) -> None:
            raise AssertionError

        def abort(self, reason: str) -> None:
            raise AssertionError

        def abandon(self, error: BaseException) -> None:
            complaints.append(error)

    async def main() -> None:
        run = TrioRun(ours=True)
        tenants = {CarriedBatch(): trio.CancelScope()}
        removed: list[Any] = []

        class FakeHost:
            def __init__(self) -> None:
                self.batches = tenants

            def remove(self, tenant: Any) -> None:
                removed.append(tenant)

        hosts: Any = {None: FakeHost()}
        run.carriers = hosts
        error = trio.TrioInternalError()
        error.__cause__ = interrupt = KeyboardInterrupt()
        handed: list[BaseException] = []
        run._raise_on_loop = handed.append  # type: ignore[method-assign,assignment]
        run._broke(error)
        assert complaints == [error]
        assert removed == list(tenants)
        assert handed == [interrupt]
        run._broke(interrupt)
        assert handed == [interrupt, interrupt]
        run._broke(trio.TrioInternalError())
        assert len(handed) == 2

    asyncio_host.run(main)
