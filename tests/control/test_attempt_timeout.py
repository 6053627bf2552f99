"""``attempt_timeout``: seconds for each attempt, with a server that hangs, a Router as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import litellm
import pytest

import parallel_core
from helpers.hosts import ASYNCIO_HOSTS, EACH_LIBRARY, TRIO, Host, name_of
from helpers.routers import make_router, run_with_routers
from helpers.thorough import thorough_but
from parallel_core import (
    ParallelRouter,
    RouterParallelRequest,
    RouterParallelResult,
    classify_failure,
    parallel_map,
)
from parallel_core.config.run_router import router_from_config, router_from_model
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

AS_IT_COMES: Mapping[str, Any] = {"num_retries": 2}


@pytest.fixture(scope="module")
def running_server() -> Iterator[DemoServerThread]:
    with DemoServerThread(DemoServerSettings(latency_median=0.0, keep_requests=100)) as server:
        parallel_core.parallel_completions(make_router(server), [ask()])  # imports
        yield server


def ask(arguments: Mapping[str, Any] | None = None, **orders: Any) -> RouterParallelRequest:
    kwargs = {"extra_body": {"demo": orders}, **(arguments or {})}
    return RouterParallelRequest("fast", [{"role": "user", "content": "hello"}], kwargs)


@pytest.mark.parametrize("host", thorough_but([TRIO], EACH_LIBRARY, name_of))
def test_an_attempt_that_hangs_is_a_timeout_and_is_sent_once_more(
    server: DemoServerThread, host: Host
) -> None:
    results = list[RouterParallelResult]()

    async def main() -> None:
        results[:] = await parallel_core.parallel_acompletions(
            make_router(server, **AS_IT_COMES),
            [ask(fault="hang"), *(ask(latency=0.1) for _ in range(5))],
            preserve_order=True,
            attempt_timeout=0.6,
        )

    run_with_routers(host, main)
    hung, *others = results
    assert all(result.ok for result in others)
    assert hung.exception is not None
    assert classify_failure(hung.exception).kind == "timeout"
    server.wait_idle(30)
    # Whatever the Router would do by itself: an attempt may have to be paid for.
    orders = [one.body["demo"] for one in server.requests()]
    assert orders.count({"fault": "hang"}) == 2


@pytest.mark.parametrize(
    ("parameters", "settings", "arguments"),
    [
        ({"timeout": 0.3}, {}, {}),
        pytest.param({}, {"timeout": 0.3}, {}, marks=pytest.mark.thorough),
        pytest.param({}, {}, {"timeout": 0.3}, marks=pytest.mark.thorough),
        pytest.param({}, {}, {"request_timeout": 0.3}, marks=pytest.mark.thorough),
    ],
    ids=["deployment", "Router", "request", "request_timeout"],
)
def test_what_somebody_has_set_takes_precedence(
    server: DemoServerThread,
    parameters: dict[str, Any],
    settings: dict[str, Any],
    arguments: dict[str, Any],
) -> None:
    router = make_router(server, parameters=parameters, **AS_IT_COMES, **settings)
    (result,) = parallel_core.parallel_completions(
        router, [ask(arguments, fault="hang")], attempt_timeout=500.0, total_timeout=20
    )
    assert result.exception is not None
    assert classify_failure(result.exception).kind == "timeout"


def test_it_takes_no_precedence_over_a_longer_one(server: DemoServerThread) -> None:
    routers: list[tuple[ParallelRouter, Mapping[str, Any]]] = [
        (make_router(server, parameters={"timeout": 30}), {}),
        (make_router(server, timeout=30), {}),
        (make_router(server), {"timeout": 30}),
    ]

    async def ask_each() -> None:
        async with asyncio.TaskGroup() as tasks:
            sent = [
                tasks.create_task(
                    parallel_core.parallel_acompletions(
                        router, [ask(arguments, latency=0.4)], attempt_timeout=0.1
                    )
                )
                for router, arguments in routers
            ]
        assert all(result.ok for task in sent for result in task.result())

    run_with_routers(ASYNCIO_HOSTS[0], ask_each)


def test_a_run_has_one(server: DemoServerThread, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("hello\n")
    sent = list[Any]()

    class Spy(ParallelRouter):
        async def acompletion(self, *args: Any, **kwargs: Any) -> Any:
            sent.append(kwargs.get("timeout"))
            return await super().acompletion(*args, **kwargs)

    deployment = {"model": "openai/fast", "api_base": server.url, "api_key": "none"}
    router = Spy([{"model_name": "fast", "litellm_params": deployment}])
    given: list[dict[str, Any]] = [{}, {"attempt_timeout": 7.5}, {"attempt_timeout": None}]

    async def run_each() -> None:
        for number, options in enumerate(given):
            source = parallel_core.InputFile(
                tmp_path / "in.csv", format="text", model="fast", template="{{line}}"
            )
            await parallel_core.run_file(router, source, tmp_path / f"{number}.jsonl", **options)

    run_with_routers(ASYNCIO_HOSTS[0], run_each)
    assert sent == [600.0, 7.5, None]


def test_a_router_of_a_config_has_it_where_the_config_has_none(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    def timeout_with(settings: str) -> float:
        config.write_text(
            "model_list:\n"
            "  - {model_name: a, litellm_params: {model: openai/a, api_key: none, timeout: 5}}\n"
            "  - {model_name: a, litellm_params: {model: openai/b, api_key: none}}\n" + settings
        )
        with router_from_config(config, attempt_timeout=77) as opened, opened.recipe() as again:
            assert opened.router.timeout == again.router.timeout
            return float(opened.router.timeout)

    before = litellm.request_timeout
    assert timeout_with("") == 77
    assert timeout_with("router_settings: {timeout: 12}\n") == 12
    assert timeout_with("litellm_settings: {request_timeout: 13}\n") == 13
    assert litellm.request_timeout == before
    with router_from_model("openai/a", api_key="none", attempt_timeout=77) as opened:
        assert opened.router.timeout == 77
    with router_from_model("openai/a", api_key="none") as opened:
        assert opened.router.timeout == before


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), True, "1"])
def test_bad_values(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="attempt_timeout"):
        parallel_core.parallel_completions(lambda: None, [], attempt_timeout=value)  # type: ignore[arg-type, return-value]


def test_it_is_for_a_router() -> None:
    async def main() -> None:
        await parallel_map(asyncio.sleep, [0], attempt_timeout=1.0)

    with pytest.raises(ValueError, match="attempt_timeout is for a Router"):
        asyncio.run(main())
