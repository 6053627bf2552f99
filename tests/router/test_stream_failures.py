"""Streams that break off, stall, or are no answer."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

import parallel_core
from helpers.hosts import Host, in_virtual_time
from helpers.jumping_clocks import JumpingClock
from helpers.streaming_servers import event
from helpers.streams import (
    OddStream,
    Provider,
    events_of,
    of_choice,
    piece,
    request,
    result_of,
    say,
    say_words,
    told,
)
from parallel_core import (
    BatchTimeoutError,
    RequestTimeoutError,
    StreamChunk,
    StreamEnd,
    StreamInterruptedError,
    StreamStalledError,
    Usage,
)


def test_a_stream_that_breaks_off_tells_what_had_come(host: Host) -> None:
    error = LookupError("broken")

    async def broken(number: int) -> AsyncGenerator[Any, None]:
        if number:
            yield piece("half of ")
            yield piece("it")
        raise error

    provider = Provider(broken)

    async def main() -> None:
        batch = parallel_core.iter_parallel_streams(provider.answer, [request(0), request(1)])
        texts, ends = await events_of(batch)
        assert ends[0].exception is error  # nothing had come: it failed as any call does
        assert ends[0].usage is None
        interrupted = ends[1].exception
        assert isinstance(interrupted, StreamInterruptedError)
        assert interrupted.text == "half of it" == "".join(texts[1])
        assert interrupted.__cause__ is error
        assert interrupted.usage is not None
        assert interrupted.usage.estimated_calls == 1
        assert ends[1].usage == interrupted.usage == batch.usage
        assert ends[1].time_to_first_chunk == interrupted.time_to_first_chunk
        assert "half" not in str(interrupted) + repr(interrupted) + repr(ends[1])
        assert provider.open == 0

    host.run(main)


def test_a_stream_that_stalls_is_ended() -> None:
    async def stalling(number: int) -> AsyncGenerator[Any, None]:
        for position in range(number):
            await anyio.sleep(2)
            yield piece(f"{position}")
        await anyio.sleep_forever()

    provider = Provider(stalling)

    async def main() -> None:
        began = trio.current_time()
        texts, ends = await events_of(
            parallel_core.iter_parallel_streams(
                provider.answer, [request(0), request(3)], stall_timeout=3
            )
        )
        first, second = ends[0].exception, ends[1].exception
        assert isinstance(first, StreamStalledError)
        assert isinstance(second, StreamStalledError)
        assert (first.index, first.limit, first.text, first.usage) == (0, 3, "", None)
        assert (second.text, second.time_to_first_chunk is not None) == ("012", True)
        assert second.usage is not None
        assert second.usage.estimated_calls == 1
        assert texts[1] == ["0", "1", "2"]
        assert trio.current_time() - began == pytest.approx(9)  # 3 chunks, and 3 s of nothing
        assert provider.open == 0

    in_virtual_time(main)


def test_a_consumer_that_takes_its_time_is_no_stall() -> None:
    provider = Provider(say_words)

    async def main() -> None:
        async with parallel_core.iter_parallel_streams(
            provider.answer, [request(8), request(17)], concurrency=2, stall_timeout=1
        ) as batch:
            async for event in batch:
                await trio.sleep(10)
                if isinstance(event, StreamEnd):
                    assert event.result.ok, event.result.exception

    in_virtual_time(main)


def test_a_stalled_stream_is_not_sent_again() -> None:
    async def stalling(number: int) -> AsyncGenerator[Any, None]:
        yield piece("once")
        await anyio.sleep_forever()

    provider = Provider(stalling)

    async def main() -> None:
        texts, ends = await events_of(
            parallel_core.iter_parallel_streams(
                provider.answer, [request(0)], stall_timeout=1, concurrency="auto"
            )
        )
        assert texts == {0: ["once"]}
        assert isinstance(ends[0].exception, StreamStalledError)
        assert provider.opened == 1

    in_virtual_time(main)


def test_a_loop_that_is_held_up_is_no_stall(clock: JumpingClock) -> None:
    async def chunks(number: int) -> AsyncGenerator[Any, None]:
        for _ in range(2):
            await anyio.sleep(0.01)
            yield piece("x")
        yield told(1, 2)

    provider = Provider(chunks)

    def hold_up(chunk: StreamChunk) -> None:
        clock.jump(90)

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            provider.answer,
            [request(index, stream=True) for index in range(3)],
            stall_timeout=60,
            on_chunk=hold_up,
        )
        assert [result.exception for result in results] == [None] * 3

    clock.host.run(main)


@pytest.mark.parametrize("bad", [None, "a text", object()])
def test_pieces_that_are_none_lose_no_text(host: Host, bad: Any) -> None:
    async def answer(**arguments: Any) -> Any:
        return OddStream([piece("some"), bad, piece(" more")])

    async def main() -> None:
        _, ends = await events_of(parallel_core.iter_parallel_streams(answer, [request(0)]))
        error = ends[0].exception
        assert isinstance(error, StreamInterruptedError)
        assert error.text == "some more"
        assert error.__cause__ is not None

    host.run(main)


def test_an_error_that_is_kept_keeps_no_chunks(clock: JumpingClock) -> None:
    given: list[weakref.ref[Any]] = []
    broken_off = 0

    async def broken(number: int) -> AsyncGenerator[Any, None]:
        nonlocal broken_off
        for _ in range(50):
            chunk = ModelResponseStream(**piece("x"))
            given.append(weakref.ref(chunk))
            yield chunk
        if number:
            broken_off += 1
            raise LookupError
        while broken_off < 9:
            await anyio.lowlevel.checkpoint()
        clock.jump(60)
        await anyio.sleep_forever()

    from litellm.types.utils import ModelResponseStream

    provider = Provider(broken)

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            provider.answer,
            [request(index, stream=True) for index in range(10)],
            stall_timeout=60,
        )
        assert {type(result.exception) for result in results} == {
            StreamInterruptedError,
            StreamStalledError,
        }
        gc.collect()
        alive = [chunk for chunk in given if chunk() is not None]
        assert len(alive) <= 2 * len(results)  # the last one may be in a frame of the traceback
        assert len(given) == 500

    clock.host.run(main)


@pytest.mark.parametrize(
    "error",
    [
        StreamInterruptedError(3, "gpt", "some", Usage(1, 2), 0.5),
        StreamInterruptedError(3, "gpt", "some", Usage(1, 2), 0.5, is_complete=True),
        StreamStalledError(3, "gpt", 2.0, "some", None, 0.5),
    ],
)
def test_errors_survive_pickling(error: Any) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert vars(again) == vars(error)
    assert str(again) == str(error)
    assert "some" not in str(error) + repr(error)


def test_a_timeout_and_a_total_timeout_tell_what_had_come(host: Host) -> None:
    async def main() -> None:
        came = anyio.Event()

        async def endless(_: int) -> AsyncGenerator[Any, None]:
            yield piece("some words")
            yield told(9, 2)
            came.set()
            await anyio.sleep_forever()

        provider = Provider(lambda number: endless(number))
        for control, kind in (
            ("timeout", RequestTimeoutError),
            ("total_timeout", BatchTimeoutError),
        ):
            for seconds in (0.05, 0.5, 5.0):  # a busy machine may need longer for what comes
                controls: dict[str, Any] = {control: seconds}
                came = anyio.Event()
                batch = parallel_core.iter_parallel_acompletions(
                    provider.answer, [request(0, stream=True)], **controls
                )
                async with batch:
                    results = [result async for result in batch]
                if came.is_set():
                    break
            (result,) = results
            error = result.exception
            assert isinstance(error, kind)
            assert isinstance(error, RequestTimeoutError | BatchTimeoutError)
            assert error.text == "some words"
            assert error.usage is not None
            assert error.usage.completion_tokens == 2
            assert error.time_to_first_chunk is not None
            assert result.usage == batch.usage == error.usage
            copy = pickle.loads(pickle.dumps(error))
            assert (copy.text, copy.usage) == (error.text, error.usage)
            assert provider.open == 0
        assert came.is_set()

    host.run(main)


def test_a_stream_without_any_chunk_is_no_answer(host: Host) -> None:
    async def main() -> None:
        result = await result_of()
        assert isinstance(result.exception, StreamInterruptedError)
        assert result.exception.text == ""

    host.run(main)


def test_an_error_that_comes_as_a_chunk_is_no_answer(host: Host) -> None:
    async def main() -> None:
        result = await result_of(piece("half"), {"error": {"message": "overloaded"}})
        assert isinstance(result.exception, StreamInterruptedError)
        assert result.exception.text == "half"

    host.run(main)


def test_a_meter_that_fails_ends_the_batch_and_not_the_answer(host: Host) -> None:
    class Meter:
        def worst_case(self, item: Any) -> Usage:
            return Usage()

        def usage(self, value: Any) -> Usage:
            raise LookupError("of the meter")

    async def main() -> None:
        provider = Provider(lambda _: say(piece("whole"), piece(None, finish="stop")))
        answers: list[str] = []
        batch = parallel_core.iter_parallel_acompletions(
            provider.answer, [request(0, stream=True)], meter=Meter()
        )
        with pytest.raises(LookupError, match="of the meter"):
            async with batch:
                async for result in batch:
                    answers.append(result.unwrap().choices[0].message.content)
        assert answers == ["whole"]

    host.run(main)


def test_streams_that_are_not_of_litellm_say_themselves_how_they_have_ended(host: Host) -> None:
    from openai.types.chat import ChatCompletionChunk

    def of_openai(text: str | None, finish: str | None = None) -> Any:
        return ChatCompletionChunk.model_validate(event(text, finish))

    async def main() -> None:
        # A client of OpenAI ends in the same way whether there is an answer or not.
        assert (await result_of(of_openai("whole"), of_openai(None, "stop"))).ok
        result = await result_of(of_openai("half"))
        assert isinstance(result.exception, StreamInterruptedError)
        assert result.exception.text == "half"
        assert "without a finish reason" in str(result.exception.__cause__)
        # A generator that knows finish reasons has one for each choice.
        result = await result_of(of_choice(0, "a"), of_choice(1, "b"), of_choice(0, None, "stop"))
        assert isinstance(result.exception, StreamInterruptedError)
        # The end of one that knows none is its word.
        assert (await result_of(piece("all"), piece(" of it"))).ok

    host.run(main)
