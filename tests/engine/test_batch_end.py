"""How a batch ends: errors of calls, a break, a cancellation, an interrupt, a stubborn call."""

from __future__ import annotations

import contextlib
import logging
import traceback
from typing import Any

import anyio
import pytest
import trio
import trio.testing

import parallel_core
from helpers.batch_calls import Gate, double
from helpers.hosts import Host, settle
from parallel_core import RouterParallelRequest

MESSAGES = [{"role": "user", "content": "secret prompt"}]


def test_collecting_turns_exceptions_into_results(host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            await anyio.lowlevel.checkpoint()
            if item % 2:
                raise ValueError(item)
            return item

        results = await parallel_core.parallel_map(call, range(10), preserve_order=True)
        assert [type(result.exception) for result in results] == [type(None), ValueError] * 5
        failed = results[3]
        assert not failed.ok
        assert failed.value is None
        with pytest.raises(ValueError, match="3"):
            failed.unwrap()
        # The traceback is the user's: it begins in their function.
        assert results[5].exception is not None
        frames = traceback.extract_tb(results[5].exception.__traceback__)
        assert [frame.name for frame in frames] == ["call"]

    host.run(main)


def test_fail_fast_cancels_at_once_while_the_consumer_is_not_reading(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        error = gate.errors[3] = KeyError("mine")
        async with parallel_core.iter_parallel_map(
            gate.call, iter(range(100)), concurrency=5, return_exceptions=False
        ) as batch:
            await settle()
            await gate.let_go(1, 4)
            assert sorted(gate.waiting) == [0, 2, 3, 5, 6]
            await gate.let_go(3)
            assert not gate.waiting
            assert sorted(gate.cancelled) == [0, 2, 5, 6]
            assert batch.in_flight == 0
            # What finished before the error is handed out first.
            assert (await anext(batch)).index == 1
            assert (await anext(batch)).index == 4
            with pytest.raises(KeyError) as caught:
                await anext(batch)
            assert caught.value is error
            assert error.__notes__ == ["parallel_core: raised by request 3"]
            with pytest.raises(StopAsyncIteration):
                await anext(batch)

    host.run(main)


def test_fail_fast_in_input_order_hands_out_what_finished_with_gaps(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        gate.errors[1] = ValueError()
        async with parallel_core.iter_parallel_map(
            gate.call, range(9), concurrency=4, return_exceptions=False, preserve_order=True
        ) as batch:
            await settle()
            await gate.let_go(3, 2, 1)
            assert [(await anext(batch)).index for _ in range(2)] == [2, 3]
            with pytest.raises(ValueError):
                await anext(batch)

    host.run(main)


def test_fail_fast_list_raises_the_exception_itself_after_every_call_has_ended(host: Host) -> None:
    async def main() -> None:
        ended: list[int] = []
        error = ValueError("the first")

        async def call(item: int) -> int:
            try:
                if item == 2:
                    await anyio.lowlevel.checkpoint()
                    raise error
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                    await anyio.lowlevel.checkpoint()
                ended.append(item)
            return item

        with pytest.raises(ValueError, match="the first") as caught:
            await parallel_core.parallel_map(call, range(8), concurrency=8, return_exceptions=False)
        assert caught.value is error
        assert sorted(ended) == list(range(8))
        assert "call" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    host.run(main)


def test_break_cancels_and_awaits_every_call(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(gate.call, range(50), concurrency=5) as batch:
            await settle()
            await gate.let_go(0)
            async for _ in batch:
                break
            assert batch.in_flight > 0
        assert not gate.waiting
        assert len(gate.cancelled) == 5
        assert batch.in_flight == 0

    host.run(main)


def test_an_exception_of_the_body_comes_out_as_itself(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        error = LookupError("mine")
        with pytest.raises(LookupError) as caught:
            async with parallel_core.iter_parallel_map(gate.call, range(50)):
                await settle()
                raise error
        assert caught.value is error
        assert not gate.waiting

    host.run(main)


def test_a_deadline_around_a_batch(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        with anyio.CancelScope() as scope:
            async with parallel_core.iter_parallel_map(gate.call, range(50)) as batch:
                await settle()
                scope.cancel()
                await anext(batch)
        assert scope.cancelled_caught
        assert not gate.waiting
        assert len(gate.cancelled) == 8

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(parallel_core.parallel_map, gate.call, range(50))
                await settle()
                assert len(gate.waiting) == 8
                scope.cancel()
        assert not gate.waiting

    host.run(main)


def test_no_call_starts_while_the_body_of_a_cancelled_scope_cleans_up(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        with anyio.CancelScope() as scope:
            async with parallel_core.iter_parallel_map(gate.call, range(50), concurrency=4):
                await settle()
                scope.cancel()
                with anyio.CancelScope(shield=True):
                    await settle()
        assert sorted(gate.ended) == sorted(gate.cancelled) == [0, 1, 2, 3]

    host.run(main)


def test_cancel_hands_out_what_is_there_and_ends_without_an_error(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(
            gate.call, range(50), concurrency=5, return_exceptions=False
        ) as batch:
            await settle()
            await gate.let_go(2, 4)
            batch.cancel()
            await settle()
            assert not gate.waiting
            assert [result.index async for result in batch] == [2, 4]

    host.run(main)


def test_cancel_before_the_batch_has_begun(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        batch = parallel_core.iter_parallel_map(gate.call, range(50))
        batch.cancel()
        async with batch:
            assert [result async for result in batch] == []
        assert gate.ended == []

    host.run(main)


def test_aclose_waits_and_drops_what_was_not_handed_out(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(gate.call, range(50), concurrency=5) as batch:
            await settle()
            await gate.let_go(2)
            await batch.aclose()
            assert not gate.waiting
            await batch.aclose()
            assert [result async for result in batch] == []

        never = parallel_core.iter_parallel_map(gate.call, range(50))
        await never.aclose()
        assert [result async for result in never] == []

    host.run(main)


def test_a_batch_is_entered_once(host: Host) -> None:
    async def main() -> None:
        batch = parallel_core.iter_parallel_map(double, range(3))
        async with batch:
            pass
        with pytest.raises(RuntimeError, match="only once"):
            async with batch:
                pass

    host.run(main)


def test_live_counts(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        gate.errors[1] = ValueError()
        async with parallel_core.iter_parallel_map(gate.call, range(5), concurrency=4) as batch:
            await settle()
            await gate.let_go(0, 1)
            counts = batch.started, batch.succeeded, batch.failed, batch.in_flight, batch.delivered
            assert counts == (5, 1, 1, 3, 0)
            await anext(batch)
            assert batch.delivered == 1

    host.run(main)


# --- errors that no result can carry ---


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_never_become_results_in_trio(kind: type[BaseException]) -> None:
    (trio_host,) = (host for host in _hosts() if host.library == "trio")
    ended: list[int] = []

    async def call(item: int) -> None:
        try:
            if item == 3:
                await anyio.lowlevel.checkpoint()
                raise kind("stop")
            await anyio.sleep_forever()
        finally:
            ended.append(item)

    async def main() -> None:
        async with parallel_core.iter_parallel_map(call, range(10), concurrency=5):
            await anyio.sleep_forever()  # not reading: the block is ended all the same

    with pytest.raises(kind, match="stop"):
        trio_host.run(main)
    assert sorted(ended) == [0, 1, 2, 3, 4]


def _hosts() -> list[Host]:
    from helpers import hosts

    return hosts.HOSTS


# --- stubborn calls ---


def test_a_call_that_ignores_its_cancellation_is_awaited_and_named(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("parallel_core.nursery_engine.STUBBORN_CALL_FIRST_WARNING", 0.0)
    release: list[Any] = []

    class Release(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "still runs" in record.getMessage():
                release[0].set()

    logger = logging.getLogger("parallel_core")
    handler = Release()
    logger.addHandler(handler)
    ended: list[str] = []

    async def acompletion(*, model: str, messages: Any) -> None:
        release.append(anyio.Event())
        with anyio.CancelScope(shield=True):  # a native cancellation of asyncio gets through
            while not release[0].is_set():
                with contextlib.suppress(anyio.get_cancelled_exc_class()):
                    await release[0].wait()
        ended.append(model)

    async def main() -> None:
        requests = [RouterParallelRequest("stubborn-model", MESSAGES)]
        async with parallel_core.iter_parallel_acompletions(acompletion, requests):
            await settle()

    try:
        host.run(main)
    finally:
        logger.removeHandler(handler)
    assert ended == ["stubborn-model"]
    assert "request 0 (model 'stubborn-model') was cancelled and still runs" in caplog.text
    assert "secret" not in caplog.text


def test_stubborn_calls_are_named_after_five_seconds_and_every_thirty_in_trio(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In virtual time."""
    at: list[float] = []

    async def call(item: str) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(70)

    class Clockwatch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            at.append(trio.current_time())

    async def main() -> None:
        began = trio.current_time()
        async with parallel_core.iter_parallel_map(call, ["item"]):
            await settle()
        assert [round(time - began) for time in at] == [5, 35, 65]
        assert round(trio.current_time() - began) == 70

    handler = Clockwatch()
    logging.getLogger("parallel_core").addHandler(handler)
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        logging.getLogger("parallel_core").removeHandler(handler)
    assert caplog.text.count("request 0 was cancelled and still runs") == 3
