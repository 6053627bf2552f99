"""Values of controls that are refused, before the first call, and errors that are pickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

import parallel_core
from helpers.calls import request, sleep
from helpers.hosts import Host
from parallel_core import (
    AdaptiveConcurrency,
    BatchTimeoutError,
    Budget,
    Hedge,
    RateLimit,
    RequestTimeoutError,
    Retry,
)
from parallel_core.router.router_facts import check_models


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"timeout": 0}, ValueError, "timeout must be a finite number above 0"),
        ({"timeout": "1"}, TypeError, "timeout must be a number, not str"),
        (
            {"timeout": 10**400},
            ValueError,
            "timeout must be a .* above 0: it is too large",
        ),
        ({"timeout": True}, TypeError, "timeout must be a number, not bool"),
        ({"total_timeout": -1}, ValueError, "total_timeout must be a finite number above 0"),
        ({"total_timeout": float("nan")}, ValueError, "total_timeout"),
        ({"deadline": 3}, TypeError, "'deadline': .* called total_timeout now"),
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
        ({"direct": "yes"}, TypeError, "direct must be True, False or 'verify', not 'yes'"),
        ({"direct": True}, ValueError, "direct is for a Router: parallel_map calls a function"),
        ({"hedge": Hedge(), "on_chunk": print}, ValueError, "on_chunk cannot be combined with"),
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


def test_direct_is_for_a_router(host: Host) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"direct is for a litellm\.Router"):
            await parallel_core.parallel_acompletions(sleep, [request()], direct=True)

    host.run(main)


def test_other_async_libraries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel_core.entry.running_library", lambda: "curio")
    with pytest.raises(RuntimeError, match="works in asyncio and trio, not in curio"):
        parallel_core.iter_parallel_map(sleep, [1])


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


@pytest.mark.parametrize(
    "error",
    [
        RequestTimeoutError(3, "gpt", 2.0),
        BatchTimeoutError(None, 2.0),
        parallel_core.BudgetExceededError(1, "max_tokens of 3", 5, 2),
        parallel_core.RouterHostClosedError(),
    ],
)
def test_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    assert getattr(error, "errno", None) is None
