"""trio: the same engine, natively. The calls are trio code, here HTTP requests with httpx."""

import httpx
import trio

from parallel_core import iter_parallel_map
from parallel_core.demo_server import DemoServerThread


async def main(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:

        async def ask(question: str) -> str:
            body = {"model": "fast", "messages": [{"role": "user", "content": question}]}
            response = await client.post("/chat/completions", json=body)
            response.raise_for_status()
            answer: str = response.json()["choices"][0]["message"]["content"]
            return answer

        questions = [f"Question {number}" for number in range(50)]
        async with iter_parallel_map(ask, questions, concurrency=16) as batch:
            async for result in batch:
                print(result.index, result.item, "->", result.unwrap())


with DemoServerThread() as server:  # answers with made-up text
    trio.run(main, server.url + "/")
