"""Threads of a test, each with a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import trio
import trio.testing

from helpers.hosts import settle
from parallel_core import BudgetExceededError

PATIENCE = 60.0  # seconds after which a thread is taken to hang


class Together:
    """Threads of a test. A hang and an error in one of them fail the test."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, function: Callable[[], object]) -> None:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                self._errors.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
        hung = [thread for thread in self._threads if thread.is_alive()]
        if self._errors:
            raise self._errors[0]
        assert not hung, "a thread hangs"


class WaitingThread:
    """A thread with a loop in which one caller waits for something, and its answer."""

    def __init__(
        self, threads: Together, library: str, function: Callable[[], Awaitable[Any]]
    ) -> None:
        self.got: list[Any] = []
        self._function = function
        self._ready = threading.Event()
        self._scope: anyio.CancelScope
        self._cancel: Callable[[], None]
        runner = {
            "trio": lambda: trio.run(self._main),
            "asyncio": lambda: asyncio.run(self._main()),
        }
        threads.start(runner[library])
        assert self._ready.wait(PATIENCE)

    async def _main(self) -> None:
        async with anyio.create_task_group() as tasks:
            self._scope = tasks.cancel_scope
            token = anyio.lowlevel.current_token()
            self._cancel = lambda: anyio.from_thread.run_sync(self._scope.cancel, token=token)
            tasks.start_soon(self._wait)
            await settle()
            self._ready.set()

    async def _wait(self) -> None:
        self.got.append(await self._function())

    def cancel(self) -> None:
        self._cancel()


async def outcome_of(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except BudgetExceededError as error:
        return error
