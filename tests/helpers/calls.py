"""Calls, requests and sources of a batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

import anyio

from parallel_core import RouterParallelRequest


async def sleep(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


async def hang(item: object) -> None:
    await anyio.sleep_forever()


def request(model: str = "gpt", timeout: float | None = None) -> RouterParallelRequest:
    return RouterParallelRequest(model, [{"role": "user", "content": "hi"}], None, timeout)


async def numbers(values: Iterable[int]) -> AsyncIterator[int]:
    for value in values:
        yield value


def first_letter(item: str) -> str:
    return item[0]
