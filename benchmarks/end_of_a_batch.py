"""Where the time goes between a failure and its exception: ``python -m benchmarks.end_of_a_batch``.

A profile of the bridge in asyncio, with 64 calls in flight: the moments, in milliseconds since the
failure, at which each part of the end is over. Medians of some batches in one process.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from parallel_core import parallel_map
from parallel_core.engine.asyncio_backend import AsyncioTasks
from parallel_core.engine.guest import TrioRun
from parallel_core.nursery_engine import BatchEngine

IN_FLIGHT = 64
BATCHES = 30


class Moments:
    """When things were over, in the batch that is running."""

    def __init__(self) -> None:
        self._failed_at = 0.0
        self._now: dict[str, float] = {}
        self._all: list[dict[str, float]] = []

    def fail(self) -> None:
        self._now = {}
        self._all.append(self._now)
        self._failed_at = time.perf_counter()

    def over(self, name: str) -> None:
        """Of a name that comes again the last time counts."""
        self._now[name] = (time.perf_counter() - self._failed_at) * 1000

    def after(self, owner: type, method: str, name: str) -> None:
        """Note when a method is over, each time that it is called."""
        original: Callable[..., Any] = getattr(owner, method)

        async def awaited(*arguments: Any, **options: Any) -> Any:
            try:
                return await original(*arguments, **options)
            finally:
                self.over(name)

        def called(*arguments: Any, **options: Any) -> Any:
            try:
                return original(*arguments, **options)
            finally:
                self.over(name)

        setattr(owner, method, awaited if asyncio.iscoroutinefunction(original) else called)

    def medians(self) -> dict[str, float]:
        names = {name for one in self._all for name in one}
        found = {
            name: statistics.median(one[name] for one in self._all if name in one) for name in names
        }
        return dict(sorted(found.items(), key=lambda pair: pair[1]))


async def fail(moments: Moments) -> None:
    begun = 0

    async def call(item: int) -> None:
        nonlocal begun
        begun += 1
        if begun == IN_FLIGHT // 2:
            await asyncio.sleep(0.05)
            moments.fail()
            raise ConnectionError
        try:
            await asyncio.sleep(3600)
        finally:
            moments.over("the last call has ended")

    try:
        await parallel_map(call, range(1000), concurrency=IN_FLIGHT, return_exceptions=False)
    except ConnectionError:
        moments.over("the caller has the exception")


def main() -> None:
    moments = Moments()
    moments.after(BatchEngine, "stop", "every call has been cancelled")
    moments.after(AsyncioTasks, "_supervise", "trio has been told of the last")
    moments.after(BatchEngine, "run", "the nursery of the batch has been left")
    moments.after(TrioRun, "_main", "the main task of the guest run has ended")
    moments.after(TrioRun, "_done", "the guest run has ended")
    for _ in range(BATCHES):
        asyncio.run(fail(moments))
    for name, milliseconds in moments.medians().items():
        print(f"{milliseconds:6.2f} ms  {name}")


if __name__ == "__main__":
    main()
