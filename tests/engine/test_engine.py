"""The rules of a batch, on every host."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import traceback
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest
import sniffio
import trio
import trio.testing

import parallel_core
from helpers.bridge_checks import open_files
from helpers.hosts import Host, settle
from parallel_core import InvalidRequestError, ParallelResult, RouterParallelRequest
from parallel_core._batch import CALLS_BETWEEN_PAUSES

MESSAGES = [{"role": "user", "content": "secret prompt"}]


class Gate:
    """Calls that wait until the test lets them go, one by one, in the order that it chooses."""

    def __init__(self) -> None:
        self.waiting: dict[Any, anyio.Event] = {}
        self.errors: dict[Any, BaseException] = {}
        self.ended: list[Any] = []
        self.cancelled: list[Any] = []

    async def call(self, item: Any) -> Any:
        event = self.waiting[item] = anyio.Event()
        try:
            await event.wait()
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(item)
            raise
        finally:
            self.waiting.pop(item, None)
            self.ended.append(item)
        if item in self.errors:
            raise self.errors[item]
        return item

    async def let_go(self, *items: Any) -> None:
        for item in items:
            self.waiting[item].set()
            await settle()


async def double(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    return 2 * item


def test_list_holds_one_result_for_every_item(host: Host) -> None:
    async def main() -> None:
        results = await parallel_core.parallel_map(double, range(50), concurrency=7)
        assert sorted(result.index for result in results) == list(range(50))
        for result in results:
            assert result.ok
            assert result.item == result.index
            assert result.unwrap() == 2 * result.index
            assert result.duration >= 0
            assert result.started_at > 1.7e9

    host.run(main)


def test_ten_thousand_requests_need_no_more_tasks_than_slots_in_trio() -> None:
    """The asyncio side is measured with its loops, in test_bridge_lifecycle."""

    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        threads, files = threading.active_count(), open_files()
        most = 0

        async def call(item: int) -> int:
            nonlocal most
            await anyio.lowlevel.checkpoint()
            most = max(most, trio.lowlevel.current_statistics().tasks_living)
            assert threading.active_count() == threads
            return item

        seen = 0
        async with parallel_core.iter_parallel_map(
            call, iter(range(10_000)), concurrency=32
        ) as batch:
            async for result in batch:
                assert result.ok
                seen += 1
                assert open_files() == files
        assert seen == 10_000
        # The slots, the batch itself, and the task that watches for stubborn calls.
        assert most <= before + 32 + 2
        assert trio.lowlevel.current_statistics().tasks_living == before

    trio.run(main)


@pytest.mark.parametrize(
    "source", [[], (), iter([]), range(0)], ids=lambda source: type(source).__name__
)
def test_empty_source(host: Host, source: Any) -> None:
    async def main() -> None:
        assert await parallel_core.parallel_map(double, list(source)) == []
        async with parallel_core.iter_parallel_map(double, iter(source)) as batch:
            assert [result async for result in batch] == []
            assert (batch.started, batch.in_flight, batch.delivered) == (0, 0, 0)

    host.run(main)


def test_concurrency_is_full_and_never_exceeded(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(
            gate.call, iter(range(20)), concurrency=5
        ) as batch:
            await settle()
            for done in range(20):
                assert len(gate.waiting) == batch.in_flight == min(5, 20 - done)
                await gate.let_go(max(gate.waiting))
                await anext(batch)
                await settle()

    host.run(main)


def test_few_items_start_few_slots(host: Host) -> None:
    """A short lazy source with a huge concurrency does not start a huge number of tasks."""

    async def main() -> None:
        gate = Gate()
        started = 0

        async with parallel_core.iter_parallel_map(
            gate.call, iter(range(3)), concurrency=100_000
        ) as batch:
            await settle()
            started = batch._core._open_slots
            assert len(gate.waiting) == 3
        assert started <= 7

    host.run(main)


def test_results_come_in_completion_order(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(gate.call, range(4), concurrency=4) as batch:
            await settle()
            await gate.let_go(2, 0, 3, 1)
            assert [result.index async for result in batch] == [2, 0, 3, 1]

    host.run(main)


def test_input_order_waits_for_the_first_and_holds_a_bounded_number_of_results(host: Host) -> None:
    async def main() -> None:
        gate = Gate()
        async with parallel_core.iter_parallel_map(
            gate.call, iter(range(1000)), concurrency=2, preserve_order=True
        ) as batch:
            await settle()
            while len(gate.waiting) > 1:
                await gate.let_go(max(gate.waiting))
            assert list(gate.waiting) == [0]
            assert batch.started == 16  # eight times the concurrency
            await gate.let_go(0)
            got = [(await anext(batch)).index for _ in range(16)]
            assert got == list(range(16))

    host.run(main)


def test_list_in_input_order_keeps_all_slots_busy_behind_a_slow_first_call(host: Host) -> None:
    async def main() -> None:
        gate = Gate()

        async def run() -> None:
            results = await parallel_core.parallel_map(
                gate.call, range(100), concurrency=2, preserve_order=True
            )
            assert [result.index for result in results] == list(range(100))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await settle()
            while len(gate.waiting) > 1:
                await gate.let_go(max(gate.waiting))
            assert len(gate.ended) == 99
            await gate.let_go(0)

    host.run(main)


def test_a_consumer_that_does_not_read_holds_calls_back(host: Host) -> None:
    async def main() -> None:
        started: list[int] = []

        async def call(item: int) -> int:
            started.append(item)
            return item

        async with parallel_core.iter_parallel_map(
            call, iter(range(10_000)), concurrency=3
        ) as batch:
            await settle()
            assert len(started) == 6
            await anext(batch)
            await settle()
            assert len(started) == 7
            assert batch.started - batch.delivered == 6

    host.run(main)


def test_an_endless_source_is_drawn_only_as_far_as_needed(host: Host) -> None:
    async def main() -> None:
        drawn = 0

        def endless() -> Iterator[int]:
            nonlocal drawn
            while True:
                drawn += 1
                yield drawn

        seen = 0
        async with parallel_core.iter_parallel_map(double, endless(), concurrency=4) as batch:
            async for _ in batch:
                seen += 1
                if seen == 100:
                    break
        assert drawn <= 100 + 2 * 4

    host.run(main)


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


# --- sources ---


async def numbers(count: int, closed: list[str] | None = None) -> AsyncIterator[int]:
    try:
        for number in range(count):
            await anyio.lowlevel.checkpoint()
            yield number
    finally:
        if closed is not None:
            await anyio.lowlevel.checkpoint()
            closed.append("closed")


def test_async_source(host: Host) -> None:
    async def main() -> None:
        closed: list[str] = []
        results = await parallel_core.parallel_map(double, numbers(30, closed), concurrency=4)
        assert sorted(result.unwrap() for result in results) == [2 * n for n in range(30)]
        assert closed == ["closed"]

    host.run(main)


def test_an_async_source_is_drawn_only_when_a_slot_is_free(host: Host) -> None:
    async def main() -> None:
        drawn = 0

        async def endless() -> AsyncIterator[int]:
            nonlocal drawn
            while True:
                drawn += 1
                yield drawn

        gate = Gate()
        async with parallel_core.iter_parallel_map(gate.call, endless(), concurrency=3) as batch:
            await settle()
            assert drawn == 3
            await gate.let_go(2)
            assert drawn == 4
            assert (await anext(batch)).item == 2

    host.run(main)


def test_an_async_generator_is_closed_on_break_and_may_await_while_it_cleans_up(host: Host) -> None:
    """Nobody has cancelled a generator that waits at its ``yield``: it is closed, not cancelled."""

    async def main() -> None:
        closed: list[str] = []
        async with parallel_core.iter_parallel_map(double, numbers(1000, closed)) as batch:
            async for _ in batch:
                await settle()  # all slots wait for the consumer; nothing is being drawn
                break
        assert closed == ["closed"]

    host.run(main)


def test_an_async_generator_that_waits_is_cancelled_and_closed(host: Host) -> None:
    async def main() -> None:
        closed: list[str] = []

        async def stuck() -> AsyncIterator[int]:
            try:
                yield 0
                await anyio.sleep_forever()
            finally:
                closed.append("closed")

        async with parallel_core.iter_parallel_map(double, stuck()) as batch:
            assert (await anext(batch)).index == 0
            await settle()
        assert closed == ["closed"]

    host.run(main)


def test_a_scope_held_across_the_yields_of_an_async_source(host: Host) -> None:
    """Such a generator must be stepped by one task from beginning to end."""

    async def main() -> None:
        async def source() -> AsyncIterator[int]:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(anyio.lowlevel.checkpoint)
                    for number in range(20):
                        await anyio.lowlevel.checkpoint()
                        yield number

        results = await parallel_core.parallel_map(double, source(), concurrency=3)
        assert len(results) == 20

    host.run(main)


def test_a_sync_generator_is_closed(host: Host) -> None:
    async def main() -> None:
        closed: list[str] = []

        def source() -> Iterator[int]:
            try:
                yield from range(1000)
            finally:
                closed.append("closed")

        async with parallel_core.iter_parallel_map(double, source()) as batch:
            await anext(batch)
        assert closed == ["closed"]

    host.run(main)


def three_numbers_and(error: Exception, kind: str) -> Any:
    def sync_source() -> Iterator[int]:
        yield from range(3)
        raise error

    async def async_source() -> AsyncIterator[int]:
        for number in range(3):
            yield number
        raise error

    return sync_source() if kind == "sync" else async_source()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_source_that_raises_when_collecting(host: Host, kind: str) -> None:
    """Calls in flight finish and are delivered; then the source's own exception comes out."""

    async def main() -> None:
        error = OSError("the file is broken")

        gate = Gate()
        source = three_numbers_and(error, kind)
        async with parallel_core.iter_parallel_map(gate.call, source, concurrency=4) as batch:
            await settle()
            assert sorted(gate.waiting) == [0, 1, 2]
            await gate.let_go(2, 1, 0)
            assert [(await anext(batch)).index for _ in range(3)] == [2, 1, 0]
            with pytest.raises(OSError) as caught:
                await anext(batch)
            assert caught.value is error
        assert not gate.cancelled

    host.run(main)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_source_that_raises_when_failing_fast(host: Host, kind: str) -> None:
    async def main() -> None:
        error = OSError("the file is broken")

        gate = Gate()
        source = three_numbers_and(error, kind)
        with pytest.raises(OSError) as caught:
            await parallel_core.parallel_map(
                gate.call, source, concurrency=4, return_exceptions=False
            )
        assert caught.value is error
        assert sorted(gate.cancelled) == sorted(gate.ended)
        assert not gate.waiting

    host.run(main)


