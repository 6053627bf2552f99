"""What a benchmark is: a question, its cells, and how one cell is measured."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from .peers import Adapter, Peer

Parameters: TypeAlias = dict[str, Any]
Measured: TypeAlias = dict[str, float | None]
"""By quantity; None where it never came to that within the time there was."""

Size: TypeAlias = Literal["full", "quick", "smoke"]


@dataclass(frozen=True)
class Quantity:
    """Something that is measured.

    Attributes:
        key: its name in JSON.
        title: its name in tables.
        unit: of the number.
        absent: what the table says where there is no number.
    """

    key: str
    title: str
    unit: str
    absent: str = "-"


@dataclass(frozen=True)
class Question:
    """One benchmark.

    Attributes:
        name: on the command line.
        title: what it asks.
        quantities: what is measured for each cell; the first one is compared peer by peer.
        cells: the parameters of every cell, for a size of the whole.
        measure: measures a cell, in a process of its own.
        asks: whether a peer can be asked this.
        base: the peer that others are compared with.
        rounds: of a cell, where fewer than usual have to do; given its parameters.
    """

    name: str
    title: str
    quantities: tuple[Quantity, ...]
    cells: Callable[[Size], Iterator[Parameters]]
    measure: Callable[[Peer, Parameters], Measured]
    base: str
    asks: Callable[[Peer, Parameters], bool] = field(default=lambda peer, parameters: True)
    rounds: Callable[[Parameters], int | None] = field(default=lambda parameters: None)


class World:
    """Running, sleeping and reading the clock in the world of a peer."""

    def __init__(self, peer: Peer) -> None:
        self._trio = peer.world == "trio"

    def run(self, main: Callable[[], Awaitable[Any]]) -> Any:
        if self._trio:
            import trio

            return trio.run(main)
        import asyncio

        async def as_coroutine() -> Any:
            return await main()

        return asyncio.run(as_coroutine())

    async def cancelled_after(
        self, seconds: float, before: Callable[[], None], function: Callable[[], Awaitable[Any]]
    ) -> None:
        """Await ``function()`` in a task that is cancelled, right after ``before()``."""
        if self._trio:
            import trio

            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cancel() -> None:
                        await trio.sleep(seconds)
                        before()
                        scope.cancel()

                    nursery.start_soon(cancel)
                    await function()
            return
        import asyncio

        async def as_coroutine() -> None:
            await function()

        task = asyncio.create_task(as_coroutine())
        await asyncio.sleep(seconds)
        before()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @property
    def sleep(self) -> Callable[[float], Awaitable[Any]]:
        if self._trio:
            import trio

            return trio.sleep
        import asyncio

        return asyncio.sleep


def make_adapter(peer: Peer) -> Adapter:
    return peer.adapter()


now = time.perf_counter
