"""What a benchmark is: a question, its cells, and how one cell is measured."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeAlias

from .peers import Peer

Parameters: TypeAlias = dict[str, Any]
Measured: TypeAlias = dict[str, float | None]
"""By quantity; None where it never came to that within the time there was."""

Done: TypeAlias = Callable[[Measured], NoReturn]
"""Takes what was measured and ends the process, whatever a peer has left running in it."""

Size: TypeAlias = Literal["full", "quick", "smoke"]

now = time.perf_counter


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
class Fit:
    """A power law through the medians of a peer: ``quantity`` grows as ``along ** exponent``.

    Attributes:
        title: what is fitted.
        along: the parameter that grows.
        quantity: what grows with it.
        where: the parameters of the cells that it takes.
    """

    title: str
    along: str
    quantity: str
    where: Parameters


@dataclass(frozen=True)
class Question:
    """One benchmark.

    Attributes:
        name: on the command line.
        title: what it asks.
        quantities: what is measured for each cell.
        cells: the parameters of every cell, for a size of the whole.
        measure: measures a cell, in a process of its own, and tells what it has found.
        base: the peer that others are compared with.
        compared: the quantities that are also given as a multiple of those of ``base``.
        refuses: why a peer cannot be asked this; None where it can.
        timeout: of a cell, in seconds.
        size: the parameter that what a cell takes grows with.
        rounds: of a cell, where fewer than usual have to do; for a size of the whole.
        fits: power laws through the medians.
        uses_router: the cells are about a Router: litellm is imported before they begin.
    """

    name: str
    title: str
    quantities: tuple[Quantity, ...]
    cells: Callable[[Size], Iterator[Parameters]]
    measure: Callable[[Peer, Parameters, Done], None]
    base: str
    compared: tuple[str, ...]
    refuses: Callable[[Peer, Parameters], str | None]
    timeout: int = 30
    size: str | None = None
    rounds: Callable[[Parameters, Size], int | None] = lambda parameters, size: None
    fits: tuple[Fit, ...] = ()
    uses_router: Callable[[Parameters], bool] = lambda parameters: False


def not_for_calls(peer: Peer, parameters: Parameters) -> str | None:
    """Why a peer cannot be asked about functions of our own."""
    return peer.adapter().not_for_calls


def has_no_router(peer: Peer, parameters: Parameters) -> str | None:
    """Why a peer cannot be asked about a Router."""
    return None if peer.world == "asyncio" or peer.ours else "a Router needs asyncio"


class World:
    """Running, sleeping and the like in the world of a peer."""

    def __init__(self, peer: Peer) -> None:
        self._trio = peer.world == "trio"
        self.sleep: Callable[[float], Awaitable[Any]]
        self.in_thread: Callable[[Callable[[], Any]], Awaitable[Any]]
        if self._trio:
            import trio

            self.sleep, self.in_thread = trio.sleep, trio.to_thread.run_sync
        else:
            import asyncio

            self.sleep, self.in_thread = asyncio.sleep, asyncio.to_thread

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
