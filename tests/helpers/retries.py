"""A batch in virtual time whose Router fails as a test says.

With a callable: a Router's calls run on an asyncio loop of their own.
"""

from typing import Any

import trio

import parallel_core
from helpers.fake_router import Answer, FakeRouter, requests
from helpers.hosts import in_virtual_time
from parallel_core import Retry, RouterParallelResult


def run(
    answer: Answer, number: int = 1, *models: str, seconds: float = 1.0, **options: Any
) -> tuple[FakeRouter, list[RouterParallelResult], float]:
    """Run a batch in virtual time; return its Router, its results by index, and its seconds."""
    router = FakeRouter(answer, seconds)
    options = {"concurrency": 8, "retry": Retry(), **options}
    results = list[RouterParallelResult]()
    took = 0.0

    async def main() -> None:
        nonlocal took
        began = trio.current_time()
        results.extend(
            await parallel_core.parallel_acompletions(
                router.acompletion, list(requests(number, *models)), **options
            )
        )
        took = trio.current_time() - began

    in_virtual_time(main)
    results.sort(key=lambda result: result.index)
    return router, results, took


def fails_first(error: Exception, times: int = 1) -> Answer:
    return lambda model, attempt: error if attempt <= times else None
