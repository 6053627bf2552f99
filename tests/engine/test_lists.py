"""Lists of results: in the order of the input, and not lost where the batch ends in an error."""

from __future__ import annotations

import asyncio
import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import trio

import parallel_core
from helpers.hosts import Host, settle
from parallel_core import bridge, nursery_engine, results_of
from parallel_core.control.options import Controls
from parallel_core.engine.handle import attach_results

FUNCTIONS = (
    *("iter_parallel_map", "parallel_map", "iter_parallel_acompletions", "parallel_acompletions"),
    *("iter_parallel_streams", "parallel_completions"),
)
OPERATIONS = ("iter_parallel_calls", "parallel_calls", "parallel_calls_sync")


def test_a_list_is_in_the_order_of_its_input(host: Host) -> None:
    async def main() -> None:
        turns = [anyio.Event() for _ in range(5)]
        turns[4].set()

        async def call(item: int) -> int:  # the last one ends first
            await turns[item].wait()
            turns[item - 1].set()
            return item

        async def complete(*, model: str, messages: Any) -> dict[str, Any]:
            return {"choices": [{"message": {"content": model}}]}

        items = range(5)
        for item, result in zip(items, await parallel_core.parallel_map(call, items), strict=True):
            assert result.value == item
        turns[:] = [anyio.Event() for _ in range(5)]
        turns[4].set()
        unordered = await parallel_core.parallel_map(call, items, preserve_order=False)
        assert [result.value for result in unordered] == [4, 3, 2, 1, 0]
        messages = [{"role": "user", "content": "hi"}]
        requests = [{"model": f"m{n}", "messages": messages} for n in items]
        answered = await parallel_core.parallel_acompletions(complete, requests)
        assert [result.index for result in answered] == list(items)

    host.run(main)


def test_an_error_of_the_source_carries_the_results(host: Host) -> None:
    error = LookupError("no more")

    def source() -> Iterator[int]:
        yield from range(3)
        raise error

    async def call(item: int) -> int:
        await anyio.lowlevel.checkpoint()
        return item

    async def main() -> None:
        with pytest.raises(LookupError) as raised:
            await parallel_core.parallel_map(call, source())
        assert raised.value is error
        results = vars(error)["results"]
        assert [result.value for result in results] == [0, 1, 2]
        assert error.__notes__ == [
            "parallel_core: 3 results had finished: see `results` of this exception"
        ]

    host.run(main)


