"""Batches beside a guest run that is somebody else's: ``foreign_guest_run.py CASE LOOP``."""

from __future__ import annotations

import asyncio
from typing import Any

import outcome
import trio

from helpers.bridge_scripts import (
    check_a_batch,
    check_what_ends_otherwise,
    choose,
    ended,
    files,
    forever,
    passes,
    run,
    until,
)
from parallel_core import BatchAbortedError
from parallel_core.bridge import iter_parallel_map, parallel_map


class Foreign:
    """A guest run of trio that has nothing to do with us."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.done = asyncio.Event()
        self.outcome: outcome.Outcome[None] | None = None
        self.ticks = 0
        self.scope = trio.CancelScope()
        trio.lowlevel.start_guest_run(
            self.main,
            run_sync_soon_threadsafe=self.loop.call_soon_threadsafe,
            done_callback=self.ended,
            host_uses_signal_set_wakeup_fd=True,
        )

    async def main(self) -> None:
        with self.scope:
            while True:
                self.ticks += 1
                await trio.sleep(0.001)

    def ended(self, result: outcome.Outcome[None]) -> None:
        self.outcome = result
        self.done.set()

    def unwrap(self) -> None:
        assert self.outcome is not None
        self.outcome.unwrap()

    async def close(self) -> None:
        self.scope.cancel()
        await self.done.wait()
        self.unwrap()  # no error of ours has got into it
        assert not trio.lowlevel.in_trio_run()


class Failing(Foreign):
    async def main(self) -> None:
        self.go = trio.Event()
        await self.go.wait()
        raise LookupError("theirs")


async def check_aborted(batch: Any) -> None:
    try:
        await anext(batch)
    except BatchAbortedError:
        pass
    else:
        raise AssertionError("no error")


def batches_beside_it() -> None:
    async def main() -> None:
        before = files()
        foreign = Foreign()
        for _ in range(3):
            await check_a_batch()
            await check_what_ends_otherwise()
            await asyncio.gather(*(check_a_batch() for _ in range(5)))
        ticks = foreign.ticks
        await until(lambda: foreign.ticks > ticks)  # alive and well
        assert trio.lowlevel.in_trio_run()
        await foreign.close()
        await check_a_batch()  # and on a guest run of our own again
        await check_what_ends_otherwise()
        await until(lambda: not trio.lowlevel.in_trio_run())
        await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})
        assert files() == before

    run(main)


def that_ends() -> None:
    async def main() -> None:
        for count in range(12):
            ended.clear()
            foreign = Foreign()
            task = asyncio.ensure_future(parallel_map(forever, range(9), concurrency=4))
            await passes(count)
            await foreign.close()
            await asyncio.wait({task}, timeout=60)
            assert task.done(), f"hangs when the run ends after {count} passes"
            error = task.exception()
            assert isinstance(error, BatchAbortedError), repr(error)
            assert len(ended) in (0, 1, 2, 3, 4), ended
            await check_a_batch()
            await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})

    async def one_by_one() -> None:
        # All calls have begun when the run ends, and end in order.
        ended.clear()
        foreign = Foreign()
        batch = iter_parallel_map(forever, range(9), concurrency=4)
        async with batch:
            await until(lambda: batch.in_flight == 4)
            await passes(1)  # their tasks have begun
            await foreign.close()
            assert sorted(ended) == [0, 1, 2, 3], ended
            await check_aborted(batch)
        await check_a_batch()

    run(one_by_one)
    run(main)


def that_fails() -> None:
    async def main() -> None:
        foreign = Failing()
        async with iter_parallel_map(forever, range(9), concurrency=4) as batch:
            await until(lambda: batch.in_flight == 4)
            await passes(1)  # their tasks have begun
            foreign.go.set()
            await foreign.done.wait()
            try:
                foreign.unwrap()
            except LookupError as error:
                message = str(error)
            else:
                raise AssertionError("no error")
            assert message == "theirs"
            await check_aborted(batch)
        assert sorted(ended) == [0, 1, 2, 3], ended
        await check_a_batch()

    run(main)


def an_exit_in_a_call() -> None:
    async def call(item: int) -> None:
        if item == 3:
            await passes(3)
            raise SystemExit(7)
        await forever(item)

    async def main() -> None:
        foreign = Foreign()
        try:
            await parallel_map(call, range(9), concurrency=4)
        finally:
            await foreign.close()

    try:
        run(main)
    except SystemExit as exception:
        code = exception.code
    else:
        raise AssertionError("no exit")
    assert code == 7
    assert sorted(ended) == [0, 1, 2], ended


choose(batches_beside_it, that_ends, that_fails, an_exit_in_a_call)
print("fine")
