"""Controls of a batch through the engine: timeout, deadline, a limit that changes, bad input."""

from __future__ import annotations

import contextlib
import itertools
import pickle
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import anyio
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import Host, in_virtual_time, settle
from parallel_core import (
    AdaptiveConcurrency,
    BatchDeadlineError,
    Budget,
    Hedge,
    RateLimit,
    RequestTimeoutError,
    Retry,
    RouterParallelRequest,
    Usage,
)
from parallel_core.router_call import check_models

T = TypeVar("T")


async def sleep(seconds: float) -> float:
    await anyio.sleep(seconds)
    return seconds


async def hang(item: object) -> None:
    await anyio.sleep_forever()


def request(model: str = "gpt", timeout: float | None = None) -> RouterParallelRequest:
    return RouterParallelRequest(model, [{"role": "user", "content": "hi"}], None, timeout)


# --- timeout ---


def test_a_timeout_ends_one_call_and_no_other() -> None:
    async def main() -> None:
        results = await parallel_core.parallel_map(sleep, [1, 9, 2], timeout=5)
        assert [result.value for result in results] == [1, 2, None]
        error = results[2].exception
        assert isinstance(error, RequestTimeoutError)
        assert (error.index, error.model, error.limit) == (1, None, 5)
        assert str(error) == "request 1 took longer than its timeout of 5 s"
        assert trio.current_time() - began == 5

    began = 0.0

    async def timed() -> None:
        nonlocal began
        began = trio.current_time()
        await main()

    in_virtual_time(timed)


def test_the_timeout_of_a_request_goes_before_that_of_the_batch() -> None:
    async def answer(*, model: str, messages: Any, **kwargs: object) -> str:
        assert kwargs == {}
        await anyio.sleep(3)
        return "done"

    async def main() -> None:
        requests = [request(timeout=1), request(timeout=5), request()]
        results = await parallel_core.parallel_acompletions(
            answer, requests, timeout=2, preserve_order=True
        )
        first, second, third = (result.exception for result in results)
        assert isinstance(first, RequestTimeoutError)
        assert (first.model, first.limit) == ("gpt", 1)
        assert second is None
        assert isinstance(third, RequestTimeoutError)
        assert third.limit == 2

    in_virtual_time(main)


