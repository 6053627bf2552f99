"""Every kind of trouble on both ways, with the retries of the Router and with those of a batch."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from helpers.direct_parity import outcome_of, router_of
from parallel_core import Retry, iter_parallel_acompletions
from parallel_core.config import deployments
from parallel_core.demo_server import (
    TROUBLE_KINDS,
    DemoServerSettings,
    DemoServerThread,
    Trouble,
    TroubleKind,
)

SERVER_TIMEOUT: Final = 60.0  # seconds
UNREACHABLE: Final = "unreachable"  # a model at whose address nothing listens
# `hang` has a test of its own: its timeout must not include the work for other requests.
KINDS: Final[Sequence[str]] = (
    *(kind for kind in TROUBLE_KINDS if kind not in ("away", "hang")),
    UNREACHABLE,
)
PASSING: Final[Sequence[TroubleKind]] = (
    "rate_limited",
    "gemini_quota",
    "overloaded",
    "bad_gateway",
    "unavailable",
    "server_error",
    "reset",
    "truncated",
)


@dataclass(frozen=True)
class Column:
    """One Router for all kinds of trouble.

    Attributes:
        kinds: of the trouble; each has a model.
        deployments: of a model.
        falls_back: each model has another one without trouble to fall back to.
        count: requests of a model that are affected; None: all.
        retry: option of the batch. None: the Router retries, as it does by itself.
    """

    kinds: Sequence[str] = KINDS
    deployments: int = 1
    falls_back: bool = False
    count: int | None = None
    retry: Retry | None = None


COLUMNS: Final[Mapping[str, Column]] = {
    "batch retries": Column(retry=Retry(max_attempts=2)),
    "router retries": Column(),
    "falls back": Column(deployments=2, falls_back=True),
    "passes": Column(PASSING, count=1),
}


@dataclass
class Told:
    """What has become of the request of each model, and what the server and the Router say.

    Attributes:
        outcomes: of each request, by its kind of trouble.
        attempts: requests that the server got, by model.
        cooldowns: deployments that cool down, by model.
        direct_calls, indirect_calls, differences: as the batch counts them.
    """

    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    attempts: dict[str, int] = field(default_factory=dict[str, int])
    cooldowns: dict[str, int] = field(default_factory=dict[str, int])
    direct_calls: int = 0
    indirect_calls: Mapping[str, int] = field(default_factory=dict[str, int])
    differences: Mapping[str, int] = field(default_factory=dict[str, int])


def calm(kind: str) -> str:
    """The model to which one with trouble falls back."""
    return f"calm-{kind}"


def server_of(column: Column) -> DemoServerThread:
    troubles = [
        Trouble(kind, kind, count=column.count) for kind in TROUBLE_KINDS if kind in column.kinds
    ]
    models = [name for kind in column.kinds for name in (kind, calm(kind))]
    return DemoServerThread(
        DemoServerSettings(latency_median=0.0, models=dict.fromkeys(models, 1.0), trouble=troubles)
    )


def router_of_column(column: Column, url: str, closed_port: int) -> Any:
    addresses = {UNREACHABLE: {"api_base": f"http://127.0.0.1:{closed_port}/v1"}}
    groups = {
        kind: [{"model": f"openai/{kind}", **addresses.get(kind, {})}] * column.deployments
        for kind in column.kinds
    }
    fallbacks = list[dict[str, list[str]]]()
    if column.falls_back:
        groups |= {calm(kind): [{"model": f"openai/{calm(kind)}"}] for kind in column.kinds}
        fallbacks = [{kind: [calm(kind)]} for kind in column.kinds]
    # Its cooldowns last until they are counted.
    return router_of(url, groups, fallbacks=fallbacks, cooldown_time=600)


async def send_column(column: Column, closed_port: int, direct: Any) -> Told:
    told = Told()
    with server_of(column) as server:
        router = router_of_column(column, server.url, closed_port)
        requests = [
            {"model": kind, "messages": [{"role": "user", "content": "a"}]} for kind in column.kinds
        ]
        async with iter_parallel_acompletions(
            router, requests, concurrency=len(requests), direct=direct, retry=column.retry
        ) as batch:
            async for result in batch:
                told.outcomes[result.request.model] = outcome_of(result)
            told.direct_calls = batch.direct_calls
            told.indirect_calls = batch.indirect_calls
            told.differences = batch.direct_differences
        told.cooldowns = await cooldowns_of(router)
        await asyncio.to_thread(server.wait_idle, SERVER_TIMEOUT)
        stats = server.stats()
        told.attempts = {name: counts.accepted for name, counts in stats.models.items()}
    return told


async def cooldowns_of(router: Any) -> dict[str, int]:
    """The number of deployments of each model that cool down, as the Router says."""
    known = router.health().cooldowns if hasattr(type(router), "health") else router.cooldown_cache
    ids = [deployment["model_info"]["id"] for deployment in deployments(router)]
    cooling = await known.async_get_active_cooldowns(model_ids=ids, parent_otel_span=None)
    return dict(Counter(name.partition("/")[0] for name, _ in cooling))
