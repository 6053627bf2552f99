"""What does a chunk cost? ``python -m benchmarks.streams``.

64 streams in flight, in one process and without HTTP: the chunks are made before, and each stream
lets the loop go round between two of its own. ``iter_parallel_streams`` beside what one would write
by hand: a task for each stream, a bounded queue, and litellm's builder for the whole answer. Rounds
in turn, CPU seconds of the process.

Then the same with more and more streams, for the memory that a batch needs beside its chunks; and
how long it takes from the failure of one of 64 streams until the others are closed and the caller
knows: without HTTP, and through a real Router to a demo server in a process of its own, in asyncio
and in trio, with the server's view of the last connection.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import time
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import trio

from parallel_core import RouterParallelRequest, StreamChunk, iter_parallel_streams
from parallel_core.demo_server import DemoServerProcess, demo_server_process

from .adapter import MODEL
from .over_http import make_router

IN_FLIGHT = 64
GRACE = 1.0  # seconds that connections have to close
MESSAGES = [{"role": "user", "content": "What is five squared?"}]


def make_chunks(number: int) -> list[Any]:
    """A streamed answer of so many words, as litellm gives it."""
    from litellm.types.utils import ModelResponseStream

    words: list[Any] = [{"delta": {"content": f"word{n} "}, "index": 0} for n in range(number)]
    last: Any = {"delta": {}, "index": 0, "finish_reason": "stop"}
    usage: Any = {"prompt_tokens": 9, "completion_tokens": number, "total_tokens": number + 9}
    chunks = [ModelResponseStream(id="1", choices=[choice]) for choice in (*words, last)]
    return [*chunks, ModelResponseStream(id="1", choices=[], usage=usage)]


class Provider:
    """Streams the same chunks to everybody."""

    def __init__(self, chunks: list[Any]) -> None:
        self._chunks = chunks
        self.open = 0

    async def answer(self, *, model: str, messages: Any, **options: Any) -> AsyncIterator[Any]:
        return self._stream()

    async def _stream(self) -> AsyncGenerator[Any, None]:
        self.open += 1
        try:
            for chunk in self._chunks:
                await asyncio.sleep(0)
                yield chunk
        finally:
            self.open -= 1


def requests(number: int) -> Iterable[RouterParallelRequest]:
    return (RouterParallelRequest("gpt", MESSAGES) for _ in range(number))


async def ours(provider: Provider, streams: int) -> int:
    chunks = 0
    async with iter_parallel_streams(
        provider.answer, requests(streams), concurrency=IN_FLIGHT
    ) as batch:
        async for event in batch:
            if isinstance(event, StreamChunk):
                chunks += 1
            else:
                assert event.result.response.choices[0].message.content
    return chunks


async def by_hand(provider: Provider, streams: int) -> int:
    from litellm import stream_chunk_builder  # pyright: ignore[reportUnknownVariableType]

    queue: asyncio.Queue[Any] = asyncio.Queue(2 * IN_FLIGHT)
    semaphore = asyncio.Semaphore(IN_FLIGHT)

    async def read(index: int, request: RouterParallelRequest) -> None:
        async with semaphore:
            got: list[Any] = []
            stream = await provider.answer(model=request.model, messages=request.messages)
            async for chunk in stream:
                got.append(chunk)
                await queue.put((index, chunk))
            await queue.put((index, stream_chunk_builder(got, messages=list(request.messages))))

    async def read_all() -> None:
        async with asyncio.TaskGroup() as tasks:
            for index, request in enumerate(requests(streams)):
                tasks.create_task(read(index, request))
        await queue.put(None)

    reading = asyncio.create_task(read_all())
    events = 0
    while await queue.get() is not None:
        events += 1
    await reading
    return events - streams


def cost_of_a_chunk(
    run: Callable[[Provider, int], Coroutine[Any, Any, int]], chunks: int, streams: int
) -> float:
    """CPU microseconds."""
    provider = Provider(make_chunks(chunks))
    gc.collect()
    began = time.process_time()
    seen = asyncio.run(run(provider, streams))
    used = time.process_time() - began
    assert seen == streams * (chunks + 2)
    return used / seen * 1e6


def memory_of(streams: int, chunks: int) -> float:
    """KiB at the peak, beside the chunks themselves, which everybody shares."""
    provider = Provider(make_chunks(chunks))
    gc.collect()
    tracemalloc.start()
    try:
        asyncio.run(ours(provider, streams))
        return tracemalloc.get_traced_memory()[1] / 1024
    finally:
        tracemalloc.stop()


def time_to_stop() -> float:
    """Milliseconds from the failure of one stream to the exception in the caller."""
    failed_at = 0.0
    chunks = make_chunks(3)
    open_streams = 0
    all_open = asyncio.Event()

    async def stream(fails: bool) -> AsyncGenerator[Any, None]:
        nonlocal failed_at, open_streams
        open_streams += 1
        if open_streams == IN_FLIGHT:
            all_open.set()
        try:
            yield chunks[0]
            if fails:
                await all_open.wait()
                failed_at = time.perf_counter()
                raise LookupError
            await asyncio.Event().wait()
        finally:
            open_streams -= 1

    async def answer(*, model: str, messages: Any, **options: Any) -> AsyncIterator[Any]:
        return stream(model == "broken")

    async def main() -> float:
        asked = [RouterParallelRequest("gpt", MESSAGES) for _ in range(IN_FLIGHT - 1)]
        asked.append(RouterParallelRequest("broken", MESSAGES))
        try:
            async with iter_parallel_streams(
                answer, asked, concurrency=IN_FLIGHT, return_exceptions=False
            ) as batch:
                async for _ in batch:
                    pass
        except Exception:  # noqa: BLE001 - the one that was asked for
            stopped_after = time.perf_counter() - failed_at
        else:
            raise AssertionError("it did not fail")
        assert open_streams == 0
        return stopped_after * 1e3

    return asyncio.run(main())


async def stop_over_http(server: DemoServerProcess) -> dict[str, float]:
    """Milliseconds from the failure of one stream to the exception in the caller, and to the last
    connection's close as the server saw it; streams and sockets that are left then."""
    router = make_router(server.url)

    def asked(**orders: object) -> RouterParallelRequest:
        return RouterParallelRequest(MODEL, MESSAGES, {"extra_body": {"demo": orders}})

    async def read(requests: list[RouterParallelRequest]) -> None:
        async with iter_parallel_streams(
            router, requests, concurrency=IN_FLIGHT, return_exceptions=False
        ) as batch:
            async for _ in batch:
                pass

    await read([asked(reply="so that all of it has been used")])
    sockets = open_sockets()
    # The failure comes when the others have had their first chunk: a Router takes some milliseconds
    # of CPU to begin each.
    hanging = [asked(reply="one and no more", chunk_gap=3600.0) for _ in range(IN_FLIGHT - 1)]
    try:
        await read([asked(fault="server_error", latency=1.5), *hanging])
    except Exception as error:  # noqa: BLE001 - the one that was asked for
        raised_at = time.time()
        left_open = open_sockets() - sockets
        failure: Any = error
    else:
        raise AssertionError("it did not fail")
    assert getattr(failure, "status_code", None) == 500, failure
    stats: Any = await anyio.to_thread.run_sync(server.stats)
    failed_at, left_running = stats.last_finished_at, stats.in_flight
    while stats.in_flight and time.time() - raised_at < GRACE:
        await anyio.sleep(0.005)
        stats = await anyio.to_thread.run_sync(server.stats)
    assert stats.disconnected == IN_FLIGHT - 1, stats
    return {
        "raised": (raised_at - failed_at) * 1e3,
        "closed": (stats.last_disconnected_at - failed_at) * 1e3,
        "left running": left_running,
        "sockets": left_open,
    }