def test_the_first_error_carries_the_results_before_it(host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            if item == 1:
                await settle()
                raise LookupError
            return item

        with pytest.raises(LookupError) as raised:
            await parallel_core.parallel_map(call, range(2), return_exceptions=False)
        assert [result.value for result in vars(raised.value)["results"]] == [0]
        assert "1 result had finished" in raised.value.__notes__[-1]

    host.run(main)


def test_an_error_with_results_of_its_own_keeps_them(host: Host) -> None:
    class MyError(Exception):
        results = "my own"

    async def main() -> None:
        async def call(item: int) -> int:
            if item == 1:
                await settle()
                raise MyError
            return item

        with pytest.raises(MyError) as raised:
            await parallel_core.parallel_map(call, range(2), return_exceptions=False)
        assert raised.value.results == "my own"

    host.run(main)


def test_a_property_of_that_name_is_left_alone(host: Host) -> None:
    class MyError(Exception):
        @property
        def results(self) -> None:
            raise AssertionError("it was asked")

    async def main() -> None:
        async def call(item: int) -> int:
            if item == 1:
                await settle()
                raise MyError
            return item

        with pytest.raises(MyError) as raised:
            await parallel_core.parallel_map(call, range(2), return_exceptions=False)
        assert len(raised.value.__notes__) == 1
        assert results_of(raised.value) == []

    host.run(main)


def test_the_list_function_that_it_came_out_of_last_has_its_results_on_an_error(host: Host) -> None:
    async def main() -> None:
        error = LookupError()

        async def inner(item: int) -> str:
            if item == 1:
                await settle()
                raise error
            return "inner"

        async def outer(item: int) -> str:
            if item == 2:
                await settle()
                await parallel_core.parallel_map(inner, range(2), return_exceptions=False)
            return "outer"

        with pytest.raises(LookupError):
            await parallel_core.parallel_map(outer, range(3), return_exceptions=False)
        assert [result.value for result in results_of(error)] == ["outer", "outer"]

        async def at_once(item: int) -> str:
            raise error

        with pytest.raises(LookupError):
            await parallel_core.parallel_map(at_once, [1], return_exceptions=False)
        assert vars(error)["results"] == []

    host.run(main)


def test_an_error_with_results_goes_to_other_processes_without_them() -> None:
    error = LookupError("x")
    result: Any = parallel_core.ParallelResult(0, lambda: None)  # cannot be pickled
    attach_results(error, [result], preserve_order=True)
    assert results_of(error) == [result]
    copied = pickle.loads(pickle.dumps(error))
    assert (copied.args, results_of(copied)) == (("x",), [])


def test_results_are_found_behind_a_timeout_and_an_exception_group() -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            if item == 2:  # the last one to begin: the first has ended
                scope.deadline = trio.current_time()
            if item:
                await trio.sleep_forever()
            return item

        with pytest.raises(trio.TooSlowError) as raised, trio.fail_after(1000) as scope:
            await parallel_core.parallel_map(call, range(3))
        assert [result.value for result in results_of(raised.value)] == [0]
        assert results_of(LookupError()) == []

    trio.run(main)


def test_ctrl_c_in_parallel_completions_carries_the_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def complete(*, model: str, messages: Any) -> dict[str, Any]:
        if model == "last":
            await asyncio.sleep(0)
            raise KeyboardInterrupt
        return {"choices": [{"message": {"content": model}}]}

    messages = [{"role": "user", "content": "hi"}]
    requests = [{"model": name, "messages": messages} for name in ("first", "last")]
    with pytest.raises(KeyboardInterrupt) as raised:
        parallel_core.parallel_completions(complete, requests, concurrency=1)
    assert [result.request.model for result in results_of(raised.value)] == ["first"]


@pytest.mark.parametrize("option", ["return_exceptions", "preserve_order"])
@pytest.mark.parametrize("value", [None, "no", 1])
def test_a_flag_is_true_or_false(host: Host, option: str, value: Any) -> None:
    async def call(item: int) -> int:
        raise AssertionError("it was called")

    async def main() -> None:
        options: Any = {option: value}
        with pytest.raises(TypeError, match=f"^{option} must be True or False, not"):
            await parallel_core.parallel_map(call, [1], **options)
        with pytest.raises(TypeError, match=f"^{option} must be True or False, not"):
            parallel_core.iter_parallel_map(call, [1], **options)

    host.run(main)


def test_a_mistyped_option_is_named_with_the_one_that_was_meant(host: Host) -> None:
    async def main() -> None:
        options: Any = {"concurency": 2}
        with pytest.raises(TypeError, match=r"'concurency' \(did you mean concurrency\?\)"):
            await parallel_core.parallel_map(anyio.sleep, [1], **options)

    host.run(main)


def test_a_cancellation_carries_the_results(host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            if item:
                await anyio.sleep_forever()
            return item

        carried: list[Any] = []

        async def run() -> None:
            try:
                await parallel_core.parallel_map(call, range(3))
            except BaseException as error:
                carried.extend(vars(error)["results"])
                raise

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await settle()
            group.cancel_scope.cancel()
        assert [result.value for result in carried] == [0]

    host.run(main)


def test_a_timeout_of_asyncio_has_the_results_in_its_cause(asyncio_host: Host) -> None:
    async def main() -> None:
        async def call(item: int) -> int:
            if item == 2:  # the last one to begin: the first has ended
                timeout.reschedule(asyncio.get_running_loop().time())
            if item:
                await asyncio.Event().wait()
            return item

        with pytest.raises(TimeoutError) as raised:
            async with asyncio.timeout(None) as timeout:
                await parallel_core.parallel_map(call, range(3))
        cause: Any = raised.value.__cause__
        assert [result.value for result in cause.results] == [0]

    asyncio_host.run(main)


@pytest.mark.parametrize("name", [*FUNCTIONS, *OPERATIONS])
def test_help_names_each_argument(name: str) -> None:
    function = getattr(parallel_core, name)
    signature = inspect.signature(function)
    document = inspect.getdoc(function) or ""
    assert "{controls}" not in document
    of_requests = {"attempt_timeout", "direct", "on_chunk", "stall_timeout"}
    refused = of_requests if name.endswith("map") else set()
    refused |= {"hedge"} if name == "iter_parallel_streams" else set()
    refused |= of_requests - {"attempt_timeout"} if name in OPERATIONS else set()
    controls = set(Controls.__annotations__)
    assert controls & set(signature.parameters) == controls - refused
    arguments = document.partition("Args:")[2].partition("Returns:")[0]
    for parameter in signature.parameters:
        assert f"    {parameter}: " in arguments, parameter
    assert "Raises:" in document
    assert "::\n" in document  # an example


def test_the_modules_of_both_worlds_have_the_same_functions() -> None:
    for name in FUNCTIONS[:-1]:
        function = getattr(parallel_core, name)
        assert getattr(bridge, name) is function
        assert getattr(nursery_engine, name) is function
    missing = "no_such_name"
    for module in (bridge, nursery_engine):
        with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
            getattr(module, missing)


@pytest.mark.parametrize("seconds", [0, "soon"])
def test_the_timeout_of_a_mapping_is_that_of_a_request(seconds: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]

    async def complete(*, model: str, messages: Any) -> None:
        raise AssertionError("it was sent")

    async def main() -> None:
        with pytest.raises(parallel_core.InvalidRequestError, match="timeout"):
            await parallel_core.parallel_acompletions(
                complete, [{"model": "m", "messages": messages, "timeout": seconds}]
            )

    trio.run(main)


def test_the_timeout_of_a_mapping_ends_the_call(host: Host) -> None:
    async def complete(*, model: str, messages: Any) -> None:
        await anyio.sleep_forever()

    async def main() -> None:
        request = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "timeout": 0.01}
        (result,) = await parallel_core.parallel_acompletions(complete, [request])
        assert isinstance(result.exception, parallel_core.RequestTimeoutError)

    host.run(main)
