"""A run of a file whose calls are made without litellm. It can break a promise on purpose."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import aiohttp

from parallel_core.errors import JournalError
from parallel_core.journal import Journal, files, rescue
from parallel_core.run import RunStop, run_file

NOT_WRITTEN = 3  # exit code


class HttpError(Exception):
    def __init__(self, status_code: int, body: str) -> None:
        super().__init__(body)
        self.status_code = status_code


class LightCalls:
    """Makes calls without litellm, over a session of the loop in which it is first called."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: Any = None

    async def __call__(self, *, model: str, messages: Any, extra_body: Any, **_: Any) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        body = {"model": model, "messages": messages, **extra_body}
        async with self._session.post(f"{self._url}/chat/completions", json=body) as response:
            if response.status != 200:
                raise HttpError(response.status, await response.text())
            return await response.json()

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


async def run(options: argparse.Namespace) -> int:
    stop = RunStop()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.request)
    async with contextlib.AsyncExitStack() as stack:
        router: Any
        concurrency = options.concurrency
        if options.workers:
            from parallel_core.ray_engine import open_ray_router

            calls = functools.partial(LightCalls, options.url)
            router = await stack.enter_async_context(
                open_ray_router(calls, workers=options.workers, concurrency=concurrency)
            )
            concurrency = router.slots
        else:
            router = await stack.enter_async_context(contextlib.aclosing(LightCalls(options.url)))
        try:
            summary = await run_file(
                router,
                options.source,
                options.output,
                concurrency=concurrency,
                error_file=options.error_file,
                retry_failed=options.retry_failed,
                order=options.order,
                grace=60.0,
                stop=stop,
            )
        except JournalError as error:
            print(error, file=sys.stderr)
            return NOT_WRITTEN
    if stop.requests and summary.unfinished:
        return 130
    return 0 if summary.ok else 1


def sabotage(how: str) -> None:
    """Break a promise on purpose."""
    if how == "forgets":
        Journal.is_finished = lambda self, custom_id: False  # type: ignore[method-assign]
    elif how == "rescues-nothing":
        rescue.Rescue.write = lambda self, blocks: None  # type: ignore[method-assign]
    elif how == "writes-torn":
        write = files.LockedFile.write
        files.LockedFile.write = (  # type: ignore[method-assign]
            lambda self, data: write(self, data.replace(b'"custom_id"', b'"custom_id', 1))
        )


def stop_at(line: int) -> None:
    """Stop this process when it sorts and comes to this line, so that it is killed right there."""

    def watched(lines: Iterable[bytes]) -> Iterator[bytes]:
        for number, each in enumerate(itertools.chain(lines, [b""])):
            if number == line:
                print("stopped", flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
            yield each

    replace = files.LockedFile.replace
    files.LockedFile.replace = (  # type: ignore[method-assign]
        lambda self, blocks: replace(self, watched(blocks))
    )
    files.BLOCK = 4096  # what comes before it is on disk


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("url", "source", "output", "sabotage"):
        parser.add_argument(name)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--error-file")
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--order", default="completion")
    parser.add_argument("--stops-at", type=int)
    parser.add_argument("--file-size", type=int)
    options = parser.parse_args()
    sabotage(options.sabotage)
    if options.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_size, options.file_size))
    if options.stops_at is not None:
        stop_at(options.stops_at)
    return asyncio.run(run(options))


if __name__ == "__main__":
    sys.exit(main())
