"""Streams inside of a batch: merged, made whole, paced by the consumer, and always closed."""

from __future__ import annotations

import gc
import itertools
import json
import pickle
import random
import threading
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.lowlevel
import msgspec
import pytest
import trio
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import HOSTS, Host, in_virtual_time, settle
from helpers.routers import make_router, run_with_routers
from parallel_core import (
    BatchDeadlineError,
    Budget,
    Hedge,
    Progress,
    RateLimit,
    RequestTimeoutError,
    RouterParallelRequest,
    RouterParallelResult,
    StreamChunk,
    StreamEnd,
    StreamInterruptedError,
    StreamStalledError,
    Usage,
)
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

SERVER_TIMEOUT = 60.0  # seconds
# Seconds after which those streams are given up that say nothing more. The others must not be on a
# busy machine.
STALL_TIMEOUT = 6.0


def request(index: int, **kwargs: Any) -> RouterParallelRequest:
    return RouterParallelRequest("gpt", [{"role": "user", "content": f"{index}"}], kwargs or None)


def number_of(messages: Any) -> int:
    return int(messages[0]["content"])


def piece(text: str | None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": more.pop("finish", None)}
    return {"id": "1", "model": "gpt", "choices": [choice], **more}


def told(prompt: int, completion: int) -> dict[str, Any]:
    return {
        "id": "1",
        "model": "gpt",
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    }


class Provider:
    """Streams what a function gives for the number of a request, and counts what is open."""

    def __init__(self, chunks: Callable[[int], AsyncGenerator[Any, None]]) -> None:
        self._chunks = chunks
        self.calls: list[dict[str, Any]] = []
        self.open = 0
        self.opened = 0
        self.taken = 0

    async def answer(self, *, model: str, messages: Any, **kwargs: Any) -> AsyncIterator[Any]:
        self.calls.append(kwargs)
        return self._stream(number_of(messages))

    async def _stream(self, number: int) -> AsyncGenerator[Any, None]:
        self.open += 1
        self.opened += 1
        try:
            async with aclosing(self._chunks(number)) as chunks:
                async for chunk in chunks:
                    self.taken += 1
                    yield chunk
        finally:
            self.open -= 1


def words_of(number: int) -> list[str]:
    return [f"{number}.{position} " for position in range(number % 9)]


async def say_words(number: int) -> AsyncGenerator[Any, None]:
    draw = random.Random(number)
    for word in words_of(number):
        for _ in range(draw.randrange(3)):
            await anyio.lowlevel.checkpoint()
        yield piece(word)
    yield piece(None, finish="stop")
    yield told(number, len(words_of(number)))


async def events_of(batch: Any) -> tuple[dict[int, list[str]], dict[int, RouterParallelResult]]:
    texts: dict[int, list[str]] = {}
    ends: dict[int, RouterParallelResult] = {}
    async with batch:
        async for event in batch:
            if isinstance(event, StreamChunk):
                assert event.index not in ends  # the end comes last
                texts.setdefault(event.index, []).append(event.text)
            else:
                assert event.index not in ends
                ends[event.index] = event.result
    return texts, ends


def test_streams_are_merged_and_made_whole(host: Host) -> None:
    provider = Provider(say_words)

    async def main() -> None:
        requests = [request(index) for index in range(50)]
        batch = parallel_core.iter_parallel_streams(provider.answer, requests, concurrency=7)
        texts, ends = await events_of(batch)
        assert sorted(ends) == list(range(50))
        for index, result in ends.items():
            assert [text for text in texts[index] if text] == words_of(index)
            assert result.ok
            choice = result.response.choices[0]
            assert (choice.message.content or "") == "".join(words_of(index))
            assert choice.finish_reason == "stop"
            assert result.request is requests[index]
            if index:
                assert result.usage == Usage(index, index % 9, unpriced_calls=1)
            assert result.time_to_first_chunk is not None
            assert 0 <= result.time_to_first_chunk <= result.duration
        assert (batch.started, batch.succeeded, batch.in_flight) == (50, 50, 0)
        assert batch.usage.completion_tokens >= sum(index % 9 for index in range(50))
        assert provider.open == 0

    host.run(main)
    assert all(call["stream"] is True for call in provider.calls)
    assert all(call["stream_options"] == {"include_usage": True} for call in provider.calls)


def test_what_the_user_says_of_usage_stays(host: Host) -> None:
    provider = Provider(say_words)

    async def main() -> None:
        asked = request(3, stream_options={"include_usage": False, "x": 1}, temperature=0.5)
        await events_of(parallel_core.iter_parallel_streams(provider.answer, [asked]))
        assert provider.calls == [
            {
                "stream": True,
                "stream_options": {"include_usage": False, "x": 1},
                "temperature": 0.5,
            }
        ]
        assert asked.kwargs == {
            "stream_options": {"include_usage": False, "x": 1},
            "temperature": 0.5,
        }

    host.run(main)


def test_usage_that_nobody_tells_is_estimated(host: Host) -> None:
    async def silent(number: int) -> AsyncGenerator[Any, None]:
        yield piece("seven words are in this one answer")
        if number:  # litellm's own sum where it was told nothing
            yield told(0, 0)

    provider = Provider(silent)

    async def main() -> None:
        batch = parallel_core.iter_parallel_streams(provider.answer, [request(0), request(1)])
        _, ends = await events_of(batch)
        for result in ends.values():
            assert result.usage is not None
            assert result.usage.estimated_calls == 1
            assert result.usage.prompt_tokens > 0
            assert result.usage.completion_tokens >= 7
            assert result.response.usage is None  # the provider has told none
        assert batch.usage.estimated_calls == 2

    host.run(main)


def test_usage_that_a_fallback_tells_is_not_estimated(host: Host) -> None:
    """Where litellm's Router falls back in the middle, the stream's list is the first one's."""

    class Stream(OddStream):
        def __init__(self, own: list[Any], chunks: list[Any]) -> None:
            super().__init__(chunks)
            self.chunks = own

        async def aclose(self) -> None:
            pass

    def litellm_chunk(number: str, **fields: Any) -> Any:
        from litellm.types.utils import ModelResponseStream

        return ModelResponseStream(**{**piece("some words"), **fields, "id": number})

    async def answer(*, model: str, messages: Any, **arguments: Any) -> Any:
        # The last chunk is litellm's: with what the provider has told, or with an estimate.
        given = [litellm_chunk("b"), litellm_chunk("b", usage=told(10, 3)["usage"])]
        own = [litellm_chunk("a" if number_of(messages) else "b")]
        return Stream(own, given)

    async def main() -> None:
        batch = parallel_core.iter_parallel_streams(answer, [request(0), request(1)])
        _, ends = await events_of(batch)
        silent, fell_back = ends[0].usage, ends[1].usage
        assert silent is not None
        assert silent.estimated
        assert fell_back is not None
        assert not fell_back.estimated
        assert (fell_back.prompt_tokens, fell_back.completion_tokens) == (10, 3)

    host.run(main)


# --- pace ---


async def endless(number: int) -> AsyncGenerator[Any, None]:
    while True:
        yield piece("x")


def test_the_consumer_sets_the_pace_of_all_streams(host: Host) -> None:
    provider = Provider(endless)

    async def main() -> None:
        requests = (request(index) for index in itertools.count())
        async with parallel_core.iter_parallel_streams(
            provider.answer, requests, concurrency=5
        ) as batch:
            for taken in range(100):
                await settle()
                # Twice the concurrency waits in the buffer, and one in the hand of each stream.
                assert provider.taken <= taken + 10 + 5
                event = await anext(batch)
                assert isinstance(event, StreamChunk)
        assert provider.open == 0
        assert provider.opened == 5

    host.run(main)


def test_a_flood_starves_nobody(host: Host) -> None:
    async def flood_or_words(number: int) -> AsyncGenerator[Any, None]:
        for word in itertools.repeat("x") if number < 3 else words_of(number):
            yield piece(word)
        yield told(1, 1)

    provider = Provider(flood_or_words)

    async def main() -> None:
        async with parallel_core.iter_parallel_streams(
            provider.answer, [request(index) for index in range(8)], concurrency=8
        ) as batch:
            ended = 0
            events = 0
            async for event in batch:
                events += 1
                ended += isinstance(event, StreamEnd)
                if ended == 5:
                    break
            # The longest has nine chunks: eight streams that take turns need a few more than 80.
            assert events < 200
        assert provider.open == 0

    host.run(main)


@dataclass(frozen=True)
class Merge:
    """Streams that pause, break off and hang, and a consumer that stops at some event."""

    seed: int
    streams: int
    concurrency: int
    source: str
    fail_fast: bool
    broken: bool
    auto: bool
    stops_after: int | None  # events
    way: str


merges = st.builds(
    Merge,
    seed=st.integers(0, 10_000),
    streams=st.integers(0, 25),
    concurrency=st.integers(1, 9),
    source=st.sampled_from(["list", "generator", "async"]),
    fail_fast=st.booleans(),
    broken=st.booleans(),
    auto=st.booleans(),
    stops_after=st.none() | st.integers(0, 60),
    way=st.sampled_from(["break", "cancel", "aclose", "scope"]),
)


class MergeRun:
    """One merge, watched."""

    def __init__(self, merge: Merge) -> None:
        self.merge = merge
        self.provider = Provider(self.chunks)
        self.said: dict[int, list[str]] = {}  # what each stream has given so far
        self.texts: dict[int, list[str]] = {}
        self.ends: dict[int, RouterParallelResult] = {}

    async def chunks(self, number: int) -> AsyncGenerator[Any, None]:
        draw = random.Random(self.merge.seed * 100 + number)
        said = self.said[number] = []
        for position in range(draw.choice((0, 1, 3, 40))):
            for _ in range(draw.choice((0, 0, 1, 5))):
                await anyio.lowlevel.checkpoint()
            said.append(f"{number}.{position} ")
            yield piece(said[-1])
        if self.merge.broken and draw.random() < 0.3:
            raise LookupError(number)
        yield told(number + 1, len(said))

    def source(self) -> Any:
        requests = [request(index) for index in range(self.merge.streams)]
        if self.merge.source == "list":
            return requests
        return iter(requests) if self.merge.source == "generator" else self._drawn(requests)

    async def _drawn(self, requests: list[RouterParallelRequest]) -> AsyncIterator[Any]:
        for asked_for in requests:
            await anyio.lowlevel.checkpoint()
            yield asked_for

    async def main(self) -> None:
        merge, provider = self.merge, self.provider
        draw = random.Random(merge.seed)
        concurrency = parallel_core.AdaptiveConcurrency(
            initial=merge.concurrency, maximum=merge.concurrency
        )
        batch = parallel_core.iter_parallel_streams(
            provider.answer,
            self.source(),
            concurrency=concurrency if merge.auto else merge.concurrency,
            return_exceptions=not merge.fail_fast,
        )
        left = False
        raised: Exception | None = None
        try:
            with anyio.CancelScope() as scope:
                async with batch:
                    events = 0
                    async for event in batch:
                        self.take(event)
                        events += 1
                        waiting = provider.taken - sum(map(len, self.texts.values()))
                        # The buffer, one in the hand of each stream, and the pieces of usage and
                        # of streams that have ended meanwhile.
                        assert waiting <= 3 * merge.concurrency + merge.streams
                        assert provider.open <= merge.concurrency
                        for _ in range(draw.choice((0, 0, 3))):
                            await anyio.lowlevel.checkpoint()
                        if events == merge.stops_after:
                            left = True
                            if merge.way == "break":
                                break
                            if merge.way == "scope":
                                scope.cancel()
                                await anyio.lowlevel.checkpoint()
                            elif merge.way == "aclose":
                                await batch.aclose()
                            else:
                                batch.cancel()
        except (LookupError, StreamInterruptedError) as error:
            raised = error
        assert provider.open == 0
        assert batch.in_flight == 0
        assert raised is None or merge.fail_fast
        self.check(whole=not left and raised is None)
        if not left and raised is None:
            prompts = sum(result.usage.prompt_tokens for result in self.told)
            assert batch.usage.prompt_tokens >= prompts
            assert batch.usage.estimated_calls == sum(
                isinstance(result.exception, StreamInterruptedError)
                for result in self.ends.values()
            )

    def take(self, event: StreamChunk | StreamEnd) -> None:
        assert event.index not in self.ends  # the end comes last, and once
        if isinstance(event, StreamEnd):
            self.ends[event.index] = event.result
        elif event.text:
            self.texts.setdefault(event.index, []).append(event.text)

    @property
    def told(self) -> list[Any]:
        return [result for result in self.ends.values() if result.ok]

    def check(self, *, whole: bool) -> None:
        for index, texts in self.texts.items():
            assert texts == self.said[index][: len(texts)]  # each once, and in order
        for index, result in self.ends.items():
            assert self.texts.get(index, []) == self.said[index]
            if result.ok:
                text = result.response.choices[0].message.content if self.said[index] else ""
                assert text == "".join(self.said[index])
                assert result.usage is not None
                assert result.usage.prompt_tokens == index + 1
                assert result.usage.completion_tokens == len(self.said[index])
            elif self.said[index]:
                assert isinstance(result.exception, StreamInterruptedError)
                assert result.exception.text == "".join(self.said[index])
            else:
                assert isinstance(result.exception, LookupError)
        if whole:
            assert sorted(self.ends) == list(range(self.merge.streams))


def test_nothing_is_lost_doubled_or_left_open(host: Host) -> None:
    @given(merges)
    @settings(max_examples=60)
    def try_it(merge: Merge) -> None:
        run = MergeRun(merge)

        async def main() -> None:
            with anyio.fail_after(60):
                await run.main()

        host.run(main)

    try_it()


# --- leaving ---


async def words_then_hang(number: int) -> AsyncGenerator[Any, None]:
    yield piece("begun ")
    if number == 0:
        yield piece("and done", finish="stop")
        return
    await anyio.sleep_forever()


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


def test_timeout_and_deadline_close_streams(host: Host) -> None:
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
            parallel_core.iter_parallel_streams(provider.answer, requests, deadline=0.05)
        )
        assert isinstance(ends[2].exception, BatchDeadlineError)
        assert provider.open == 0

    host.run(main)


