"""Loops of trio-asyncio: asyncio on top of trio, in the same thread.

trio-asyncio changes asyncio for the whole process when it is imported. This module imports it only
in :func:`open_prepared_loop`, on request. All other functions only check whether the application
has imported it.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import trio

from .call_loop import CallLoop, shielded
from .litellm_loop import close_clients_of_this_loop, enter_loop, finish_callbacks


class TrioAsyncioLoop(CallLoop):
    """A trio-asyncio loop. It runs in this thread, so callbacks are called directly."""

    def __init__(self, loop: Any) -> None:
        super().__init__()
        prepare_trio_asyncio_loop(loop)
        self.start_keeper(loop)

    async def leave(self) -> None:
        pass  # the code that opened the loop cleans up after litellm

    def to_loop(self, callback: Callable[[], object]) -> None:
        callback()

    def to_trio(self, callback: Callable[[], object]) -> None:
        callback()

    async def close(self) -> None:
        loop: Any = self.loop
        if loop.is_running():
            self.stop()
            await shielded(self.ended.wait)


def loop_open_here() -> Any:
    """Return the trio-asyncio loop that is open in this task, or None."""
    trio_asyncio = sys.modules.get("trio_asyncio")
    if trio_asyncio is None:
        return None
    loop = trio_asyncio.current_loop.get()
    return None if loop is None or loop.is_closed() else loop


def refuse_where_it_cannot_work() -> None:
    """Raise RuntimeError on a Python that trio-asyncio does not run on."""
    if sys.version_info >= (3, 14):
        raise RuntimeError(
            "trio-asyncio does not work on Python 3.14 and newer: leave router_host out, or use "
            "router_host='thread'"
        )


@asynccontextmanager
async def open_prepared_loop() -> AsyncGenerator[Any, None]:
    """Open a loop on which Router calls work, and clean up after litellm at the end."""
    refuse_where_it_cannot_work()
    trio_asyncio: Any = importlib.import_module("trio_asyncio")
    async with trio_asyncio.open_loop() as loop:
        prepare_trio_asyncio_loop(loop)
        # trio-asyncio would end the loop, and all calls on it, for errors that asyncio only logs:
        # for instance, a dropped background task of litellm.
        loop.set_exception_handler(asyncio.BaseEventLoop.default_exception_handler)
        enter_loop(loop)
        try:
            yield loop
        finally:
            if loop.is_running():
                await shielded(lambda: loop.run_aio_coroutine(_clean_up(loop)))


async def _clean_up(loop: Any) -> None:
    await finish_callbacks()
    # trio-asyncio would cancel these tasks next. They end here first, because litellm would take
    # the closed client of a running call for a broken connection and try again.
    others = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others)
    await close_clients_of_this_loop()


def _let_anyio_see_the_loop() -> None:
    """Give anyio the asyncio functions that trio-asyncio replaced, if anyio was imported first.

    anyio, which litellm's streams use, copies these functions from asyncio when it is imported. The
    versions written in C (``current_task`` from Python 3.12 on) do not see the loop.
    """
    backend = sys.modules.get("anyio._backends._asyncio")
    for name in ("current_task", "get_running_loop"):
        if hasattr(backend, name):
            setattr(backend, name, getattr(asyncio, name))


def prepare_trio_asyncio_loop(loop: object) -> None:
    """Make Router calls work on a trio-asyncio loop. Other kinds of loops stay unchanged.

    litellm runs functions in an executor that return coroutines, and awaits these itself. Trio
    refuses such functions, so every call over HTTP would fail. Nothing else about the default
    executor changes.
    """
    trio_asyncio = sys.modules.get("trio_asyncio")
    if trio_asyncio is None or not isinstance(loop, trio_asyncio.BaseTrioEventLoop):
        return
    _let_anyio_see_the_loop()
    state: Any = loop
    executor = state._default_executor
    tolerant = _tolerant_executor_class()
    if not isinstance(executor, tolerant):
        state.set_default_executor(tolerant(executor))


@functools.cache
def _tolerant_executor_class() -> Any:
    trio_asyncio = sys.modules["trio_asyncio"]

    class TolerantExecutor(trio_asyncio.TrioExecutor):  # type: ignore[name-defined,misc]  # it is not imported where its types could be seen
        def __init__(self, executor: Any) -> None:
            self._executor = executor

        async def submit(self, func: Callable[..., Any], *args: Any) -> Any:
            # trio accepts a coroutine inside a tuple as a result.
            (result,) = await self._executor.submit(_call_in_tuple, func, args)
            try:
                # The asyncio future relies on this task to raise its cancellation. The thread could
                # not be cancelled and has hidden it.
                await trio.lowlevel.checkpoint_if_cancelled()
            except BaseException:
                if isinstance(result, Coroutine):
                    result.close()  # it is never awaited
                raise
            return result

        def shutdown(self, wait: bool | None = None) -> None:
            self._executor.shutdown(wait)

    return TolerantExecutor


def _call_in_tuple(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any]:
    return (function(*arguments),)
