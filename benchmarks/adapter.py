"""The interface behind which every peer stands."""

from __future__ import annotations

from abc import ABC
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Call: TypeAlias = Callable[[Any], Awaitable[Any]]
Messages: TypeAlias = list[dict[str, str]]

MODEL = "fast"  # of the demo server


@dataclass(frozen=True)
class Target:
    """Where requests over HTTP go.

    Attributes:
        url: of a demo server, up to ``/v1``.
        router: a ``litellm.Router`` that knows it as the model :data:`MODEL`.
    """

    url: str
    router: Any


class Send(Protocol):
    """Sends a request for each conversation; the first error ends it."""

    async def __call__(self, conversations: list[Messages], orders: Mapping[str, object]) -> object:
        """``orders``: what the demo server is told to do with each."""
        ...


class Adapter(ABC):  # noqa: B024 - no peer has to be able to do everything
    """One peer, through its own public API. Every method runs in the peer's own world.

    Attributes:
        not_for_calls: why it is not asked to await functions of our own (``collect``).
        streams: it gives results before the end (``stream``).
        limits: it takes a limit of what is in flight.
        fails_fast: the first error ends the batch and is raised.
    """

    not_for_calls: str | None = None
    streams = False
    limits = True
    fails_fast = True

    async def collect(self, call: Call, items: Iterable[Any], concurrency: int) -> object:
        """Make every call, at most ``concurrency`` at a time; the first error ends it.

        What is raised is the error, or what the peer makes of it.
        """
        raise NotImplementedError(f"{type(self).__name__} {self.not_for_calls}")

    def stream(
        self, call: Call, items: Iterable[Any], concurrency: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Results as they finish. Leaving the block is how this peer is told to stop."""
        raise NotImplementedError(f"{type(self).__name__} has no results before the end")

    @asynccontextmanager
    async def sender(self, target: Target, in_flight: int) -> AsyncGenerator[Send, None]:
        """What sends requests over HTTP, at most ``in_flight`` at a time: here through a Router."""

        async def send(conversations: list[Messages], orders: Mapping[str, object]) -> object:
            async def call(messages: Messages) -> object:
                return await target.router.acompletion(
                    model=MODEL, messages=messages, extra_body={"demo": orders}
                )

            return await self.collect(call, conversations, in_flight)

        yield send