# --- streams that break off, or stall ---


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


def test_a_loop_that_is_held_up_is_no_stall(host: Host) -> None:
    async def chunks(number: int) -> AsyncGenerator[Any, None]:
        for _ in range(2):
            await anyio.sleep(0.01)
            yield piece("x")
        yield told(1, 2)

    provider = Provider(chunks)

    def hold_up(chunk: StreamChunk) -> None:
        time.sleep(0.15)

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            provider.answer,
            [request(index, stream=True) for index in range(3)],
            stall_timeout=0.1,
            on_chunk=hold_up,
        )
        assert [result.exception for result in results] == [None] * 3

    host.run(main)


class OddStream:
    """An async iterator whose ``aclose`` raises."""

    def __init__(self, chunks: list[Any], error: Exception | None = None) -> None:
        self._chunks = iter(chunks)
        self._error = error

    def __aiter__(self) -> OddStream:
        return self

    async def __anext__(self) -> Any:
        await anyio.lowlevel.checkpoint()
        for chunk in self._chunks:
            return chunk
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        raise TimeoutError("on the way out")


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


def test_an_error_that_is_kept_keeps_no_chunks(host: Host) -> None:
    given: list[weakref.ref[Any]] = []

    async def broken(number: int) -> AsyncGenerator[Any, None]:
        for _ in range(50):
            chunk = ModelResponseStream(**piece("x"))
            given.append(weakref.ref(chunk))
            yield chunk
        if number:
            raise LookupError
        await anyio.sleep_forever()

    from litellm.types.utils import ModelResponseStream

    provider = Provider(broken)

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            provider.answer,
            [request(index, stream=True) for index in range(10)],
            stall_timeout=0.2,
        )
        assert {type(result.exception) for result in results} == {
            StreamInterruptedError,
            StreamStalledError,
        }
        gc.collect()
        alive = [chunk for chunk in given if chunk() is not None]
        assert len(alive) <= 2 * len(results)  # the last one may be in a frame of the traceback
        assert len(given) == 500

    host.run(main)


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


