"""A deployment that fails all its calls beside one that works, through a Router as it comes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import parallel_core
from helpers.hosts import ASYNCIO_HOSTS, Host
from helpers.routers import run_with_routers
from parallel_core.demo_server import DemoServerSettings, DemoServerThread, Trouble

CONCURRENCY = 4
REQUESTS = 28
# Those that are under way when it begins to rest, and a probe or two.
MOST_IN_VAIN = 2 * CONCURRENCY + 4
TROUBLE = {
    "dead": Trouble("overloaded", key="sk-dead"),
    "hangs": Trouble("hang", key="sk-hangs"),
    "busy": Trouble("bad_key", key="sk-busy"),
    "order": Trouble("bad_key", key="sk-order"),
    "fallback": Trouble("rate_limited", key="sk-fallback", retry_after=30),
}


def deployments(server: DemoServerThread, case: str) -> list[dict[str, Any]]:
    shared: dict[str, Any] = {"model": "openai/fast", "api_base": server.url}
    second = "other" if case == "fallback" else case
    return [
        {
            "model_name": name,
            "litellm_params": {
                **shared,
                "api_key": f"sk-{key}",
                **({"order": order} if case == "order" else {}),
                **({"timeout": 0.5} if case == "hangs" and order == 1 else {}),
            },
            "model_info": {"id": f"{case}-{order}"},
        }
        for order, (name, key) in enumerate([(case, case), (second, f"{case}-2")], 1)
    ]


@pytest.mark.parametrize("host", ASYNCIO_HOSTS[:1], ids=lambda host: host.name)
def test_a_deployment_that_fails_all_its_calls_is_hardly_asked(host: Host) -> None:
    trouble = [*TROUBLE.values(), Trouble("unavailable", key="sk-busy-2", count=8)]
    settings = DemoServerSettings(latency_median=0.01, latency_sigma=0.0, trouble=trouble)
    with DemoServerThread(settings) as server:
        results = dict[str, list[Any]]()

        async def send(case: str) -> None:
            from litellm import Router

            fallbacks = [{"fallback": ["other"]}]
            router = Router(model_list=deployments(server, case), fallbacks=fallbacks)
            message = {"role": "user", "content": "hi"}
            results[case] = await parallel_core.parallel_acompletions(
                router, [{"model": case, "messages": [message]}] * REQUESTS, concurrency=CONCURRENCY
            )

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                for case in TROUBLE:
                    tasks.start_soon(send, case)

        run_with_routers(host, main)
        for case in TROUBLE:
            assert [result.exception for result in results[case]] == [None] * REQUESTS, case
            assert server.stats().of_key(f"sk-{case}").accepted <= MOST_IN_VAIN, case


@pytest.mark.parametrize(
    ("of_fallback", "kind"), [("rate_limited", "overloaded"), ("quota", "account")]
)
def test_a_failure_passes_if_the_fallback_may(of_fallback: Any, kind: str) -> None:
    """The Router raises the failure of the model; that of its fallback is in the message alone."""
    trouble = [Trouble("bad_key", key="sk-fallback"), Trouble(of_fallback, key="sk-fallback-2")]
    with DemoServerThread(DemoServerSettings(trouble=trouble)) as server:

        async def main() -> None:
            from litellm import Router

            router = Router(
                model_list=deployments(server, "fallback"),
                fallbacks=[{"fallback": ["other"]}],
                num_retries=0,
            )
            with pytest.raises(Exception, match="Incorrect API key") as raised:
                await router.acompletion("fallback", [{"role": "user", "content": "hi"}])
            assert parallel_core.classify_failure(raised.value).kind == kind

        run_with_routers(ASYNCIO_HOSTS[0], main)
