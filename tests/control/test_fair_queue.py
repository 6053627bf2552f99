"""The queue in which keys take turns."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.calls import first_letter
from parallel_core.control.fairness import FairQueue, FirstInFirstOut
from parallel_core.control.request_size import request_size
from parallel_core.engine.backlog import Entry
from parallel_core.types import RouterParallelRequest


def queue_of(items: Iterable[str] = (), per_key: int | None = None) -> FairQueue:
    queue = FairQueue(first_letter, per_key, 1024)
    for index, item in enumerate(items):
        queue.push(Entry(index, item))
    return queue


def popped(queue: FairQueue, limit: int) -> list[Entry]:
    return list(iter(lambda: queue.pop(limit), None))


def names(entries: Iterable[Entry]) -> str:
    return " ".join(entry.item for entry in entries)


def assert_empty(queue: FairQueue) -> None:
    state = vars(queue)
    assert len(queue) == 0
    assert not state["_keys"]
    assert not state["_ring"]
    assert not state["_full"]
    assert not state["_running"]


def test_first_in_first_out() -> None:
    order = FirstInFirstOut()
    entries = [Entry(index, None) for index in range(3)]
    assert order.pop(1) is None
    for entry in entries:
        order.push(entry)
    assert len(order) == 3
    assert [order.pop(1) for _ in range(4)] == [*entries, None]
    assert order.resume(entries[0], 1)
    order.ended(entries[0])
    assert (len(order), order.look_ahead) == (0, 0)


def test_a_request_that_was_passed_over_begins_when_a_call_of_its_model_has_ended() -> None:
    """Also if it was looked at just before, when the call was still counted."""
    order = FirstInFirstOut(4)
    first, held = (Entry(index, {"model": "m"}) for index in range(2))
    order.allowed = lambda model: 1
    order.push(first)
    order.push(held)
    assert order.pop(8) is first
    assert order.pop(8) is None
    assert order.make_room("m")
    assert order.pop(8) is None  # the first one is still running
    order.ended(first)
    assert order.pop(8) is held


def test_keys_take_turns() -> None:
    queue = queue_of(["a1", "a2", "a3", "b1", "c1", "c2"], 9)
    entries = popped(queue, 9)
    assert names(entries) == "a1 b1 c1 a2 c2 a3"
    assert queue.pop(9) is None
    for entry in entries:
        queue.ended(entry)
    assert_empty(queue)


@pytest.mark.parametrize(("limit", "cap"), [(1, 1), (4, 2), (5, 3)])
def test_the_default_cap_is_half_of_the_limit(limit: int, cap: int) -> None:
    queue = queue_of([*(f"a{number}" for number in range(9)), "b1"])
    running = popped(queue, limit)
    assert Counter(entry.key for entry in running) == {"a": cap, "b": 1}


def test_one_key_alone_may_use_the_whole_limit() -> None:
    queue = queue_of(["a1", "a2", "a3", "a4", "a5"])
    assert names(popped(queue, 4)) == "a1 a2"  # another may come
    queue.source_ended()
    assert names(popped(queue, 4)) == "a3 a4"


def test_a_key_that_is_alone_again_may_use_the_whole_limit() -> None:
    queue = queue_of(["a1", "a2", "a3", "a4", "b1"])
    queue.source_ended()
    running = popped(queue, 4)
    assert names(running) == "a1 b1 a2"
    queue.ended(running[1])
    assert names(popped(queue, 4)) == "a3 a4"


def test_resume_respects_the_cap() -> None:
    queue = queue_of(["a1", "a2", "a3"], 2)
    first, second = popped(queue, 8)
    queue.ended(first)
    [third] = popped(queue, 8)
    assert not queue.resume(first, 8)
    queue.ended(second)
    assert queue.resume(first, 8)
    assert not queue.resume(second, 8)
    queue.ended(third)
    queue.ended(first)
    assert_empty(queue)
    assert queue.resume(second, 8)  # its key is not known any more
    queue.ended(second)
    assert_empty(queue)


def test_what_else_allows_calls_of_a_key() -> None:
    queue = queue_of(["a1", "a2", "a3", "b1", "b2"])
    allowed = {"a": 1, "b": 0}
    queue.allowed = lambda key: allowed[str(key)]
    (first,) = popped(queue, 100)
    assert first.item == "a1"
    assert queue.key_of(first.index) == "a"
    allowed["a"] = allowed["b"] = 2
    assert queue.pop(100) is None  # it was found out before that there is no room
    queue.make_room("b")
    assert names(popped(queue, 100)) == "b1 b2"
    queue.make_room("b")  # nothing of it waits
    queue.ended(first)
    with pytest.raises(KeyError):
        queue.key_of(first.index)
    assert names(popped(queue, 100)) == "a2 a3"
    allowed["a"] = 0
    assert not queue.resume(first, 100)
    queue.push(Entry(5, "a4"))
    assert queue.pop(100) is None
    queue.skip_waits()
    assert names(popped(queue, 100)) == "a4"
    assert queue.resume(first, 100)


def test_a_limit_that_shrinks_and_grows() -> None:
    queue = queue_of(
        [*(f"a{number}" for number in range(9)), *(f"b{number}" for number in range(9))]
    )
    running = popped(queue, 8)
    assert Counter(entry.key for entry in running) == {"a": 4, "b": 4}
    assert queue.pop(4) is None
    queue.ended(running.pop())
    assert queue.pop(4) is None  # still more than two
    assert Counter(entry.key for entry in popped(queue, 12)) == {"a": 2, "b": 3}


def test_an_unhashable_key_leaves_nothing() -> None:
    def key(item: Any) -> Any:
        return [item]

    queue = FairQueue(key, None, 8)
    with pytest.raises(TypeError, match="unhashable"):
        queue.push(Entry(0, "a"))
    assert_empty(queue)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "pop", "pop", "end", "resume"]), st.integers(0, 9)
        ),
        max_size=120,
    ),
    st.none() | st.integers(1, 3),
)
def test_the_rules_hold_at_every_step(steps: list[tuple[str, int]], per_key: int | None) -> None:
    queue = queue_of((), per_key)
    waiting: dict[str, deque[Entry]] = defaultdict(deque)
    running: list[Entry] = []
    again: list[Entry] = []
    since: dict[tuple[str, str], list[int]] = {}  # pops while both wait below their caps
    index = itertools.count()

    def cap(limit: int) -> int:
        alive = {key for key, entries in waiting.items() if entries} | {e.key for e in running}
        if per_key is not None:
            return per_key
        return limit if len(alive) < 2 else (limit + 1) // 2

    def count(key: object) -> int:
        return sum(entry.key == key for entry in running)

    for action, number in steps:
        limit = number + 1
        if action == "push":
            entry = Entry(next(index), "abcd"[number % 4])
            queue.push(entry)
            waiting[entry.item].append(entry)
        elif action == "pop":
            most = cap(limit)
            open_keys = sorted(k for k, entries in waiting.items() if entries and count(k) < most)
            entry_or_none = queue.pop(limit)
            assert (entry_or_none is None) == (not open_keys)
            pairs = set(itertools.combinations(open_keys, 2))
            for pair in set(since) - pairs:
                del since[pair]
            if entry_or_none is not None:
                key = entry_or_none.key
                assert key in open_keys
                assert waiting[key].popleft() is entry_or_none
                running.append(entry_or_none)
                for pair in pairs:
                    counts = since.setdefault(pair, [0, 0])
                    if key in pair:
                        counts[pair.index(key)] += 1
                    assert abs(counts[0] - counts[1]) <= 1
        elif action == "end" and running:
            entry = running.pop(number % len(running))
            queue.ended(entry)
            again.append(entry)
        elif action == "resume" and again:
            entry = again[number % len(again)]
            alive = {k for k, entries in waiting.items() if entries} | {e.key for e in running}
            if entry.key not in alive:
                continue  # the key itself makes it one more
            fits = count(entry.key) < cap(limit)
            assert queue.resume(entry, limit) is fits
            if fits:
                again.remove(entry)
                running.append(entry)
        for pair in list(since):
            if not (waiting[pair[0]] and waiting[pair[1]]) or action in ("end", "resume"):
                del since[pair]
        assert len(queue) == sum(map(len, waiting.values()))
    for entry in running:
        queue.ended(entry)
    while (last := queue.pop(1)) is not None:
        assert waiting[last.key].popleft() is last
        queue.ended(last)
    assert not any(waiting.values())
    assert_empty(queue)


def test_capped_keys_are_looked_at_once() -> None:
    queue = queue_of((), 1)
    many = 100_000
    queue = FairQueue(lambda item: item, 1, 10**9)
    for number in range(many):
        queue.push(Entry(number, number))
    assert len(popped(queue, many * 2)) == many
    for number in range(many):
        queue.push(Entry(number, number))
    assert queue.pop(many * 2) is None
    assert not vars(queue)["_ring"]  # the next pop has nothing to go through
    queue.push(Entry(many, "free"))
    assert queue.pop(many * 2).item == "free"
    assert len(vars(queue)["_full"]) == many


def test_a_queue_with_large_requests_is_full_before_it_has_many() -> None:
    queue = FairQueue(lambda item: item["key"], None, 1024, most_bytes=10_000)
    for index in range(3):
        assert not queue.is_full
        queue.push(Entry(index, {"key": "ab"[index % 2], "text": "x" * 4000}))
    assert queue.is_full
    entry = queue.pop(8)
    assert not queue.is_full
    queue.ended(entry)
    queue.push(Entry(3, {"key": "c", "text": "x" * 50_000}))
    assert queue.is_full
    for entry in popped(queue, 8):
        queue.ended(entry)
    assert not queue.is_full
    assert_empty(queue)
    assert vars(queue)["_bytes"] == 0


@pytest.mark.parametrize(
    ("item", "least", "most"),
    [
        ("x" * 1000, 1000, 1100),
        ("\N{GRINNING FACE}" * 1000, 4000, 4200),
        ({"messages": [{"role": "user", "content": "x" * 1000}]}, 1000, 1600),
        (RouterParallelRequest("m", [{"content": [{"text": "x" * 1000}]}]), 1000, 1600),
        (RouterParallelRequest("m", kwargs={"input": ["x" * 1000] * 3}), 3000, 3600),
        (RouterParallelRequest("m", kwargs={"input": [17] * 1000}), 30_000, 33_000),
        (("tenant", b"x" * 1000), 1000, 1400),
        ((7, "x" * 1000), 1000, 1400),
        (bytearray(1000), 1000, 1200),
        (None, 0, 100),
    ],
)
def test_the_size_of_a_request_is_about_that_of_its_texts(item: Any, least: int, most: int) -> None:
    assert least <= request_size(item) <= most


def test_a_request_that_contains_itself_has_a_size() -> None:
    item: list[Any] = ["x"]
    item.append(item)
    assert request_size(item) > 0
