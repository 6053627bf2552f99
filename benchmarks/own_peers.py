"""parallel_core itself: its bridge in asyncio, its engine in trio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal

from .adapter import MODEL, Adapter, Call, Messages, Send, Target


class ParallelCore(Adapter):
    """Any function in a batch; over HTTP, a Router."""

    streams = True

    def __init__(self, router_host: Literal["thread-uvloop", "trio-asyncio"] | None = None) -> None:
        self._router_host = router_host
        if router_host is not None:
            self.not_for_calls = "differs only in where a Router runs"

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        import parallel_core

        return await parallel_core.parallel_map(
            call, items, concurrency=concurrency, return_exceptions=False
        )

    @asynccontextmanager
    async def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AsyncGenerator[AsyncIterator[Any], None]:
        import parallel_core

        batch = parallel_core.iter_parallel_map(
            call, items, concurrency=concurrency, return_exceptions=False
        )
        async with batch:
            yield batch

    @asynccontextmanager
    async def sender(self, target: Target, in_flight: int) -> AsyncGenerator[Send, None]:
        import parallel_core

        async def send(conversations: list[Messages], orders: Mapping[str, object]) -> object:
            return await parallel_core.parallel_acompletions(
                target.router,
                (
                    {"model": MODEL, "messages": messages, "extra_body": {"demo": orders}}
                    for messages in conversations
                ),
                concurrency=in_flight,
                return_exceptions=False,
                router_host=self._router_host,
            )

        async with AsyncExitStack() as stack:
            if self._router_host == "trio-asyncio":
                await stack.enter_async_context(parallel_core.open_trio_asyncio())
            yield send