# --- streams in a batch of results ---


def test_a_request_may_be_streamed_in_any_batch(host: Host) -> None:
    provider = Provider(say_words)
    seen: list[StreamChunk] = []

    async def answer(**arguments: Any) -> Any:
        if arguments.get("stream"):
            return await provider.answer(**arguments)
        return {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    async def main() -> None:
        results = await parallel_core.parallel_acompletions(
            answer,
            [request(5, stream=True), request(6), request(7, stream=True)],
            preserve_order=True,
            on_chunk=seen.append,
        )
        assert [result.ok for result in results] == [True] * 3
        assert results[0].response.choices[0].message.content == "".join(words_of(5))
        assert results[0].usage == Usage(5, 5, unpriced_calls=1)
        assert results[1].usage is None
        assert results[1].time_to_first_chunk is None
        for index, number in ((0, 5), (2, 7)):
            texts = [chunk.text for chunk in seen if chunk.index == index and chunk.text]
            assert texts == words_of(number)

    host.run(main)


def test_what_on_chunk_raises_ends_the_batch(host: Host) -> None:
    provider = Provider(endless)
    error = LookupError("mine")

    def on_chunk(chunk: StreamChunk) -> None:
        raise error

    async def main() -> None:
        with pytest.raises(LookupError) as caught:
            await parallel_core.parallel_acompletions(
                provider.answer,
                [request(index, stream=True) for index in range(3)],
                on_chunk=on_chunk,
            )
        assert caught.value is error
        assert provider.open == 0

    host.run(main)


def test_a_budget_counts_streams(host: Host) -> None:
    provider = Provider(say_words)

    async def main() -> None:
        budget = Budget(max_tokens=10_000)
        batch = parallel_core.iter_parallel_streams(
            provider.answer, [request(5, max_tokens=50), request(7, max_tokens=50)], budget=budget
        )
        await events_of(batch)
        assert budget.spent_tokens == batch.usage.total_tokens == 24
        assert budget.reserved_tokens == 0

    host.run(main)


def test_all_controls_go_with_streams(host: Host) -> None:
    provider = Provider(say_words)
    seen: list[StreamChunk] = []
    snapshots: list[Progress] = []

    async def main() -> None:
        budget = Budget(max_tokens=1_000_000)
        requests = [
            RouterParallelRequest(
                f"model{index % 3}", [{"role": "user", "content": f"{index}"}], {"max_tokens": 20}
            )
            for index in range(60)
        ]
        batch = parallel_core.iter_parallel_streams(
            provider.answer,
            requests,
            concurrency="auto",
            timeout=60,
            deadline=120,
            stall_timeout=30,
            rate_limit=RateLimit(requests_per_minute=600_000, tokens_per_minute=60_000_000),
            budget=budget,
            fair_by="model",
            on_progress=snapshots.append,
            on_chunk=seen.append,
        )
        texts, ends = await events_of(batch)
        assert sorted(ends) == list(range(60))
        for index, result in ends.items():
            assert result.ok, result.exception
            assert [text for text in texts[index] if text] == words_of(index)
        assert len(seen) == sum(map(len, texts.values()))
        assert budget.spent_tokens == batch.usage.total_tokens
        assert snapshots[-1].finished
        assert snapshots[-1].usage == batch.usage
        assert snapshots[-1].succeeded == 60
        assert provider.open == 0

    host.run(main)


async def async_callback(chunk: object) -> None:
    pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hedge": Hedge(after=1)}, ValueError, "hedge"),
        ({"stall_timeout": 0}, ValueError, "stall_timeout must be a finite number above 0"),
        ({"on_chunk": 3}, TypeError, "on_chunk must be a plain function, not int"),
        ({"on_chunk": async_callback}, TypeError, "on_chunk must be a plain function"),
    ],
)
def test_bad_options(
    options: dict[str, Any], error: type[Exception], message: str, host: Host
) -> None:
    provider = Provider(say_words)

    async def main() -> None:
        with pytest.raises(error, match=message):
            parallel_core.iter_parallel_streams(provider.answer, [request(1)], **options)
        if "hedge" not in options:
            with pytest.raises(error, match=message):
                await parallel_core.parallel_acompletions(provider.answer, [request(1)], **options)
        assert not provider.calls

    host.run(main)


