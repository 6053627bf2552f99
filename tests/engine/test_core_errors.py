"""Which error of a batch counts, and who is told: the first, but an interrupt before all others."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import trio

from parallel_core import BatchAbortedError
from parallel_core.batch_plans import map_plan
from parallel_core.control.options import BatchOptions
from parallel_core.engine.handle import raise_crash
from parallel_core.engine.trio_backend import TrioBackend, only_member
from parallel_core.nursery_engine import BatchEngine, iter_parallel_map


async def call(item: int) -> int:
    return item


def core_of(*, concurrency: int = 4, preserve_order: bool = False, **options: Any) -> Any:
    plan = map_plan(
        call,
        [1, 2, 3],
        BatchOptions(concurrency=concurrency, preserve_order=preserve_order, **options),
    )
    return BatchEngine(plan, TrioBackend())


def notes_of(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def test_the_error_of_a_control_stops_the_batch_and_is_told_once() -> None:
    core, error = core_of(), KeyError("x")
    core.fail(error)
    assert core.stopping
    assert core.crash_error is None
    assert core.take_error() is error
    assert core.take_error() is None


def test_a_later_error_of_a_control_is_a_note_on_the_first() -> None:
    core, error = core_of(), KeyError("x")
    core.fail(error)
    core.fail(ValueError("y"))
    assert notes_of(error) == ["parallel_core: then a control failed: ValueError('y')"]
    assert core.take_error() is error


def test_an_error_of_a_control_at_the_end_is_told_on_leaving() -> None:
    core, error = core_of(), KeyError("x")
    core.stop()
    core.fail(error)
    assert core.crash_error is error
    core.fail(ValueError("y"))
    assert notes_of(error) == ["parallel_core: then a control failed: ValueError('y')"]
    with pytest.raises(KeyError) as raised:
        raise_crash(core, None)
    assert raised.value is error
    raise_crash(core, None)  # told once


def test_an_interrupt_ends_the_block_of_the_caller_too() -> None:
    core, told = core_of(), list[str]()
    core.on_crash = lambda: told.append("crash")
    core.crash(KeyError("x"))
    assert told == []
    assert core.stopping
    interrupt = KeyboardInterrupt()
    core.fail(interrupt)
    assert told == ["crash"]
    assert core.crash_error is interrupt
    core.crash(SystemExit())
    core.crash(KeyError("y"))
    assert core.take_error() is interrupt
    assert core.crash_error is None


def test_the_first_error_stays_the_one_that_comes_out() -> None:
    core, error = core_of(), KeyError("x")
    core.fail(error)
    core.crash(BatchAbortedError())
    assert notes_of(error) == []
    core.crash(ValueError("y"))
    assert notes_of(error) == ["parallel_core: then its batch failed to end: ValueError('y')"]
    assert core.crash_error is None
    interrupt = KeyboardInterrupt()
    core.crash(interrupt)
    assert core.take_error() is interrupt


def test_the_error_of_the_body_takes_precedence_over_a_crash(
    caplog: pytest.LogCaptureFixture,
) -> None:
    core, body = core_of(), LookupError("body")
    core.crash(ValueError("secret"))
    raise_crash(core, body)
    assert notes_of(body) == ["parallel_core: then its batch failed to end: ValueError('secret')"]
    assert [record.getMessage() for record in caplog.records] == [
        "LookupError left the block of a batch, which then failed to end: ValueError"
    ]
    assert core.crash_error is None
    caplog.clear()
    core.crash(BatchAbortedError())
    raise_crash(core, other := LookupError())
    assert (notes_of(other), caplog.records) == ([], [])
    core.crash(interrupt := KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as raised:
        raise_crash(core, LookupError())
    assert raised.value is interrupt


def test_a_batch_whose_world_is_gone_has_ended() -> None:
    core, error = core_of(), RuntimeError("gone")
    core.abandon(error)
    core.abandon(RuntimeError("again"))
    assert core.stopping
    assert core.take_error() is error
    with pytest.raises(trio.EndOfChannel):
        core.results.receive_nowait()


def test_an_error_of_the_source() -> None:
    error = KeyError("x")
    core = core_of()
    core._source_failed(error)
    assert not core.stopping  # the calls in flight go on
    assert core.take_error() is error
    assert notes_of(error) == []
    core = core_of(return_exceptions=False)
    core._drawn = 2
    core._source_failed(error)
    assert core.stopping
    assert core.take_error() is error
    assert notes_of(error) == ["parallel_core: raised by the source, drawing request 2"]
    core._set_first_error(late := ValueError(), "a call")
    assert notes_of(late) == []
    assert core.take_error() is None


@pytest.mark.parametrize(
    ("options", "window"),
    [({}, 8), ({"preserve_order": True}, 32), ({"concurrency": 1}, 2)],
    ids=str,
)
def test_as_many_results_as_may_wait(options: Any, window: int) -> None:
    core = core_of(**options)
    for _ in range(window):
        core._hand_over("result")
    with pytest.raises(trio.WouldBlock):
        core._hand_over("result")
    assert core.limit == options.get("concurrency", 4)


def test_a_list_takes_all_results() -> None:
    core, results = core_of(), list[Any]()
    core.collect_into(results)
    assert core._window == sys.maxsize
    core._deliver(1, "one")
    core._deliver(0, "zero")
    assert results == ["one", "zero"]
    with pytest.raises(trio.WouldBlock):
        core.results.receive_nowait()


def test_input_order_waits_for_the_next() -> None:
    core, results = core_of(preserve_order=True), list[Any]()
    core.collect_into(results)
    core._deliver(2, "two")
    core._deliver(1, "one")
    assert results == []
    core._deliver(0, "zero")
    assert results == ["zero", "one", "two"]
    core._deliver(3, "three")
    assert results[3:] == ["three"]


def test_a_batch_stays_in_its_thread() -> None:
    core = core_of()
    core.check_thread()  # it has none yet
    core.enter()
    core.check_thread()
    raised: list[BaseException] = []

    def elsewhere() -> None:
        try:
            core.check_thread()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [str(error) for error in raised] == [
        (
            "this batch runs in another thread: use it there (to cancel it from here, call "
            "loop.call_soon_threadsafe(batch.cancel), or run_sync_soon of its TrioToken)"
        )
    ]


def test_a_call_does_not_wait_for_its_own_batch() -> None:
    outer, inner = core_of(), core_of()
    context = outer.enter()
    inner_context = context.run(inner.enter)
    outer.check_not_inside()
    for core, where in ((outer, context), (outer, inner_context), (inner, inner_context)):
        with pytest.raises(RuntimeError) as raised:
            where.run(core.check_not_inside)
        assert str(raised.value) == (
            "a call or a source, or a task that it has started, cannot wait for the end of its own "
            "batch: use batch.cancel()"
        )
    context.run(inner.check_not_inside)


# --- in trio ---


def test_an_interrupt_is_taken_out_of_its_groups() -> None:
    interrupt = KeyboardInterrupt()
    group = BaseExceptionGroup("a", [BaseExceptionGroup("b", [interrupt])])
    assert only_member(group) is interrupt
    assert only_member(interrupt) is interrupt
    both = BaseExceptionGroup("a", [interrupt, SystemExit()])
    assert only_member(both) is both
    assert only_member(BaseExceptionGroup("c", [both])) is both


def test_a_batch_in_trio_is_entered_before_it_is_iterated_and_once() -> None:
    async def main() -> None:
        batch = iter_parallel_map(call, [1])
        with pytest.raises(RuntimeError, match=r"^enter the batch before iterating: async with "):
            await anext(batch)
        async with batch:
            with pytest.raises(RuntimeError, match=r"^a batch can be entered only once: make"):
                await batch.__aenter__()
            assert [result.item async for result in batch] == [1]

    trio.run(main)


def test_what_is_no_error_of_a_call() -> None:
    host = TrioBackend()

    async def main() -> None:
        error = KeyError("x")
        assert host.error_of(error, "the call", False) is error
        assert host.error_of(KeyboardInterrupt(), "the call", False) is None
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as exception:
                cancelled = exception
                assert host.error_of(cancelled, "the call", False) is None
                both = BaseExceptionGroup("g", [cancelled, error])
                found = host.error_of(both, "the call", False)
                assert isinstance(found, ExceptionGroup)
                assert found.exceptions == (error,)
                raise
        kept = host.error_of(cancelled, "the call", False)
        assert kept is not None
        assert "the call" in str(kept)

    trio.run(main)


def test_a_call_that_cannot_be_started_any_more_is_not_counted() -> None:
    """The nursery of a batch was cancelled and has closed; the source does not know it yet."""

    async def main() -> None:
        core = core_of()
        async with trio.open_nursery() as nursery:
            context = core.enter()
            core._tasks = TrioBackend().new_tasks(
                nursery, context, core._make_call, core._call_ended
            )
            nursery.cancel_scope.cancel()
        core._add(1)
        core._start_calls()
        assert core.calls == {}
        assert core.take_error() is None

    trio.run(main)
