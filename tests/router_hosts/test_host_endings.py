"""How a host ends: at the end of its block, with its run, by an interrupt, with a broken loop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator

import pytest
import trio
import trio.lowlevel
import trio.testing

import parallel_core
from helpers.hosts import thread_names
from helpers.router_stands import REQUEST, Stand, at_once, forever, run
from parallel_core import RouterHostClosedError, open_router_host, parallel_acompletions


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
        "this trio run is ending: a Router can make no more calls"
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
    assert "a litellm client failed to close: ValueError" in caplog.text
    assert "secret" not in caplog.text


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
