"""The backlog: requests that are to be sent again, and the order of the source."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from parallel_core.engine.backlog import DrawOrder, Entry, Resends


class Order:
    """First come, first served; entries of the indexes ``kept_back`` may not resume."""

    look_ahead = 2
    is_full = False
    uncounted = 0

    def __init__(self) -> None:
        self.waiting: deque[Entry] = deque()
        self.kept_back: set[int] = set()
        self.limits: list[int] = []
        self.hurried = False

    def push(self, entry: Entry, /) -> None:
        self.waiting.append(entry)

    def pop(self, limit: int, /) -> Entry | None:
        self.limits.append(limit)
        return self.waiting.popleft() if self.waiting else None

    def resume(self, entry: Entry, limit: int, /) -> bool:
        self.limits.append(limit)
        return entry.index not in self.kept_back

    def ended(self, entry: Entry, /) -> None:
        raise AssertionError

    def source_ended(self) -> None:
        raise AssertionError

    def skip_waits(self) -> None:
        self.hurried = True

    def __len__(self) -> int:
        return len(self.waiting)


def test_an_entry_begins_with_nothing_done() -> None:
    entry = Entry(3, "item")
    assert (entry.index, entry.item, entry.key) == (3, "item", None)
    assert (entry.started_at, entry.began, entry.attempts) == (0.0, None, 0)


def test_new_requests_begin_in_the_order_of_the_source() -> None:
    order = DrawOrder()
    assert order.pop(1) is None
    first, second = Entry(0, "a"), Entry(1, "b")
    order.push(first)
    order.push(second)
    assert len(order) == 2
    assert [order.pop(1), order.pop(1), order.pop(1)] == [first, second, None]
    order.ended(first)
    assert order.resume(first, 1)
    order.skip_waits()
    order.source_ended()
    assert (len(order), order.look_ahead, order.uncounted) == (0, 0, 0)


def postponed(resends: Resends, *indexes: int) -> tuple[list[Entry], list[int]]:
    """Entries that wait for their time, and the indexes of those whose timers were taken back."""
    taken_back: list[int] = []

    def cancel(index: int) -> Callable[[], None]:
        return lambda: taken_back.append(index)

    entries = [Entry(index, None) for index in indexes]
    for entry in entries:
        resends.postpone(entry, cancel(entry.index))
    return entries, taken_back


def test_requests_that_are_to_be_sent_again() -> None:
    order = Order()
    resends = Resends(order)
    entries, taken_back = postponed(resends, 0, 1, 2)
    assert resends.count == 3
    assert resends.next_due(5) is None  # the time of none has come
    resends.make_due(entries[1])
    resends.make_due(entries[0])
    assert resends.count == 3
    order.kept_back = {1}
    assert resends.next_due(5) is entries[0]
    assert resends.next_due(5) is None
    order.kept_back = set()
    assert resends.next_due(5) is entries[1]
    assert resends.count == 1
    assert taken_back == []
    assert set(order.limits) == {5}


def test_some_are_brought_forward() -> None:
    resends = Resends(Order())
    entries, taken_back = postponed(resends, 0, 1, 2)
    resends.bring_forward([0, 2])
    assert taken_back == [0, 2]
    assert resends.count == 3
    assert resends.next_due(5) is entries[0]
    assert resends.next_due(5) is entries[2]
    assert resends.next_due(5) is None
    assert resends.count == 1


def test_nothing_waits_any_more() -> None:
    order = Order()
    resends = Resends(order)
    assert resends.held is False
    resends.held = True
    entries, taken_back = postponed(resends, 0, 1)
    resends.skip_waits()
    assert resends.held is False
    assert order.hurried
    assert taken_back == [0, 1]
    assert resends.next_due(5) is entries[0]
    assert resends.next_due(5) is entries[1]
