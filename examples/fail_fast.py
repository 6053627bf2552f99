"""Fail-fast: the first error cancels every other call at once, and comes out as it is."""

import asyncio
import time

from litellm import Router

from parallel_core import parallel_acompletions
from parallel_core.demo_server import DemoServer


async def main() -> None:
    async with DemoServer() as server:  # answers with made-up text
        deployment = {"model": "openai/fast", "api_base": server.url, "api_key": "none"}
        router = Router(
            model_list=[{"model_name": "fast", "litellm_params": deployment}], num_retries=0
        )
        requests = [
            {
                "model": "fast",
                "messages": [{"role": "user", "content": f"Question {number}"}],
                # What the server shall do: one request fails after a second, the others hang.
                "extra_body": {
                    "demo": {"fault": "server_error", "latency": 1.0}
                    if number == 20
                    else {"fault": "hang"}
                },
            }
            for number in range(1000)
        ]
        began = time.perf_counter()
        try:
            await parallel_acompletions(router, requests, concurrency=64, return_exceptions=False)
        except Exception as error:
            print(f"{type(error).__name__} after {time.perf_counter() - began:.2f} s")
            print(*error.__notes__, sep="\n")
        await server.wait_idle()
        stats = server.stats
        print(f"the server saw {stats.accepted} requests, {stats.disconnected} of them cancelled")


asyncio.run(main())
