"""The address of a demo server, which may go away and come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

HOST: Final = "127.0.0.1"
_BACKLOG: Final = 4096  # thousands of connections may come at once


class Listener:
    """Listens at one address for a runner of aiohttp, with pauses.

    Args:
        port: the TCP port. 0: any free one, which stays the same from then on.
        on_leave: called when no connection is accepted any more, to close those that are there.
    """

    def __init__(self, runner: web.AppRunner, port: int, on_leave: Callable[[], None]) -> None:
        self.port = port
        self._runner = runner
        self._on_leave = on_leave
        self._site: web.TCPSite | None = None
        self._reservation: socket.socket | None = None
        self._departure: asyncio.Task[None] | None = None
        self._return: asyncio.Task[None] | None = None
        self._may_return = asyncio.Event()

    async def listen(self) -> None:
        """Accept connections; raises ``OSError`` where the port is taken."""
        site = web.TCPSite(self._runner, HOST, self.port, backlog=_BACKLOG)
        await site.start()
        self._site, self.port = site, site.port

    def leave(
        self, seconds: float | None, farewell: Callable[[], Awaitable[None]] | None = None
    ) -> Awaitable[None]:
        """Begin an absence, unless there is one; awaiting it waits until connections are refused.

        It begins, and ends after ``seconds`` (None: never), though nobody awaits it.

        Args:
            farewell: called between the two: no connection is accepted any more, and those that
                are there are not closed yet.
        """
        if self._departure is None:
            self._may_return.clear()
            self._departure = asyncio.create_task(self._leave(seconds, farewell))
        return asyncio.shield(self._departure)

    async def come_back(self) -> None:
        """End an absence; raises ``OSError`` where another program has taken the port."""
        if self._departure is not None:
            await asyncio.shield(self._departure)
            assert self._return is not None
            self._may_return.set()
            await asyncio.shield(self._return)

    async def close(self) -> None:
        """End an absence without coming back. Raises what has gone wrong in one."""
        for task in (self._departure, self._return):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _leave(
        self, seconds: float | None, farewell: Callable[[], Awaitable[None]] | None
    ) -> None:
        assert self._site is not None
        await settle()
        await self._site.stop()
        self._reservation = _reserved(self.port)
        if farewell is not None:
            await farewell()
        self._on_leave()
        self._return = asyncio.create_task(self._return_after(seconds))

    async def _return_after(self, seconds: float | None) -> None:
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._may_return.wait()
        finally:
            if self._reservation is not None:
                self._reservation.close()
        await self.listen()
        self._departure = None


async def settle() -> None:
    """Let asyncio set up the connections that it has accepted.

    It loses those when a server closes: their sockets stay open until they are garbage. Setting one
    up takes some passes of the loop.
    """
    for _pass in range(3):
        await asyncio.sleep(0)


def _reserved(port: int) -> socket.socket | None:
    """Hold a port without listening, so that no other program gets it and clients are refused.

    Otherwise a client that connects again and again may be given this very port for its own end,
    and be connected to itself.
    """
    if os.name != "posix":  # SO_REUSEADDR means something else there
        return None
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reservation.bind((HOST, port))
    except BaseException:
        reservation.close()
        raise
    return reservation
