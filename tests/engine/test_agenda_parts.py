"""What waits on an agenda: new requests, and those that are to be sent again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from parallel_core._agenda import Agenda, Entry


class Order:
    """First come, first served; entries of the indexes ``kept_back`` may not resume."""

    look_ahead = 2
    apart = 0

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

    def hurry(self) -> None:
        self.hurried = True

    def __len__(self) -> int:
        return len(self.waiting)


def test_an_entry_begins_with_nothing_done() -> None:
    entry = Entry(3, "item")
    assert (entry.index, entry.item, entry.key) == (3, "item", None)
    assert (entry.started_at, entry.began, entry.attempts) == (0.0, None, 0)


def test_new_requests() -> None:
    order = Order()
    agenda = Agenda(order)
    assert agenda.empty
    assert agenda.wants_more
    agenda.add(0, "a")
    assert not agenda.empty
    assert agenda.wants_more
    agenda.add(1, "b")
    assert not agenda.wants_more
    first, second = agenda.next_new(7), agenda.next_new(7)
    assert first is not None
    assert second is not None
    assert [(e.index, e.item) for e in (first, second)] == [(0, "a"), (1, "b")]
    assert agenda.next_new(7) is None
    assert agenda.begun == 2
    assert order.limits == [7, 7, 7]
    assert agenda.empty


def postponed(agenda: Agenda, *indexes: int) -> tuple[list[Entry], list[int]]:
    """Entries that wait for their time, and the indexes of those whose timers were taken back."""
    taken_back: list[int] = []

    def take_back(index: int) -> Callable[[], None]:
        return lambda: taken_back.append(index)

    entries = [Entry(index, None) for index in indexes]
    for entry in entries:
        agenda.postpone(entry, take_back(entry.index))
    return entries, taken_back


def test_requests_that_are_to_be_sent_again() -> None:
    order = Order()
    agenda = Agenda(order)
    entries, taken_back = postponed(agenda, 0, 1, 2)
    assert agenda.again == 3
    assert not agenda.empty
    assert agenda.next_again(5) is None  # the time of none has come
    agenda.due(entries[1])
    agenda.due(entries[0])
    assert agenda.again == 3
    order.kept_back = {1}
    assert agenda.next_again(5) is entries[0]
    assert agenda.next_again(5) is None
    order.kept_back = set()
    assert agenda.next_again(5) is entries[1]
    assert agenda.again == 1
    assert taken_back == []
    assert set(order.limits) == {5}
    assert agenda.begun == 0  # they had begun before


def test_some_are_brought_forward() -> None:
    agenda = Agenda(Order())
    entries, taken_back = postponed(agenda, 0, 1, 2)
    agenda.bring_forward([0, 2])
    assert taken_back == [0, 2]
    assert agenda.again == 3
    assert agenda.next_again(5) is entries[0]
    assert agenda.next_again(5) is entries[2]
    assert agenda.next_again(5) is None
    assert agenda.again == 1


def test_nothing_waits_any_more() -> None:
    order = Order()
    agenda = Agenda(order)
    assert agenda.held is False
    agenda.held = True
    entries, taken_back = postponed(agenda, 0, 1)
    agenda.hurry()
    assert agenda.held is False
    assert order.hurried
    assert taken_back == [0, 1]
    assert agenda.next_again(5) is entries[0]
    assert agenda.next_again(5) is entries[1]
