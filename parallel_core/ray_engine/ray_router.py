"""The batch functions with workers on Ray, and the Router that stands for those of the workers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Literal, Self, Unpack

import sniffio

from parallel_core import api
from parallel_core.batch_plans import Requests
from parallel_core.control import (
    AdaptiveConcurrency,
    Concurrency,
    Controls,
    checked_concurrency,
    checked_count,
    held_reservation,
)
from parallel_core.engine import ParallelBatch, collect
from parallel_core.router import INDEX
from parallel_core.router_hosts import RouterHost, RouterHostName, in_trio, open_router_host
from parallel_core.types import RouterParallelResult, StreamedResponse
from parallel_core.uninterrupted import to_the_end

from .cluster import Entered, RayWorkers, entered, leave_ray, restore_sigterm
from .fleet import Fleet, largest_block
from .installed import MOST_WORKERS, require_ray
from .ray_data import ParallelCompletions
from .remote_values import pack_request
from .router_recipe import RouterSource, checked_recipe

__all__ = [
    "ParallelCompletions",
    "RayBatch",
    "RayRouter",
    "RouterSource",
    "iter_parallel_acompletions",
    "open_ray_router",
    "parallel_acompletions",
]


class RayRouter:
    """Stands for a Router in each of some workers, as :func:`open_ray_router` gives it.

    It may stand wherever a batch takes a Router, and is bound to the event loop it was opened on.

    Attributes:
        router: a Router of the same recipe in this process, for the names of models, their limits
            and prices. It sends nothing.
        workers: so many.
        concurrency: calls in flight in each worker at most.
        slots: the ``concurrency`` of a batch that keeps all workers busy: calls in flight, and a
            few more for each worker that are on their way.
    """

    calls_run_in_workers = True

    def __init__(
        self,
        source: RouterSource,
        *,
        workers: int,
        concurrency: int,
        address: str | None,
        actor_options: Mapping[str, Any] | None,
    ) -> None:
        require_ray()
        self.workers = checked_count("workers", workers)
        self.concurrency = checked_count("concurrency", concurrency)
        if workers > MOST_WORKERS:
            raise ValueError(f"workers must be at most {MOST_WORKERS:,}, not {workers:,}")
        self.slots = workers * (concurrency + largest_block(workers, concurrency))
        self._address = address
        self._entered: Entered | None = None
        self._actor_options = dict(actor_options or {})
        self._recipe = checked_recipe(source)
        self._local = contextlib.ExitStack()
        self.router: Any = self._local.enter_context(self._recipe.open())
        weakref.finalize(self, self._local.close).atexit = False  # one that is never started
        self._fleet: Fleet | None = None
        self._state: Literal["new", "open", "closed"] = "new"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Any = None

    @property
    def lost_workers(self) -> int:
        """Workers that died, and were replaced."""
        return 0 if self._fleet is None else self._fleet.lost_workers

    @property
    def resent_requests(self) -> int:
        """Requests that were in flight in those, and were sent again: maybe paid for twice."""
        return 0 if self._fleet is None else self._fleet.resent_requests

    async def acompletion(self, **arguments: Any) -> Any:
        """``router.acompletion(**arguments)`` in a worker.

        Cancelled, it cancels the call there and waits for its end. A streamed answer comes as a
        whole.

        Raises:
            TypeError: an argument cannot be sent to another process.
            WorkerDiedError: several workers have died of this request.
            WorkersLostError: no worker is left.
            Exception: what the Router raises there.
        """
        if self._fleet is None or self._state != "open":
            raise RuntimeError(f"this RayRouter is {self._state}: calls need an open one")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("a RayRouter is used on the event loop that it was opened on")
        index: int = arguments.get(INDEX, 0)
        held = held_reservation()

        def again() -> Exception | None:
            return None if held is None else held.attempt_again(index)

        value = await self._fleet.call(pack_request(arguments), again)
        # A batch takes what was told with it, too.
        is_of_a_batch = INDEX in arguments
        return value.response if type(value) is StreamedResponse and not is_of_a_batch else value

    async def start(self) -> None:
        """Start Ray, if need be, and the workers (asyncio)."""
        if self._state != "new":
            raise RuntimeError("a RayRouter is opened once")
        self._state = "open"
        self._loop = asyncio.get_running_loop()
        try:
            try:
                self._entered = await entered(self._address)
            finally:
                restore_sigterm()
            # On this machine they share what is there, as processes do.
            cpus = 0 if self._entered is Entered.STARTED else 1
            options = {"num_cpus": cpus, **self._actor_options}
            workers = RayWorkers(self._recipe, options)
            self._fleet = Fleet(workers, self.workers, self.concurrency)
            self._end = weakref.finalize(self, _abandon, self._fleet, self._must_leave)
            self._end.atexit = False  # Ray ends with the process, and the workers with Ray
            await self._fleet.start()
        except BaseException:
            await self.aclose()
            raise

    @property
    def _must_leave(self) -> bool:
        return self._entered not in (None, Entered.FOUND)

    async def aclose(self) -> None:
        """End the workers, and Ray if it was started for them. Idempotent; a cancellation is raised
        when it is done."""
        if self._state == "closed":
            return
        self._state = "closed"
        await to_the_end(self._close())

    async def _close(self) -> None:
        try:
            if self._fleet is not None:
                await self._fleet.close()
        finally:
            if self._end is not None:
                self._end.detach()
            if self._must_leave:
                self._entered = None
                await asyncio.to_thread(leave_ray)
            self._local.close()

    def close_soon(self) -> None:
        """End the workers on the next passes of the loop, from anywhere."""
        loop = self._loop
        if self._state != "open" or loop is None:
            return
        if loop.is_closed():  # nobody can be told, or waited for
            self._state = "closed"
            if self._end is not None:
                self._end()
            return

        def close() -> None:
            task = asyncio.ensure_future(self.aclose())
            _closing.add(task)
            task.add_done_callback(_closing.discard)

        loop.call_soon_threadsafe(close)

    def discard(self) -> None:
        """Undo what was made, where it is never started."""
        self._state = "closed"
        self._local.close()

    def __repr__(self) -> str:
        return f"<RayRouter workers={self.workers} concurrency={self.concurrency} {self._state}>"


_closing: set[asyncio.Future[None]] = set()  # the loop alone would not keep them


def _abandon(fleet: Fleet, must_leave: bool) -> None:
    """A RayRouter was dropped without being closed."""
    fleet.abandon()
    if must_leave:
        threading.Thread(target=leave_ray).start()


def open_ray_router(
    source: RouterSource,
    *,
    workers: int,
    concurrency: int = 8,
    address: str | None = None,
    actor_options: Mapping[str, Any] | None = None,
    router_host: RouterHostName | None = None,
) -> AbstractAsyncContextManager[RayRouter]:
    """Start workers for as long as a block lasts, in asyncio and in trio.

    ::

        async with open_ray_router(make_router, workers=8, concurrency=64) as router:
            first = await parallel_acompletions(router, some, concurrency=router.slots)
            second = await parallel_acompletions(router, more, concurrency=router.slots)

    Leaving the block cancels the calls that still run, waits for them and ends the workers.

    Args:
        source: how a worker gets its Router: a function that makes it (in each worker, and once in
            this process), the arguments of ``litellm.Router`` as a mapping, or the path of a config
            file of litellm's proxy.
        workers: processes, each with a Router.
        concurrency: calls in flight in each worker at most.
        address: of a Ray cluster, as ``ray.init`` takes it. None: the one to which this process is
            connected, the one that the environment variable RAY_ADDRESS names, else Ray is started
            on this machine and ended with the last block that uses it.
        actor_options: how Ray places the workers, as ``ActorClass.options`` takes it. Without any,
            each takes one CPU of a cluster, and they are spread over its machines; where Ray was
            started here they share this machine.
        router_host: for trio, as in ``parallel_acompletions``.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        TypeError, ValueError: an argument is not as described.
        ConnectionError: on entering: there is no cluster at the address.
        WorkersLostError: on entering: no worker could be started.
        Exception: on entering: what the making of a Router raises.
    """
    router = RayRouter(
        source,
        workers=workers,
        concurrency=concurrency,
        address=address,
        actor_options=actor_options,
    )
    return _opened(router, router_host)


@asynccontextmanager
async def _opened(
    router: RayRouter, router_host: RouterHostName | None
) -> AsyncGenerator[RayRouter, None]:
    if sniffio.current_async_library() != "trio":
        await router.start()
        restore_sigterm()
        try:
            yield router
        finally:
            await router.aclose()
        return
    async with open_router_host(router, router_host) as host:
        await host.run(router.start)
        restore_sigterm()
        try:
            yield router
        finally:
            await to_the_end(host.run(router.aclose))


def iter_parallel_acompletions(
    source: RouterSource,
    requests: Requests,
    *,
    workers: int,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    address: str | None = None,
    actor_options: Mapping[str, Any] | None = None,
    router_host: RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> RayBatch:
    """:func:`parallel_core.iter_parallel_acompletions` with workers, in asyncio and in trio.

    The batch starts the workers when it begins, and has ended them when it has ended.

    Args:
        source: how a worker gets its Router, as in :func:`open_ray_router`.
        requests: as in the local function.
        workers: processes, each with a Router.
        concurrency: calls in flight in each worker at most; adaptive concurrency is one limit for
            all of them together.
        return_exceptions: as in the local function, like all that is not named here.
        preserve_order: yield in input order.
        address: of a Ray cluster, as in :func:`open_ray_router`, like ``actor_options``.
        actor_options: how Ray places the workers.
        router_host: for trio.
        controls: those of the local function but ``on_chunk``. They are of all workers together.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        InvalidRequestError, TypeError, ValueError: an argument is not as described; nothing was
            sent.
        RuntimeError: called where neither asyncio nor trio is running.
    """
    limit = checked_concurrency(concurrency)
    adaptive = isinstance(limit, AdaptiveConcurrency)
    router = RayRouter(
        source,
        workers=workers,
        concurrency=limit.maximum if isinstance(limit, AdaptiveConcurrency) else limit,
        address=address,
        actor_options=actor_options,
    )
    # A hedged call is timed from its beginning here: none may wait in a worker.
    slots = router.slots if controls.get("hedge") is None else workers * router.concurrency
    is_trio = sniffio.current_async_library() == "trio"
    host = in_trio(router, router_host) if is_trio else router
    try:
        batch = api.iter_parallel_acompletions(
            host,
            requests,
            concurrency=concurrency if adaptive else slots,
            return_exceptions=return_exceptions,
            preserve_order=preserve_order,
            **controls,
        )
    except BaseException:
        router.discard()
        raise
    return RayBatch(router, batch, host if isinstance(host, RouterHost) else None)


async def parallel_acompletions(
    source: RouterSource,
    requests: Requests,
    *,
    workers: int,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = True,
    address: str | None = None,
    actor_options: Mapping[str, Any] | None = None,
    router_host: RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """The results of :func:`iter_parallel_acompletions` as a list, in the order of the requests.

    ``preserve_order=False``: in the order in which the calls ended.
    """
    batch = iter_parallel_acompletions(
        source,
        requests,
        workers=workers,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        address=address,
        actor_options=actor_options,
        router_host=router_host,
        **controls,
    )
    return await collect(batch, preserve_order)


class RayBatch(ParallelBatch[RouterParallelResult]):
    """A batch whose calls are made by workers, which it starts and ends.

    Attributes:
        router: stands for the workers.
    """

    def __init__(
        self,
        router: RayRouter,
        batch: ParallelBatch[RouterParallelResult],
        host: RouterHost | None,
    ) -> None:
        self.router = router
        self._batch = batch
        self._running = batch._running  # pyright: ignore[reportPrivateUsage]  # of the same family
        self._host = host

    @property
    def lost_workers(self) -> int:
        """Workers that died, and were replaced."""
        return self.router.lost_workers

    @property
    def resent_requests(self) -> int:
        """Requests that were in flight in those, and were sent again: maybe paid for twice."""
        return self.router.resent_requests

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can be entered only once")
        await self._begin()
        try:
            await self._batch.__aenter__()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        self._closed = True
        try:
            return await self._batch.__aexit__(exc_type, exc, traceback)
        finally:
            await self._end()

    async def aclose(self) -> None:
        self._begun = self._closed = True
        try:
            await self._batch.aclose()
        finally:
            await self._end()

    async def __anext__(self) -> RouterParallelResult:
        if not self._begun:
            await self._begin()
        try:
            return await self._batch.__anext__()
        except Exception:  # the end of the batch, too
            await self._end()
            raise

    def __del__(self) -> None:
        if getattr(self, "_begun", False):  # else its arguments were refused
            self.router.close_soon()

    async def _begin(self) -> None:
        self._begun = True
        if self._host is None:
            await self.router.start()
        else:
            await self._host.run(self.router.start)
        restore_sigterm()

    async def _end(self) -> None:
        if self._host is None:
            await self.router.aclose()
        else:
            await to_the_end(self._host.run(self.router.aclose))
