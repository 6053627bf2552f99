"""What the functions of each world do with their arguments, and without them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import ModuleType
from typing import Any

import anyio
import pytest

from helpers.hosts import Host, settle
from parallel_core import RouterParallelRequest, StreamEnd, bridge, nursery_engine
from parallel_core.engine.call_errors import describe


def world_of(host: Host) -> ModuleType:
    return nursery_engine if host.library == "trio" else bridge


def request(index: int) -> RouterParallelRequest:
    return RouterParallelRequest("m", [{"role": "user", "content": str(index)}])


def piece(text: str | None, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "1", "model": "m", "choices": [choice]}


class Calls:
    """Calls of each kind. They wait for ``go_on``, in which the last index goes first; what
    ``errors`` has for one is raised."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.most = 0
        self.errors: dict[int, Exception] = {}
        self.waiting: dict[int, anyio.Event] = {}
        self.done = False

    async def of_item(self, index: int) -> int:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        event = anyio.Event()
        self.waiting[index] = event
        try:
            await event.wait()
        finally:
            self.in_flight -= 1
        if index in self.errors:
            raise self.errors[index]
        return index

    async def of_request(self, *, messages: Any, **_: Any) -> dict[str, Any]:
        index = await self.of_item(int(messages[0]["content"]))
        return {"choices": [{"message": {"content": str(index)}}]}

    async def as_stream(self, *, messages: Any, **_: Any) -> AsyncIterator[Any]:
        return self._pieces(int(messages[0]["content"]))

    async def _pieces(self, index: int) -> AsyncGenerator[Any, None]:
        await self.of_item(index)
        yield piece(str(index))
        yield piece(None, "stop")

    def let_go(self, index: int) -> None:
        self.waiting.pop(index).set()

    async def go_on(self) -> None:
        """Let one call after the other go on, until the batch has ended."""
        while not self.done:
            await settle()
            if self.waiting:
                self.let_go(max(self.waiting))
            await anyio.lowlevel.checkpoint()  # a thread may be checking the requests


Start = Callable[[ModuleType, Calls], Any]


def iter_map(world: ModuleType, calls: Calls, **options: Any) -> Any:
    return world.iter_parallel_map(calls.of_item, range(12), **options)


def iter_acompletions(world: ModuleType, calls: Calls, **options: Any) -> Any:
    requests = [request(index) for index in range(12)]
    return world.iter_parallel_acompletions(calls.of_request, requests, **options)


def iter_streams(world: ModuleType, calls: Calls, **options: Any) -> Any:
    requests = [request(index) for index in range(12)]
    return world.iter_parallel_streams(calls.as_stream, requests, **options)


async def as_list(batch: Any) -> list[Any]:
    events = [event async for event in batch]
    return [
        event.result if isinstance(event, StreamEnd) else event
        for event in events
        if isinstance(event, StreamEnd) or hasattr(event, "exception")
    ]


async def results_of(start: Any, world: ModuleType, calls: Calls, **options: Any) -> list[Any]:
    """All results, while the calls go on one after the other."""
    results: list[Any] = []

    async def collect() -> None:
        try:
            async with start(world, calls, **options) as batch:
                results.extend(await as_list(batch))
        finally:
            calls.done = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect)
        await calls.go_on()
    return results


async def list_of_map(world: ModuleType, calls: Calls, **options: Any) -> list[Any]:
    results: list[Any] = await world.parallel_map(calls.of_item, range(12), **options)
    return results


async def list_of_acompletions(world: ModuleType, calls: Calls, **options: Any) -> list[Any]:
    requests = [request(index) for index in range(12)]
    results: list[Any] = await world.parallel_acompletions(calls.of_request, requests, **options)
    return results


async def list_of(function: Any, world: ModuleType, calls: Calls, **options: Any) -> list[Any]:
    results: list[Any] = []

    async def collect() -> None:
        try:
            results.extend(await function(world, calls, **options))
        finally:
            calls.done = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect)
        await calls.go_on()
    return results


