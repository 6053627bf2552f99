"""A report server that follows a run, and the events that it sends."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import RunStatistics, statistics_line
from parallel_core.report.following import follow

# Seconds after which a test has failed.
PATIENCE = 30


def append(output: Path, lines: list[dict[str, Any]], records: list[RunStatistics]) -> None:
    """Write as a run does: the results first."""
    with output.open("ab") as file:
        file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    with RunPaths.of(output).statistics.open("ab") as file:
        file.write(b"".join(statistics_line(record) + b"\n" for record in records))


class Update(NamedTuple):
    """An update of a page."""

    number: int
    state: str
    content: str | None


@contextlib.asynccontextmanager
async def followed(output: Path, errors: Path | None = None) -> AsyncGenerator[str]:
    """Serve the report of a run, and yield its address. It looks at the files all the time."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        server = tasks.create_task(
            follow(output, errors, interval=0.01, on_ready=ready.set_result), name="server"
        )
        yield await asyncio.wait_for(ready, PATIENCE)
        server.cancel()


async def updates(address: str) -> AsyncGenerator[Update]:
    """Yield the events that the server sends to a page."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    session = aiohttp.ClientSession(timeout=timeout)
    async with session, session.get(f"{address}events") as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        number = -1
        # Not by lines: an event may be longer than the reader's longest line.
        waiting = b""
        async for part in response.content.iter_any():
            waiting += part
            *events, waiting = waiting.split(b"\n\n")
            for lines in map(bytes.splitlines, events):
                fields = dict(line.decode().split(": ", 1) for line in lines if line[0] != ord(":"))
                if fields:
                    assert fields["event"] == "report"
                    assert int(fields["id"]) > number
                    number = int(fields["id"])
                    data = json.loads(fields["data"])
                    yield Update(number, data["state"], data["content"])


async def update_with(found: AsyncIterator[Update], text: str) -> Update:
    """Return the first update whose state contains a text."""
    async for update in found:
        if text in update.state:
            return update
    raise AssertionError(f"the server ended before {text!r}")
