"""The backlog of a batch: requests that are drawn and not in flight.

They were read ahead for fairness, or wait to be sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Protocol

import msgspec


class Entry(msgspec.Struct, eq=False):
    """A request on its way through a batch.

    Attributes:
        key: key that the order has set.
        started_at: start of the first attempt, in seconds since the epoch.
        began: start of the first attempt, on a monotonic clock; None before.
        attempts: number of attempts so far.
    """

    index: int
    item: Any
    key: Any = None
    started_at: float = 0.0
    began: float | None = None
    attempts: int = 0


class Order(Protocol):
    """The order in which requests begin (:mod:`parallel_core.control.fairness`)."""

    @property
    def look_ahead(self) -> int:
        """Number of requests that may wait here, besides those that begin at once."""
        ...

    @property
    def is_full(self) -> bool:
        """True if no request may be drawn until one of those that wait here begins."""
        ...

    @property
    def uncounted(self) -> int:
        """Number of requests to be sent again that do not use up the window of the batch."""
        ...

    def push(self, entry: Any, /) -> None: ...

    def pop(self, limit: int, /) -> Any:
        """Return the next entry that may begin, and count it as running; None if none may begin.

        ``limit``: calls of the batch that may be in flight.
        """
        ...

    def resume(self, entry: Any, limit: int, /) -> bool:
        """Count an entry that is to be called again as running, if it may begin."""
        ...

    def ended(self, entry: Any, /) -> None:
        """Note that a call has ended, finally or until it is made again."""
        ...

    def source_ended(self) -> None:
        """Note that no entry will be added."""
        ...

    def skip_waits(self) -> None:
        """Stop holding requests back for the sake of the provider."""
        ...

    def __len__(self) -> int: ...


class DrawOrder:
    """The order in which requests are drawn."""

    look_ahead = 0
    is_full = False
    uncounted = 0

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self.push = self._waiting.append

    def __len__(self) -> int:
        return len(self._waiting)

    def pop(self, limit: int) -> Any:
        return self._waiting.popleft() if self._waiting else None

    def resume(self, entry: Any, limit: int) -> bool:
        return True

    def ended(self, entry: Any) -> None:
        pass

    def source_ended(self) -> None:
        pass

    def skip_waits(self) -> None:
        pass


class Resends:
    """The requests that are to be sent again, now or later."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.held = False  # no call may begin
        self.due: deque[Entry] = deque()
        self._postponed: dict[Entry, Callable[[], None]] = {}

    @property
    def count(self) -> int:
        """Number of requests that are to be sent again, now or later."""
        return len(self.due) + len(self._postponed)

    def next_due(self, limit: int) -> Entry | None:
        """Return a request that is due and may begin; None if there is none."""
        for position, entry in enumerate(self.due):
            if self._order.resume(entry, limit):
                del self.due[position]
                return entry
        return None

    def postpone(self, entry: Entry, cancel: Callable[[], None]) -> None:
        """Keep a request until :meth:`make_due`; ``cancel`` stops the timer that calls it."""
        self._postponed[entry] = cancel

    def make_due(self, entry: Entry) -> None:
        self._postponed.pop(entry, None)
        self.due.append(entry)

    def skip_waits(self) -> None:
        """End all waits: make every request due, and hold nothing back."""
        self.held = False
        self._order.skip_waits()
        self.bring_forward({entry.index for entry in self._postponed})

    def bring_forward(self, indexes: Collection[int]) -> None:
        """Make these requests due."""
        for entry, cancel in list(self._postponed.items()):
            if entry.index in indexes:
                cancel()
                self.make_due(entry)
