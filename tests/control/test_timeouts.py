"""The timeout of a call and the total timeout of a batch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import anyio
import pytest
import trio
import trio.testing

import parallel_core
from helpers.calls import hang, numbers, request, sleep
from helpers.hosts import Host, in_virtual_time, settle
from parallel_core import BatchTimeoutError, RequestTimeoutError


class RejectedError(Exception):
    """A 429 that asks for a wait of five minutes."""

    status_code = 429
    litellm_response_headers: ClassVar = {"retry-after": "300"}


def test_a_timeout_ends_one_call_and_no_other() -> None:
    async def main() -> None:
        results = await parallel_core.parallel_map(sleep, [1, 9, 2], timeout=5)
        assert [result.value for result in results] == [1, None, 2]
        error = results[1].exception
        assert isinstance(error, RequestTimeoutError)
        assert (error.index, error.model, error.limit) == (1, None, 5)
        assert str(error) == "request 1 took longer than its timeout of 5 s"
        assert trio.current_time() - began == 5

    began = 0.0

    async def timed() -> None:
        nonlocal began
        began = trio.current_time()
        await main()

    in_virtual_time(timed)


def test_the_timeout_of_a_request_goes_before_that_of_the_batch() -> None:
    async def answer(*, model: str, messages: Any, **kwargs: object) -> str:
        assert kwargs == {}
        await anyio.sleep(3)
        return "done"

    async def main() -> None:
        requests = [request(timeout=1), request(timeout=5), request()]
        results = await parallel_core.parallel_acompletions(
            answer, requests, timeout=2, preserve_order=True
        )
        first, second, third = (result.exception for result in results)
        assert isinstance(first, RequestTimeoutError)
        assert (first.model, first.limit) == ("gpt", 1)
        assert second is None
        assert isinstance(third, RequestTimeoutError)
        assert third.limit == 2

    in_virtual_time(main)


def test_a_timeout_is_the_first_error_of_a_fail_fast_batch(host: Host) -> None:
    ended: list[object] = []

    async def call(item: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(item)

    async def main() -> None:
        with pytest.raises(RequestTimeoutError) as caught:
            await parallel_core.parallel_map(
                call, range(100), concurrency=4, timeout=0.001, return_exceptions=False
            )
        assert len(ended) == len(set(ended)) <= 4
        assert caught.value.__notes__ == [f"parallel_core: raised by request {caught.value.index}"]

    host.run(main)


def test_a_call_that_returns_although_its_time_is_over_has_succeeded() -> None:
    async def call(item: int) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        return "in spite of it"

    async def main() -> None:
        (result,) = await parallel_core.parallel_map(call, [0], timeout=1)
        assert result.value == "in spite of it"

    in_virtual_time(main)


def test_a_timeout_error_of_the_call_itself_stays_what_it_is(host: Host) -> None:
    error = TimeoutError("of the call")

    async def call(item: int) -> None:
        raise error

    async def main() -> None:
        (result,) = await parallel_core.parallel_map(call, [0], timeout=1)
        assert result.exception is error

    host.run(main)


@pytest.mark.parametrize("preserve_order", [False, True])
def test_at_the_total_timeout_each_request_of_a_list_has_a_result(preserve_order: bool) -> None:
    started: list[float] = []

    async def call(seconds: float) -> float:
        started.append(seconds)
        return await sleep(seconds)

    async def main() -> None:
        results = await parallel_core.parallel_map(
            call, [1, 99, 2, 98, *range(50, 90)], concurrency=2, total_timeout=10
        )
        assert trio.current_time() - began == 10
        assert len(results) == 44
        assert {result.index for result in results} == set(range(44))
        assert started == [1, 99, 2, 98]
        for result in results:
            if result.index in (0, 2):
                assert result.ok
            else:
                assert isinstance(result.exception, BatchTimeoutError)
                assert (result.exception.index, result.exception.limit) == (result.index, 10)
                assert str(result.exception) == (
                    f"request {result.index} was not finished within the batch's total timeout of "
                    "10 s"
                )

    began = 0.0

    async def timed() -> None:
        nonlocal began
        began = trio.current_time()
        await main()

    in_virtual_time(timed)


@pytest.mark.parametrize("source", ["generator", "async generator"])
def test_at_the_total_timeout_an_endless_source_just_ends(source: str) -> None:
    async def main() -> None:
        endless = itertools.count()
        items = iter(endless) if source == "generator" else numbers(endless)
        results = await parallel_core.parallel_map(
            lambda _: sleep(4), items, concurrency=2, total_timeout=10, preserve_order=True
        )
        assert [result.ok for result in results] == [True] * 4 + [False] * 2
        assert all(isinstance(r.exception, BatchTimeoutError) for r in results[4:])

    in_virtual_time(main)


def test_a_total_timeout_ends_a_source_that_never_gives_anything(host: Host) -> None:
    async def silent() -> AsyncIterator[int]:
        await anyio.sleep_forever()
        yield 0

    async def main() -> None:
        assert await parallel_core.parallel_map(hang, silent(), total_timeout=0.01) == []

    host.run(main)


def test_a_fail_fast_batch_raises_its_total_timeout(host: Host) -> None:
    async def main() -> None:
        with pytest.raises(
            BatchTimeoutError,
            match=r"the batch was not finished within its total timeout of 0\.01 s",
        ):
            await parallel_core.parallel_map(
                hang, itertools.count(), total_timeout=0.01, return_exceptions=False
            )

    host.run(main)


def test_a_total_timeout_that_is_never_reached_does_nothing(host: Host) -> None:
    async def main() -> None:
        results = await parallel_core.parallel_map(sleep, [0, 0], total_timeout=1000)
        assert all(result.ok for result in results)

    host.run(main)


def test_the_consumer_sets_the_pace_after_the_total_timeout_too(host: Host) -> None:
    drawn = 0

    class Many:
        def __len__(self) -> int:
            return 100_000

        def __iter__(self) -> Any:
            nonlocal drawn
            for index in range(100_000):
                drawn += 1
                yield index

    async def main() -> None:
        async with parallel_core.iter_parallel_map(
            hang, Many(), concurrency=4, total_timeout=0.001
        ) as batch:
            result = await anext(batch)
            assert isinstance(result.exception, BatchTimeoutError)
            await settle()
            assert drawn <= 10

    host.run(main)


def test_a_total_timeout_does_not_wait_for_calls_that_are_to_be_sent_again() -> None:
    """All calls are held, for an hour, and those that were rejected wait for their Retry-After."""

    async def call(item: int) -> None:
        with contextlib.suppress(trio.Cancelled):  # it is rejected as it is cancelled
            await trio.sleep(0.1 * item)
        raise RejectedError

    async def main() -> None:
        began = trio.current_time()
        results = await parallel_core.parallel_map(
            call, range(100), concurrency="auto", total_timeout=10
        )
        assert trio.current_time() - began == 10
        assert len(results) == 100
        assert all(isinstance(result.exception, BatchTimeoutError) for result in results)

    in_virtual_time(main)


def test_a_source_that_is_longer_than_it_says_ends_at_the_total_timeout() -> None:
    class Endless:
        def __len__(self) -> int:
            return 10

        def __iter__(self) -> Iterator[int]:
            return itertools.count()

    async def main() -> None:
        results = await parallel_core.parallel_map(hang, Endless(), concurrency=2, total_timeout=5)
        assert sorted(result.index for result in results) == list(range(10))

    in_virtual_time(main)


def test_a_total_timeout_does_not_wait_for_calls_that_are_rejected_as_it_cancels_them() -> None:
    async def call(item: int) -> None:
        if item:  # the first is rejected before, so that what the others say goes on
            with contextlib.suppress(trio.Cancelled):
                await trio.sleep_forever()
        raise RejectedError

    async def main() -> None:
        began = trio.current_time()
        results = await parallel_core.parallel_map(
            call, range(50), concurrency="auto", total_timeout=10
        )
        assert trio.current_time() - began == 10
        assert [type(result.exception) for result in results] == [BatchTimeoutError] * 50

    in_virtual_time(main)