def test_a_source_whose_cleanup_fails_is_not_silent(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[int]:
            try:
                for number in range(1000):
                    yield number
            finally:
                raise OSError("cannot close")

        with pytest.raises(OSError, match="cannot close"):
            async with parallel_core.iter_parallel_map(double, source()) as batch:
                await anext(batch)

        error = LookupError("of the body")
        with pytest.raises(LookupError) as caught:
            async with parallel_core.iter_parallel_map(double, source()) as batch:
                await anext(batch)
                raise error
        assert caught.value is error
        assert "cannot close" in error.__notes__[-1]
        assert "left by LookupError: OSError" in caplog.text
        assert "cannot close" not in caplog.text

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
    monkeypatch.setattr("parallel_core._batch.STUBBORN_CALL_FIRST_WARNING", 0.0)
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


# --- requests ---


async def echo(*, model: str, messages: Any, **kwargs: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return model, messages, kwargs


def test_requests_and_mappings_are_sent_alike(host: Host) -> None:
    async def main() -> None:
        requests: list[Any] = [
            RouterParallelRequest("a", MESSAGES, {"temperature": 0.5}),
            {"model": "b", "messages": MESSAGES, "max_tokens": 3},
            RouterParallelRequest(model="c", messages=MESSAGES),
        ]
        results = await parallel_core.parallel_acompletions(echo, requests, preserve_order=True)
        assert [result.unwrap() for result in results] == [
            ("a", MESSAGES, {"temperature": 0.5}),
            ("b", MESSAGES, {"max_tokens": 3}),
            ("c", MESSAGES, {}),
        ]
        assert results[1].request == RouterParallelRequest("b", MESSAGES, {"max_tokens": 3})

    host.run(main)


BAD: list[tuple[Any, str]] = [
    (None, "NoneType"),
    ("text", "str"),
    ({"model": "a"}, "messages missing"),
    ({}, "model and messages missing"),
    ({"model": "", "messages": MESSAGES}, "an empty str"),
    ({"model": 3, "messages": MESSAGES}, "not int"),
    ({"model": "a", "messages": "hello"}, "list of messages"),
    ({"model": "a", "messages": []}, "messages is empty"),
    ({"model": "a", "messages": [{"content": "x"}]}, "no 'role'"),
    ({"model": "a", "messages": ["x"]}, r"messages\[0\]"),
    ({"model": "a", "messages": MESSAGES, "metadata": "x"}, "metadata"),
    (
        {"model": "a", "messages": MESSAGES, "stream_options": True},
        "stream_options must be a mapping",
    ),
    ({"model": "a", "messages": MESSAGES, "kwargs": {"n": 1}}, "top level"),
    (RouterParallelRequest("a", MESSAGES, {"model": "b"}), "given twice"),
    (RouterParallelRequest("a", MESSAGES, "x"), "kwargs"),  # type: ignore[arg-type]
    (RouterParallelRequest("a", MESSAGES, {1: 2}), "names of kwargs"),  # type: ignore[dict-item]
]


@pytest.mark.parametrize(("bad", "problem"), BAD)
def test_sized_input_is_refused_as_a_whole(host: Host, bad: Any, problem: str) -> None:
    async def main() -> None:
        sent: list[str] = []

        async def call(*, model: str, messages: Any) -> None:
            sent.append(model)

        good = RouterParallelRequest("a", MESSAGES)
        with pytest.raises(InvalidRequestError, match=problem) as caught:
            await parallel_core.parallel_acompletions(call, [good, bad, good, bad])
        assert set(caught.value.problems) == {1, 3}
        assert "requests 1, 3: " in str(caught.value)
        assert isinstance(caught.value, ValueError)
        assert "secret" not in str(caught.value)
        assert sent == []

    host.run(main)


def test_a_bad_item_of_a_lazy_source_is_the_result_of_its_index(host: Host) -> None:
    async def main() -> None:
        requests: list[Any] = [RouterParallelRequest("a", MESSAGES), {"model": "b"}, 17]
        results = await parallel_core.parallel_acompletions(
            echo, iter(requests), preserve_order=True
        )
        assert [result.ok for result in results] == [True, False, False]
        assert "request 1: messages missing" in str(results[1].exception)
        assert results[2].request == 17  # type: ignore[comparison-overlap]
        with pytest.raises(InvalidRequestError, match="request 1: messages missing"):
            await parallel_core.parallel_acompletions(
                echo, iter(requests), return_exceptions=False, concurrency=1
            )

    host.run(main)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"concurrency": 0}, ValueError, "at least 1, not 0"),
        ({"concurrency": -3}, ValueError, "at least 1"),
        ({"concurrency": 2.0}, TypeError, "integer, not float"),
        ({"concurrency": "8"}, ValueError, "an integer, .auto. or"),
        ({"concurrency": None}, TypeError, "integer, not NoneType"),
        ({"concurrency": True}, TypeError, "integer, not bool"),
    ],
)
def test_concurrency_is_checked(
    host: Host, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    async def main() -> None:
        with pytest.raises(error, match=message):
            await parallel_core.parallel_map(double, [1], **arguments)
        with pytest.raises(error, match=message):
            parallel_core.iter_parallel_acompletions(echo, [], **arguments)

    host.run(main)


def test_wrong_arguments_are_refused_at_the_call(host: Host) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="iterable"):
            parallel_core.iter_parallel_map(double, 17)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="async callable"):
            parallel_core.iter_parallel_map(17, [])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"expected a litellm\.Router"):
            parallel_core.iter_parallel_acompletions(17, [])  # type: ignore[arg-type]
        one: Any = {"model": "a", "messages": MESSAGES}
        with pytest.raises(TypeError, match="not one dict"):
            parallel_core.iter_parallel_acompletions(echo, one)
        with pytest.raises(TypeError, match="not one RouterParallelRequest"):
            parallel_core.iter_parallel_acompletions(echo, RouterParallelRequest("a", MESSAGES))  # type: ignore[arg-type]

    host.run(main)


