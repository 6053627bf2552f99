"""A server that shows the report of a run on this computer, while the run goes on.

It serves one page, and sends the page new contents as server-sent events. It listens on loopback
only, and answers only requests for a loopback name: a web page from elsewhere, whose name was made
to point to this computer (DNS rebinding), gets nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from parallel_core.journal import RunPaths

from .html import content, live_page, policy
from .live_state import state_of
from .model import ReportError, RunReport
from .reading import RunReader, text_of

_ADDRESS: Final = "127.0.0.1"
_NAMES: Final = ("127.0.0.1", "localhost", "::1")
_FIRST_PAUSE = 0.2  # seconds until the first results are read
_HEARTBEAT = 15.0  # seconds between signs of life, which also find connections that are gone
_SHUTDOWN = 2.0  # seconds for requests that are being answered

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def follow(
    output: Path | str,
    errors: Path | str | None = None,
    *,
    port: int = 0,
    interval: float = 1.0,
    on_ready: Callable[[str], object],
) -> None:
    """Serve the report of a run until this is cancelled.

    The run need not have begun. After its end the server stays: the run may be resumed.

    Args:
        output: the file with the results; the statistics are expected beside it.
        errors: the file with the failures, if it is a separate file.
        port: port to listen on; 0 takes a free one.
        interval: seconds between two looks at the files.
        on_ready: called with the address of the page.

    Raises:
        ReportError: the port cannot be used; a file cannot be read, or is not the output of a run.
    """
    try:
        listener = socket.create_server((_ADDRESS, port))
    except OSError as error:
        raise ReportError(
            f"port {port} cannot be used ({error.strerror or error}): choose another one"
        ) from None
    port = listener.getsockname()[1]
    live = LiveReport(RunPaths.of(output, errors))
    runner = web.AppRunner(_application(live, port), shutdown_timeout=_SHUTDOWN, access_log=None)
    try:
        await runner.setup()
        await web.SockSite(runner, listener).start()
        on_ready(f"http://{_ADDRESS}:{port}/")
        await live.watch(interval)
    finally:
        await live.close()
        await runner.cleanup()
        listener.close()


class LiveReport:
    """The report of a run that may go on, and what was sent of it last.

    Args:
        paths: the files of the run.
    """

    def __init__(self, paths: RunPaths) -> None:
        self.name = text_of(paths.output.name)
        self._reader = RunReader(paths)
        self._reading = asyncio.Lock()  # the reader is used in threads, one at a time
        self._changed = asyncio.Condition()
        self._number = 0  # of the last update
        self._update = ("", "")  # the state of the run, and the contents of the page
        self._report: RunReport | None = None  # None: something was read since
        self._last_change: float | None = None
        self._clients = 0
        self._closing = False

    async def watch(self, interval: float) -> None:
        """Read what is appended to the files, and update the pages that are open.

        Raises:
            ReportError: a file cannot be read, or is not the output of a run.
        """
        pause = min(interval, _FIRST_PAUSE)
        while True:
            try:
                async with self._reading:
                    found = await asyncio.to_thread(self._reader.read_more)
            except ReportError as error:
                await self._publish(f"The report has ended: {error}", self._update[1])
                raise
            if found:
                self._report = None
                self._last_change = time.time()
            if self._clients:
                await self.refresh()
            await asyncio.sleep(0 if self._reader.is_behind else pause)
            pause = interval

    async def refresh(self) -> tuple[str, str]:
        """Return the state of the run and the contents of the page, as of the last reading."""
        async with self._reading:
            contents, report = self._update[1], self._report
            if report is None:
                report = self._report = await asyncio.to_thread(self._reader.report)
                if self._reader.has_results:
                    contents = await asyncio.to_thread(content, report)
            is_behind = self._reader.is_behind
        state = state_of(report, time.time(), self._last_change, is_behind=is_behind)
        await self._publish(state, contents)
        return self._update

    async def updates(self) -> AsyncGenerator[tuple[int, str, str | None] | None]:
        """Yield the number of each update, the state and the contents, until the server ends.

        The contents are None if they are the same as before. A consumer that is slow misses updates
        between two others, never the last one. None is yielded when nothing happened for a while.
        """
        number, contents = 0, None
        self._clients += 1
        try:
            await self.refresh()
            while True:
                try:
                    async with self._changed, asyncio.timeout(_HEARTBEAT):
                        await self._changed.wait_for(
                            lambda: self._closing or self._number > number  # noqa: B023
                        )
                except TimeoutError:
                    yield None
                    continue
                if self._number > number:
                    number, (state, latest) = self._number, self._update
                    yield number, state, None if latest == contents else latest
                    contents = latest
                elif self._closing:
                    return
        finally:
            self._clients -= 1

    async def close(self) -> None:
        """End all updates."""
        self._closing = True
        async with self._changed:
            self._changed.notify_all()

    async def _publish(self, state: str, contents: str) -> None:
        if (state, contents) != self._update:
            self._number += 1
            self._update = state, contents
            async with self._changed:
                self._changed.notify_all()


def _application(live: LiveReport, port: int) -> web.Application:
    async def page(request: web.Request) -> web.Response:
        state, contents = await live.refresh()
        text = live_page(live.name, state, contents)
        return web.Response(text=text, content_type="text/html")

    async def icon(request: web.Request) -> web.Response:
        return web.Response(status=204)  # browsers ask for one

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async with contextlib.aclosing(live.updates()) as updates:
            with contextlib.suppress(ConnectionError):  # the page was closed
                async for update in updates:
                    await response.write(_event(update))
        return response

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not _is_loopback(request.headers.get("Host", ""), port):
            raise web.HTTPForbidden(text="This server answers only on this computer.\n")
        return await handler(request)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers["Content-Security-Policy"] = policy(live=True)
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"

    application = web.Application(middlewares=[guard])
    application.on_response_prepare.append(add_headers)
    application.router.add_get("/", page)
    application.router.add_get("/events", events, allow_head=False)
    application.router.add_get("/favicon.ico", icon)
    return application


def _event(update: tuple[int, str, str | None] | None) -> bytes:
    """Return an update as a server-sent event; None as a comment."""
    if update is None:
        return b": nothing new\n\n"
    number, state, contents = update
    data = json.dumps({"state": state, "content": contents})
    return f"id: {number}\nevent: report\ndata: {data}\n\n".encode()


def _is_loopback(host: str, port: int) -> bool:
    """Return True if a Host header names this server by a name of loopback."""
    try:
        parts = urlsplit(f"//{host}")
        known = parts.hostname in _NAMES and parts.port in (port, None)
    except ValueError:
        return False
    return known and parts.netloc == host and "@" not in host
