"""What tests with a real Router and the demo server share."""

from __future__ import annotations

import asyncio
import gc
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from helpers.hosts import Host
from parallel_core import ParallelRouter
from parallel_core.demo_server import DemoServerProcess, DemoServerThread
from parallel_core.router_hosts.litellm_loop import close_clients_of_this_loop


def make_router(
    server: DemoServerThread | DemoServerProcess,
    models: tuple[str, ...] = ("fast", "slow"),
    parameters: Mapping[str, Any] | None = None,
    **settings: Any,
) -> ParallelRouter:
    """A Router with a deployment of each model on the demo server.

    ``parameters`` are those of the deployments, ``settings`` those of the Router.
    """
    shared = {"api_base": server.url, "api_key": "sk-secret-key", **(parameters or {})}
    return ParallelRouter(
        model_list=[
            {"model_name": model, "litellm_params": {"model": f"openai/{model}", **shared}}
            for model in models
        ],
        **{"num_retries": 0, **settings},
    )


def collect_all() -> None:
    """Collect until nothing is found: what a finalizer has used is freed by a later collection."""
    while gc.collect():
        pass


def forget_clients_of_others() -> None:
    """Empty litellm's cache of clients, so that clients of earlier tests are not counted.

    The cache holds clients of closed loops, and drops the oldest when there are 200.
    """
    litellm = sys.modules.get("litellm")
    if litellm is not None:
        litellm.in_memory_llm_clients_cache.cache_dict.clear()
        litellm.in_memory_llm_clients_cache.ttl_dict.clear()


def run_with_routers(host: Host, function: Callable[[], Awaitable[None]]) -> None:
    """Run on a host, and close what litellm has opened there.

    Fails if tasks, connections or files are left behind.
    """

    async def main() -> None:
        if host.library == "trio":
            await function()
            return
        try:
            await function()
        finally:
            await close_clients_of_this_loop()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            # litellm makes a client for each reranking, and closes it when it is collected.
            closing = {task for task in others if "_close_client_at_finalization" in repr(task)}
            await asyncio.gather(*closing)
            others -= closing
            for task in others:  # litellm's logging worker stays until its loop ends
                if "_close_client_at_finalization" in repr(task):
                    continue  # litellm closes a client that was collected: wait for it
                assert "LoggingWorker" in repr(task) or "logging" in repr(task), task
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", ResourceWarning)
        forget_clients_of_others()
        collect_all()
        warnings.simplefilter("always", ResourceWarning)
        host.run(main)
        collect_all()
    left = [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)]
    assert not left, "\n".join(left)