ITERATORS = [iter_map, iter_acompletions, iter_streams]
LISTS = [list_of_map, list_of_acompletions]
WAYS: list[tuple[Any, Any]] = [
    *((results_of, start) for start in ITERATORS),
    *((list_of, function) for function in LISTS),
]
each_way = pytest.mark.parametrize(("run", "function"), WAYS, ids=lambda way: way.__name__)


@each_way
def test_eight_calls_at_once_and_exceptions_are_results(
    either_library: Host, run: Any, function: Any
) -> None:
    async def main() -> None:
        calls = Calls()
        calls.errors = {3: KeyError("x")}
        results = await run(function, world_of(either_library), calls)
        assert calls.most == 8
        assert sorted(result.index for result in results) == list(range(12))
        failed = [result for result in results if not result.ok]
        assert [result.index for result in failed] == [3]
        assert isinstance(failed[0].exception, KeyError)
        # Lists are in input order; iterators in completion order, in which the last went first.
        assert (results[0].index == 0) is (run is list_of)

    either_library.run(main)


@each_way
def test_as_many_calls_as_asked_for(either_library: Host, run: Any, function: Any) -> None:
    async def main() -> None:
        calls = Calls()
        results = await run(function, world_of(either_library), calls, concurrency=3)
        assert calls.most == 3
        assert len(results) == 12

    either_library.run(main)


@each_way
def test_the_first_error_ends_the_batch(either_library: Host, run: Any, function: Any) -> None:
    async def main() -> None:
        calls = Calls()
        error = calls.errors[7] = KeyError("x")
        with pytest.raises(BaseExceptionGroup) as group:
            await run(function, world_of(either_library), calls, return_exceptions=False)
        assert group.value.exceptions == (error,)
        assert calls.in_flight == 0

    either_library.run(main)


@pytest.mark.parametrize(
    ("run", "function"),
    [way for way in WAYS if way[1] is not iter_streams],
    ids=lambda way: way.__name__,
)
def test_input_order(either_library: Host, run: Any, function: Any) -> None:
    async def main() -> None:
        results = await run(function, world_of(either_library), Calls(), preserve_order=True)
        assert [result.index for result in results] == list(range(12))

    either_library.run(main)


@each_way
def test_controls_are_passed_on(either_library: Host, run: Any, function: Any) -> None:
    with pytest.raises(TypeError, match="no_such_control"):
        either_library.run(
            lambda: _in_a_group(run, function, world_of(either_library), no_such_control=1)
        )


async def _in_a_group(run: Any, function: Any, world: ModuleType, **options: Any) -> None:
    try:
        await run(function, world, Calls(), **options)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


@pytest.mark.parametrize("start", [iter_map, iter_acompletions])
def test_a_batch_counts_what_it_does(either_library: Host, start: Any) -> None:
    async def main() -> None:
        calls = Calls()
        calls.errors = {0: KeyError("x")}
        async with start(world_of(either_library), calls) as batch:
            while calls.in_flight < 8:
                await settle()
                await anyio.lowlevel.checkpoint()
            assert (batch.started, batch.in_flight, batch.delivered) == (8, 8, 0)
            assert (batch.succeeded, batch.failed, batch.limit) == (0, 0, 8)
            assert batch.limit_changes == []
            assert batch.failed_deployments == {}
            calls.let_go(7)
            calls.let_go(0)
            await settle()
            assert (batch.started, batch.in_flight, batch.delivered) == (10, 8, 0)
            assert (batch.succeeded, batch.failed) == (1, 1)
            seen = 0
            while seen < 2:
                event = await anext(batch)
                seen += isinstance(event, StreamEnd) or hasattr(event, "exception")
            assert batch.delivered == 2
            batch.cancel()
            assert [event async for event in batch] == []

    either_library.run(main)


def test_a_request_is_named_without_what_it_says() -> None:
    assert describe(3, request(1)) == "request 3 (model 'm')"
    assert describe(3, {"model": "x", "messages": "secret"}) == "request 3 (model 'x')"
    assert describe(3, {"model": 5}) == "request 3"
    assert describe(3, "secret") == "request 3"
