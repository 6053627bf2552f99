"""Streams of a provider that is a function, and what is read of them."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel

import parallel_core
from parallel_core import RouterParallelRequest, RouterParallelResult, StreamChunk


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


async def endless(number: int) -> AsyncGenerator[Any, None]:
    while True:
        yield piece("x")


async def words_then_hang(number: int) -> AsyncGenerator[Any, None]:
    yield piece("begun ")
    if number == 0:
        yield piece("and done", finish="stop")
        return
    await anyio.sleep_forever()


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
