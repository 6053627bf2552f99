"""Streams of a Router that are read in trio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

from helpers.router_stands import Stand, forever, run
from parallel_core import open_router_host


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
