"""What is waited for in spite of cancellations, in asyncio."""

from __future__ import annotations

import asyncio

import pytest

from helpers.hosts import Host
from parallel_core.uninterrupted import to_the_end


def test_it_gives_what_the_coroutine_gives(asyncio_host: Host) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def main() -> None:
        assert await to_the_end(asyncio.sleep(0, "result")) == "result"
        with pytest.raises(KeyError):
            await to_the_end(fails())

    asyncio_host.run(main)


def test_cancellations_are_raised_after_its_end(asyncio_host: Host) -> None:
    async def main() -> None:
        go_on = asyncio.Event()
        ended = False

        async def coroutine() -> None:
            nonlocal ended
            await go_on.wait()
            ended = True

        task = asyncio.ensure_future(to_the_end(coroutine()))
        for number in range(3):
            await asyncio.sleep(0)
            task.cancel(f"number {number}")
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError, match="number 2"):
            await task
        assert ended

    asyncio_host.run(main)


def test_an_error_of_the_coroutine_does_not_hide_a_cancellation(asyncio_host: Host) -> None:
    async def main() -> None:
        go_on = asyncio.Event()

        async def coroutine() -> None:
            await go_on.wait()
            raise KeyError("x")

        task = asyncio.ensure_future(to_the_end(coroutine()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert isinstance(raised.value.__context__, KeyError)

    asyncio_host.run(main)
