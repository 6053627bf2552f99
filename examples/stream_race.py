"""asyncio: several models answer the same question side by side. Runs against a local server."""

import asyncio
import time

from litellm import Router
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from parallel_core import RouterParallelResult, StreamChunk, iter_parallel_streams
from parallel_core.demo_server import DemoServer, DemoServerSettings

MODELS = ("fast", "smart", "slow")
QUESTION = [{"role": "user", "content": "Tell me something."}]


class Race:
    """What the models have said so far, as a table."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._texts = dict.fromkeys(MODELS, "")
        self._first = dict.fromkeys(MODELS, "")
        self._results: dict[str, str] = {}

    def add(self, chunk: StreamChunk) -> None:
        model = chunk.request.model
        if not self._first[model]:
            self._first[model] = f"{time.perf_counter() - self._began:.2f} s"
        self._texts[model] += chunk.text

    def end(self, result: RouterParallelResult) -> None:
        usage = result.usage
        self._results[result.request.model] = (
            f"{usage.completion_tokens} tokens in {result.duration:.2f} s"
            if result.ok and usage is not None
            else f"failed: {type(result.exception).__name__}"
        )

    def __rich__(self) -> Table:
        table = Table("model", "first word", "answer", "end", expand=True)
        for model in MODELS:
            end = self._results.get(model, "…")
            table.add_row(model, self._first[model], Text(self._texts[model]), end)
        return table


async def main() -> None:
    settings = DemoServerSettings(time_to_first_token=0.3, chunk_gap=0.04)
    async with DemoServer(settings) as server:  # answers with made-up text
        router = Router(
            model_list=[
                {
                    "model_name": model,
                    "litellm_params": {
                        "model": f"openai/{model}",
                        "api_base": server.url,
                        "api_key": "none",
                    },
                }
                for model in MODELS
            ]
        )
        requests = [{"model": model, "messages": QUESTION} for model in MODELS]
        race = Race()
        with Live(race, console=Console(), refresh_per_second=20):
            async with iter_parallel_streams(router, requests) as batch:
                async for event in batch:
                    if isinstance(event, StreamChunk):
                        race.add(event)
                    else:
                        race.end(event.result)
        print(f"\n{batch.usage.total_tokens} tokens in all")


asyncio.run(main())
