"""Whatever streams do and a consumer does: nothing is lost, doubled or left open."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import Host
from helpers.streams import Provider, piece, request, told
from parallel_core import (
    RouterParallelRequest,
    RouterParallelResult,
    StreamChunk,
    StreamEnd,
    StreamInterruptedError,
)


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
    def try_it(merge: Merge) -> None:
        run = MergeRun(merge)

        async def main() -> None:
            with anyio.fail_after(60):
                await run.main()

        host.run(main)

    try_it()
