"""The draws of a batch from an async source."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from typing import Any, Final, cast

from ._slot_host import SlotHost
from ._waiting import Waiters

NOTHING: Final = object()
"""What a source gives that has no more items."""


class Feed:
    """Draws an async source: in one task from its first item to its end, and only on demand.

    A slot that drew for itself would step an async generator from many tasks, and a cancel scope
    or a timeout inside the generator must be left by the task that entered it.
    """

    def __init__(
        self,
        source: AsyncIterable[Any],
        host: SlotHost,
        failed: Callable[[Exception], None],
        close_failed: Callable[[Exception], None],
    ) -> None:
        self._source = source
        self._iterator: AsyncIterator[Any] | None = None
        self._host = host
        self._failed = failed
        self._close_failed = close_failed
        self._items: deque[Any] = deque()
        self._takers = Waiters(host.new_event)
        self._demand = Waiters(host.new_event)
        self._hungry = 0
        self._ended = False
        self._drawing = host.new_scope()

    async def take(self) -> Any:
        """The next item, or ``NOTHING``."""
        self._hungry += 1
        try:
            while not self._items:
                if self._ended:
                    return NOTHING
                self._demand.wake_one()
                await self._takers.wait()
            return self._items.popleft()
        finally:
            self._hungry -= 1

    async def run(self) -> None:
        try:
            with self._drawing:
                await self._draw()
        finally:
            self._ended = True
            self._takers.wake_all()
            # Not inside the scope: a generator may await while it cleans up.
            await self._close()

    async def _draw(self) -> None:
        try:
            self._iterator = iterator = aiter(self._source)
            while True:
                self._items.append(await self._next_on_demand(iterator))
                self._takers.wake_one()
        except StopAsyncIteration:
            pass
        except BaseException as exception:
            failure = self._host.error_of(exception, "the source", self._ended)
            if failure is None:
                raise
            # An error of a source that is being stopped is one of its cleanup.
            (self._close_failed if self._ended else self._failed)(failure)

    async def _next_on_demand(self, iterator: AsyncIterator[Any]) -> Any:
        try:
            while self._hungry <= len(self._items):
                await self._demand.wait()
        except BaseException as exception:
            if self._ended or not isinstance(iterator, AsyncGenerator):
                raise
            cancellation = exception
        else:
            return await anext(iterator)
        # A scope or a timeout inside the generator, which waits at its `yield` meanwhile: what it
        # has raised here is meant for the generator.
        return await cast("AsyncGenerator[Any, None]", iterator).athrow(cancellation)

    async def _close(self) -> None:
        # Of a source whose `__aiter__` is a generator function, the generator that it gave us.
        iterator = self._iterator or self._source
        if not isinstance(iterator, AsyncGenerator):
            return
        try:
            await cast("AsyncGenerator[Any, None]", iterator).aclose()
        except Exception as exception:  # noqa: BLE001 - reported by the batch
            self._close_failed(exception)

    @property
    def ended(self) -> bool:
        return self._ended

    def stop(self) -> None:
        self._ended = True
        self._drawing.cancel()

    def give_up(self) -> None:
        """There is no task that draws: nothing more can come."""
        self._ended = True
        self._takers.wake_all()
