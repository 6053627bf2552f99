"""The engine for asyncio: the same API, on the caller's own loop.

A batch is the same trio nursery of slots (:mod:`parallel_core._batch`), in a trio guest run on the
caller's loop. A slot is a plain ``asyncio.Task`` that a trio task of the nursery supervises, so
calls are ordinary asyncio code, and trio wakes only for what it is good at: start, first error,
end. ``trio.lowlevel.start_guest_run`` documents that synchronous trio functions may be called from
the host; cancelling a nursery and using a memory channel with ``…_nowait`` are such functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, Unpack

import anyio
import trio

from ._agenda_batch import new_core
from ._batch import BatchCore
from ._guest import LoopHost, join_trio_run, outlive_closed_loops, raise_
from ._handle import ParallelBatch, collect, raise_crash
from ._plan import BatchPlan, Requests, ResultT, Source, completion_plan, map_plan, stream_plan
from ._slot_host import Ended, HostEvent, HostScope
from ._trio_asyncio import prepare_trio_asyncio_loop
from .control.options import Concurrency, Controls
from .errors import BatchAbortedError, cancelled_unasked
from .types import (
    ItemT,
    ParallelResult,
    RouterParallelResult,
    StreamChunk,
    StreamEnd,
    SupportsAcompletion,
    ValueT,
)

__all__ = [
    "AsyncioParallelBatch",
    "iter_parallel_acompletions",
    "iter_parallel_map",
    "iter_parallel_streams",
    "parallel_acompletions",
    "parallel_map",
]


class TaskScope:
    """The part of an asyncio task that can be cancelled without ending the task."""

    def __init__(self, shutting_down: Callable[[], bool]) -> None:
        self._shutting_down = shutting_down
        self._task: asyncio.Task[Any] | None = None
        self.cancelled = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        if self.cancelled and self._task is not None:
            self._task.cancel()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        if self.cancelled and task is not None and isinstance(exc, asyncio.CancelledError):
            task.uncancel()
            return True
        return False

    def cancel(self) -> None:
        if self.cancelled:
            return
        self.cancelled = True
        task = self._task
        # A task that cancels itself is on its way out of the scope; the request would reach the
        # first await behind it.
        if task is not None and not task.get_loop().is_closed() and task is not _current_task():
            _cancel(task, self._shutting_down())


def _cancel(task: asyncio.Task[Any], shutting_down: bool) -> None:
    # Whoever shuts the loop down has cancelled the task already. A second cancellation would cut
    # short what it cleans up.
    if not (shutting_down and task.cancelling()):
        task.cancel()


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # called from a trio task under trio-asyncio
        return None


class _Crew:
    """The asyncio tasks that belong to one nursery, and the one trio task that waits for them."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self.cancelled = False
        self.wake: Callable[[], None] | None = None  # set while the trio task waits


