"""Streams inside of a batch: merged, made whole, paced by the consumer, under each control."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import parallel_core
from helpers.hosts import Host, settle
from helpers.streams import (
    Provider,
    endless,
    events_of,
    of_choice,
    piece,
    request,
    result_of,
    say,
    say_words,
    told,
    words_of,
)
from parallel_core import (
    Budget,
    Hedge,
    Progress,
    RateLimit,
    RouterParallelRequest,
    StreamChunk,
    StreamEnd,
    Usage,
)


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


def test_the_consumer_sets_the_pace_of_all_streams(host: Host) -> None:
    provider = Provider(endless)

    async def main() -> None:
        requests = (request(index) for index in itertools.count())
        async with parallel_core.iter_parallel_streams(
            provider.answer, requests, concurrency=5
        ) as batch:
            for taken in range(40):
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
            total_timeout=120,
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
