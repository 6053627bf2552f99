"""Batches on an asyncio loop, and their entry to the trio guest run that carries them.

A batch is the same trio nursery (:mod:`parallel_core.nursery_engine`), in a trio guest run on the
caller's loop. A call is a plain ``asyncio.Task`` that a trio task of the nursery supervises. So
calls are ordinary asyncio code, and trio wakes only for the start, the first error and the end.
``trio.lowlevel.start_guest_run`` documents that synchronous trio functions may be called from the
host loop; cancelling a nursery and using a memory channel with ``…_nowait`` are such functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .engine import (
    AsyncioBackend,
    BatchPlan,
    Carrier,
    ParallelBatch,
    ResultT,
    join_trio_run,
    outlive_closed_loops,
    raise_crash,
)
from .errors import BatchAbortedError
from .nursery_engine import BatchEngine
from .router_hosts import prepare_trio_asyncio_loop
from .uninterrupted import wait_until


class _CarriedBatch:
    """The batch as the guest run carries it.

    It has no reference to the user's iterator, so that the iterator is finalized when it is
    dropped.
    """

    def __init__(self, engine: BatchEngine[Any], backend: AsyncioBackend) -> None:
        self._engine = engine
        self._backend = backend
        self.ended = False

    async def run(self) -> None:
        engine = self._engine
        try:
            await engine.run()
        except RuntimeError:
            if not self._backend.loop.is_closed():  # on a closed loop there is no one to wake
                raise
        finally:
            if engine.cancelled_from_outside:
                engine.crash(_aborted("the trio run that carried it ended"))
            self.ended = True

    def stop(self) -> None:
        if not self.ended:
            self._engine.stop()

    def abort(self, reason: str) -> None:
        if not self.ended and not self._engine.stopping:
            self._engine.crash(_aborted(reason))

    def lose_loop(self) -> None:
        self.abort("its event loop was closed")
        self._backend.lose_loop()

    def abandon(self, error: BaseException) -> None:
        self.ended = self._backend.abandoned = True
        for task in self._backend.tasks:
            task.cancel()
        self._engine.abandon(error)


def _aborted(reason: str) -> BatchAbortedError:
    return BatchAbortedError(f"the batch was cancelled: {reason}")


class AsyncioParallelBatch(ParallelBatch[ResultT]):
    """A batch in asyncio: usable with plain ``async for``, and as ``async with``.

    It starts on entering the block, or at the first step of a plain ``async for``. With the block,
    or with :meth:`aclose`, nothing outlives it. With plain ``async for`` and ``break`` the batch is
    cancelled on the next passes of the loop, when the iterator is dropped.
    """

    def __init__(self, plan: BatchPlan[ResultT]) -> None:
        self._backend = AsyncioBackend()
        self._running = self._engine = BatchEngine(plan, self._backend)
        self._carried = _CarriedBatch(self._engine, self._backend)
        self._backend.abort = self._carried.abort
        self._carrier: Carrier | None = None

    async def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        backend = self._backend
        backend.loop = loop = asyncio.get_running_loop()
        prepare_trio_asyncio_loop(loop)  # a Router's calls would fail on it otherwise
        backend.context = self._engine.enter()
        try:
            self._carrier = await join_trio_run(self._carried)
        except BaseException:
            self._closed = self._carried.ended = True
            raise
        carrier = self._carrier
        backend.scopes.shutting_down = lambda: carrier.shutting_down

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can be entered only once: make a new one")
        await self._begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()
        # asyncio has already raised the interrupt, and the shutdown that followed is what cancels
        # this task. Raising it a second time would break off the shutdown.
        if self.interrupt is None or not isinstance(exc, asyncio.CancelledError):
            raise_crash(self._engine, exc)

    @property
    def interrupt(self) -> BaseException | None:
        """Return the KeyboardInterrupt or SystemExit of a call that the consumer has not seen."""
        crash = self._engine.crash_error
        return crash if isinstance(crash, KeyboardInterrupt | SystemExit) else None

    async def aclose(self) -> None:
        self._engine.check_not_inside()
        await self._close()
        raise_crash(self._engine, None)

    async def _close(self) -> None:
        self._begun = True  # a batch that was closed before its start never starts
        self._carried.stop()
        try:
            await self._ended()
        finally:
            self._closed = True
            self._engine.drop_results()

    def _before_waiting(self) -> None:
        if self._lost_its_loop():
            raise _aborted("its event loop was closed")

    def _lost_its_loop(self) -> bool:
        home = self._backend.loop
        if home is asyncio.get_running_loop():
            return False
        if not home.is_closed():
            raise RuntimeError("this batch was started on another event loop: use it there")
        self._carried.ended = self._closed = True
        outlive_closed_loops()
        return True

    async def _ended(self) -> None:
        """Wait for the end of the batch and, if it is the last one, of the guest run.

        Wait on, however often the task is cancelled meanwhile. A cancellation is raised when
        nothing is left.
        """
        carrier = self._carrier
        if carrier is None or self._lost_its_loop():
            return
        await wait_until(
            lambda: self._carried.ended and carrier.settled,
            carrier.changed.wait,
            self._carried.stop,
        )

    def __del__(self) -> None:
        # May run in any thread. The batch continues without its iterator until the loop stops it.
        batch = getattr(self, "_carried", None)
        if batch is None or batch.ended or self._carrier is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: no task runs any more
            self._backend.loop.call_soon_threadsafe(batch.stop)


if TYPE_CHECKING:
    from .api import (
        iter_parallel_acompletions,
        iter_parallel_map,
        iter_parallel_streams,
        parallel_acompletions,
        parallel_map,
    )

__all__ = [
    "AsyncioParallelBatch",
    "iter_parallel_acompletions",
    "iter_parallel_map",
    "iter_parallel_streams",
    "parallel_acompletions",
    "parallel_map",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of this module

    def __getattr__(name: str) -> Any:
        """Return a function of :mod:`parallel_core.api`, which imports this module."""
        if name in __all__:
            return getattr(importlib.import_module("parallel_core.api"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