def test_a_timeout_is_the_first_error_of_a_fail_fast_batch(host: Host) -> None:
    ended: list[object] = []

    async def call(item: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(item)

    async def main() -> None:
        with pytest.raises(RequestTimeoutError) as caught:
            await parallel_core.parallel_map(
                call, range(100), concurrency=4, timeout=0.001, return_exceptions=False
            )
        assert len(ended) == len(set(ended)) <= 4
        assert caught.value.__notes__ == [f"parallel_core: raised by request {caught.value.index}"]

    host.run(main)


def test_a_call_that_returns_although_its_time_is_over_has_succeeded() -> None:
    async def call(item: int) -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        return "in spite of it"

    async def main() -> None:
        (result,) = await parallel_core.parallel_map(call, [0], timeout=1)
        assert result.value == "in spite of it"

    in_virtual_time(main)


def test_a_timeout_error_of_the_call_itself_stays_what_it_is(host: Host) -> None:
    error = TimeoutError("of the call")

    async def call(item: int) -> None:
        raise error

    async def main() -> None:
        (result,) = await parallel_core.parallel_map(call, [0], timeout=1)
        assert result.exception is error

    host.run(main)


# --- deadline ---


async def numbers(values: Iterable[int]) -> AsyncIterator[int]:
    for value in values:
        yield value


@pytest.mark.parametrize("preserve_order", [False, True])
def test_at_the_deadline_each_request_of_a_list_has_a_result(preserve_order: bool) -> None:
    started: list[float] = []

    async def call(seconds: float) -> float:
        started.append(seconds)
        return await sleep(seconds)

    async def main() -> None:
        results = await parallel_core.parallel_map(
            call, [1, 99, 2, 98, *range(50, 90)], concurrency=2, deadline=10
        )
        assert trio.current_time() - began == 10
        assert len(results) == 44
        assert {result.index for result in results} == set(range(44))
        assert started == [1, 99, 2, 98]
        for result in results:
            if result.index in (0, 2):
                assert result.ok
            else:
                assert isinstance(result.exception, BatchDeadlineError)
                assert (result.exception.index, result.exception.limit) == (result.index, 10)

    began = 0.0

    async def timed() -> None:
        nonlocal began
        began = trio.current_time()
        await main()

    in_virtual_time(timed)


@pytest.mark.parametrize("source", ["generator", "async generator"])
def test_at_the_deadline_an_endless_source_just_ends(source: str) -> None:
    async def main() -> None:
        endless = itertools.count()
        items = iter(endless) if source == "generator" else numbers(endless)
        results = await parallel_core.parallel_map(
            lambda _: sleep(4), items, concurrency=2, deadline=10, preserve_order=True
        )
        assert [result.ok for result in results] == [True] * 4 + [False] * 2
        assert all(isinstance(r.exception, BatchDeadlineError) for r in results[4:])

    in_virtual_time(main)


def test_a_deadline_ends_a_source_that_never_gives_anything(host: Host) -> None:
    async def silent() -> AsyncIterator[int]:
        await anyio.sleep_forever()
        yield 0

    async def main() -> None:
        assert await parallel_core.parallel_map(hang, silent(), deadline=0.01) == []

    host.run(main)


def test_a_fail_fast_batch_raises_its_deadline(host: Host) -> None:
    async def main() -> None:
        with pytest.raises(BatchDeadlineError, match=r"the batch was not finished .* 0\.01 s"):
            await parallel_core.parallel_map(
                hang, itertools.count(), deadline=0.01, return_exceptions=False
            )

    host.run(main)


def test_a_deadline_that_is_never_reached_does_nothing(host: Host) -> None:
    async def main() -> None:
        results = await parallel_core.parallel_map(sleep, [0, 0], deadline=1000)
        assert all(result.ok for result in results)

    host.run(main)


def test_the_consumer_sets_the_pace_after_the_deadline_too(host: Host) -> None:
    drawn = 0

    class Many:
        def __len__(self) -> int:
            return 100_000

        def __iter__(self) -> Any:
            nonlocal drawn
            for index in range(100_000):
                drawn += 1
                yield index

    async def main() -> None:
        async with parallel_core.iter_parallel_map(
            hang, Many(), concurrency=4, deadline=0.001
        ) as batch:
            result = await anext(batch)
            assert isinstance(result.exception, BatchDeadlineError)
            await settle()
            assert drawn <= 10

    host.run(main)


# --- a limit that changes ---


@given(
    limits=st.lists(st.integers(1, 12), min_size=1, max_size=12),
    items=st.integers(0, 120),
    preserve_order=st.booleans(),
    lazy=st.booleans(),
)
def test_a_changing_limit_is_kept_and_nothing_is_lost(
    limits: list[int], items: int, preserve_order: bool, lazy: bool
) -> None:
    """Whatever the limit does: each item has one result, and calls begin below the limit only."""
    running = 0
    batch: parallel_core.ParallelBatch[Any]

    async def call(item: int) -> int:
        nonlocal running
        assert running < batch.limit
        running += 1
        await trio.sleep(1 + item % 3)
        running -= 1
        return item

    async def main() -> None:
        nonlocal batch
        source = numbers(range(items)) if lazy else range(items)
        batch = parallel_core.iter_parallel_map(
            call,
            source,
            concurrency=AdaptiveConcurrency(initial=3, maximum=12),
            preserve_order=preserve_order,
        )
        seen: list[int] = []
        async with batch, trio.open_nursery() as nursery:
            nursery.start_soon(change)
            async for result in batch:
                seen.append(result.unwrap())
            nursery.cancel_scope.cancel()
        assert sorted(seen) == list(range(items))
        if preserve_order:
            assert seen == sorted(seen)

    async def change() -> None:
        for limit in itertools.cycle(limits):
            await trio.sleep(0.7)
            batch._core.set_limit(limit)  # pyright: ignore[reportPrivateUsage]

    in_virtual_time(main)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 0}, ValueError, "timeout must be a finite number above 0"),
        ({"timeout": "1"}, TypeError, "timeout must be a number, not str"),
        ({"timeout": 10**400}, ValueError, "timeout is too large a number"),
        ({"timeout": True}, TypeError, "timeout must be a number, not bool"),
        ({"deadline": -1}, ValueError, "deadline must be a finite number above 0"),
        ({"deadline": float("nan")}, ValueError, "deadline"),
        ({"progress": 1}, TypeError, "progress must be True or False"),
        ({"on_progress": 1}, TypeError, "on_progress"),
        ({"on_progress": sleep}, TypeError, "on_progress must be a plain function"),
        ({"rate_limit": 60}, TypeError, "rate_limit must be a RateLimit"),
        ({"rate_limit": {"gpt": 60}}, TypeError, "rate_limit"),
        ({"rate_limit": {}}, ValueError, "rate_limit by model is for requests"),
        ({"rate_limit": RateLimit(tokens_per_minute=1)}, ValueError, "meter="),
        ({"budget": 1.0}, TypeError, "budget must be a Budget, not float"),
        ({"budget": Budget(max_cost=1)}, ValueError, "meter="),
        ({"fair_by": "tenant"}, ValueError, "fair_by must be 'model' or a function"),
        ({"fair_by": 3}, TypeError, "fair_by must be 'model' or a function"),
        ({"fair_by": "model"}, ValueError, "fair_by='model' is for requests"),
        ({"concurrency_per_key": 2}, ValueError, "concurrency_per_key needs fair_by"),
        ({"concurrency_per_key": 0, "fair_by": str}, ValueError, "concurrency_per_key"),
        ({"hedge": 0.5}, TypeError, "hedge must be a Hedge, not float"),
        ({"meter": 3}, TypeError, "meter must have a method worst_case"),
        ({"concurrency": "fast"}, ValueError, "'auto'"),
        ({"concurrency": None}, TypeError, "concurrency must be an integer, not NoneType"),
        ({"timout": 3}, TypeError, "unexpected keyword argument 'timout'.*timeout"),
    ],
)
def test_bad_options_are_refused_before_the_first_call(
    options: dict[str, Any], error: type[Exception], message: str, host: Host
) -> None:
    calls: list[object] = []

    async def call(item: object) -> None:
        calls.append(item)

    async def main() -> None:
        with pytest.raises(error, match=message):
            await parallel_core.parallel_map(call, [1, 2], **options)
        with pytest.raises(error, match=message):
            parallel_core.iter_parallel_map(call, [1, 2], **options)
        assert calls == []

    host.run(main)


