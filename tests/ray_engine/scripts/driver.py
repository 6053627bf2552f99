"""A driver whose workers wait, until a signal ends it."""

import asyncio
import signal
import sys

import parallel_core
from helpers.ray_routers import scripted
from parallel_core import ray_engine

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have switched it off


async def main() -> None:
    folder = sys.argv[1]
    wait = [
        {"model": "wait", "messages": [{"role": "user", "content": str(n)}], "folder": folder}
        for n in range(100)
    ]
    print("begins", flush=True)
    async with ray_engine.open_ray_router(scripted, workers=2, concurrency=4) as router:
        assert sys.excepthook is sys.__excepthook__
        await parallel_core.parallel_acompletions(router, wait, concurrency=router.slots)


try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted", flush=True)
