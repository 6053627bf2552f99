"""What ends a run early: a stop, a cancellation, a total timeout, a budget, a failure, the view."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from helpers.file_runs import Gate, Provider, ids_of, line, write_lines
from helpers.hosts import ASYNCIO_HOSTS, Host
from parallel_core import Budget, RateLimit
from parallel_core.run import RunProgress, RunStop, RunSummary, run_file


def test_a_stop_lets_calls_in_flight_end_and_begins_no_more(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        gate = Gate(8)
        provider = Provider(gate.pass_through)
        stop = RunStop()
        summaries: list[RunSummary] = []

        async def run() -> None:
            summaries.append(
                await run_file(provider, source, output, concurrency=8, stop=stop, grace=1000)
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await gate.until_full()
            stop.request()
            await anyio.lowlevel.checkpoint()
            gate.open()
        (summary,) = summaries
        assert (summary.ending, summary.succeeded, summary.unfinished) == ("stopped", 8, 42)
        assert summary.cut_off == 0
        assert len(provider.calls) == 8
        resumed = await run_file(provider, source, output, concurrency=8)
        assert resumed.ok
        assert set(provider.calls.values()) == {1}

    host.run(main)


@pytest.mark.parametrize("how", ["second request", "grace"])
def test_calls_in_flight_are_cut_off(host: Host, tmp_path: Path, how: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        gate = Gate(8)
        gate.free = 5
        provider = Provider(gate.pass_through)
        stop = RunStop()
        summaries: list[RunSummary] = []

        async def run() -> None:
            grace = 0.01 if how == "grace" else 1000
            summaries.append(
                await run_file(provider, source, output, concurrency=8, stop=stop, grace=grace)
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await gate.until_full()
            stop.request()
            if how == "second request":
                stop.request()
        (summary,) = summaries
        assert (summary.ending, summary.succeeded, summary.cut_off) == ("stopped", 5, 8)
        assert summary.unfinished == 45
        assert provider.in_flight == 0
        assert len(ids_of(output)) == 5

    host.run(main)


def test_what_waits_for_a_rate_limit_is_not_sent_after_a_stop(
    either_library: Host, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])

    async def main() -> None:
        gate = Gate(1)
        provider = Provider(gate.pass_through)
        stop = RunStop()
        summaries: list[RunSummary] = []

        async def run() -> None:
            summaries.append(
                await run_file(
                    provider,
                    source,
                    tmp_path / "out.jsonl",
                    concurrency=8,
                    stop=stop,
                    rate_limit=RateLimit(requests_per_minute=1, burst=1),
                )
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await gate.until_full()
            stop.request()
            gate.open()
        (summary,) = summaries
        assert (summary.succeeded, summary.unfinished, summary.cut_off) == (1, 49, 0)
        assert sum(provider.calls.values()) == 1

    either_library.run(main)


def test_what_waits_to_be_sent_again_is_not_sent_after_a_stop(
    either_library: Host, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])

    class OverloadedError(Exception):
        def __init__(self) -> None:
            super().__init__()
            self.status_code = 429
            self.litellm_response_headers = {"retry-after": "300"}

    async def main() -> None:
        rejected = anyio.Event()

        async def behave(_: int) -> None:
            rejected.set()
            raise OverloadedError

        provider = Provider(behave)
        stop = RunStop()
        summaries: list[RunSummary] = []

        async def run() -> None:
            summaries.append(
                await run_file(
                    provider, source, tmp_path / "out.jsonl", concurrency="auto", stop=stop
                )
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await rejected.wait()
            stop.request()
        (summary,) = summaries
        assert summary.ending == "stopped"
        assert summary.succeeded == summary.failed == summary.cut_off == 0

    either_library.run(main)


def test_a_stop_before_the_first_call_sends_nothing(either_library: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(5)])
    provider = Provider()

    async def main() -> None:
        stop = RunStop()
        stop.request()
        summary = await run_file(provider, source, tmp_path / "out.jsonl", stop=stop)
        assert (summary.ending, summary.unfinished) == ("stopped", 5)

    either_library.run(main)
    assert not provider.calls


def test_what_was_there_before_a_cancellation_is_written(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        gate = Gate(8)
        gate.free = 11
        provider = Provider(gate.pass_through)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def cancel() -> None:
                    await gate.until_full()
                    scope.cancel()

                tasks.start_soon(cancel)
                await run_file(provider, source, output, concurrency=8)
        assert scope.cancelled_caught
        assert provider.in_flight == 0
        assert len(ids_of(output)) == 11

    host.run(main)


def test_a_total_timeout_leaves_requests_for_the_next_run(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        gate = Gate(8)
        gate.free = 3
        provider = Provider(gate.pass_through)
        summary = await run_file(provider, source, output, concurrency=8, total_timeout=0.05)
        sent = sum(provider.calls.values())  # on a busy machine, it comes before all are
        assert (summary.ending, summary.failed) == ("total_timeout", 0)
        assert (summary.unfinished, summary.cut_off) == (
            50 - summary.succeeded,
            sent - summary.succeeded,
        )
        assert provider.in_flight == 0
        gate.open()
        again = await run_file(provider, source, output, concurrency=8, total_timeout=1000)
        assert again.ok
        assert sorted(ids_of(output)) == sorted(f"id-{number}" for number in range(50))

    host.run(main)


def test_a_budget_leaves_requests_for_the_next_run(either_library: Host, tmp_path: Path) -> None:
    lines = [line(number, max_tokens=1) for number in range(20)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    output = tmp_path / "out.jsonl"
    provider = Provider()

    def budget(calls: float) -> Budget:
        # An answer is one token at one dollar.
        return Budget(max_cost=calls, prices={"gpt": (0.0, 1.0)})

    async def main() -> None:
        summary = await run_file(provider, source, output, budget=budget(5))
        assert (summary.ending, summary.succeeded, summary.unfinished) == ("budget", 5, 15)
        assert summary.usage.cost == 5
        assert (await run_file(provider, source, output, budget=budget(100))).ok

    either_library.run(main)
    assert set(provider.calls.values()) == {1}


def test_a_budget_that_cannot_tell_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0, max_tokens=1), line(1)])
    provider = Provider()

    async def main() -> None:
        with pytest.raises(ValueError, match="price"):
            await run_file(provider, source, tmp_path / "out.jsonl", budget=Budget(max_cost=1))
        with pytest.raises(ValueError, match="max_tokens"):
            budget = Budget(max_cost=1, prices={"gpt": (1.0, 1.0)})
            await run_file(provider, source, tmp_path / "out.jsonl", budget=budget)

    ASYNCIO_HOSTS[0].run(main)
    assert not provider.calls
    assert not (tmp_path / "out.jsonl").exists()


def test_the_first_failure_ends_a_run_that_fails_fast(either_library: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(500)])

    async def behave(number: int) -> None:
        if number == 10:
            raise ValueError("no")

    provider = Provider(behave)

    async def main() -> None:
        output = tmp_path / "out.jsonl"
        summary = await run_file(provider, source, output, concurrency=4, fail_fast=True)
        assert (summary.ending, summary.failed) == ("failure", 1)
        assert summary.unfinished > 400
        assert summary.cut_off == 0
        assert len(ids_of(output)) == summary.succeeded + 1

    either_library.run(main)


def test_an_error_of_the_view_ends_the_run_and_loses_nothing(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        gate = Gate(8)
        gate.free = 11
        provider = Provider(gate.pass_through)

        def on_progress(progress: RunProgress) -> None:
            if sum(provider.calls.values()) >= 19:
                raise LookupError("of the view")

        with pytest.raises(LookupError, match="of the view"):
            await run_file(provider, source, output, on_run_progress=on_progress)
        assert provider.in_flight == 0
        assert len(ids_of(output)) == 11

    host.run(main)