def test_items_of_a_map_have_no_chunks(host: Host) -> None:
    async def main() -> None:
        for options in ({"on_chunk": print}, {"stall_timeout": 1}):
            with pytest.raises(ValueError, match="is for streamed answers"):
                await parallel_core.parallel_map(anyio.sleep, [0], **options)

    host.run(main)


# --- over HTTP ---


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    settings = DemoServerSettings(
        time_to_first_token=0.02, latency_sigma=1.0, chunk_gap=0.001, latency_median=0.0
    )
    with DemoServerThread(settings) as server:
        parallel_core.parallel_completions(make_router(server), [asked(0)])
        yield server


@pytest.fixture
def server(running_server: DemoServerThread) -> DemoServerThread:
    running_server.wait_idle(SERVER_TIMEOUT)
    running_server.reset_stats()
    return running_server


def asked(index: int, **orders: Any) -> RouterParallelRequest:
    messages = [{"role": "user", "content": f"What is {index}?"}]
    return RouterParallelRequest("fast", messages, {"extra_body": {"demo": orders}})


def reply(index: int) -> str:
    return " ".join(f"{index}.{position}" for position in range(1 + index % 11))


on_every_loop = pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)


@pytest.mark.parametrize("library", ["trio", "asyncio"])
def test_streams_over_http(library: Literal["trio", "asyncio"], server: DemoServerThread) -> None:
    """Each byte once and in order; totals as the server has counted them."""
    router = make_router(
        server, parameters={"input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6}
    )

    def order(index: int) -> RouterParallelRequest:
        if index % 16 == 3:
            return asked(index, fault="truncated", reply=reply(index) + " and more")
        if index % 16 == 5:
            return asked(index, reply=reply(index) + " and more", chunk_gap=3600.0)
        if index % 16 == 7:
            return asked(index, tool_arguments=reply(index))
        return asked(index, reply=reply(index))

    async def main() -> None:
        batch = parallel_core.iter_parallel_streams(
            router,
            [order(index) for index in range(64)],
            concurrency=64,
            stall_timeout=STALL_TIMEOUT,
        )
        texts, ends = await events_of(batch)
        assert sorted(ends) == list(range(64))
        usage = Usage()
        broken = 4  # those that stall
        for index, result in ends.items():
            kind = index % 16
            text = "".join(texts.get(index, []))
            if kind == 3:
                assert not result.ok
                assert f"{reply(index)} and more".startswith(text)
                # What comes together with the end of the connection may be lost on the way.
                if text:
                    assert isinstance(result.exception, StreamInterruptedError)
                    assert result.exception.text == text
                broken += bool(text)
                continue
            if kind == 5:
                assert isinstance(result.exception, StreamStalledError), result.exception
                assert result.exception.text == text == f"{index}.0"
                continue
            message = result.unwrap().choices[0].message
            if kind == 7:
                assert message.tool_calls[0].function.arguments == reply(index)
                assert result.response.choices[0].finish_reason == "tool_calls"
            else:
                assert message.content == text == reply(index)
            assert result.usage is not None
            assert result.usage.completion_tokens == 1 + index % 11
            assert result.usage.cost == pytest.approx(
                1e-6 * result.usage.prompt_tokens + 2e-6 * result.usage.completion_tokens
            )
            usage += result.usage
        await anyio.to_thread.run_sync(server.wait_idle, SERVER_TIMEOUT)
        stats = server.stats()
        assert (usage.prompt_tokens, usage.completion_tokens) == (
            stats.prompt_tokens,
            stats.completion_tokens,
        )
        assert usage.estimated_calls == usage.unpriced_calls == 0
        assert batch.usage.estimated_calls == broken
        assert stats.disconnected == 4  # the stalled ones
        assert batch.failed == 8

    run_with_routers(Host(library, library), main)


@pytest.mark.parametrize("library", ["trio", "asyncio"])
def test_a_stream_that_is_cut_off_is_no_answer(
    library: Literal["trio", "asyncio"], server: DemoServerThread
) -> None:
    """The server ends it in the way of one that is whole, but without a finish reason."""

    async def main() -> None:
        requests = [
            asked(index, reply=reply(10), **({} if index % 2 else {"cut_after": index}))
            for index in range(8)
        ]
        router = make_router(server, num_retries=None)  # retries and cooldowns as litellm has them
        texts, ends = await events_of(parallel_core.iter_parallel_streams(router, requests))
        streamed = [
            msgspec.structs.replace(one, kwargs={**(one.kwargs or {}), "stream": True})
            for one in requests
        ]
        plain = await parallel_core.parallel_acompletions(router, streamed, preserve_order=True)
        for index, result in [*ends.items(), *enumerate(plain)]:
            if index % 2:
                assert result.unwrap().choices[0].finish_reason == "stop"
                assert result.response.choices[0].message.content == reply(10)
                continue
            words = " ".join(reply(10).split()[:index])
            assert isinstance(result.exception, StreamInterruptedError)
            assert result.exception.text == words == "".join(texts.get(index, []))
            assert isinstance(result.exception.__cause__, Exception)
            assert result.usage is not None
            assert result.usage.estimated
            assert result.usage.prompt_tokens > 0
            assert (result.usage.completion_tokens > 0) == (index > 0)

    run_with_routers(Host(library, library), main)


@on_every_loop
@pytest.mark.parametrize("way", ["break", "fail fast", "cancel"])
def test_leaving_closes_every_connection(host: Host, server: DemoServerThread, way: str) -> None:
    router = make_router(server)

    async def main() -> None:
        requests = [asked(index, reply="one two three", chunk_gap=3600.0) for index in range(16)]
        if way == "fail fast":
            requests[7] = asked(7, fault="server_error")
        batch = parallel_core.iter_parallel_streams(
            router, requests, concurrency=16, return_exceptions=way != "fail fast"
        )
        seen = 0
        raised: Any = None
        try:
            async with batch:
                async for _ in batch:
                    seen += 1
                    if seen == 16 and way == "break":
                        break
                    if seen == 16 and way == "cancel":
                        batch.cancel()
        except Exception as error:
            raised = error
        assert getattr(raised, "status_code", None) == (500 if way == "fail fast" else None)
        await anyio.to_thread.run_sync(server.wait_idle, SERVER_TIMEOUT)
        stats = server.stats()
        assert stats.in_flight == 0
        assert stats.disconnected == (15 if way == "fail fast" else 16)

    run_with_routers(host, main)


def test_the_method_of_a_router(server: DemoServerThread) -> None:
    router = make_router(server)

    async def main() -> None:
        _, ends = await events_of(router.iter_parallel_streams([asked(1, reply="yes")]))
        assert ends[0].response.choices[0].message.content == "yes"
        # A provider that tells no usage.
        _, ends = await events_of(
            router.iter_parallel_streams([asked(1, reply="yes it is", usage=False)])
        )
        assert ends[0].usage is not None
        assert ends[0].usage.estimated_calls == 1
        assert ends[0].usage.completion_tokens > 0

    run_with_routers(Host("asyncio", "asyncio"), main)


async def say(*chunks: Any) -> AsyncGenerator[Any, None]:
    for chunk in chunks:
        await anyio.lowlevel.checkpoint()
        if isinstance(chunk, Exception):
            raise chunk
        yield chunk


async def result_of(*chunks: Any, **controls: Any) -> RouterParallelResult:
    provider = Provider(lambda _: say(*chunks))
    (result,) = await parallel_core.parallel_acompletions(
        provider.answer, [request(0, stream=True)], **controls
    )
    return result


def of_choice(index: int, text: str | None, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "1", "model": "gpt", "choices": [choice]}


def test_several_choices_of_a_stream_stay_apart(host: Host) -> None:
    chunks = [
        of_choice(0, "a0 "), of_choice(1, "b0 "), of_choice(0, "a1"), of_choice(0, None, "stop"),
        of_choice(1, "b1"), of_choice(1, None, "length"), told(3, 4),
    ]  # fmt: skip
    provider = Provider(lambda _: say(*chunks))

    async def main() -> None:
        pieces: dict[int, str] = {}
        async with parallel_core.iter_parallel_streams(provider.answer, [request(0)]) as batch:
            async for event in batch:
                if isinstance(event, StreamChunk):
                    pieces[event.choice] = pieces.get(event.choice, "") + event.text
                else:
                    result = event.result
        assert pieces == {0: "a0 a1", 1: "b0 b1"}
        answers = [
            (choice.index, choice.message.content, choice.finish_reason)
            for choice in result.response.choices
        ]
        assert answers == [(0, "a0 a1", "stop"), (1, "b0 b1", "length")]
        assert result.usage is not None
        assert result.usage.completion_tokens == 4
        assert not result.usage.estimated

    host.run(main)


def test_usage_that_was_told_before_a_stream_broke_goes_before_an_estimate(host: Host) -> None:
    async def main() -> None:
        # Nothing came after it.
        late = await result_of(piece("a b c"), told(11, 7), ConnectionError())
        assert isinstance(late.exception, StreamInterruptedError)
        assert late.usage is not None
        assert (late.usage.prompt_tokens, late.usage.completion_tokens) == (11, 7)
        assert not late.usage.estimated
        # What came after it is estimated.
        early = await result_of(told(11, 1), piece("word " * 100), ConnectionError())
        assert early.usage is not None
        assert early.usage.prompt_tokens == 11
        assert early.usage.completion_tokens > 50
        assert early.usage.estimated

    host.run(main)


def test_usage_without_a_total_is_usage(host: Host) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2}

    async def main() -> None:
        result = await result_of(
            piece("a"), {"id": "1", "model": "gpt", "choices": [], "usage": usage}
        )
        assert result.usage is not None
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (5, 2)
        assert not result.usage.estimated

    host.run(main)


