"""Gives up a cluster that accepts a connection and says nothing."""

import asyncio
import socket

from helpers.ray_routers import scripted
from parallel_core import ray_engine


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with asyncio.timeout(1):
            async with ray_engine.open_ray_router(scripted, workers=1, address=f"127.0.0.1:{port}"):
                pass


try:
    asyncio.run(main())
except TimeoutError:
    print("given up")
