"""Listening socket of a demo server, which can go away and come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

HOST: Final = "127.0.0.1"
_BACKLOG: Final = 4096  # thousands of connections may arrive at once


class Listener:
    """Listens at one address for a runner of aiohttp, with pauses.

    Args:
        port: the TCP port; 0: any free port, which is then kept.
        on_leave: called when no more connections are accepted, to close the existing ones.
    """

    def __init__(self, runner: web.AppRunner, port: int, on_leave: Callable[[], None]) -> None:
        self.port = port
        self._runner = runner
        self._on_leave = on_leave
        self._server: asyncio.Server | None = None
        self._reservation: socket.socket | None = None
        self._departure: asyncio.Task[None] | None = None
        self._return: asyncio.Task[None] | None = None
        self._may_return = asyncio.Event()

    async def listen(self) -> None:
        """Accept connections. Raises ``OSError`` if the port is taken."""
        protocols = self._runner.server
        assert protocols is not None, "the runner is not set up"
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(protocols, HOST, self.port, backlog=_BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]

    def leave(
        self, seconds: float | None, farewell: Callable[[], Awaitable[None]] | None = None
    ) -> Awaitable[None]:
        """Begin an absence, unless there is one. Await the result until connections are refused.

        The absence begins, and ends after ``seconds`` (None: never), even if the result is not
        awaited.

        Args:
            farewell: called when no more connections are accepted, and before the existing ones
                are closed.
        """
        if self._departure is None:
            self._may_return.clear()
            self._departure = asyncio.create_task(self._leave(seconds, farewell))
        return asyncio.shield(self._departure)

    async def come_back(self) -> None:
        """End an absence. Raises ``OSError`` if another program has taken the port."""
        if self._departure is not None:
            await asyncio.shield(self._departure)
            assert self._return is not None
            self._may_return.set()
            await asyncio.shield(self._return)

    async def close(self) -> None:
        """Stop accepting connections. Raises the error of an absence, if there was one."""
        try:
            for task in (self._departure, self._return):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
        finally:
            await self._stop_listening()

    async def _leave(
        self, seconds: float | None, farewell: Callable[[], Awaitable[None]] | None
    ) -> None:
        await self._stop_listening()
        self._reservation = _reserved(self.port)
        if farewell is not None:
            await farewell()
        self._on_leave()
        self._return = asyncio.create_task(self._return_after(seconds))

    async def _stop_listening(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        loop = asyncio.get_running_loop()
        # When its server closes, asyncio loses a connection that it has accepted and not yet set
        # up: the socket stays open until it is garbage-collected, and its client waits. So stop
        # accepting first, and give accepted connections some passes of the loop. (Proactors have
        # no readers.)
        for listening in server.sockets:
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(listening.fileno())
        for _pass in range(3):
            await asyncio.sleep(0)
        server.close()

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


def _reserved(port: int) -> socket.socket | None:
    """Bind a port without listening, so that no other program gets it and clients are refused.

    Otherwise a client that reconnects repeatedly may get this port as its own local port, and
    connect to itself.
    """
    if os.name != "posix":  # on Windows, SO_REUSEADDR has another meaning
        return None
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reservation.bind((HOST, port))
    except BaseException:
        reservation.close()
        raise
    return reservation
