"""The order in which requests begin: keys take turns, and a hung one leaves room for others."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import Host, in_virtual_time
from parallel_core._agenda import Entry
from parallel_core.control.fairness import FairQueue, FirstInFirstOut, fair_key
from parallel_core.types import RouterParallelRequest

T = TypeVar("T")


def first_letter(item: str) -> str:
    return item[0]


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
    assert (len(order), order.look_ahead) == (0, 1)


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
    queue.hurry()
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


# --- the option ---


def test_the_model_is_a_key() -> None:
    key = fair_key("model")
    assert key(RouterParallelRequest("gpt", [])) == "gpt"
    assert key({"model": "claude"}) == "claude"
    assert key({"model": []}) is None
    assert key(5) is None


async def async_key(item: object) -> str:
    return ""


@pytest.mark.parametrize(
    ("value", "kind"), [("key", ValueError), (5, TypeError), (async_key, TypeError)]
)
def test_what_is_no_key_function(value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="fair_by must be 'model' or a "):
        fair_key(value)


# --- through the engine ---


def sources(items: Iterable[Any]) -> dict[str, Callable[[], Any]]:
    async def drawn() -> AsyncIterator[Any]:
        for item in items:
            yield item

    return {"sync": lambda: iter(items), "async": drawn}


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_hung_key_leaves_the_other_its_speed(kind: str) -> None:
    async def call(item: str) -> str:
        await (anyio.sleep(1) if item == "fast" else anyio.sleep(1000))
        return item

    async def main() -> None:
        source = sources(["hung"] * 20 + ["fast"] * 20)[kind]()
        times = []
        async with parallel_core.iter_parallel_map(
            call,
            source,
            concurrency=8,
            fair_by=lambda item: item,
            # An async source is not drawn ahead before the first calls: only one key is known.
            concurrency_per_key=4 if kind == "async" else None,
        ) as batch:
            async for result in batch:
                assert result.value == "fast"
                assert result.item == "fast"
                assert result.index >= 20
                times.append(trio.current_time() - began)
                if len(times) == 20:
                    break
        assert times == pytest.approx([float(1 + number // 4) for number in range(20)])

    began = 0.0

    async def timed() -> None:
        nonlocal began
        began = trio.current_time()
        await main()

    in_virtual_time(timed)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_endless_source_is_drawn_a_bounded_way(host: Host, kind: str) -> None:
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        for number in itertools.count():
            drawn += 1
            yield number

    async def endless_async() -> AsyncIterator[int]:
        for number in endless():
            yield number

    async def call(item: int) -> int:
        await anyio.lowlevel.checkpoint()
        return item

    async def main() -> None:
        seen = 0
        async with parallel_core.iter_parallel_map(
            call,
            endless() if kind == "sync" else endless_async(),
            concurrency=4,
            fair_by=lambda item: item % 3,
            concurrency_per_key=2,
        ) as batch:
            async for _ in batch:
                seen += 1
                assert drawn <= 1024 + 1 + seen + 8
                if seen == 50:
                    break

    host.run(main)


@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("unhashable", [True, False])
def test_a_bad_key_fails_the_batch(
    host: Host, fail_fast: bool, kind: str, unhashable: bool
) -> None:
    error = LookupError()

    def key(item: int) -> Any:
        if item == 5:
            if unhashable:
                return []
            raise error
        return item

    async def call(item: int) -> int:
        await anyio.sleep_forever()
        return item

    async def main() -> None:
        with pytest.raises(TypeError if unhashable else LookupError) as caught:
            await parallel_core.parallel_map(
                call, sources(range(10))[kind](), fair_by=key, return_exceptions=not fail_fast
            )
        assert unhashable or caught.value is error
        assert caught.value.__notes__[0] == "parallel_core: raised by fair_by for request 5"

    host.run(main)


class Changing:
    """A key that is changed, and so is not found again."""

    value = 0

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Changing) and other.value == self.value


@pytest.mark.parametrize("while_it_runs", [True, False])
def test_a_key_that_changes_fails_the_batch_and_no_result_is_lost(
    host: Host, while_it_runs: bool
) -> None:
    keys = [Changing(), Changing()]
    keys[1].value = 1

    async def call(item: int) -> int:
        if item == 0:
            keys[0 if while_it_runs else 1].value = 7
        await anyio.lowlevel.checkpoint()
        return item

    async def main() -> None:
        results: list[int | None] = []
        with pytest.raises(TypeError, match=r"fair_by gave a key \(of type Changing\)") as caught:
            async with parallel_core.iter_parallel_map(
                call, range(2), concurrency=1, fair_by=keys.__getitem__
            ) as batch:
                async for result in batch:
                    results.append(result.value)
        assert results == [0]
        if while_it_runs:
            note = "parallel_core: found when request 0 had ended"
            assert note in caught.value.__notes__

    host.run(main)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_fail_fast_leaves_nothing(host: Host, kind: str) -> None:
    ended: list[int] = []
    error = LookupError()

    async def call(item: int) -> None:
        try:
            if item == 3:
                raise error
            await anyio.sleep_forever()
        finally:
            ended.append(item)

    async def main() -> None:
        with pytest.raises(LookupError) as caught:
            await parallel_core.parallel_map(
                call,
                sources(range(9))[kind](),
                concurrency=4,
                fair_by=lambda item: item % 2,
                return_exceptions=False,
            )
        assert caught.value is error
        assert sorted(ended) == [0, 1, 2, 3]

    host.run(main)


def test_a_cancelled_batch_leaves_nothing(host: Host) -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def main() -> None:
        async def call(item: int) -> None:
            begun.append(item)
            if len(begun) == 4:
                scope.cancel()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(item)

        with anyio.CancelScope() as scope:
            await parallel_core.parallel_map(
                call, itertools.count(), concurrency=4, fair_by=lambda item: item % 2
            )
        assert sorted(ended) == [0, 1, 2, 3]

    host.run(main)


def test_each_request_once_and_in_order(host: Host) -> None:
    most: Counter[str] = Counter()
    running: Counter[str] = Counter()

    async def call(item: str) -> str:
        running[item[0]] += 1
        most[item[0]] = max(most[item[0]], running[item[0]])
        await anyio.lowlevel.checkpoint()
        running[item[0]] -= 1
        return item

    async def main() -> None:
        items = [f"{letter}{number}" for letter in "ab" for number in range(30)]
        results = await parallel_core.parallel_map(
            call, items, preserve_order=True, fair_by=first_letter, concurrency_per_key=3
        )
        assert [(result.index, result.value) for result in results] == list(enumerate(items))
        assert most == {"a": 3, "b": 3}
        async with parallel_core.iter_parallel_map(
            call, items, preserve_order=True, fair_by=first_letter
        ) as batch:
            assert [result.value async for result in batch] == items

    host.run(main)


@pytest.mark.parametrize("source", ["list", "async"])
def test_input_order_with_keys_that_take_turns_comes_to_its_end(source: str) -> None:
    async def call(item: str) -> str:
        await trio.sleep(1)
        return item

    async def drawn(items: list[str]) -> AsyncIterator[str]:
        for item in items:
            yield item

    async def main() -> None:
        items = ["a"] * 100 + ["b"] * 100
        async with parallel_core.iter_parallel_map(
            call,
            items if source == "list" else drawn(items),
            concurrency=2,
            fair_by=lambda item: item,
            preserve_order=True,
        ) as batch:
            with trio.fail_after(1000):
                assert [result.value async for result in batch] == items

    in_virtual_time(main)


def test_a_key_function_that_raises_ends_the_draws(host: Host) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        for item in range(100_000):
            drawn += 1
            yield item

    async def call(item: int) -> int:
        return item

    async def main() -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            await parallel_core.parallel_map(call, items(), fair_by=lambda item: item / 0)
        assert drawn == 1
        assert caught.value.__notes__ == ["parallel_core: raised by fair_by for request 0"]

    host.run(main)


def test_the_last_key_has_the_whole_concurrency() -> None:
    most = running = 0

    async def call(item: str) -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1

    async def main() -> None:
        await parallel_core.parallel_map(call, ["a"] * 40, concurrency=8, fair_by=first_letter)
        assert most == 8

    in_virtual_time(main)


def test_the_other_key_is_found_far_behind_one_that_hangs() -> None:
    async def call(item: str) -> str:
        if item == "a":
            await trio.sleep_forever()
        return item

    async def main() -> None:
        items = ["a"] * 500 + ["b"] * 5
        async with parallel_core.iter_parallel_map(
            call, items, concurrency=3, fair_by=first_letter, concurrency_per_key=2
        ) as batch:
            with trio.fail_after(10):
                for _ in range(5):
                    assert (await anext(batch)).value == "b"

    in_virtual_time(main)
