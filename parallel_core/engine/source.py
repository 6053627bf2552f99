"""The source of a batch: one task draws all of its items."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterator
from typing import Any, Final, cast

NOTHING: Final = object()
"""Returned by a source that has no more items."""


class Source:
    """A reader of items from an iterable or an async iterable.

    Use it only in one task and one context: a source may hold a cancel scope, a timeout or the
    token of a context variable between two items.
    """

    def __init__(self, items: Any) -> None:
        self._items = items
        # An object that is both is meant for async code: its sync form would block.
        self.is_async = isinstance(items, AsyncIterable)
        self._iterator: Any = None

    async def draw(self) -> Any:
        """Return the next item of an async source, or ``NOTHING``."""
        if self._iterator is None:
            self._iterator = aiter(self._items)
        try:
            return await anext(self._iterator)
        except StopAsyncIteration:
            return NOTHING

    def draw_now(self) -> Any:
        """Return the next item of a sync source, or ``NOTHING``."""
        if self._iterator is None:
            self._iterator = iter(self._items)
        return next(cast("Iterator[Any]", self._iterator), NOTHING)

    async def throw(self, cancellation: BaseException) -> Any:
        """Raise a cancellation in the generator, at its ``yield``; return the next item.

        Between two items a cancellation hits the task that draws, although a scope in the generator
        requested it.
        """
        iterator = self._iterator
        try:
            if isinstance(iterator, AsyncGenerator):
                return await cast("AsyncGenerator[Any, None]", iterator).athrow(cancellation)
            if isinstance(iterator, Generator):
                return cast("Generator[Any, None, None]", iterator).throw(cancellation)
        except (StopAsyncIteration, StopIteration):
            return NOTHING
        raise cancellation

    async def close(self) -> None:
        """Close the source if it is a generator."""
        # If `__aiter__` is a generator function, close the generator that it returned.
        iterator = self._items if self._iterator is None else self._iterator
        if isinstance(iterator, AsyncGenerator):
            await cast("AsyncGenerator[Any, None]", iterator).aclose()
        elif isinstance(iterator, Generator):
            cast("Generator[Any, None, None]", iterator).close()
