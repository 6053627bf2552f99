"""An endless batch to which synchronous code adds requests in groups."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import os
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from parallel_core import bridge
from parallel_core.batch_plans import completion_plan
from parallel_core.control import BatchOptions, Call, Concurrency, Controls, Engine, Scope
from parallel_core.errors import BatchTimeoutError, StoppedError
from parallel_core.router_hosts import enter_loop, leave_this_loop, plain_loop_factory
from parallel_core.types import RouterParallelRequest, RouterParallelResult


class _Job:
    """Requests that were added together. Only the loop may use it, except for ``done``."""

    def __init__(
        self, requests: Sequence[RouterParallelRequest], total_timeout: float | None
    ) -> None:
        self.requests = requests
        self.total_timeout = total_timeout
        self.results: list[RouterParallelResult | None] = [None] * len(requests)
        self.left = len(requests)
        self.scopes: dict[int, Scope] = {}  # scopes of the calls in flight
        self.expired: bool | None = None  # None: active; True: timed out; False: abandoned
        self.cancel: Callable[[], None] | None = None
        self.done: concurrent.futures.Future[list[RouterParallelResult]] = (
            concurrent.futures.Future()
        )

    def error(self, place: int) -> Exception:
        """Return the error of a request that did not finish."""
        if self.expired:
            assert self.total_timeout is not None
            return BatchTimeoutError(place, self.total_timeout)
        return StoppedError(place)

    def settle(self, place: int, result: RouterParallelResult) -> None:
        if self.results[place] is None:
            self.results[place] = result
            self.left -= 1
        if not self.left and not self.done.done():
            if self.cancel is not None:
                self.cancel()
            self.done.set_result([one for one in self.results if one is not None])

    def abandon(self, *, expired: bool) -> None:
        """Cancel the calls in flight, which settle later. Fail the other requests at once."""
        if self.expired is not None or not self.left:
            return
        self.expired = expired
        for place, request in enumerate(self.requests):
            if self.results[place] is None and place not in self.scopes:
                result = RouterParallelResult(
                    place, request, exception=self.error(place), attempts=0
                )
                self.settle(place, result)
        for scope in list(self.scopes.values()):
            scope.cancel()


class StandingBatch:
    """An endless batch with its own Router and event loop in a helper thread.

    So the state of the batch (connections, a pace, an adaptive limit, a budget) carries over from
    one :meth:`results` to the next. Every method may be called from any thread.

    Args:
        open_router: makes the Router, on the loop.
        concurrency: maximum calls in flight.
        controls: controls of the batch; ``total_timeout`` applies to each :meth:`results`.

    Raises:
        Exception: any exception that ``open_router`` raises.
    """

    def __init__(
        self,
        open_router: Callable[[], AbstractContextManager[Any]],
        concurrency: Concurrency,
        controls: Controls,
    ) -> None:
        self._open_router = open_router
        self._concurrency: Concurrency = concurrency
        self._total_timeout = controls.get("total_timeout")
        self._controls = controls.copy()
        self._controls.pop("total_timeout", None)
        self._waiting: deque[tuple[_Job, int]] = deque()
        self._places: dict[int, tuple[_Job, int]] = {}  # by the index in the batch
        self._jobs: set[_Job] = set()
        self._jobs_lock = threading.Lock()
        self._ended = False
        self._drawn = 0
        self._loop: asyncio.AbstractEventLoop
        self._news: asyncio.Event
        self._stopped = False
        self._process = os.getpid()
        # The router, or the error that prevented it.
        self._opened: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, name="parallel_core standing batch", daemon=False
        )
        self._thread.start()
        _end_with_main_thread(self)
        try:
            self.router: Any = self._opened.result()
        except BaseException:
            self.stop()
            raise

    @property
    def usable(self) -> bool:
        """True if the batch accepts requests. A forked process does not have the thread."""
        return self._process == os.getpid() and self._thread.is_alive() and not self._stopped

    def results(self, requests: Sequence[RouterParallelRequest]) -> list[RouterParallelResult]:
        """Send requests, wait for all of them, and return the results in the same order.

        Ctrl-C cancels the calls and waits for their end.

        Raises:
            RuntimeError: the batch was stopped.
        """
        if not requests:
            return []
        job = _Job(requests, self._total_timeout)
        with self._jobs_lock:
            if self._ended:
                raise _closed()
            self._jobs.add(job)  # from now on, the end of the loop also ends the job
        try:
            self._soon(self._add, job)
            return job.done.result()
        except BaseException:
            if not job.done.done():
                self._soon(self._abandon, job)
                concurrent.futures.wait([job.done])
            raise

    def stop(self) -> None:
        """Cancel all calls and end the thread. Returns at once; idempotent."""
        if self._process == os.getpid():
            # The loop may have ended, or may not have begun.
            with contextlib.suppress(RuntimeError, AttributeError):
                self._loop.call_soon_threadsafe(self._stop)

    def close(self) -> None:
        """Cancel all calls and wait until the thread has ended."""
        self.stop()
        if self._process == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join()

    def _soon(self, function: Callable[[_Job], None], job: _Job) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and has ended the job
            self._loop.call_soon_threadsafe(function, job)

    # --- on the loop ---

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=plain_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
            self._fail(error)
        finally:
            self._fail(_closed())

    def _fail(self, error: BaseException) -> None:
        if not self._opened.done():
            self._opened.set_exception(error)
        with self._jobs_lock:
            self._ended = True
            jobs = list(self._jobs)
            self._jobs.clear()
        for job in jobs:
            if not job.done.done():
                job.done.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        with contextlib.ExitStack() as opened:
            router = opened.enter_context(self._open_router())
            options = BatchOptions(concurrency=self._concurrency, controls=self._controls)
            plan = completion_plan(router, self._requests(), options)
            plan = dataclasses.replace(
                plan, call=self._stoppable(plan.call), attachments=[*plan.attachments, self]
            )
            self._opened.set_result(router)
            enter_loop(asyncio.get_running_loop())
            try:
                async with bridge.AsyncioParallelBatch(plan) as batch:
                    async for result in batch:
                        job, place = self._places.pop(result.index)
                        job.settle(place, result)
                        self._forget(job)
            finally:
                self._stopped = True
                await leave_this_loop()

    def _add(self, job: _Job) -> None:
        if self._stopped:
            job.abandon(expired=False)
            self._forget(job)
            return
        self._waiting.extend((job, place) for place in range(len(job.requests)))
        if job.total_timeout is not None:
            timer = self._loop.call_later(job.total_timeout, self._expire, job)
            job.cancel = timer.cancel
        self._news.set()

    def _expire(self, job: _Job) -> None:
        job.abandon(expired=True)
        self._forget(job)

    def _abandon(self, job: _Job) -> None:
        job.abandon(expired=False)
        self._forget(job)

    def _forget(self, job: _Job) -> None:
        """Drop a job that has all of its results."""
        if not job.left:
            with self._jobs_lock:
                self._jobs.discard(job)

    def _stop(self) -> None:
        self._stopped = True
        with self._jobs_lock:
            jobs = list(self._jobs)
        for job in jobs:
            self._abandon(job)
        self._news.set()

    async def _requests(self) -> AsyncGenerator[RouterParallelRequest, None]:
        while not self._stopped:
            while self._waiting:
                job, place = self._waiting.popleft()
                if job.results[place] is None:
                    self._places[self._drawn] = job, place
                    self._drawn += 1
                    yield job.requests[place]
            self._news.clear()
            if not self._stopped:
                await self._news.wait()

    def begin(self, engine: Engine) -> None:
        """Store the engine of the batch."""
        self._engine = engine

    def end(self) -> None:
        pass

    def _stoppable(self, call: Call) -> Call:
        async def stoppable(index: int, item: Any) -> Any:
            job, place = self._places[index]
            if job.expired is None:
                scope = self._engine.new_scope()
                with scope:
                    job.scopes[place] = scope
                    try:
                        return await call(index, item)
                    except (SystemExit, KeyboardInterrupt) as error:
                        # It must not end the loop, where other calls are in flight.
                        name = type(error).__name__
                        raise RuntimeError(f"the call has raised {name}") from None
                    finally:
                        del job.scopes[place]
            raise job.error(place)

        return stoppable


def _closed() -> RuntimeError:
    return RuntimeError("the ParallelCompletions object was closed during the call")


# Batches that end with the main thread, and the process whose watcher thread ends them.
_running: weakref.WeakSet[StandingBatch] = weakref.WeakSet()
_running_lock = threading.Lock()
_watching_process: int | None = None


def _end_with_main_thread(batch: StandingBatch) -> None:
    """Register a batch to be stopped when the main thread has ended.

    At that time the interpreter waits for the other threads and has shut down nothing yet. So
    litellm's callbacks can still finish, and connections can be closed. ``atexit`` is too late.
    """
    global _watching_process
    with _running_lock:
        _running.add(batch)
        if _watching_process == os.getpid():
            return
        _watching_process = os.getpid()
        threading.Thread(target=_watch, name="parallel_core end", daemon=True).start()


def _watch() -> None:
    threading.main_thread().join()
    with _running_lock:
        batches = list(_running)
    for batch in batches:
        batch.stop()
