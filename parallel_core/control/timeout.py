"""Timeouts of a call and of a batch."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from parallel_core.errors import BatchTimeoutError, RequestTimeoutError
from parallel_core.types import RouterParallelRequest

from .call import Call
from .protocols import Engine, Scope


class Timeouts:
    """A control that cancels a call after ``seconds``, or after its request's own ``timeout``.

    The limit is enforced here, because some providers ignore the timeout that they are given. The
    call has ended when its error is raised. A call that returns in spite of its cancellation has
    succeeded.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._engine: Engine

    def wrap(self, call: Call) -> Call:
        async def in_time(index: int, item: Any, limit: float) -> Any:
            with self._engine.new_scope(limit):
                return await call(index, item)
            model = item.model if isinstance(item, RouterParallelRequest) else None
            raise RequestTimeoutError(index, model, limit)

        def limited(index: int, item: Any) -> Awaitable[Any]:
            own = item.timeout if isinstance(item, RouterParallelRequest) else None
            limit = self._seconds if own is None else own
            return call(index, item) if limit is None else in_time(index, item, limit)

        return limited

    def begin(self, engine: Engine) -> None:
        self._engine = engine

    def end(self) -> None:
        pass


class TotalTimeout:
    """The total timeout of one batch.

    When it expires, each call in flight is cancelled. Requests that are drawn later are refused one
    by one. So each request has a result, order and pace are kept, and a million results are not
    made in memory at once.
    """

    def __init__(self, seconds: float, *, fail_fast: bool, total: int | None) -> None:
        self._seconds = seconds
        self._fail_fast = fail_fast
        self._total = total  # number of requests; None if unknown
        self._expired = False
        self._calls: set[Scope] = set()
        self._engine: Engine

    def wrap(self, call: Call) -> Call:
        async def limited(index: int, item: Any) -> Any:
            if not self._expired:
                scope = self._engine.new_scope()
                with scope:
                    self._calls.add(scope)
                    try:
                        return await call(index, item)
                    finally:
                        self._calls.discard(scope)
            if self._total is not None and index >= self._total - 1:
                self._engine.stop_drawing()  # a source may report a wrong length
            raise BatchTimeoutError(index, self._seconds)

        return limited

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        engine.call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        if self._fail_fast:
            self._engine.fail(BatchTimeoutError(None, self._seconds))
            return
        for scope in list(self._calls):
            scope.cancel()
        if self._total is None:
            self._engine.stop_drawing()
        self._engine.skip_waits()

    def end(self) -> None:
        pass
