"""Helper functions of the original proposal.

Loaded as ``litellm.router_utils.parallel_acompletion``. Their defaults are those of the proposal
and do not follow those of the package's own functions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Unpack

from parallel_core import api
from parallel_core.batch_plans import Requests
from parallel_core.control import Concurrency, Controls
from parallel_core.engine import ParallelBatch
from parallel_core.router_hosts import RouterHost, RouterHostName
from parallel_core.types import RouterParallelRequest, RouterParallelResult, SupportsAcompletion

__all__ = [
    "RouterParallelRequest",
    "RouterParallelResult",
    "gather_parallel_acompletions",
    "iter_parallel_acompletions",
]


async def gather_parallel_acompletions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> list[RouterParallelResult]:
    """Call :func:`parallel_core.parallel_acompletions` with the defaults of the proposal."""
    return await api.parallel_acompletions(
        router,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=preserve_order,
        router_host=router_host,
        **controls,
    )


def iter_parallel_acompletions(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: Concurrency = 8,
    return_exceptions: bool = True,
    preserve_order: bool = False,
    router_host: RouterHost | RouterHostName | None = None,
    **controls: Unpack[Controls],
) -> ParallelBatch[RouterParallelResult]:
    """Call :func:`parallel_core.iter_parallel_acompletions` with the defaults of the proposal."""
    return api.iter_parallel_acompletions(
        router,
        requests,
        concurrency=concurrency,
        return_exceptions=return_exceptions,
        preserve_order=preserve_order,
        router_host=router_host,
        **controls,
    )