def test_reasoning_counts_in_an_estimate(host: Host) -> None:
    thought = piece(None)
    thought["choices"][0]["delta"]["reasoning_content"] = "thinking " * 200

    async def main() -> None:
        result = await result_of(thought, piece("ok"), piece(None, finish="stop"))
        assert result.usage is not None
        assert result.usage.estimated
        assert result.usage.completion_tokens > 100

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


def test_a_long_stream_is_made_whole_beside_the_loop(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    threads: list[int] = []
    build = litellm.stream_chunk_builder

    def watched(*arguments: Any, **more: Any) -> Any:
        threads.append(threading.get_ident())
        return build(*arguments, **more)

    monkeypatch.setattr(litellm, "stream_chunk_builder", watched)

    async def main() -> None:
        result = await result_of(*[piece("x ") for _ in range(1000)], piece(None, finish="stop"))
        assert result.response.choices[0].message.content == "x " * 1000
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()

    host.run(main)


def test_a_timeout_and_a_deadline_tell_what_had_come(host: Host) -> None:
    async def main() -> None:
        came = anyio.Event()

        async def endless(_: int) -> AsyncGenerator[Any, None]:
            yield piece("some words")
            yield told(9, 2)
            came.set()
            await anyio.sleep_forever()

        provider = Provider(lambda number: endless(number))
        for control, kind in (("timeout", RequestTimeoutError), ("deadline", BatchDeadlineError)):
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
            assert isinstance(error, RequestTimeoutError | BatchDeadlineError)
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


async def answer_of_server(
    events: list[dict[str, Any]],
    fallback: list[dict[str, Any]] | None = None,
    *,
    provider: str = "openai",
    end: Literal["done", "eof", "drop"] = "done",
    around: Callable[[Any], Any] | None = None,
    **arguments: Any,
) -> RouterParallelResult:
    """What a Router makes of these events of a server; with a fallback, the first model breaks.

    Args:
        provider: litellm's name of it.
        end: how the server ends: with ``[DONE]``, without, or by closing the connection.
        around: makes the callable of the batch from the Router.
    """

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        is_first = (await request.json()).get("model", "gpt") == "gpt"
        if is_first and fallback is not None:
            await response.write(b'data: {"error": {"message": "overloaded", "code": 503}}\n\n')
            return response
        for event in events if is_first else fallback or ():
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if end == "done":
            await response.write(b"data: [DONE]\n\n")
        elif end == "drop" and request.transport is not None:
            request.transport.abort()
        return response

    app = web.Application()
    app.router.add_post("/{path:.*}", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address = runner.addresses[0]
        path = "" if provider == "gemini" else "/v1"
        shared = {"api_base": f"http://127.0.0.1:{address[1]}{path}", "api_key": "none"}
        router = parallel_core.ParallelRouter(
            model_list=[
                {"model_name": model, "litellm_params": {"model": f"{provider}/{model}", **shared}}
                for model in ("gpt", "other")
            ],
            num_retries=0,
            fallbacks=[{"gpt": ["other"]}] if fallback is not None else [],
        )
        (result,) = await parallel_core.parallel_acompletions(
            router if around is None else around(router), [request(0, stream=True, **arguments)]
        )
        return result
    finally:
        await runner.cleanup()


ENVELOPE = {"object": "chat.completion.chunk", "created": 1}


def event(
    text: str | None, finish: str | None = None, logprobs: Any = None, index: int = 0
) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    choices = [{**choice, "logprobs": logprobs}]
    return {"id": "1", **ENVELOPE, "model": "gpt", "choices": choices}


def test_a_server_that_says_nothing_has_not_answered() -> None:
    async def main() -> None:
        result = await answer_of_server([])
        assert isinstance(result.exception, StreamInterruptedError)
        # But an answer may have no text.
        empty = await answer_of_server([event(""), event(None, "stop")])
        assert empty.ok
        assert empty.response.choices[0].finish_reason == "stop"

    run_with_routers(HOSTS[1], main)


def call_of_a_tool(arguments: str) -> dict[str, Any]:
    call: dict[str, Any] = {"index": 0, "id": "c", "type": "function"}
    call["function"] = {"name": "f", "arguments": arguments}
    begun: dict[str, Any] = event(None)
    begun["choices"][0]["delta"]["tool_calls"] = [call]
    return begun


@pytest.mark.parametrize("provider", ["hosted_vllm", "groq", "deepseek", "databricks", "snowflake"])
def test_done_is_no_finish_reason(provider: str) -> None:
    """litellm's own parsers of lines make ``[DONE]`` into the finish reason "stop"."""

    async def main() -> None:
        for events, text in (
            ([event("half")], "half"),
            ([event("half"), {**told(3, 2), **ENVELOPE}], "half"),
            ([call_of_a_tool('{"half": ')], ""),
            ([event("")], ""),
            ([], ""),
        ):
            result = await answer_of_server(events, provider=provider)
            assert isinstance(result.exception, StreamInterruptedError), events
            assert result.exception.text == text
        for finish in ("stop", "length"):
            result = await answer_of_server([event("a"), event(None, finish)], provider=provider)
            (choice,) = result.unwrap().choices
            assert (choice.message.content, choice.finish_reason) == ("a", finish)
        called = [call_of_a_tool("{}"), event(None, "tool_calls")]
        result = await answer_of_server(called, provider=provider)
        assert result.unwrap().choices[0].finish_reason == "tool_calls"

    run_with_routers(HOSTS[1], main)


def of_gemini(text: str, finish: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [{"text": text}], "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [{**candidate, "index": 0}], "modelVersion": "gpt", "responseId": "1"}


def test_a_stream_of_gemini_without_a_finish_reason_is_no_answer() -> None:
    """litellm's parser of Gemini writes "stop" into each chunk that has content."""

    async def main() -> None:
        for events, text in (([of_gemini("a")], "a"), ([of_gemini("a"), of_gemini("b")], "ab")):
            result = await answer_of_server(events, provider="gemini", end="eof")
            assert isinstance(result.exception, StreamInterruptedError)
            assert result.exception.text == text
        for events, end in (
            ([of_gemini("all", "STOP")], ("all", "stop")),
            ([of_gemini("a"), of_gemini("b", "MAX_TOKENS")], ("ab", "length")),
            ([of_gemini("a"), of_gemini("", "STOP")], ("a", "stop")),
        ):
            result = await answer_of_server(events, provider="gemini", end="eof")
            (choice,) = result.unwrap().choices
            assert (choice.message.content, choice.finish_reason) == end

    run_with_routers(HOSTS[1], main)


def test_the_first_chunk_may_have_a_finish_reason() -> None:
    """The Router has read it before anybody sees the stream."""

    async def main() -> None:
        for reasons in (("length", "stop"), ("stop", "length")):
            events = [event("a", reasons[0]), event("b", reasons[1], index=1)]
            result = await answer_of_server(events, n=2)
            choices = result.unwrap().choices
            assert [choice.message.content for choice in choices] == ["a", "b"]
            assert tuple(choice.finish_reason for choice in choices) == reasons

    run_with_routers(HOSTS[1], main)


@pytest.mark.parametrize("asked_for", [{"n": 2}, {"n": 2.0}, {"extra_body": {"n": 2}}, {}], ids=str)
def test_no_choice_is_cut_off_unnoticed(asked_for: dict[str, Any]) -> None:
    """However the request asks for several, and also one of which nothing was written."""

    async def main() -> None:
        begun = [event(""), event("", index=1)]
        first = [event("a"), event(None, "stop")]
        for events in ([*begun, *first], [*begun, event("b", index=1), *first]):
            result = await answer_of_server(events, **asked_for)
            assert isinstance(result.exception, StreamInterruptedError)
            assert result.exception.text == "a"
        # One that is empty and has a finish reason is an answer.
        whole = [*begun, *first, event(None, "content_filter", index=1)]
        result = await answer_of_server(whole, **asked_for)
        assert [
            (choice.index, choice.message.content, choice.finish_reason)
            for choice in result.unwrap().choices
        ] == [(0, "a", "stop"), (1, "", "content_filter")]

    run_with_routers(HOSTS[1], main)


def test_a_connection_that_ends_after_the_answer_loses_nothing() -> None:
    async def main() -> None:
        words = [event("two"), event(" words")]
        for end in ("eof", "drop"):
            result = await answer_of_server([*words, event(None, "length")], end=end)
            (choice,) = result.unwrap().choices
            assert (choice.message.content, choice.finish_reason) == ("two words", "length")
            assert result.usage is not None
            assert result.usage.estimated
            result = await answer_of_server(words, end=end)
            assert isinstance(result.exception, StreamInterruptedError)
            two = [*words, event("b", index=1), event(None, "length")]
            result = await answer_of_server(two, end=end, n=2)
            assert isinstance(result.exception, StreamInterruptedError)

    run_with_routers(HOSTS[1], main)


def test_a_generator_around_a_stream_of_litellm_may_have_several_choices() -> None:
    def in_generator(router: Any) -> Any:
        async def answer(**kwargs: Any) -> Any:
            return say(*[chunk async for chunk in await router.acompletion(**kwargs)])

        return answer

    async def main() -> None:
        events = [
            event("a"),
            event("b", index=1),
            event(None, "stop"),
            event(None, "stop", index=1),
        ]
        result = await answer_of_server(events, around=in_generator, n=2)
        assert [choice.message.content for choice in result.unwrap().choices] == ["a", "b"]

    run_with_routers(HOSTS[1], main)


def audio(data: str) -> dict[str, Any]:
    part = event(None)
    part["choices"][0]["delta"]["audio"] = {"id": "1", "data": data, "transcript": "la"}
    return part


def test_a_whole_answer_has_its_audio() -> None:
    async def main() -> None:
        result = await answer_of_server([audio("AAAA"), audio("BBBB"), event(None, "stop")])
        sound = result.unwrap().choices[0].message.audio
        assert (sound.data, sound.transcript) == ("AAAABBBB", "lala")
        # No answer can be made of these: nobody says that they had broken off.
        broken = [audio("A"), event(None, "stop"), {**told(3, 2), **ENVELOPE}]
        result = await answer_of_server(broken)
        assert isinstance(result.exception, StreamInterruptedError)
        assert result.exception.is_complete
        assert "broke off" not in str(result.exception)
        assert result.usage is not None
        assert result.usage.total_tokens == 5

    run_with_routers(HOSTS[1], main)


def test_each_choice_of_a_stream_has_its_own_end() -> None:
    """litellm keeps one finish reason for all of them, and makes up the others."""
    begun = [event("a"), event("b", index=1)]

    async def main() -> None:
        ends = [event(None, "stop", index=0), event(None, "length", index=1)]
        for events in ([*begun, *ends], [*begun, *reversed(ends)]):
            result = await answer_of_server(events, n=2)
            choices = result.unwrap().choices
            assert [
                (choice.index, choice.message.content, choice.finish_reason) for choice in choices
            ] == [(0, "a", "stop"), (1, "b", "length")]
        together = event("c", "stop")
        together["choices"] += event("d", "length", index=1)["choices"]
        result = await answer_of_server([together], n=2)
        assert result.unwrap().choices[0].finish_reason == "stop"
        for end in ends:
            result = await answer_of_server([*begun, end, {**told(3, 2), **ENVELOPE}], n=2)
            assert isinstance(result.exception, StreamInterruptedError)
            assert result.exception.text == "a"
            assert result.usage is not None
            assert (result.usage.total_tokens, result.usage.estimated) == (5, False)

    run_with_routers(HOSTS[1], main)


def test_a_fallback_that_is_cut_off_has_not_answered() -> None:
    async def main() -> None:
        whole = [event("of the"), event(" other"), event(None, "length")]
        result = await answer_of_server([], fallback=whole)
        (choice,) = result.unwrap().choices
        assert (choice.message.content, choice.finish_reason) == ("of the other", "length")
        result = await answer_of_server([], fallback=whole[:2])
        assert isinstance(result.exception, StreamInterruptedError)
        assert result.exception.text == "of the other"
        both = [*whole, event("b", index=1)]
        result = await answer_of_server([], fallback=both, n=2)
        assert isinstance(result.exception, StreamInterruptedError)
        result = await answer_of_server([], fallback=[*both, event(None, "stop", index=1)], n=2)
        assert [choice.finish_reason for choice in result.unwrap().choices] == ["length", "stop"]

    run_with_routers(HOSTS[1], main)


def test_an_answer_has_the_usage_that_its_provider_has_told() -> None:
    async def main() -> None:
        words = [event("two"), event(" words"), event(None, "stop")]
        result = await answer_of_server(words)
        assert result.unwrap().usage is None
        assert result.usage is not None
        assert result.usage.estimated
        usage: Any = {**told(7, 2), **ENVELOPE}
        usage["usage"]["cost"] = 0.25
        result = await answer_of_server([*words, usage])
        assert result.unwrap().usage.model_dump(exclude_none=True) == usage["usage"]
        assert result.usage is not None
        assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (7, 2)
        assert not result.usage.estimated
        # Some servers send the usage so far with each chunk; it is not added up, or added to.
        growing = [{**word, "usage": told(7, count)["usage"]} for count, word in enumerate(words)]
        for events in (growing, [*growing, {**told(7, 2), **ENVELOPE}]):
            result = await answer_of_server(events)
            last: Any = told(7, 2)["usage"]
            assert result.unwrap().usage.model_dump(exclude_none=True) == last

    run_with_routers(HOSTS[1], main)


def test_an_answer_that_litellm_makes_up_is_whole() -> None:
    """A mock has no finish reason, ever."""

    async def main() -> None:
        router = parallel_core.ParallelRouter(
            model_list=[{"model_name": "gpt", "litellm_params": {"model": "openai/gpt"}}],
            num_retries=0,
        )
        for text, number in (("made up", 1), ("made up", 2), ("", 1)):
            plain, streamed = await parallel_core.parallel_acompletions(
                router,
                [
                    request(0, mock_response=text, n=number, stream=stream)
                    for stream in (False, True)
                ],
                preserve_order=True,
            )
            assert plain.ok or not text  # to older versions, a mock without text is none
            assert streamed.ok == plain.ok
            if plain.ok:
                choices = streamed.response.choices
                assert [choice.message.content for choice in choices] == [text] * number

    run_with_routers(HOSTS[1], main)


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


def test_a_whole_answer_has_the_logprobs_of_its_chunks() -> None:
    def token(text: str) -> dict[str, Any]:
        return {"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}

    async def main() -> None:
        events = [event(text, None, {"content": [token(text)]}) for text in ("a", "b", "c")]
        result = await answer_of_server([*events, event(None, "stop")])
        logprobs = result.unwrap().choices[0].logprobs
        assert [entry.token for entry in logprobs.content] == ["a", "b", "c"]

    run_with_routers(HOSTS[1], main)