def open_sockets() -> int:
    """Sockets of this process."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += str(descriptor.readlink()).startswith("socket:")
        except FileNotFoundError:  # of the listing itself
            continue
    return count


def stop_over_http_in(world: str) -> dict[str, float]:
    with demo_server_process() as server:
        if world == "trio":
            return trio.run(stop_over_http, server)
        return asyncio.run(stop_over_http(server))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="does it run?")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    chunks, streams, rounds = (10, 64, 1) if options.smoke else (200, 256, 5)
    found: dict[str, Any] = {"hand-written": [], "iter_parallel_streams": []}
    for _ in range(rounds):
        found["hand-written"].append(cost_of_a_chunk(by_hand, chunks, streams))
        found["iter_parallel_streams"].append(cost_of_a_chunk(ours, chunks, streams))
    for name in ("hand-written", "iter_parallel_streams"):
        values = found[name]
        print(
            f"{name:22} {statistics.median(values):6.2f} "
            f"({min(values):.2f}-{max(values):.2f}) µs of CPU for a chunk"
        )
    ratios = [b / a for a, b in zip(*list(found.values())[:2], strict=True)]
    print(
        f"{statistics.median(ratios):.2f} x ({min(ratios):.2f}-{max(ratios):.2f}), median of "
        f"{rounds} rounds in turn"
    )
    found["memory"] = {}
    for number in (64, 128) if options.smoke else (100, 1000, 4000):
        found["memory"][number] = memory_of(number, 20)
        print(f"{number:6} streams of 20 words: {found['memory'][number]:8.0f} KiB at the peak")
    found["stop"] = [time_to_stop() for _ in range(rounds)]
    print(
        f"a stream of 64 fails: the others are closed, and the caller knows, after "
        f"{statistics.median(found['stop']):.1f} ms ({min(found['stop']):.1f}-"
        f"{max(found['stop']):.1f})"
    )
    for world in ("asyncio", "trio"):
        stops = found[f"stop over HTTP, {world}"] = [
            stop_over_http_in(world) for _ in range(rounds)
        ]
        shown = {
            name: f"{statistics.median(stop[name] for stop in stops):.1f} "
            f"({min(stop[name] for stop in stops):.1f}-{max(stop[name] for stop in stops):.1f})"
            for name in stops[0]
        }
        print(
            f"the same over HTTP in {world}: the caller knows after {shown['raised']} ms, the last "
            f"connection is closed after {shown['closed']} ms; running when the caller knew "
            f"{shown['left running']}, sockets left {shown['sockets']}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
