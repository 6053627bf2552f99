"""More cores and more machines: the calls of a batch are made by workers on Ray.

The batch itself runs here, in the driver: a local batch with all of its controls, so a rate limit,
a budget, an adaptive limit and a total timeout are of all workers together. Each worker is an
actor of Ray with a process, a Router and an engine of its own.

::

    async with iter_parallel_acompletions(make_router, requests, workers=8) as batch:
        async for result in batch:
            print(result.index, result.ok)

``docs/scale.md`` tells how far this goes.
"""

from .installed import HOW_TO_INSTALL, MOST_WORKERS, is_ray_installed
from .ray_router import (
    ParallelCompletions,
    RayBatch,
    RayRouter,
    RouterSource,
    iter_parallel_acompletions,
    open_ray_router,
    parallel_acompletions,
)

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
