"""Snapshots and bars of batches that end in every way."""

from __future__ import annotations

import itertools

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

import parallel_core
from helpers.hosts import Host
from helpers.progress_values import (
    HIDE_CURSOR,
    SHOW_CURSOR,
    CallbackFailed,
    Terminal,
    console_on,
    rows,
)
from parallel_core.control import progress_bar
from parallel_core.control.progress import Progress

pytestmark = pytest.mark.usefixtures("nothing_stays_on_a_terminal")


async def answer(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    return item


@pytest.mark.parametrize("amount", [0, 5])
def test_a_batch_ends_with_exactly_one_last_snapshot(host: Host, amount: int) -> None:
    async def main() -> None:
        seen: list[Progress] = []
        await parallel_core.parallel_map(answer, range(amount), on_progress=seen.append)
        assert [one.finished for one in seen] == [False] * (len(seen) - 1) + [True]
        last = seen[-1]
        assert (last.started, last.succeeded, last.failed, last.in_flight) == (amount, amount, 0, 0)
        assert (last.total, last.eta, last.limit) == (amount, 0.0, 8)

    host.run(main)


def test_a_batch_is_told_of_at_a_bounded_rate() -> None:
    async def call(item: int) -> None:
        await trio.sleep(0.01)

    async def main() -> None:
        seen: list[Progress] = []
        await parallel_core.parallel_map(call, range(800), on_progress=seen.append)
        assert seen[-1].elapsed == pytest.approx(1.0)
        assert len(seen) <= 12
        assert seen[0].elapsed == 0
        gaps = [later.elapsed - one.elapsed for one, later in itertools.pairwise(seen[:-1])]
        assert min(gaps) > 0.0999

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("fail_fast", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_callback_that_raises_fails_the_batch(host: Host, fail_fast: bool, last: bool) -> None:
    error = CallbackFailed()
    ended: list[int] = []
    seen: list[Progress] = []

    def callback(progress: Progress) -> None:
        seen.append(progress)
        if progress.finished or not last:
            raise error

    async def call(item: int) -> int:
        try:
            await (anyio.lowlevel.checkpoint() if last else anyio.sleep_forever())
        finally:
            ended.append(item)
        return item

    async def main() -> None:
        with pytest.raises(CallbackFailed) as caught:
            await parallel_core.parallel_map(
                call, range(3), return_exceptions=not fail_fast, on_progress=callback
            )
        assert caught.value is error
        assert error.__context__ is None
        assert len(seen) == (len(seen) if last else 1)
        assert [one.finished for one in seen[:-1]] == [False] * (len(seen) - 1)

    host.run(main)


@pytest.mark.parametrize("way", ["break", "raise", "cancel", "aclose"])
def test_what_the_last_callback_raises_comes_out_of_a_batch_that_is_left(
    host: Host, way: str
) -> None:
    error = CallbackFailed()

    def callback(progress: Progress) -> None:
        if progress.finished:
            raise error

    async def call(item: int) -> int:
        if item:
            await anyio.sleep_forever()
        return item

    async def main() -> None:
        own = LookupError()
        with pytest.raises(LookupError if way == "raise" else CallbackFailed) as caught:
            async with parallel_core.iter_parallel_map(
                call, range(3), on_progress=callback
            ) as batch:
                async for _ in batch:
                    if way == "raise":
                        raise own
                    if way == "aclose":
                        await batch.aclose()
                    if way == "cancel":
                        batch.cancel()
                    else:
                        break
        if way == "raise":
            assert "then its batch failed to end: CallbackFailed" in own.__notes__[0]
        else:
            assert caught.value is error

    host.run(main)


@pytest.mark.parametrize("way", ["break", "fail fast", "cancel", "interrupt"])
def test_the_bar_is_closed_in_every_way(
    host: Host, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "interrupt" and host.library == "asyncio":
        pytest.skip("SystemExit of a task ends its loop")
    terminal = Terminal()
    monkeypatch.setattr(progress_bar, "_stderr_console", lambda: console_on(terminal))
    seen: list[Progress] = []

    async def call(item: int) -> int:
        if item:
            await anyio.sleep_forever()
        await anyio.sleep(0.005)
        if way == "fail fast":
            raise CallbackFailed
        if way == "interrupt":
            raise SystemExit
        return item

    async def batch_of(scope: anyio.CancelScope | None = None) -> None:
        async with parallel_core.iter_parallel_map(
            call,
            range(3),
            return_exceptions=way != "fail fast",
            progress=True,
            on_progress=seen.append,
        ) as batch:
            async for _ in batch:
                if way == "break":
                    break
                if scope is not None:
                    scope.cancel()

    async def main() -> None:
        if way == "cancel":
            with anyio.CancelScope() as scope:
                await batch_of(scope)
        elif way == "break":
            await batch_of()
        else:
            with pytest.raises((CallbackFailed, SystemExit)):
                await batch_of()

    host.run(main)
    assert [one.finished for one in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[-1].in_flight == 0
    assert (terminal.getvalue().count(HIDE_CURSOR), terminal.getvalue().count(SHOW_CURSOR)) == (
        1,
        1,
    )


def test_several_batches_at_once_on_one_terminal(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(progress_bar, "_stderr_console", lambda: console_on(terminal))

    async def batch_of(amount: int) -> None:
        await parallel_core.parallel_map(answer, range(amount), progress=True)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for amount in (11, 22, 33):
                tasks.start_soon(batch_of, amount)

    host.run(main)
    ended = {row.split()[1] for row in rows(terminal.getvalue()) if " in 0:0" in row}
    assert ended == {"11/11", "22/22", "33/33"}
    assert terminal.getvalue().endswith(SHOW_CURSOR)
