"""Cancellation is edge-triggered in asyncio: the clean-up of a call may await, whatever ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

import parallel_core
from helpers.hosts import Host, settle
from parallel_core import (
    BatchTimeoutError,
    Hedge,
    RequestTimeoutError,
    RouterParallelRequest,
    StreamEnd,
    StreamStalledError,
)

REQUEST = RouterParallelRequest("m", [{"role": "user", "content": "hi"}])


class Cleaning:
    """A call that hangs until it is cancelled, and awaits while it cleans up."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancellations = 0
        self.cleaned_up = 0

    async def __call__(self, item: Any = None, **_: Any) -> Any:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancellations += 1
            raise
        finally:
            await self.clean_up()

    async def clean_up(self) -> None:
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancellations += 1
            raise
        self.cleaned_up += 1


def test_of_a_timeout(asyncio_host: Host) -> None:
    async def main() -> None:
        call = Cleaning()
        (result,) = await parallel_core.parallel_map(call, [1], timeout=0.01)
        assert isinstance(result.exception, RequestTimeoutError)
        assert (call.cancellations, call.cleaned_up) == (1, 1)

    asyncio_host.run(main)


@pytest.mark.parametrize("return_exceptions", [True, False])
def test_of_the_total_timeout_of_the_batch(asyncio_host: Host, return_exceptions: bool) -> None:
    async def main() -> None:
        call = Cleaning()
        try:
            (result,) = await parallel_core.parallel_map(
                call, [1], total_timeout=0.2, return_exceptions=return_exceptions
            )
            error: Any = result.exception
        except BatchTimeoutError as raised:
            error = raised
        assert isinstance(error, BatchTimeoutError)
        assert (call.cancellations, call.cleaned_up) == (1, 1)

    asyncio_host.run(main)


def test_of_a_hedge(asyncio_host: Host) -> None:
    async def main() -> None:
        cleaning = Cleaning()

        async def call(item: int) -> str:
            if not cleaning.begun.is_set():
                await cleaning()
            return "the second answers"

        hedge = Hedge(after=0.001, max_extra=1.0)
        (result,) = await parallel_core.parallel_map(call, [1], hedge=hedge)
        assert result.value == "the second answers"
        assert (cleaning.cancellations, cleaning.cleaned_up) == (1, 1)

    asyncio_host.run(main)


def test_of_a_stalled_stream(asyncio_host: Host) -> None:
    async def main() -> None:
        cleaning = Cleaning()

        async def chunks() -> AsyncIterator[Any]:
            yield {"id": "1", "choices": [{"index": 0, "delta": {"content": "hi"}}]}
            await cleaning()

        async def stream(**_: Any) -> AsyncIterator[Any]:
            return chunks()

        async with parallel_core.iter_parallel_streams(
            stream, [REQUEST], stall_timeout=0.01
        ) as batch:
            events = [event async for event in batch]
        end = events[-1]
        assert isinstance(end, StreamEnd)
        assert isinstance(end.result.exception, StreamStalledError)
        assert (cleaning.cancellations, cleaning.cleaned_up) == (1, 1)

    asyncio_host.run(main)


@pytest.mark.parametrize("how", ["cancel", "break", "first error", "timeout around it", "task"])
def test_of_the_end_of_the_batch(asyncio_host: Host, how: str) -> None:
    async def main() -> None:
        cleaning = Cleaning()

        async def call(item: int) -> None:
            if item == 1 and how == "first error":
                await cleaning.begun.wait()
                raise LookupError
            await cleaning()

        async def run() -> None:
            async with parallel_core.iter_parallel_map(
                call, range(2), return_exceptions=False
            ) as batch:
                await cleaning.begun.wait()
                if how in ("cancel", "break"):
                    await settle()
                    if how == "cancel":
                        batch.cancel()
                elif how == "timeout around it":
                    async with asyncio.timeout(0.01):
                        await anext(batch)
                else:
                    await anext(batch)

        task = asyncio.ensure_future(run())
        await cleaning.begun.wait()
        await settle()
        if how == "task":
            task.cancel()
        await asyncio.wait([task])
        calls = 1 if how == "first error" else 2
        assert (cleaning.cancellations, cleaning.cleaned_up) == (calls, calls)
        assert type(None if task.cancelled() else task.exception()) is {
            "first error": LookupError,
            "timeout around it": TimeoutError,
        }.get(how, type(None))

    asyncio_host.run(main)


