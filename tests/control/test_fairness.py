"""The order in which requests of a batch begin: a hung key leaves the others their slots."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

import parallel_core
from helpers.calls import first_letter
from helpers.hosts import Host, in_virtual_time
from parallel_core.control.fairness import MOST_BYTES, fair_key
from parallel_core.types import RouterParallelRequest


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


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_large_requests_are_not_drawn_far_ahead(
    either_library: Host, kind: str, in_order: bool
) -> None:
    text = "x" * (MOST_BYTES // 8)  # they share it; each counts with it
    drawn = 0

    def requests() -> Iterator[tuple[int, str]]:
        nonlocal drawn
        for number in range(200):
            drawn += 1
            yield number, text

    async def requests_async() -> AsyncIterator[tuple[int, str]]:
        for item in requests():
            yield item

    async def call(item: tuple[int, str]) -> int:
        await anyio.lowlevel.checkpoint()
        return item[0]

    async def main() -> None:
        seen: list[int] = []
        async with parallel_core.iter_parallel_map(
            call,
            requests() if kind == "sync" else requests_async(),
            concurrency=4,
            fair_by=lambda item: item[0] % 3,
            concurrency_per_key=2,
            preserve_order=in_order,
        ) as batch:
            async for result in batch:
                assert result.value is not None
                seen.append(result.value)
                # In input order, results that wait for the consumer keep their requests.
                assert in_order or drawn <= len(seen) + 8 + 2 * 4
        assert sorted(seen) == list(range(200))
        assert not in_order or seen == sorted(seen)

    either_library.run(main)


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
        with pytest.raises(TypeError, match="fair_by returned a key of type Changing") as caught:
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
