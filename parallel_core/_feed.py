"""The draws of a batch from an async source."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable
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
            iterator = aiter(self._source)
            while True:
                while self._hungry <= len(self._items):
                    await self._demand.wait()
                self._items.append(await anext(iterator))
                self._takers.wake_one()
        except StopAsyncIteration:
            pass
        except Exception as exception:  # noqa: BLE001 - reported by the batch
            self._failed(exception)

    async def _close(self) -> None:
        source = self._source
        if not isinstance(source, AsyncGenerator):
            return
        try:
            await cast("AsyncGenerator[Any, None]", source).aclose()
        except Exception as exception:  # noqa: BLE001 - reported by the batch
            self._close_failed(exception)

    def stop(self) -> None:
        self._ended = True
        self._drawing.cancel()
