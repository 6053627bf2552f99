"""What holds for every batch, however its calls, its source and its consumer happen to interleave.

Here nothing waits for the test: calls take a random number of scheduling points, and so does the
consumer between two results. Everything is checked against a record of what really happened.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import HOSTS, TRIO, Host

SOURCE = -1  # in the record: not a call but the source has ended


@dataclass(frozen=True)
class Scenario:
    calls: list[tuple[int, bool]]  # scheduling points before the end; whether the call fails then
    concurrency: int
    return_exceptions: bool
    preserve_order: bool
    source: str
    source_breaks: bool
    pauses: list[int]  # scheduling points between two results, again and again
    results_wanted: int | None  # None: all of them
    leave_by: str
    cleanup: int  # scheduling points that a call needs to end, also when it is cancelled


SCENARIOS = st.builds(
    Scenario,
    calls=st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from([False] * 5 + [True])), max_size=40
    ),
    concurrency=st.integers(1, 8),
    return_exceptions=st.booleans(),
    preserve_order=st.booleans(),
    source=st.sampled_from(["generator", "async generator", "slow async generator"]),
    source_breaks=st.booleans(),
    pauses=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    results_wanted=st.none() | st.integers(0, 30),
    leave_by=st.sampled_from(["break", "raise", "cancel", "aclose", "scope"]),
    cleanup=st.integers(0, 3),
)


class CallFailed(Exception):
    pass


class SourceBroke(Exception):
    pass


class BodyFailed(Exception):
    pass


@dataclass
class Record:
    running: set[int] = field(default_factory=set[int])
    most_running: int = 0
    most_held: int = 0
    ends: list[tuple[int, Exception | None]] = field(
        default_factory=list[tuple[int, Exception | None]]
    )
    delivered: list[Any] = field(default_factory=list[Any])
    raised: BaseException | None = None
    drained: bool = False
    drawn: int = 0
    sources_closed: int = 0


async def scheduling_points(count: int) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.name)
@given(scenario=SCENARIOS)
def test_the_promises(host: Host, scenario: Scenario) -> None:
    record = Record()
    batch: parallel_core.ParallelBatch[Any]

    async def work(points: int, fails: bool) -> str:
        try:
            await scheduling_points(points)
            if fails:
                raise CallFailed
            return "value"
        finally:
            # In asyncio a call is cancelled once, and may await while it cleans up.
            with trio.CancelScope(shield=True) if host is TRIO else contextlib.nullcontext():
                await scheduling_points(scenario.cleanup)

    async def call(item: int) -> str:
        record.running.add(item)
        record.most_running = max(record.most_running, len(record.running))
        record.most_held = max(record.most_held, batch.started - batch.delivered)
        try:
            value = await work(*scenario.calls[item])
        except Exception as exception:
            record.ends.append((item, exception))
            raise
        else:
            record.ends.append((item, None))
            return value
        finally:
            record.running.discard(item)

    def draw(item: int) -> int:
        record.drawn += 1
        return item

    def break_if_asked() -> None:
        if scenario.source_breaks:
            error = SourceBroke()
            record.ends.append((SOURCE, error))
            raise error

    def generator() -> Any:
        try:
            for item in range(len(scenario.calls)):
                yield draw(item)
            break_if_asked()
        finally:
            record.sources_closed += 1

    async def async_generator(points: int) -> Any:
        try:
            for item in range(len(scenario.calls)):
                await scheduling_points(points)
                yield draw(item)
            break_if_asked()
        finally:
            record.sources_closed += 1

    async def consume() -> None:
        pauses = 0
        if scenario.results_wanted != 0:
            async for result in batch:
                record.delivered.append(result)
                pauses += 1
                if len(record.delivered) == scenario.results_wanted:
                    break
                await scheduling_points(scenario.pauses[pauses % len(scenario.pauses)])
            else:
                record.drained = True
                return
        if scenario.leave_by == "raise":
            raise BodyFailed
        if scenario.leave_by == "aclose":
            await batch.aclose()
        if scenario.leave_by == "cancel":
            batch.cancel()
            async for result in batch:
                record.delivered.append(result)
            record.drained = True

    async def main() -> None:
        nonlocal batch
        source: Any = generator()
        if scenario.source != "generator":
            source = async_generator(2 if scenario.source.startswith("slow") else 0)
        batch = parallel_core.iter_parallel_map(
            call,
            source,
            concurrency=scenario.concurrency,
            return_exceptions=scenario.return_exceptions,
            preserve_order=scenario.preserve_order,
        )
        try:
            with anyio.CancelScope() as scope:
                async with batch:
                    await consume()
                    if scenario.leave_by == "scope" and not record.drained:
                        scope.cancel()
                        await anyio.sleep_forever()
        except (CallFailed, SourceBroke) as exception:
            record.raised = exception
        except BodyFailed:
            assert scenario.leave_by == "raise"
        assert not record.running, "a call is in flight after its batch"
        assert batch.in_flight == 0

    host.run(main)
    check(scenario, record, batch)


def check(scenario: Scenario, record: Record, batch: parallel_core.ParallelBatch[Any]) -> None:
    window = scenario.concurrency * (8 if scenario.preserve_order else 2)
    assert record.most_running <= scenario.concurrency
    assert record.most_held <= window

    # The first error ends a fail-fast batch; an error of the source ends every batch.
    ends = record.ends
    fatal: Exception | None = None
    for position, (item, exception) in enumerate(ends):
        if exception is None:
            continue
        if item == SOURCE and scenario.return_exceptions:
            fatal = exception
            ends = [end for end in ends if end[0] != SOURCE]
            break
        if not scenario.return_exceptions:
            fatal = exception
            ends = ends[:position]
            break

    outcomes = dict(ends)
    indexes = [result.index for result in record.delivered]
    assert len(set(indexes)) == len(indexes)
    for result in record.delivered:
        assert result.item == result.index
        assert result.exception is outcomes[result.index]
        assert result.value == ("value" if result.exception is None else None)

    in_completion_order = [item for item, _ in ends]
    if scenario.preserve_order:
        assert indexes == sorted(indexes)
    else:
        assert indexes == in_completion_order[: len(indexes)]

    if record.raised is not None:
        assert record.raised is fatal
        assert sorted(indexes) == sorted(in_completion_order), "a finished result was lost"
    if record.drained:
        assert fatal is None
        assert sorted(indexes) == sorted(in_completion_order), "a finished result was lost"
        if not (scenario.leave_by == "cancel" and scenario.results_wanted is not None):
            assert sorted(indexes) == list(range(len(scenario.calls)))

    assert batch.delivered == len(indexes)
    assert batch.succeeded == sum(error is None for _, error in record.ends)
    assert batch.failed == sum(isinstance(error, CallFailed) for _, error in record.ends)
    # What an async source gave and no slot took, because the batch ended, was not started.
    assert batch.started <= record.drawn <= batch.started + scenario.concurrency
    assert record.sources_closed <= 1
    if record.drawn:
        assert record.sources_closed == 1
