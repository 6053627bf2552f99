"""Sources that users really have: half a protocol, a wrong length, scopes held across yields."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import pytest

import parallel_core
from helpers.hosts import ASYNCIO_HOSTS, Host, settle
from parallel_core import CallCancelledError, InvalidRequestError, RouterParallelRequest

MESSAGES = [{"role": "user", "content": "secret prompt"}]


async def echo(item: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return item


async def complete(*, model: str, messages: Any, **kwargs: Any) -> str:
    await anyio.lowlevel.checkpoint()
    return model


class ProgressBar:
    """A generator with a length around it, as of tqdm: it can be walked through only once."""

    def __init__(self, items: list[Any]) -> None:
        self._items = iter(items)
        self._length = len(items)

    def __len__(self) -> int:
        return self._length

    def __contains__(self, item: object) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        yield from self._items


def test_a_sized_source_that_can_be_walked_through_once(host: Host) -> None:
    async def main() -> None:
        requests = [RouterParallelRequest("gpt", MESSAGES)] * 5
        results = await parallel_core.parallel_acompletions(complete, ProgressBar(requests))
        assert len(results) == 5
        bad: Any = ProgressBar([*requests, 17])
        results = await parallel_core.parallel_acompletions(complete, bad, preserve_order=True)
        assert [result.ok for result in results] == [True] * 5 + [False]
        assert isinstance(results[5].exception, InvalidRequestError)

    host.run(main)


def test_a_source_whose_length_cannot_be_had(host: Host) -> None:
    class Unknowable(ProgressBar):
        def __len__(self) -> int:
            raise TypeError("no total")

    async def main() -> None:
        source: Any = Unknowable([1, 2, 3])
        results = await parallel_core.parallel_map(echo, source, preserve_order=True)
        assert [result.value for result in results] == [1, 2, 3]
        async with parallel_core.iter_parallel_map(echo, range(2**64)) as batch:
            assert (await anext(batch)).index >= 0

    host.run(main)


def test_a_list_that_is_filled_after_the_batch_was_made_has_full_concurrency(host: Host) -> None:
    async def main() -> None:
        running = anyio.Event()
        most = 0

        async def call(item: int) -> None:
            nonlocal most
            most = max(most, item)
            await running.wait()

        items: list[int] = []
        async with parallel_core.iter_parallel_map(call, items, concurrency=5) as batch:
            pass
        batch = parallel_core.iter_parallel_map(call, items, concurrency=5)
        items.extend(range(5))
        async with batch:
            await settle()
            assert batch.in_flight == 5
        assert most == 4

    host.run(main)


def test_a_sequence_of_the_old_protocol(host: Host) -> None:
    class Old:
        def __getitem__(self, index: int) -> int:
            if index == 3:
                raise IndexError
            return index

    async def main() -> None:
        source: Any = Old()
        results = await parallel_core.parallel_map(echo, source, preserve_order=True)
        assert [result.value for result in results] == [0, 1, 2]

    host.run(main)


def test_a_source_that_is_both_is_drawn_as_the_async_one(host: Host) -> None:
    class QuerySet:
        def __iter__(self) -> Iterator[int]:
            raise AssertionError("this would block")

        async def __aiter__(self) -> AsyncIterator[int]:
            for number in range(3):
                yield number

    async def main() -> None:
        assert len(await parallel_core.parallel_map(echo, QuerySet())) == 3

    host.run(main)


def test_the_generator_behind_aiter_is_closed(host: Host) -> None:
    closed: list[str] = []

    class Pages:
        async def __aiter__(self) -> AsyncIterator[int]:
            try:
                for number in range(1000):
                    yield number
            finally:
                await anyio.lowlevel.checkpoint()
                closed.append("closed")

    async def main() -> None:
        async with parallel_core.iter_parallel_map(echo, Pages()) as batch:
            async for _ in batch:
                await settle()
                break
        assert closed == ["closed"]

    host.run(main)


def test_a_scope_of_the_source_that_is_cancelled_while_nothing_is_drawn(host: Host) -> None:
    """The generator waits at its ``yield``; the cancellation is its own all the same."""

    async def main() -> None:
        scopes: list[anyio.CancelScope] = []

        async def source() -> AsyncIterator[int]:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                for number in range(1000):
                    yield number
            assert scope.cancelled_caught
            yield -1

        async with parallel_core.iter_parallel_map(echo, source(), concurrency=2) as batch:
            await settle()
            scopes[0].cancel()
            await settle()
            values = {result.value async for result in batch}
        assert sorted(number for number in values if number is not None) == [-1, 0, 1, 2, 3]

    host.run(main)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("host", ASYNCIO_HOSTS, ids=lambda host: host.name)
def test_a_source_that_ends_in_a_cancellation_is_no_end_of_the_source(
    host: Host, kind: str
) -> None:
    def sync_source() -> Iterator[int]:
        yield 0
        raise asyncio.CancelledError

    async def async_source() -> AsyncIterator[int]:
        yield 0
        raise asyncio.CancelledError

    async def main() -> None:
        seen = []
        source: Any = sync_source() if kind == "sync" else async_source()
        with pytest.raises(CallCancelledError, match="the source"):
            async with parallel_core.iter_parallel_map(echo, source) as batch:
                async for result in batch:
                    seen.append(result.value)
        assert seen == [0]

    host.run(main)


def test_an_error_of_a_source_that_is_cancelled_while_it_is_drawn_is_raised(host: Host) -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[int]:
            yield 0
            try:
                await anyio.sleep_forever()
            finally:
                raise OSError("cannot close")

        with pytest.raises(OSError, match="cannot close"):
            async with parallel_core.iter_parallel_map(echo, source()) as batch:
                await anext(batch)
                await settle()

    host.run(main)
