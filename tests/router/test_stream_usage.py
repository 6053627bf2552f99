"""The usage of a stream: as it was told, or estimated."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import parallel_core
from helpers.hosts import Host
from helpers.streams import (
    OddStream,
    Provider,
    events_of,
    number_of,
    piece,
    request,
    result_of,
    say_words,
    told,
)
from parallel_core import Budget, StreamInterruptedError


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
