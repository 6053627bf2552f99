"""``parallel_completions``, and batches made outside of a loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from helpers.bridge_checks import Calls, assert_nothing_left, open_files, until
from helpers.bridge_scenarios import check_a_batch
from helpers.hosts import Host
from parallel_core import (
    InvalidRequestError,
    RouterParallelRequest,
    iter_parallel_map,
    parallel_completions,
    parallel_map,
)

pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("leaving_nothing")]

MESSAGES = [{"role": "user", "content": "x"}]


async def acompletion(*, model: str, messages: Any, **kwargs: Any) -> str:
    await asyncio.sleep(0)
    if model == "bad":
        raise LookupError("bad")
    return f"reply of {model}"


REQUESTS = [RouterParallelRequest(f"m{number}", MESSAGES) for number in range(20)]
REPLIES = [f"reply of m{number}" for number in range(20)]


def check_sync() -> None:
    results = parallel_completions(acompletion, REQUESTS, concurrency=4, preserve_order=True)
    assert [result.unwrap() for result in results] == REPLIES


def test_parallel_completions_from_plain_code() -> None:
    files, before = open_files(), threading.active_count()
    for _ in range(20):
        check_sync()
    assert open_files() <= files
    # The guest run's idle thread may be kept by trio; the portal's thread is gone.
    assert threading.active_count() <= before + 2


def test_parallel_completions_in_the_thread_of_a_running_loop(asyncio_host: Host) -> None:
    """As in a notebook: the loop stands still meanwhile, and goes on as before."""

    async def main() -> None:
        check_sync()
        assert_nothing_left()
        async with iter_parallel_map(Calls().forever, range(9)) as batch:
            await until(lambda: batch.in_flight == 8)
            check_sync()  # beside a batch and its guest run, in this very thread
            assert batch.in_flight == 8
        assert_nothing_left()
        await check_a_batch()

    asyncio_host.run(main)


def test_parallel_completions_in_a_worker_thread_of_a_loop(asyncio_host: Host) -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(check_sync) for _ in range(4)))

        async def call(item: int) -> None:
            await asyncio.to_thread(check_sync)

        results = await parallel_map(call, range(4), concurrency=2)
        assert [result.exception for result in results] == [None] * 4
        assert_nothing_left()

    asyncio_host.run(main)


def test_parallel_completions_inside_a_call(asyncio_host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> None:
            check_sync()
            await asyncio.sleep(0)
            check_sync()

        results = await parallel_map(call, range(3), concurrency=2)
        assert [result.exception for result in results] == [None] * 3

    asyncio_host.run(main)


def test_parallel_completions_in_a_trio_run() -> None:
    async def main() -> None:
        check_sync()
        await trio.to_thread.run_sync(check_sync)

    trio.run(main)


def test_parallel_completions_in_ten_threads_at_once() -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(10)

    def work() -> None:
        try:
            together.wait(30)
            for _ in range(3):
                check_sync()
        except BaseException as exception:
            errors.append(exception)

    workers = [threading.Thread(target=work) for _ in range(10)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors, errors


def test_parallel_completions_raises_what_the_batch_raises() -> None:
    requests = [*REQUESTS, RouterParallelRequest("bad", MESSAGES)]
    results = parallel_completions(acompletion, requests, preserve_order=True)
    assert isinstance(results[20].exception, LookupError)
    with pytest.raises(LookupError, match="bad"):
        parallel_completions(acompletion, requests, return_exceptions=False)
    bad: Any = 17
    with pytest.raises(InvalidRequestError):
        parallel_completions(acompletion, [*requests, bad])

    def broken() -> Iterator[RouterParallelRequest]:
        yield REQUESTS[0]
        raise OSError("the file is broken")

    with pytest.raises(OSError, match="broken"):
        parallel_completions(acompletion, broken())


def test_parallel_completions_runs_on_a_loop_of_its_own_in_another_thread() -> None:
    seen: set[tuple[int, str]] = set()

    async def call(*, model: str, messages: Any) -> None:
        seen.add((threading.get_ident(), type(asyncio.get_running_loop()).__name__))

    parallel_completions(call, REQUESTS)
    ((thread, loop),) = seen
    assert thread != threading.get_ident()
    assert "Trio" not in loop
