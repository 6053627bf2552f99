"""The Router that sends calls to workers on Ray."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

from parallel_core.config import RouterStandIn
from parallel_core.control import checked_count, held_reservation
from parallel_core.event_loops import in_trio
from parallel_core.router import DIRECT_COUNTS, INDEX, OPERATION
from parallel_core.router_hosts import RouterHostName, open_router_host
from parallel_core.types import CHAT, StreamedResponse
from parallel_core.uninterrupted import to_the_end

from .cluster import Entered, RayWorkers, enter_ray_async, leave_ray, restore_sigterm
from .fleet import Fleet
from .installed import MOST_WORKERS, require_ray
from .messages import largest_block
from .remote_values import pack_request
from .router_recipe import RouterSource, checked_recipe


class RayRouter(RouterStandIn):
    """A Router whose calls are made by workers; :func:`open_ray_router` yields it.

    Pass it to a batch in place of a Router. It is bound to the event loop on which it was opened.
    It also has the other async methods of the Router (``aembedding``, …), made by workers.

    Attributes:
        router: a Router of the same recipe in this process, for the names of models, their limits
            and prices. It sends nothing.
        workers: number of workers.
        concurrency: maximum calls in flight in each worker.
        slots: the ``concurrency`` of a batch that keeps all workers busy: the calls in flight, and
            a few more per worker that are on their way.
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
        weakref.finalize(self, self._local.close).atexit = False  # if it is never started
        self._fleet: Fleet | None = None
        self._state: Literal["new", "open", "closed"] = "new"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Any = None

    @property
    def lost_workers(self) -> int:
        """Number of workers that died and were replaced."""
        return 0 if self._fleet is None else self._fleet.lost_workers

    @property
    def resent_requests(self) -> int:
        """Number of requests in flight in lost workers that were sent again, maybe billed twice."""
        return 0 if self._fleet is None else self._fleet.resent_requests

    async def acompletion(self, **arguments: Any) -> Any:
        """Await ``router.acompletion(**arguments)`` in a worker.

        A cancellation cancels the call in the worker and waits for its end. A streamed answer is
        returned as a whole.

        Raises:
            TypeError: an argument cannot be sent to another process.
            WorkerDiedError: several workers died while they made this request.
            WorkersLostError: no worker is left.
            Exception: any exception that the Router raises in the worker.
        """
        return await self._call(CHAT, **arguments)

    async def _call(self, operation: str, /, **arguments: Any) -> Any:
        if self._fleet is None or self._state != "open":
            raise RuntimeError(f"this RayRouter is {self._state}: calls need an open one")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("a RayRouter works only on the event loop on which it was opened")
        index: int = arguments.get(INDEX, 0)
        held = held_reservation()

        def again() -> Exception | None:
            return None if held is None else held.attempt_again(index)

        counts = arguments.pop(DIRECT_COUNTS, None)
        if operation != CHAT:
            arguments[OPERATION] = operation
        value = await self._fleet.call(pack_request(arguments), again, counts)
        # A batch also needs the usage and the time that come with a streamed answer.
        is_of_a_batch = INDEX in arguments
        return value.response if type(value) is StreamedResponse and not is_of_a_batch else value

    async def start(self) -> None:
        """Start Ray, if necessary, and the workers (asyncio)."""
        if self._state != "new":
            raise RuntimeError("a RayRouter can be opened only once: make a new one")
        self._state = "open"
        self._loop = asyncio.get_running_loop()
        try:
            try:
                self._entered = await enter_ray_async(self._address)
            finally:
                restore_sigterm()
            # On a Ray that was started here, the workers share the CPUs of this machine.
            cpus = 0 if self._entered is Entered.STARTED else 1
            options = {"num_cpus": cpus, **self._actor_options}
            workers = RayWorkers(self._recipe, options)
            self._fleet = Fleet(workers, self.workers, self.concurrency)
            self._end = weakref.finalize(self, _abandon, self._fleet, self._must_leave)
            self._end.atexit = False  # Ray ends with the process, and the workers end with Ray
            await self._fleet.start()
        except BaseException:
            await self.aclose()
            raise

    @property
    def _must_leave(self) -> bool:
        return self._entered not in (None, Entered.FOUND)

    async def aclose(self) -> None:
        """End the workers, and Ray if it was started for them.

        Idempotent. A cancellation is raised at the end.
        """
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
        """End the workers on the next passes of the loop. May be called in any thread."""
        loop = self._loop
        if self._state != "open" or loop is None:
            return
        if loop.is_closed():  # no task can wait for the workers
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
        """Close the local Router of a RayRouter that is never started."""
        self._state = "closed"
        self._local.close()

    def __repr__(self) -> str:
        return f"<RayRouter workers={self.workers} concurrency={self.concurrency} {self._state}>"


_closing: set[asyncio.Future[None]] = set()  # strong references: the loop has only weak ones


def _abandon(fleet: Fleet, must_leave: bool) -> None:
    """End the workers of a RayRouter that was dropped without being closed."""
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
    """Start workers for the duration of a block, in asyncio and in trio.

    ::

        async with open_ray_router(make_router, workers=8, concurrency=64) as router:
            first = await parallel_acompletions(router, some, concurrency=router.slots)
            second = await parallel_acompletions(router, more, concurrency=router.slots)

    Leaving the block cancels the calls that still run, waits for them and ends the workers. A batch
    with ``hedge`` needs ``concurrency=router.workers * router.concurrency``: no call may wait in a
    worker.

    Args:
        source: source of each worker's Router: a function that makes it (in each worker, and once
            in this process), the arguments of ``litellm.Router`` as a mapping, or the path of a
            config file of litellm's proxy.
        workers: number of processes, each with a Router.
        concurrency: maximum calls in flight in each worker.
        address: address of a Ray cluster, as for ``ray.init``. None: the cluster to which this
            process is connected, else the one that the environment variable RAY_ADDRESS names, else
            Ray is started on this machine and ends with the last block that uses it.
        actor_options: options with which Ray places the workers, as for ``ActorClass.options``. By
            default each worker takes one CPU of a cluster, and they are spread over its machines;
            on a Ray that was started here they share this machine. On a cluster they have a
            niceness of 15 unless the environment variable RAY_worker_niceness says otherwise.
        router_host: for trio, as in ``parallel_acompletions``.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        TypeError, ValueError: an argument is invalid.
        ConnectionError: on entering: no cluster answers at the address.
        WorkersLostError: on entering: no worker could be started.
        Exception: on entering: any exception that making a Router raises.
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
    if not in_trio():
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
