"""asyncio: results of a Router's calls as they finish. Runs against a local server."""

import asyncio

from litellm import Router

from parallel_core import iter_parallel_acompletions
from parallel_core.demo_server import DemoServer


async def main() -> None:
    async with DemoServer() as server:  # answers with made-up text
        deployment = {"model": "openai/fast", "api_base": server.url, "api_key": "none"}
        router = Router(model_list=[{"model_name": "fast", "litellm_params": deployment}])
        requests = (
            {"model": "fast", "messages": [{"role": "user", "content": f"Question {number}"}]}
            for number in range(50)
        )
        async with iter_parallel_acompletions(router, requests, concurrency=16) as batch:
            async for result in batch:
                if result.ok:
                    print(result.index, result.response.choices[0].message.content)
                else:
                    print(result.index, "failed:", type(result.exception).__name__)
        print(f"{batch.succeeded} of {batch.started} succeeded")


asyncio.run(main())
