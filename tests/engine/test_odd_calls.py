"""Calls, readers, exceptions and values that are not as one would write them."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import trio

import parallel_core
from helpers.hosts import Host, settle
from parallel_core import CallCancelledError, RouterParallelRequest, RouterParallelResult

MESSAGES = [{"role": "user", "content": "secret prompt"}]


async def echo(item: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return item


# --- calls ---


def test_a_call_cannot_wait_for_the_end_of_its_own_batch(host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(batch.aclose)

        async with parallel_core.iter_parallel_map(call, [1]) as batch:
            result = await anext(batch)
        assert isinstance(result.exception, ExceptionGroup)
        (error,) = result.exception.exceptions
        assert "own batch: use batch.cancel()" in str(error)

        async def inner(item: int) -> None:
            async with parallel_core.iter_parallel_map(echo, range(100)) as other:
                await anext(other)
                await other.aclose()  # a batch inside a call is another batch

        assert all(result.ok for result in await parallel_core.parallel_map(inner, range(3)))

    host.run(main)


def test_calls_that_never_wait_let_others_run(host: Host) -> None:
    async def main() -> None:
        turns = 0
        finished = False

        async def call(item: int) -> int:
            return item

        async def others() -> None:
            nonlocal turns
            while not finished:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(others)
            results = await parallel_core.parallel_map(call, range(5000), concurrency=10**9)
            finished = True
        assert len(results) == 5000
        assert turns >= 5000 // 100

    host.run(main)


@pytest.mark.parametrize("order", [True, False])
def test_several_readers(host: Host, order: bool) -> None:
    async def main() -> None:
        gates = [anyio.Event() for _ in range(4)]
        seen: list[int] = []

        async def call(item: int) -> None:
            await gates[item].wait()

        async def read() -> None:
            seen.append((await anext(batch)).index)

        async with (
            parallel_core.iter_parallel_map(
                call, range(4), concurrency=4, preserve_order=order
            ) as batch,
            anyio.create_task_group() as tasks,
        ):
            for _ in range(4):
                tasks.start_soon(read)
            await settle()
            for gate in reversed(gates):
                gate.set()
                await settle()
        assert sorted(seen) == [0, 1, 2, 3]

    host.run(main)


def test_errors_of_calls_that_were_cancelled_with_the_batch_are_not_raised(host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                raise OSError("cannot clean up")

        async with parallel_core.iter_parallel_map(
            call, range(10), return_exceptions=False
        ) as batch:
            await settle()
            batch.cancel()
            assert [result async for result in batch] == []
        assert batch.failed == 8

    host.run(main)


# --- exceptions ---


def test_stop_async_iteration_of_a_call_does_not_look_like_the_end(host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> None:
            if item == 2:
                raise StopAsyncIteration
            await anyio.lowlevel.checkpoint()

        with pytest.raises(RuntimeError, match="StopAsyncIteration") as caught:
            await parallel_core.parallel_map(call, range(9), return_exceptions=False)
        assert isinstance(caught.value.__cause__, StopAsyncIteration)
        results = await parallel_core.parallel_map(call, range(9), preserve_order=True)
        assert isinstance(results[2].exception, StopAsyncIteration)

    host.run(main)


def test_the_first_error_stays_the_one_when_the_source_fails_to_close(host: Host) -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[int]:
            try:
                for number in range(1000):
                    yield number
            finally:
                raise OSError("cannot close")

        async def call(item: int) -> None:
            await settle()
            raise LookupError

        with pytest.raises(LookupError) as caught:
            await parallel_core.parallel_map(call, source(), concurrency=1, return_exceptions=False)
        assert "cannot close" in caught.value.__notes__[-1]

    host.run(main)


def test_a_body_that_survives_an_interrupt_in_trio() -> None:
    """The block raises it: the iterator is a checkpoint, and its scope has been cancelled."""
    after: list[str] = []

    async def call(item: int) -> None:
        await trio.lowlevel.checkpoint()
        raise SystemExit

    async def main() -> None:
        with pytest.raises(SystemExit):
            async with parallel_core.iter_parallel_map(call, [1]) as batch:
                with pytest.raises(trio.Cancelled):
                    await anext(batch)
                after.append("the body")
        await trio.lowlevel.checkpoint()
        after.append("the block")

    trio.run(main)
    assert after == ["the body", "the block"]


def test_an_interrupt_goes_before_what_the_body_raises_in_trio() -> None:
    async def call(item: int) -> None:
        await trio.lowlevel.checkpoint()
        if item == 1:
            raise SystemExit(9)
        await trio.sleep_forever()

    async def main() -> None:
        async with parallel_core.iter_parallel_map(call, range(3)):
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("of the body's cleanup")

    with pytest.raises(SystemExit):
        trio.run(main)


def test_a_falsy_exception_is_an_exception(host: Host) -> None:
    class FalsyError(Exception):
        def __bool__(self) -> bool:
            return False

    async def main() -> None:
        async def call(item: int) -> None:
            await anyio.lowlevel.checkpoint()
            raise FalsyError

        with pytest.raises(FalsyError):
            await parallel_core.parallel_map(call, [1], return_exceptions=False)
        (result,) = await parallel_core.parallel_map(call, [1])
        assert not result.ok

    host.run(main)


def test_no_property_of_an_item_is_touched(host: Host) -> None:
    class Item:
        @property
        def model(self) -> str:
            raise AssertionError("a query to the database")

    async def main() -> None:
        async def call(item: Item) -> None:
            await anyio.lowlevel.checkpoint()
            raise LookupError

        with pytest.raises(LookupError) as caught:
            await parallel_core.parallel_map(call, [Item()], return_exceptions=False)
        assert caught.value.__notes__ == ["parallel_core: raised by request 0"]

    host.run(main)


def test_a_cancellation_that_was_kept_from_elsewhere_is_an_error_of_the_call_in_trio() -> None:
    async def main() -> None:
        kept: list[BaseException] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                kept.append(cancelled)
                raise

        async def call(item: int) -> int:
            await trio.lowlevel.checkpoint()
            if item == 1:
                raise kept[0]
            return item

        results = await parallel_core.parallel_map(
            call, range(100), concurrency=2, preserve_order=True
        )
        assert [result.index for result in results if not result.ok] == [1]
        assert isinstance(results[1].exception, CallCancelledError)

    trio.run(main)


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def test_an_exception_that_takes_no_notes_comes_out_as_itself(host: Host) -> None:
    async def main() -> None:
        error = FrozenError(3)

        async def call(item: int) -> None:
            await anyio.lowlevel.checkpoint()
            raise error

        with pytest.raises(FrozenError) as caught:
            await parallel_core.parallel_map(call, [1], return_exceptions=False)
        assert caught.value is error

    host.run(main)


@pytest.mark.parametrize("body_fails", [True, False])
def test_ctrl_c_while_a_block_is_left_in_trio(body_fails: bool) -> None:
    async def call(item: int) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                signal.raise_signal(signal.SIGINT)
                await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with parallel_core.iter_parallel_map(call, [1]):
            await trio.testing.wait_all_tasks_blocked()
            if body_fails:
                raise LookupError

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trio.run(main)
    finally:
        signal.signal(signal.SIGINT, old)


# --- values ---


@pytest.mark.parametrize(
    "request_",
    [
        RouterParallelRequest(["secret"], "secret"),  # type: ignore[arg-type]
        RouterParallelRequest(None, None, [("secret", "secret")]),  # type: ignore[arg-type]
        RouterParallelRequest("gpt", ({"secret": 1} for _ in "x")),  # type: ignore[arg-type]
        RouterParallelRequest("gpt", MESSAGES, {1: "secret", "api_key": "secret"}),  # type: ignore[dict-item]
    ],
)
def test_the_repr_of_what_is_no_request_shows_no_contents_either(
    request_: RouterParallelRequest,
) -> None:
    assert "secret" not in repr(request_)
    assert "secret" not in repr(RouterParallelResult(0, request_))


def test_what_litellm_writes_into_stays_the_users() -> None:
    shared: dict[str, Any] = {"tags": ["a"]}
    client = object()

    class Writer:
        async def acompletion(self, **arguments: Any) -> None:
            arguments["litellm_metadata"]["written"] = True
            arguments["litellm_metadata"]["tags"].append("b")
            arguments["metadata"]["written"] = True
            assert arguments["client"] is client

    async def main() -> None:
        kwargs = {"litellm_metadata": shared, "metadata": shared, "client": client}
        requests = [RouterParallelRequest("gpt", MESSAGES, kwargs)] * 3
        results = await parallel_core.parallel_acompletions(Writer(), requests)
        assert [result.exception for result in results] == [None] * 3

    asyncio.run(main())
    assert shared == {"tags": ["a"]}