def test_a_rate_limit_for_a_model_that_the_router_does_not_have_is_refused(host: Host) -> None:
    class Router:
        model_list: ClassVar = [{"model_name": "gpt", "litellm_params": {"model": "openai/gpt"}}]
        model_group_alias: ClassVar = {"alias": "gpt"}
        calls = 0

        async def acompletion(self, **arguments: object) -> None:
            type(self).calls += 1

    async def main() -> None:
        limit = RateLimit(requests_per_minute=6000)
        for known in ("gpt", "alias"):
            router = Router()
            call = router.acompletion if host.library == "trio" else router
            await parallel_core.parallel_acompletions(call, [request()], rate_limit={known: limit})
        with pytest.raises(
            ValueError, match="the Router has no model 'gtp'; it has 'alias', 'gpt'"
        ):
            await parallel_core.parallel_acompletions(
                Router(), [request()], rate_limit={"gpt": limit, "gtp": limit}
            )
        wild = Router()
        wild.model_list = [{"model_name": "*", "litellm_params": {"model": "openai/*"}}]  # type: ignore[misc]
        check_models({"gtp": limit}, wild)
        assert Router.calls == 2

    host.run(main)


@pytest.mark.parametrize("number", [-1, float("nan"), float("inf"), "1", True])
def test_a_meter_that_tells_nonsense_ends_the_batch(host: Host, number: Any) -> None:
    class Nonsense(Meter):
        def usage(self, value: Any) -> Usage | None:
            return Usage(number, 3)

    async def main() -> None:
        budget = Budget(max_tokens=1000)
        with pytest.raises(ValueError, match=r"meter\.usage must return a Usage of finite numbers"):
            await parallel_core.parallel_map(sleep, [0, 0], meter=Nonsense(), budget=budget)
        assert budget.reserved_tokens == 0
        assert budget.spent_tokens >= 0

    host.run(main)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveConcurrency(initial=0), "initial must be at least 1, not 0"),
        (lambda: AdaptiveConcurrency(initial=4, minimum=9), "minimum <= initial <= maximum"),
        (lambda: AdaptiveConcurrency(minimum=9, maximum=8), "minimum <= initial <= maximum"),
        (lambda: AdaptiveConcurrency(decrease=1.0), "decrease must be between 0 and 1"),
        (lambda: Retry(max_attempts=0), "max_attempts must be at least 1"),
        (lambda: Retry(max_wait=-1), "max_wait must be"),
        (lambda: RateLimit(), "requests_per_minute, tokens_per_minute or both"),
        (lambda: RateLimit(requests_per_minute=0), "requests_per_minute must be"),
        (lambda: RateLimit(requests_per_minute=9, burst=0), "burst must be at least 1"),
        (lambda: RateLimit(tokens_per_minute=9, burst=3), "burst"),
        (lambda: Budget(), "max_cost, max_tokens or both"),
        (lambda: Budget(max_cost=0), "max_cost must be"),
        (lambda: Budget(max_tokens=0), "max_tokens must be at least 1"),
        (lambda: Budget(max_cost=1, prices={"gpt": (1.0, -1.0)}), r"prices\['gpt'\]\[1\]"),
        (lambda: Hedge(after=0), "after must be"),
        (lambda: Hedge(after="95"), "after must be"),
        (lambda: Hedge(after="p101"), "after must be"),
        (lambda: Hedge(max_extra=1.5), "max_extra must be above 0 and at most 1"),
    ],
)
def test_bad_values_of_controls_name_the_option(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_bad_timeout_of_a_request_names_its_index(host: Host) -> None:
    async def answer(**kwargs: object) -> str:
        raise AssertionError("sent")

    async def main() -> None:
        with pytest.raises(parallel_core.InvalidRequestError, match="request 1: timeout must be"):
            await parallel_core.parallel_acompletions(answer, [request(), request(timeout=-1)])

    host.run(main)


# --- usage ---


class Meter:
    """Each call uses as many tokens as its value says."""

    def worst_case(self, item: Any) -> Usage:
        return Usage(10, 10)

    def usage(self, value: Any) -> Usage | None:
        return None if value is None else Usage(1, int(value), cost=0.5)


def test_a_meter_of_the_user_counts_what_calls_use(host: Host) -> None:
    async def call(item: int) -> int | None:
        return item if item < 3 else None

    async def main() -> None:
        async with parallel_core.iter_parallel_map(call, range(5), meter=Meter()) as batch:
            async for _ in batch:
                pass
        assert batch.usage == Usage(3, 3, cost=1.5, unpriced_calls=2)
        assert batch.usage.total_tokens == 6

    host.run(main)


def test_a_meter_that_raises_ends_the_batch_and_loses_no_result(host: Host) -> None:
    error = LookupError("the meter")

    class Raising(Meter):
        def usage(self, value: Any) -> Usage | None:
            raise error

    async def main() -> None:
        seen: list[object] = []
        budget = Budget(max_tokens=100)  # which asks the meter as well
        with pytest.raises(LookupError) as caught:
            async with parallel_core.iter_parallel_map(
                sleep, [0], meter=Raising(), budget=budget
            ) as batch:
                async for result in batch:
                    seen.append(result.value)
        assert seen == [0]
        assert caught.value is error

    host.run(main)


def test_a_deadline_does_not_wait_for_calls_that_are_to_be_sent_again() -> None:
    """All calls are held, for an hour, and those that were rejected wait for their Retry-After."""

    class RejectedError(Exception):
        status_code = 429
        litellm_response_headers: ClassVar = {"retry-after": "300"}

    async def call(item: int) -> None:
        with contextlib.suppress(trio.Cancelled):  # it is rejected as it is cancelled
            await trio.sleep(0.1 * item)
        raise RejectedError

    async def main() -> None:
        began = trio.current_time()
        results = await parallel_core.parallel_map(
            call, range(100), concurrency="auto", deadline=10
        )
        assert trio.current_time() - began == 10
        assert len(results) == 100
        assert all(isinstance(result.exception, BatchDeadlineError) for result in results)

    in_virtual_time(main)


def test_a_source_that_is_longer_than_it_says_ends_at_the_deadline() -> None:
    class Endless:
        def __len__(self) -> int:
            return 10

        def __iter__(self) -> Iterator[int]:
            return itertools.count()

    async def main() -> None:
        results = await parallel_core.parallel_map(hang, Endless(), concurrency=2, deadline=5)
        assert sorted(result.index for result in results) == list(range(10))

    in_virtual_time(main)


@pytest.mark.parametrize(
    "error",
    [
        RequestTimeoutError(3, "gpt", 2.0),
        BatchDeadlineError(None, 2.0),
        parallel_core.BudgetExceededError(1, "max_tokens of 3", 5, 2),
        parallel_core.RouterHostClosedError(),
    ],
)
def test_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    assert getattr(error, "errno", None) is None


def test_a_deadline_does_not_wait_for_calls_that_are_rejected_as_it_cancels_them() -> None:
    class RejectedError(Exception):
        status_code = 429
        litellm_response_headers: ClassVar = {"retry-after": "300"}

    async def call(item: int) -> None:
        if item:  # the first is rejected before, so that what the others say goes on
            with contextlib.suppress(trio.Cancelled):
                await trio.sleep_forever()
        raise RejectedError

    async def main() -> None:
        began = trio.current_time()
        results = await parallel_core.parallel_map(call, range(50), concurrency="auto", deadline=10)
        assert trio.current_time() - began == 10
        assert [type(result.exception) for result in results] == [BatchDeadlineError] * 50

    in_virtual_time(main)