def test_a_sync_function_is_named_as_the_mistake(host: Host) -> None:
    async def main() -> None:
        function: Any = lambda item: item  # noqa: E731 - the mistake in its usual form
        (result,) = await parallel_core.parallel_map(function, [1])
        assert isinstance(result.exception, TypeError)
        assert "pass an async function" in str(result.exception)

    host.run(main)


def test_the_note_of_a_fail_fast_error_names_index_and_model(host: Host) -> None:
    async def main() -> None:
        async def call(*, model: str, messages: Any) -> None:
            await anyio.lowlevel.checkpoint()
            raise ConnectionError("down")

        with pytest.raises(ConnectionError) as caught:
            await parallel_core.parallel_acompletions(
                call,
                [{"model": "gpt", "messages": MESSAGES}],
                return_exceptions=False,
            )
        assert caught.value.__notes__ == ["parallel_core: raised by request 0 (model 'gpt')"]

    host.run(main)


def test_outside_of_any_world() -> None:
    with pytest.raises(RuntimeError, match="parallel_completions"):
        parallel_core.iter_parallel_map(double, [1])


def test_results_are_read_only_and_show_no_contents() -> None:
    request = RouterParallelRequest("gpt", MESSAGES, {"api_key": "sk-secret"})
    assert repr(request) == (
        "RouterParallelRequest(model='gpt', messages=<1 message>, kwargs=<api_key>)"
    )
    result = parallel_core.RouterParallelResult(3, request, None, ValueError("secret"), 1.0, 0.25)
    assert repr(result) == (
        "<RouterParallelResult index=3 model='gpt' exception=ValueError duration=0.250s>"
    )
    with pytest.raises(AttributeError):
        result.index = 4  # type: ignore[misc]
    assert not hasattr(result, "__dict__")
    assert "secret" not in repr(ParallelResult(0, "secret", "secret"))