def test_a_batch_that_is_stopped_while_a_timed_out_call_cleans_up(asyncio_host: Host) -> None:
    """One cancellation, although two have a reason for it."""

    async def main() -> None:
        cleaning = Cleaning()
        is_cleaning = asyncio.Event()
        may_end = asyncio.Event()

        async def call(item: int) -> None:
            try:
                await cleaning()
            finally:
                is_cleaning.set()
                await may_end.wait()

        async with parallel_core.iter_parallel_map(call, [1], timeout=0.01) as batch:
            await is_cleaning.wait()
            batch.cancel()
            await settle()
            may_end.set()
        assert (cleaning.cancellations, cleaning.cleaned_up) == (1, 1)

    asyncio_host.run(main)


@pytest.mark.parametrize("then", ["timeout", "total_timeout", "hedge"])
def test_a_timeout_that_fires_while_a_call_of_an_ended_batch_cleans_up(
    asyncio_host: Host, then: str
) -> None:
    async def main() -> None:
        cleaning = Cleaning()
        controls: Any = {then: Hedge(0.02, 1.0) if then == "hedge" else 0.02}
        begun = 0

        async def call(item: int) -> None:
            nonlocal begun
            begun += 1
            try:
                await cleaning()
            finally:
                try:
                    await asyncio.sleep(0.05)
                except asyncio.CancelledError:
                    cleaning.cancellations += 1

        async with parallel_core.iter_parallel_map(call, [1], **controls) as batch:
            await cleaning.begun.wait()
            batch.cancel()
        assert (begun, cleaning.cancellations, cleaning.cleaned_up) == (1, 1, 1)

    asyncio_host.run(main)


def test_a_total_timeout_that_passes_while_the_batch_is_left_is_not_raised(host: Host) -> None:
    async def main() -> None:
        began = anyio.Event()

        async def call(item: int) -> None:
            began.set()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.3)

        async with parallel_core.iter_parallel_map(
            call, [1], total_timeout=0.2, return_exceptions=False
        ) as batch:
            await began.wait()
            batch.cancel()
            assert [result async for result in batch] == []

    host.run(main)


def test_a_cancellation_and_an_error_in_a_group_are_an_error_of_the_call(host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> None:
            async def fail() -> None:
                raise LookupError

            if item == 1:
                async with anyio.create_task_group() as group:
                    group.start_soon(fail)
                    await anyio.sleep_forever()
            await anyio.lowlevel.checkpoint()

        results = await parallel_core.parallel_map(call, range(4))
        assert [type(result.exception).__name__ for result in results] == [
            "NoneType",
            "ExceptionGroup",
            "NoneType",
            "NoneType",
        ]

    host.run(main)


def test_an_error_in_the_beginning_of_a_control_ends_its_own_batch(host: Host) -> None:
    """And no other on the same loop."""

    class Refusing:
        def begin(self, engine: object) -> None:
            raise LookupError("cannot begin")

        def end(self) -> None:
            pass

    async def call(item: int) -> int:
        await settle()
        return item

    async def main() -> None:
        async with parallel_core.iter_parallel_map(call, range(6), concurrency=2) as other:
            await anext(other)
            batch: Any = parallel_core.iter_parallel_map(call, range(6))
            plan = batch._engine._plan
            object.__setattr__(plan, "attachments", [Refusing()])
            with pytest.raises(LookupError, match="cannot begin"):
                async with batch:
                    async for _ in batch:
                        raise AssertionError("a call was made")
            assert len([result async for result in other]) == 5

    host.run(main)
