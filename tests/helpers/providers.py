"""Providers in virtual time that take so many calls at once, or so many a minute."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import trio
import trio.testing

import parallel_core
from helpers.hosts import in_virtual_time
from parallel_core import AdaptiveConcurrency


class OverloadedError(Exception):
    """What a provider answers above its capacity."""

    def __init__(self, retry_after: float | None = 1.0, status_code: int = 429) -> None:
        super().__init__("too many requests")
        self.status_code = status_code
        self.litellm_response_headers = (
            {} if retry_after is None else {"Retry-After": str(retry_after)}
        )


class Provider:
    """Answers after a log-normal time, or rejects at once what is above its capacity."""

    def __init__(self, capacity: Callable[[float], float], *, seed: int = 1) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self.most_in_flight = 0
        self.answered = 0
        self.attempts = 0
        self.late_attempts = 0  # after the first second
        self.late_rejections = 0
        self._random = random.Random(seed)
        self._began: float | None = None

    async def answer(self, item: int) -> int:
        if self._began is None:
            self._began = anyio.current_time()
        now = anyio.current_time() - self._began
        self.attempts += 1
        self.late_attempts += now > 1
        await anyio.sleep(0.004)  # there and back
        if self.in_flight >= self.capacity(now):
            self.late_rejections += now > 1
            raise OverloadedError
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await anyio.sleep(math.exp(0.5 * self._random.gauss(0, 1)))
        finally:
            self.in_flight -= 1
        self.answered += 1
        return item

    @property
    def rejected_share(self) -> float:
        return self.late_rejections / self.late_attempts


def answered_within(
    seconds: float,
    provider: Provider,
    concurrency: int | AdaptiveConcurrency,
) -> int:
    """Calls answered by a provider in a time, of an endless batch."""

    def items() -> Iterator[int]:
        index = 0
        while True:
            yield index
            index += 1

    async def main() -> None:
        with trio.move_on_after(seconds):
            async with parallel_core.iter_parallel_map(
                provider.answer, items(), concurrency=concurrency
            ) as batch:
                async for result in batch:
                    assert result.ok, result.exception

    in_virtual_time(main)
    return provider.answered


async def endless() -> AsyncIterator[int]:
    index = 0
    while True:
        yield index
        index += 1


class Limited:
    """A rate limit: what is too much for a minute is rejected at once."""

    def __init__(self, per_minute: int, retry_after: float) -> None:
        self._per_minute = per_minute
        self._retry_after = retry_after
        self._answered: list[float] = []

    def take(self) -> None:
        now = anyio.current_time()
        self._answered = [at for at in self._answered if at > now - 60]
        if len(self._answered) >= self._per_minute:
            raise OverloadedError(self._retry_after)
        self._answered.append(now)