# --- what a busy batch does to others, and what it keeps ---


def test_calls_that_do_not_wait_leave_a_turn_to_others(host: Host) -> None:
    """All slots together make some hundred calls between two turns of others, in the list form too,
    also when all slots are open."""
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
            await parallel_core.parallel_map(call, range(20_000), concurrency=concurrency)
            ended = True
        assert made == 20_000
        assert most <= 4 * (CALLS_BETWEEN_PAUSES + concurrency)

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


@pytest.mark.parametrize("return_exceptions", [True, False])
def test_the_task_of_an_async_source_is_cancelled_before_its_first_step(
    asyncio_host: Host, return_exceptions: bool
) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        running = asyncio.create_task(
            parallel_core.parallel_map(double, source(), return_exceptions=return_exceptions)
        )
        tasks: set[asyncio.Task[Any]] = set()
        while not tasks:
            await asyncio.sleep(0)
            tasks = {
                task for task in asyncio.all_tasks() if task.get_name() == "parallel_core slot"
            }
        for task in tasks:
            task.cancel()
        with pytest.raises(parallel_core.CallCancelledError, match="the source"):
            await running

    asyncio_host.run(main)


def test_a_batch_that_is_stopped_while_its_source_closes(host: Host) -> None:
    """Its calls have ended: there is nothing to warn about, and only the source to wait for."""

    async def main() -> None:
        closing, may_close = anyio.Event(), anyio.Event()

        async def source() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                closing.set()
                await may_close.wait()

        async with (
            parallel_core.iter_parallel_map(double, source()) as batch,
            anyio.create_task_group() as group,
        ):

            async def stop() -> None:
                await closing.wait()
                await settle()
                batch.cancel()
                await settle()
                may_close.set()

            group.start_soon(stop)
            assert [result.index async for result in batch] == [0]

    host.run(main)
