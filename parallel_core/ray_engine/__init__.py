"""Batches on several cores and machines: workers on Ray make the calls.

The batch itself runs in the driver, which is the user's process. It is a local batch with all of
its controls, so a rate limit, a budget, an adaptive limit and a total timeout apply to all workers
together. Each worker is a Ray actor with its own process, Router and engine.

::

    async with iter_parallel_acompletions(make_router, requests, workers=8) as batch:
        async for result in batch:
            print(result.index, result.ok)

The page ``docs/scale.md`` describes the limits.
"""

from .installed import HOW_TO_INSTALL, MOST_WORKERS, is_ray_installed
from .ray_batch import RayBatch, iter_parallel_acompletions, parallel_acompletions
from .ray_data import ParallelCompletions
from .ray_router import RayRouter, open_ray_router
from .router_recipe import RouterSource

__all__ = [
    "HOW_TO_INSTALL",
    "MOST_WORKERS",
    "ParallelCompletions",
    "RayBatch",
    "RayRouter",
    "RouterSource",
    "is_ray_installed",
    "iter_parallel_acompletions",
    "open_ray_router",
    "parallel_acompletions",
]
