"""The handle of a running batch, for trio and asyncio."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import trio

from parallel_core.control import LimitChange
from parallel_core.errors import BatchAbortedError, add_note
from parallel_core.types import Usage

from .plan import ResultT
from .waiting import Waiters

logger = logging.getLogger("parallel_core")


RunningT = TypeVar("RunningT")


class RunningBatch(Protocol[RunningT]):
    """The engine, as its handle sees it (:class:`parallel_core.nursery_engine.BatchEngine`)."""

    results: trio.MemoryReceiveChannel[RunningT]
    arrivals: Waiters
    delivered: int
    succeeded: int
    failed: int

    @property
    def started(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def limit(self) -> int: ...
    @property
    def limit_changes(self) -> list[LimitChange]: ...
    @property
    def failed_deployments(self) -> dict[str, str]: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def direct_calls(self) -> int: ...
    @property
    def indirect_calls(self) -> dict[str, int]: ...
    @property
    def direct_differences(self) -> dict[str, int]: ...
    @property
    def crash_error(self) -> BaseException | None: ...
    def stop(self) -> None: ...
    def check_thread(self) -> None: ...
    def collect_into(self, results: list[RunningT], /) -> None: ...
    def handed_out(self, result: object, /) -> None: ...
    def take_error(self) -> BaseException | None: ...


class ParallelBatch(ABC, Generic[ResultT]):
    """A running batch: an async iterator of its results, with live counts.

    :func:`iter_parallel_acompletions` and :func:`iter_parallel_map` return one. Leaving its
    ``async with`` block, in whatever way, cancels every call in flight and waits for it.
    """

    _running: RunningBatch[ResultT]
    _begun: bool = False
    _closed: bool = False
    # True in trio: receiving a ready result is a checkpoint too.
    _is_checkpoint: ClassVar[bool] = False

    @property
    def started(self) -> int:
        """Number of requests begun so far, including those refused as invalid."""
        return self._running.started

    @property
    def succeeded(self) -> int:
        """Number of calls that returned."""
        return self._running.succeeded

    @property
    def failed(self) -> int:
        """Number of calls that raised, including refused requests."""
        return self._running.failed

    @property
    def in_flight(self) -> int:
        """Number of calls that are running now."""
        return self._running.in_flight

    @property
    def delivered(self) -> int:
        """Number of results handed out to the consumer."""
        return self._running.delivered

    @property
    def limit(self) -> int:
        """Number of calls that may be in flight now: ``concurrency``, unless that is adaptive."""
        return self._running.limit

    @property
    def limit_changes(self) -> list[LimitChange]:
        """Return the changes of an adaptive limit since the beginning; empty for a fixed limit."""
        return self._running.limit_changes

    @property
    def failed_deployments(self) -> dict[str, str]:
        """Return, by deployment id, why requests avoided a deployment.

        For instance its key was refused, its credit is used up, or it has no such model. Other
        deployments of its model got the requests.
        """
        return self._running.failed_deployments

    @property
    def usage(self) -> Usage:
        """Return tokens and cost of the calls that returned, as the provider reports them."""
        return self._running.usage

    @property
    def direct_calls(self) -> int:
        """Number of attempts that were sent directly, without litellm (``direct=True``)."""
        return self._running.direct_calls

    @property
    def indirect_calls(self) -> dict[str, int]:
        """Number of attempts of a direct batch that litellm sent, by reason."""
        return self._running.indirect_calls

    @property
    def direct_differences(self) -> dict[str, int]:
        """Number of answers that differ from litellm's, by member (``direct="verify"``).

        A difference that is noticed without ``"verify"`` is counted, too: litellm makes such
        answers then.
        """
        return self._running.direct_differences

    def cancel(self) -> None:
        """Cancel every call in flight and start no more.

        The iterator hands out the results that are ready and then ends without an error. Call this
        method in the thread in which the batch runs.

        Raises:
            RuntimeError: the batch runs in another thread.
        """
        self._running.check_thread()
        self._running.stop()

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...

    @abstractmethod
    async def aclose(self) -> None:
        """Cancel every call in flight and wait until it has ended. Idempotent.

        The iterator is then exhausted: results that were not handed out are dropped.
        """

    def __aiter__(self) -> AsyncIterator[ResultT]:
        return self

    async def __anext__(self) -> ResultT:
        """Return the next result.

        Raises:
            StopAsyncIteration: all results have been handed out, or the block has been left.
            Exception: in fail-fast mode, the exception object of the first call that failed. It is
                raised after the results that were ready before it, when no call is in flight any
                more. In either mode, the exception that the source raised.
        """
        if not self._begun:
            await self._begin()
        self._running.check_thread()
        if self._is_checkpoint:
            await trio.lowlevel.checkpoint()
        engine = self._running
        while True:
            if self._closed:
                raise StopAsyncIteration
            try:
                result = engine.results.receive_nowait()
            except trio.WouldBlock:
                pass
            except trio.EndOfChannel:
                break
            else:
                engine.handed_out(result)
                return result
            self._before_waiting()
            await engine.arrivals.wait()
        await self._ended()
        error = engine.take_error()
        if isinstance(error, StopAsyncIteration | StopIteration):
            # As in PEP 479: raised unchanged, it would look like the end of the batch.
            wrapped = RuntimeError(f"the batch raised {type(error).__name__}")
            wrapped.__cause__ = error
            error = wrapped
        if error is not None:
            try:
                raise error
            finally:
                del error, engine  # no reference cycle through the traceback
        raise StopAsyncIteration

    @abstractmethod
    async def _begin(self) -> None:
        """Start a batch that has not been entered, at its first result, or refuse to."""

    def _before_waiting(self) -> None:
        """Refuse to wait for a result if none can arrive."""

    async def _ended(self) -> None:
        """Wait until nothing is left, after the last result has been handed out."""


def raise_crash(engine: RunningBatch[Any], body_exception: BaseException | None) -> None:
    """Raise an error of the batch that was not raised yet, when the batch is left.

    The exception that leaves the caller's body, a cancellation included, takes precedence over the
    error of a source that could not be closed, over the error of a control that failed at the end,
    and over a BatchAbortedError. KeyboardInterrupt and SystemExit take precedence over everything.
    """
    crash = engine.crash_error
    if crash is None:
        return
    engine.take_error()
    if isinstance(crash, Exception) and body_exception is not None:
        if not isinstance(crash, BatchAbortedError):
            # The text of an exception may quote data of the source. So it goes to the caller, as a
            # note on the exception of the body, and not to the log.
            add_note(body_exception, f"then its batch failed to end: {crash!r}")
            logger.error(
                "%s left the block of a batch, which then failed to end: %s",
                type(body_exception).__qualname__,
                type(crash).__qualname__,
            )
        return
    try:
        raise crash
    finally:
        del crash, body_exception  # no reference cycle through the traceback


class _Indexed(Protocol):
    @property
    def index(self) -> int: ...


IndexedT = TypeVar("IndexedT", bound=_Indexed)


async def collect(
    batch: ParallelBatch[IndexedT], preserve_order: bool, results: list[IndexedT] | None = None
) -> list[IndexedT]:
    """Run a batch to its end and return its results as a list.

    In input order the list is sorted at the end. No consumer waits for the next result, so the
    batch needs no reorder window, which could hold calls back.

    Args:
        batch: the batch to run.
        preserve_order: sort the results.
        results: list to which the results are added, also if the batch ends in an error.

    Raises:
        BaseException: the batch ended in it. Its attribute ``results`` has the finished results.
    """
    results = [] if results is None else results
    batch._running.collect_into(results)  # pyright: ignore[reportPrivateUsage]  # of this module
    try:
        async with batch:
            async for _ in batch:
                raise AssertionError("a result was not added to the list")
    except BaseException as error:
        attach_results(error, results, preserve_order)
        raise
    if preserve_order:
        results.sort(key=_index)
    return results


def _index(result: _Indexed) -> int:
    return result.index


class FinishedResults(list[Any]):
    """The results of a batch that ended in an error. Pickling the error drops them."""

    def __reduce__(self) -> tuple[type[FinishedResults], tuple[()]]:
        return type(self), ()


def attach_results(error: BaseException, results: Iterable[_Indexed], preserve_order: bool) -> None:
    """Put results on an exception, unless its class already defines an attribute ``results``."""
    known = inspect.getattr_static(error, "results", None)
    if known is not None and type(known) is not FinishedResults:
        return
    finished = FinishedResults(sorted(results, key=_index) if preserve_order else results)
    try:
        vars(error)["results"] = finished
    except TypeError:  # it accepts no attributes
        return
    if finished:
        number = "1 result" if len(finished) == 1 else f"{len(finished)} results"
        add_note(error, f"{number} had finished: see `results` of this exception")


def results_of(error: BaseException) -> list[Any]:
    """Return the results that had finished when a list function raised; empty if there are none.

    It checks the exception and its chain of causes, because ``asyncio.timeout`` turns the
    cancellation that holds the results into a ``TimeoutError``.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        found = inspect.getattr_static(current, "results", None)
        if type(found) is FinishedResults:
            return found
        current = current.__context__ if current.__cause__ is None else current.__cause__
    return []
