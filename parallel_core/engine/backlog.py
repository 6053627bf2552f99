"""The backlog of a batch: requests that are drawn and not in flight.

They have been read ahead for fairness, or wait to be sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable
from typing import Any, Protocol


class Entry:
    """A request on its way through a batch."""

    __slots__ = ("attempts", "began", "index", "item", "key", "started_at")

    def __init__(self, index: int, item: Any) -> None:
        self.index = index
        self.item = item
        self.key: Hashable = None
        # Of the first attempt: the time of day, and the seconds of a clock that only goes forward.
        self.started_at = 0.0
        self.began: float | None = None
        self.attempts = 0


class Order(Protocol):
    """The order in which requests begin (:mod:`parallel_core.control.fairness`)."""

    @property
    def look_ahead(self) -> int:
        """Requests that may wait here, besides one that begins at once."""
        ...

    @property
    def apart(self) -> int:
        """Requests to be sent again that leave room for others: they count neither as under way nor
        as waiting for the consumer."""
        ...

    def push(self, entry: Any, /) -> None: ...

    def pop(self, limit: int, /) -> Any:
        """The next entry that may begin, where ``limit`` calls of the batch may be in flight; it
        counts as running then. None: none may."""
        ...

    def resume(self, entry: Any, limit: int, /) -> bool:
        """Count an entry that is to be called again as running, if it may begin."""
        ...

    def ended(self, entry: Any, /) -> None:
        """A call has ended, for good or to be made again."""
        ...

    def source_ended(self) -> None:
        """What waits is all there will be."""
        ...

    def hurry(self) -> None:
        """No request is kept back for the sake of the provider any more."""
        ...

    def __len__(self) -> int: ...


class InputOrder:
    """Requests begin as they are drawn."""

    look_ahead = 0
    apart = 0

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

    def hurry(self) -> None:
        pass


class Backlog:
    """What waits for a slot, and when it may begin."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.begun = 0
        self.held = False  # no call may begin
        self._due: deque[Entry] = deque()
        self._postponed: dict[Entry, Callable[[], None]] = {}

    @property
    def empty(self) -> bool:
        return not (self.order or self.again)

    @property
    def again(self) -> int:
        """Requests that are to be sent again, now or later."""
        return len(self._due) + len(self._postponed)

    def add(self, index: int, item: Any) -> None:
        self.order.push(Entry(index, item))

    def next_again(self, limit: int) -> Entry | None:
        """Return a request whose time to be sent again has come."""
        for position, entry in enumerate(self._due):
            if self.order.resume(entry, limit):
                del self._due[position]
                return entry
        return None

    def next_new(self, limit: int) -> Entry | None:
        entry: Entry | None = self.order.pop(limit)
        if entry is not None:
            self.begun += 1
        return entry

    def postpone(self, entry: Entry, take_back: Callable[[], None]) -> None:
        """Keep a request until :meth:`due`; ``take_back`` stops the timer that will say so."""
        self._postponed[entry] = take_back

    def due(self, entry: Entry) -> None:
        self._postponed.pop(entry, None)
        self._due.append(entry)

    def hurry(self) -> None:
        """Nothing waits for its time any more."""
        self.held = False
        self.order.hurry()
        self.bring_forward({entry.index for entry in self._postponed})

    def bring_forward(self, indexes: Collection[int]) -> None:
        """The time of these requests has come."""
        for entry, take_back in list(self._postponed.items()):
            if entry.index in indexes:
                take_back()
                self.due(entry)
