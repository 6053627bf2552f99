"""Batch functions with workers on Ray: a local batch whose Router is a RayRouter."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, Unpack

from parallel_core import api
from parallel_core.batch_plans import Requests
from parallel_core.control import (
    AdaptiveConcurrency,
    Concurrency,
    Controls,
    checked_concurrency,
)
from parallel_core.engine import ParallelBatch, collect
from parallel_core.event_loops import in_trio
from parallel_core.router_hosts import RouterHost, RouterHostName, router_for_trio
from parallel_core.types import RouterParallelResult
from parallel_core.uninterrupted import to_the_end

from .cluster import restore_sigterm
from .ray_router import RayRouter
from .router_recipe import RouterSource


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
    """Run :func:`parallel_core.iter_parallel_acompletions` with workers, in asyncio and in trio.

    The batch starts the workers when it begins, and ends them before it ends. ``total_timeout``
    begins when they have started. ``timeout`` begins with the call in its worker, or with ``hedge``
    in this process. ``in_flight`` and ``duration`` include the wait in a worker; ``duration`` also
    includes the way there and back, up to 0.1 s each.

    Args:
        source: source of each worker's Router, as in :func:`open_ray_router`.
        requests: as in the local function.
        workers: number of processes, each with a Router.
        concurrency: maximum calls in flight in each worker; adaptive concurrency is one limit for
            all workers together.
        return_exceptions: as in the local function.
        preserve_order: yield in input order.
        address: address of a Ray cluster, as in :func:`open_ray_router`.
        actor_options: options with which Ray places the workers, as in :func:`open_ray_router`.
        router_host: for trio.
        controls: the controls of the local function, without ``on_chunk``. They apply to all
            workers together.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        InvalidRequestError, TypeError, ValueError: an argument is invalid; nothing was sent.
        RuntimeError: neither asyncio nor trio is running.
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
    # The driver times a hedged call from its beginning, so no call may wait in a worker.
    slots = router.slots if controls.get("hedge") is None else workers * router.concurrency
    is_trio = in_trio()
    host = router_for_trio(router, router_host) if is_trio else router
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
    """Return the results of :func:`iter_parallel_acompletions` as a list.

    The list is in the order of the requests. With ``preserve_order=False`` it is in the order in
    which the calls ended.
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
        router: the Router that sends calls to the workers.
    """

    def __init__(
        self,
        router: RayRouter,
        batch: ParallelBatch[RouterParallelResult],
        host: RouterHost | None,
    ) -> None:
        self.router = router
        self._batch = batch
        self._running = batch._running  # pyright: ignore[reportPrivateUsage]  # the base class's
        self._host = host

    @property
    def lost_workers(self) -> int:
        """Number of workers that died and were replaced."""
        return self.router.lost_workers

    @property
    def resent_requests(self) -> int:
        """Number of requests in flight in lost workers that were sent again, maybe billed twice."""
        return self.router.resent_requests

    async def __aenter__(self) -> Self:
        if self._begun:
            raise RuntimeError("a batch can be entered only once: make a new one")
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
        """Cancel all calls, wait until they and the workers have ended, and drop the results."""
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
        except Exception:  # this includes StopAsyncIteration, the end of the batch
            await self._end()
            raise

    def __del__(self) -> None:
        if getattr(self, "_begun", False):  # it may be missing if the constructor raised
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
