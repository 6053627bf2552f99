"""Streams are closed, in whatever way a batch is left or a stream ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import parallel_core
from helpers.hosts import Host
from helpers.streams import (
    OddStream,
    Provider,
    events_of,
    number_of,
    piece,
    request,
    say,
    told,
    words_then_hang,
)
from parallel_core import (
    BatchTimeoutError,
    RequestTimeoutError,
    StreamChunk,
    StreamInterruptedError,
)


@pytest.mark.parametrize("way", ["break", "raise", "cancel", "aclose", "fail fast"])
def test_every_stream_is_closed_in_whatever_way_a_batch_is_left(host: Host, way: str) -> None:
    error = LookupError("mine")

    async def chunks(number: int) -> AsyncGenerator[Any, None]:
        async with aclosing(words_then_hang(number)) as words:
            async for chunk in words:
                yield chunk
        if way == "fail fast":
            while provider.opened < 4:
                await anyio.lowlevel.checkpoint()
            raise error

    provider = Provider(chunks)

    async def main() -> None:
        batch = parallel_core.iter_parallel_streams(
            provider.answer,
            [request(index) for index in range(9)],
            concurrency=4,
            return_exceptions=way != "fail fast",
        )
        raised: Any = None
        try:
            async with batch:
                async for event in batch:
                    if isinstance(event, StreamChunk):
                        continue
                    if way == "break":
                        break
                    if way == "raise":
                        raise error
                    if way == "cancel":
                        batch.cancel()
                    else:
                        await batch.aclose()
        except (LookupError, StreamInterruptedError) as exception:
            raised = exception
        if way == "fail fast":
            assert isinstance(raised, StreamInterruptedError)
            assert raised.__cause__ is error
        else:
            assert raised is (error if way == "raise" else None)
        assert provider.open == 0
        assert provider.opened >= 4

    host.run(main)


def test_timeout_and_total_timeout_close_streams(host: Host) -> None:
    provider = Provider(words_then_hang)

    async def main() -> None:
        requests = [request(0), request(1), request(2)]
        for timeout in (0.05, 0.5, 5.0):  # a busy machine may need longer for the first one
            _, ends = await events_of(
                parallel_core.iter_parallel_streams(provider.answer, requests, timeout=timeout)
            )
            if ends[0].ok:
                break
        assert ends[0].ok
        assert isinstance(ends[1].exception, RequestTimeoutError)
        assert provider.open == 0
        _, ends = await events_of(
            parallel_core.iter_parallel_streams(provider.answer, requests, total_timeout=0.05)
        )
        assert isinstance(ends[2].exception, BatchTimeoutError)
        assert provider.open == 0

    host.run(main)


@pytest.mark.parametrize("concurrency", [2, "auto"])
def test_an_error_of_closing_loses_no_answer(
    host: Host, concurrency: Any, caplog: pytest.LogCaptureFixture
) -> None:
    opened = 0

    async def answer(*, model: str, messages: Any, **kwargs: Any) -> Any:
        nonlocal opened
        opened += 1
        broken = LookupError() if number_of(messages) else None
        return OddStream([piece("all of it"), told(1, 2)], broken)

    async def main() -> None:
        requests = [request(0), request(1)]
        batch = parallel_core.iter_parallel_streams(answer, requests, concurrency=concurrency)
        texts, ends = await events_of(batch)
        assert ends[0].response.choices[0].message.content == "all of it"
        assert isinstance(ends[1].exception, StreamInterruptedError)
        assert isinstance(ends[1].exception.__cause__, LookupError)
        assert ["".join(texts[index]) for index in (0, 1)] == ["all of it"] * 2

    host.run(main)
    assert opened == 2
    assert [record.getMessage() for record in caplog.records if record.name == "parallel_core"] == [
        "a stream could not be closed: TimeoutError"
    ] * 2


def test_the_generator_behind_a_stream_is_closed(host: Host) -> None:
    provider = Provider(words_then_hang)

    class Stream:
        def __aiter__(self) -> AsyncGenerator[Any, None]:
            return provider._stream(1)  # pyright: ignore[reportPrivateUsage]

    async def answer(**arguments: Any) -> Any:
        return Stream()

    async def main() -> None:
        async with parallel_core.iter_parallel_streams(
            answer, [request(1), request(2)], stall_timeout=60
        ) as batch:
            await anext(batch)
        assert provider.open == 0

    host.run(main)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_stream_that_has_only_close_is_closed(host: Host, is_async: bool) -> None:
    closed: list[bool] = []

    class Stream:
        def __init__(self) -> None:
            self._chunks = say(piece("a"), piece("b"), ConnectionError())

        def __aiter__(self) -> AsyncIterator[Any]:
            return self

        async def __anext__(self) -> Any:
            return await anext(self._chunks)

        def close(self) -> Any:
            closed.append(True)
            return anyio.lowlevel.checkpoint() if is_async else None

    async def answer(**_: Any) -> Any:
        return Stream()

    async def main() -> None:
        (result,) = await parallel_core.parallel_acompletions(answer, [request(0, stream=True)])
        assert isinstance(result.exception, StreamInterruptedError)
        assert closed == [True]

    host.run(main)