class AsyncioSlotHost:
    """Slots are asyncio tasks; one trio task in the nursery stands for all of them."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop
        self.context: contextvars.Context
        self.shutting_down: Callable[[], bool] = lambda: False
        self.abort: Callable[[str], None]
        self._crews: dict[trio.Nursery, _Crew] = {}
        self.cancelled = False  # by trio, from inside or from outside of the batch
        self.abandoned = False

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [task for crew in self._crews.values() for task in crew.tasks]

    def new_event(self) -> HostEvent:
        return asyncio.Event()

    def new_scope(self) -> HostScope:
        return TaskScope(lambda: self.shutting_down())

    def current_time(self) -> float:
        return self.loop.time()

    async def pause(self) -> None:
        await asyncio.sleep(0)

    async def call(self, function: Callable[[], None]) -> None:
        if self.loop.is_closed():
            return
        called = trio.Event()

        def call() -> None:
            try:
                function()
            finally:
                called.set()

        # On the loop, and not in this step of trio: a task that it made could start in here.
        self.loop.call_soon(call, context=self.context.copy())
        with trio.CancelScope(shield=True):
            await called.wait()

    def start(
        self,
        nursery: trio.Nursery,
        function: Callable[[], Coroutine[Any, Any, None]],
        ended: Ended,
    ) -> None:
        crew = self._crews.get(nursery)
        if crew is None:
            crew = self._crews[nursery] = _Crew()
            nursery.start_soon(self._supervise, crew)
        # Not loop.create_task: an eager task would start inside a step of trio. The context is
        # the caller's, not that of the trio task which may be running here.
        task = asyncio.Task(
            function(), loop=self.loop, name="parallel_core slot", context=self.context.copy()
        )
        crew.tasks.add(task)
        task.add_done_callback(functools.partial(self._task_done, crew, ended))
        if crew.cancelled:
            task.cancel()

    async def _supervise(self, crew: _Crew) -> None:
        """Wait in trio until every task is done; cancelled, cancel them and wait all the same.

        It never raises: what a task raised is reported to the batch.
        """
        supervisor = trio.lowlevel.current_task()

        def wake() -> None:
            crew.wake = None
            trio.lowlevel.reschedule(supervisor)

        def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            crew.cancelled = self.cancelled = True
            tasks = list(crew.tasks)
            if self.loop.is_closed():
                # They will never be stepped again. Their `finally` blocks run now, or never.
                crew.wake = None
                for task in tasks:
                    self._close_task(crew, task)
                return trio.lowlevel.Abort.SUCCEEDED
            shutting_down = self.shutting_down()
            for task in tasks:
                _cancel(task, shutting_down)
            return trio.lowlevel.Abort.FAILED  # trio waits until the calls have really ended

        while crew.tasks:
            try:
                crew.wake = wake
                await trio.lowlevel.wait_task_rescheduled(abort)
            except KeyboardInterrupt as interrupt:
                self.interrupted(interrupt)
            finally:
                crew.wake = None

    def call_later(
        self, nursery: trio.Nursery, seconds: float, function: Callable[[], None]
    ) -> Callable[[], None]:
        if self.loop.is_closed():
            return lambda: None
        # A timer of the loop: unlike one of trio it costs no wake of the guest.
        return self.loop.call_later(seconds, function).cancel

    def interrupted(self, interrupt: KeyboardInterrupt) -> None:
        # SIGINT has hit the thread during a step of trio. It was meant for the host, which raises
        # it now as if it had come a moment later.
        self.loop.call_soon(raise_, interrupt)

    def _task_done(self, crew: _Crew, ended: Ended, task: asyncio.Task[None]) -> None:
        crew.tasks.discard(task)
        exception = None if task.cancelled() else task.exception()
        if self.abandoned:
            return
        if self.shutting_down():
            self.abort("its event loop is being shut down")
        try:
            ended(exception, cancelled=self.cancelled)
        finally:
            if not crew.tasks and crew.wake is not None:
                crew.wake()

    def _close_task(self, crew: _Crew, task: asyncio.Task[None]) -> None:
        crew.tasks.discard(task)
        state: Any = task
        state._log_destroy_pending = False  # as asyncio itself does where a task stays unfinished
        coroutine = task.get_coro()
        if isinstance(coroutine, Coroutine):
            with contextlib.suppress(Exception):  # nobody is left to be told
                coroutine.close()

    def tampering(self) -> Callable[[], object] | None:
        task = asyncio.current_task()
        assert task is not None
        if sys.version_info >= (3, 13):
            return task.cancelling
        # Before, a request that was taken back (`uncancel`) was delivered all the same.
        task_state: Any = task
        return lambda: task.cancelling() or task_state._must_cancel

    def error_of(self, exception: BaseException, what: str, stopping: bool) -> Exception | None:
        if isinstance(exception, Exception):
            return exception
        if isinstance(exception, asyncio.CancelledError) and not (
            stopping or self.cancelled or self.shutting_down()
        ):
            return cancelled_unasked(what, exception)
        return None


class _Tenant:
    """The batch as the guest run carries it. It knows nothing of the iterator that the user holds,
    so that dropping the iterator is noticed."""

    def __init__(self, core: BatchCore[Any], host: AsyncioSlotHost) -> None:
        self._core = core
        self._host = host
        self.ended = False

    async def run(self) -> None:
        core = self._core
        try:
            await core.run()
        except RuntimeError:
            if not self._host.loop.is_closed():  # then nobody is left to be woken
                raise
        finally:
            if core.cancelled_from_outside:
                core.crash(_aborted("the trio run that carried it ended"))
            self.ended = True

    def stop(self) -> None:
        if not self.ended:
            self._core.stop()

    def abort(self, reason: str) -> None:
        if not self.ended and not self._core.stopping:
            self._core.crash(_aborted(reason))

    def abandon(self, error: BaseException) -> None:
        self.ended = self._host.abandoned = True
        for task in self._host.tasks:
            task.cancel()
        self._core.give_up(error)


def _aborted(reason: str) -> BatchAbortedError:
    return BatchAbortedError(f"the batch was cancelled: {reason}")


def _shield_from_anyio() -> contextlib.AbstractContextManager[object]:
    """Anyio's scopes repeat a cancellation on every pass.

    Where none can have been opened, the first use of a scope would import that part of anyio: ten
    milliseconds and more between the first failure of a process and its exception.
    """
    if "anyio._backends._asyncio" in sys.modules:
        return anyio.CancelScope(shield=True)
    return contextlib.nullcontext()


class AsyncioParallelBatch(ParallelBatch[ResultT]):
    """A batch in asyncio: usable with plain ``async for``, and as ``async with``.

    It starts on entering the block, or at the first step of a plain ``async for``. With the block,
    or with :meth:`aclose`, nothing outlives it. With plain ``async for`` and ``break`` the batch is
    cancelled on the next passes of the loop, when the iterator is dropped.
    """

    def __init__(self, plan: BatchPlan[ResultT]) -> None:
        self._slot_host = AsyncioSlotHost()
        self._core = new_core(plan, self._slot_host)
        self._tenant = _Tenant(self._core, self._slot_host)
        self._slot_host.abort = self._tenant.abort
        self._host: LoopHost | None = None

    async def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        slot_host = self._slot_host
        slot_host.loop = loop = asyncio.get_running_loop()
        prepare_trio_asyncio_loop(loop)  # where a Router's calls would fail
        slot_host.context = self._core.enter()
        try:
            self._host = await join_trio_run(self._tenant)
        except BaseException:
            self._closed = self._tenant.ended = True
            raise
        host = self._host
        slot_host.shutting_down = lambda: host.shutting_down

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can be entered only once")
        await self._begin()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()
        # asyncio has raised an interrupt out of the loop already, and the shutdown which that has
        # begun is what cancels us. A second time it would end the shutdown in the middle.
        if self.interrupt is None or not isinstance(exc, asyncio.CancelledError):
            raise_crash(self._core, exc)

    @property
    def interrupt(self) -> BaseException | None:
        """The KeyboardInterrupt or SystemExit of a call, of which the consumer was not told."""
        crash = self._core.crash_error
        return crash if isinstance(crash, KeyboardInterrupt | SystemExit) else None

    async def aclose(self) -> None:
        self._core.check_not_inside()
        await self._close()
        raise_crash(self._core, None)

    async def _close(self) -> None:
        self._begun = True  # a batch that was closed before its start never starts
        self._tenant.stop()
        try:
            await self._ended()
        finally:
            self._closed = True

    def _before_waiting(self) -> None:
        if self._lost_its_loop():
            raise _aborted("its event loop was closed")

    def _lost_its_loop(self) -> bool:
        home = self._slot_host.loop
        if home is asyncio.get_running_loop():
            return False
        if not home.is_closed():
            raise RuntimeError("this batch was started on another event loop: use it there")
        self._tenant.ended = self._closed = True
        outlive_closed_loops()
        return True

    async def _ended(self) -> None:
        """Wait for the end of the batch, and with the last one for the end of the guest run.

        However often the waiting task is cancelled meanwhile: a cancellation is raised when
        nothing is left.
        """
        host = self._host
        if host is None or self._lost_its_loop():
            return
        cancellation: asyncio.CancelledError | None = None
        with _shield_from_anyio():
            while not (self._tenant.ended and host.settled):
                try:
                    await host.changed.wait()
                except asyncio.CancelledError as exception:
                    self._tenant.stop()
                    cancellation = exception
        if cancellation is not None:
            try:
                raise cancellation
            finally:
                del cancellation

    def __del__(self) -> None:
        # May run in any thread. The batch goes on without its iterator until the loop tells it.
        tenant = getattr(self, "_tenant", None)
        if tenant is None or tenant.ended or self._host is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs any more
            self._slot_host.loop.call_soon_threadsafe(tenant.stop)


def iter_parallel_map(
    function: Callable[[ItemT], Awaitable[ValueT]],
    items: Source[ItemT],
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> AsyncioParallelBatch[ParallelResult[ItemT, ValueT]]:
    """Await ``function(item)`` for every item, at most ``concurrency`` at a time (asyncio).

    ::

        async for result in iter_parallel_map(fetch, urls, concurrency=64):
            print(result.index, result.unwrap())

    Arguments, results and errors are those of
    :func:`parallel_core.nursery_engine.iter_parallel_map`; ``function`` is an asyncio-flavoured
    async callable. Each call runs on the running loop, in its
    own copy of the caller's context. A call that ends in a ``CancelledError`` which the batch did
    not ask for has failed with :class:`CallCancelledError`.

    Returns:
        The batch: an async iterator of results, and an async context manager giving itself.
    """
    return AsyncioParallelBatch(
        map_plan(
            function,
            items,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            controls=controls,
        )
    )


async def parallel_map(
    function: Callable[[ItemT], Awaitable[ValueT]],
    items: Source[ItemT],
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> list[ParallelResult[ItemT, ValueT]]:
    """The results of :func:`iter_parallel_map` as a list (asyncio).

    The arguments and errors are the same; a fail-fast batch raises its first error.
    """
    plan = map_plan(
        function,
        items,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=False,
        controls=controls,
    )
    return await collect(AsyncioParallelBatch(plan), preserve_order)


def iter_parallel_acompletions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> AsyncioParallelBatch[RouterParallelResult]:
    """Send every request through a Router, at most ``concurrency`` at a time (asyncio).

    Args:
        router: a ``litellm.Router`` (anything with an ``acompletion`` coroutine method), or an
            asyncio-flavoured async callable ``(model=, messages=, **kwargs)``.
        requests: :class:`RouterParallelRequest` or mappings, from any iterable or async iterable.
        concurrency, return_exceptions, preserve_order: as in
            :func:`parallel_core.nursery_engine.iter_parallel_map`.

    Raises:
        InvalidRequestError: a list (a tuple, …) has bad requests; nothing has been sent. A bad
            item of a lazy source becomes the result of its index, or the first error when
            fail-fast.
        TypeError, ValueError: as in :func:`parallel_core.nursery_engine.iter_parallel_map`.
    """
    return AsyncioParallelBatch(
        completion_plan(
            router,
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            controls=controls,
        )
    )


def iter_parallel_streams(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    **controls: Unpack[Controls],
) -> AsyncioParallelBatch[StreamChunk | StreamEnd]:
    """Send every request as a stream, and merge the streams into one (asyncio).

    Arguments, events and errors are those of
    :func:`parallel_core.nursery_engine.iter_parallel_streams`, without ``router_host``. A bare
    callable is asyncio-flavoured and returns an async iterator of chunks.
    """
    return AsyncioParallelBatch(
        stream_plan(
            router,
            requests,
            concurrency=concurrency,
            return_exceptions=return_exceptions,
            controls=controls,
        )
    )


async def parallel_acompletions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """The results of :func:`iter_parallel_acompletions` as a list (asyncio).

    The arguments and errors are the same; a fail-fast batch raises its first error.
    """
    plan = completion_plan(
        router,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=False,
        controls=controls,
    )
    return await collect(AsyncioParallelBatch(plan), preserve_order)
