"""Workers that are tasks of the test's own loop, in place of those on Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from parallel_core.ray_engine.fleet import Fleet
from parallel_core.ray_engine.messages import Given, Kind, Message, Pace
from parallel_core.ray_engine.remote_values import pack_request
from parallel_core.ray_engine.router_recipe import Recipe
from parallel_core.ray_engine.worker import Worker

PATIENCE = 30.0  # seconds for what must come


AT_ONCE = Pace(every=0.0, many=1)


class Panic(BaseException):
    """Looks like an exception of a Rust extension."""


class Router:
    """Answers as the test says, and counts."""

    def __init__(self) -> None:
        self.in_flight = self.most = 0
        self.begun: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.gate = asyncio.Event()

    async def acompletion(self, *, model: str, messages: Any, **arguments: Any) -> str:
        name = str(messages[0]["content"])
        self.begun[name] += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            if model == "gate":
                await self.gate.wait()
            elif model == "pause":
                await asyncio.sleep(0)
            elif model == "raise":
                raise ValueError(name)
            elif model == "exit":
                raise SystemExit(3)
            elif model == "panic":
                raise Panic("odd")
            elif model == "generator exit":
                raise GeneratorExit
            elif model == "cancel":
                raise asyncio.CancelledError
            return f"answer {name}"
        finally:
            self.in_flight -= 1
            self.ended[name] += 1


def request(name: object, model: str = "m", **arguments: Any) -> bytes:
    messages = [{"role": "user", "content": str(name)}]
    return pack_request({"model": model, "messages": messages, **arguments})


def recipe(make: Callable[[], Any]) -> Recipe:
    """Make a recipe that never leaves this process."""
    return Recipe("a test", b"", make)


def run(function: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await function()
            while len(asyncio.all_tasks()) > 1:  # those of workers that were killed
                await asyncio.sleep(0)

    asyncio.run(main())


@dataclass
class Told:
    """Messages of a worker."""

    blocks: list[list[Message]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def messages(self) -> list[Message]:
        return [message for block in self.blocks for message in block]

    @property
    def of_calls(self) -> list[Message]:
        return [m for m in self.messages if m[0] in (Kind.OUTCOME, Kind.CANCELLED)]

    async def wait_for(self, calls: int) -> None:
        while len(self.of_calls) < calls:
            self.changed.clear()
            await self.changed.wait()


@contextlib.asynccontextmanager
async def working(worker: Worker) -> AsyncGenerator[Told, None]:
    told = Told()

    async def take() -> None:
        async for block in worker.run():
            told.blocks.append(block)
            told.changed.set()

    taking = asyncio.create_task(take())
    try:
        yield told
    finally:
        await worker.stop()
        await taking


def new_worker(router: Any, concurrency: int = 4, pace: Pace = AT_ONCE) -> Worker:
    return Worker(recipe(lambda: router), concurrency, pace)


class Killed(Exception):
    """The error that the driver gets of a worker whose process has ended."""


class LocalWorker:
    """A worker that is a task, and can be killed."""

    def __init__(self, source: LocalWorkers, worker: Worker, router: Any) -> None:
        self._source = source
        self._worker = worker
        self._tasks: set[asyncio.Task[Any]] = set()
        self._blocks: asyncio.Queue[list[Message] | None] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None
        self.router = router
        self.dead = False
        self.deaf = False

    async def messages(self) -> AsyncGenerator[list[Message], None]:
        if not self.dead:
            self._running = asyncio.create_task(self._run())
        while (block := await self._blocks.get()) is not None:
            yield block
        if self.dead:
            raise Killed

    async def _run(self) -> None:
        try:
            async for block in self._worker.run():
                if not self.dead:
                    self._blocks.put_nowait(block)
        except Exception:  # of a process, no more would be seen than its end
            self.dead = True
        finally:
            self._blocks.put_nowait(None)

    def give(self, sequence: int, given_: Given) -> None:
        if not (self.dead or self.deaf):
            self._do(self._worker.give(sequence, given_))

    def stop(self) -> None:
        if not (self.dead or self.deaf):
            self._do(self._worker.stop())

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            self._source.alive.discard(self)
            while not self._blocks.empty():  # what was on its way is lost
                self._blocks.get_nowait()
            # The end is heard of when it has left the loop, whose clients it closes then: the next
            # worker is on the same one.
            if self._running is None:
                self._blocks.put_nowait(None)
            self._do(self._worker.stop())

    async def gone(self) -> None:
        pass

    def _do(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class LocalWorkers:
    """Starts local workers, as Ray starts its own."""

    def __init__(self, make: Callable[[], Any] = Router) -> None:
        self.make = make
        self.alive: set[LocalWorker] = set()
        self.spawned: list[LocalWorker] = []

    def spawn(self, concurrency: int, pace: Pace) -> LocalWorker:
        router = self.make()
        worker = LocalWorker(self, Worker(recipe(lambda: router), concurrency, pace), router)
        self.alive.add(worker)
        self.spawned.append(worker)
        return worker

    def why_none_starts(self) -> str:
        return "nobody knows"

    @property
    def in_flight(self) -> int:
        return sum(worker.router.in_flight for worker in self.alive)


@contextlib.asynccontextmanager
async def fleet_of(
    source: LocalWorkers, workers: int = 2, concurrency: int = 2
) -> AsyncGenerator[Fleet, None]:
    fleet = Fleet(source, workers, concurrency)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)
