"""Runs of files: each request ends once, whatever cuts a run short, and what is on disk is true."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import ASYNCIO_HOSTS, HOSTS, Host, in_virtual_time
from parallel_core import Budget, InputFileError, JournalError, RateLimit, Retry
from parallel_core._journal_files import Disk
from parallel_core._run_view import describe_opening
from parallel_core.batch_input import InputFile
from parallel_core.errors import DifferentRunError, JournalInUseError, StreamInterruptedError
from parallel_core.failures import KINDS, FailureKind
from parallel_core.run_file import RunOpening, RunProgress, RunStop, RunSummary, run_file
from parallel_core.run_statistics import (
    CallStatistics,
    RunPaths,
    older_names,
    read_statistics,
)

# A run writes with a thread and syncs: one loop of each kind is enough where only order matters.
TWO_WORLDS = [HOSTS[0], ASYNCIO_HOSTS[0]]


def line(number: int, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{number}"}]
    return {"custom_id": f"id-{number}", "body": {"model": "gpt", "messages": messages, **body}}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return path


def answer_of(number: str) -> dict[str, Any]:
    return {
        "id": "1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": number}}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3},
    }


class Provider:
    """Answers with the number of its request, and counts its calls."""

    def __init__(self, behave: Callable[[int], Any] | None = None) -> None:
        self.calls = Counter[str]()
        self.in_flight = 0
        self._behave = behave

    async def __call__(self, *, model: str, messages: Any, **_: Any) -> dict[str, Any]:
        number = str(messages[0]["content"])
        self.calls[f"id-{number}"] += 1
        self.in_flight += 1
        try:
            await anyio.lowlevel.checkpoint()
            if self._behave is not None:
                await self._behave(int(number))
        finally:
            self.in_flight -= 1
        return answer_of(number)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def ids_of(path: Path) -> list[str]:
    return [entry["custom_id"] for entry in lines_of(path)]


async def fails(_: int) -> None:
    raise ValueError("no")


def test_each_request_has_one_line_and_is_not_sent_again(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(40)])
    output = tmp_path / "out.jsonl"
    provider = Provider()

    async def main() -> None:
        first = await run_file(provider, source, output, concurrency=7)
        assert first.ok
        assert (first.ending, first.total, first.succeeded) == ("complete", 40, 40)
        assert first.usage.total_tokens == 120
        assert sorted(ids_of(output)) == sorted(f"id-{number}" for number in range(40))
        for entry in lines_of(output):
            content = entry["response"]["body"]["choices"][0]["message"]["content"]
            assert entry["custom_id"] == f"id-{content}"
        second = await run_file(provider, source, output, concurrency=7)
        assert (second.earlier_succeeded, second.succeeded, second.unfinished) == (40, 0, 0)

    host.run(main)
    assert set(provider.calls.values()) == {1}
    statistics = [
        record
        for record in read_statistics(RunPaths.of(output).statistics)
        if isinstance(record, CallStatistics)
    ]
    assert len(statistics) == 40
    assert all(record.ok and record.prompt_tokens == 2 for record in statistics)


def refused(status: int) -> Exception:
    """An answer of HTTP, as a Router raises it."""
    error = OSError(f"status {status}")
    vars(error).update(
        status_code=status, body={"message": "no"}, litellm_response_headers={"server": "x"}
    )
    return error


# The failure of each request at first, with its kind.
FAILURES: list[tuple[Exception, FailureKind]] = [
    (refused(400), "request"),
    (refused(413), "request"),
    (refused(429), "overloaded"),
    (refused(500), "unknown"),
    (TimeoutError(), "timeout"),
    (StreamInterruptedError(0, "gpt"), "answer"),
]


@pytest.mark.parametrize(
    ("retry_failed", "sent"),
    [
        (False, []),
        (True, [2, 3, 4, 5]),
        (["overloaded", "request"], [0, 1, 2]),
        ({"account"}, []),
        (KINDS, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_failures_of_these_kinds_are_sent_again(
    tmp_path: Path, retry_failed: bool | list[FailureKind], sent: list[int]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(7)])
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    looked: list[RunOpening] = []
    healthy = False

    async def behave(number: int) -> None:
        if not healthy and number < len(FAILURES):
            raise FAILURES[number][0]

    provider = Provider(behave)

    def may_send(opening: RunOpening) -> bool:
        looked.append(opening)
        return True

    async def main() -> None:
        nonlocal healthy
        first = await run_file(provider, source, output, error_file=errors, retry=None)
        assert (first.succeeded, first.failed, first.unfinished) == (1, 6, 0)
        assert (first.final_failures, first.failures_that_may_pass) == (2, 4)
        healthy = True
        provider.calls.clear()
        again = await run_file(
            provider,
            source,
            output,
            error_file=errors,
            retry_failed=retry_failed,
            may_send=may_send,
        )
        assert sorted(provider.calls) == [f"id-{number}" for number in sent]
        assert (looked[0].left, looked[0].total) == (len(sent), 7)
        assert looked[0].earlier_failed == 6 - len(sent)
        assert (again.succeeded, again.earlier_failed) == (len(sent), 6 - len(sent))
        assert again.final_failures == len({0, 1} - {*sent})

    ASYNCIO_HOSTS[0].run(main)
    left = {f"id-{number}" for number in range(6)} - provider.calls.keys()
    assert set(ids_of(errors)) == left
    assert len(ids_of(output)) == 7 - len(left)


def test_unknown_kinds_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0)])
    provider = Provider()

    async def main() -> None:
        bad: Any = ["late"]
        with pytest.raises(ValueError, match="retry_failed: there is no kind of failure 'late'"):
            await run_file(provider, source, tmp_path / "out.jsonl", retry_failed=bad)

    ASYNCIO_HOSTS[0].run(main)
    assert not provider.calls
    assert not (tmp_path / "out.jsonl").exists()


def test_bad_lines_are_final_failures(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(line(0)) + "\nno JSON\n")
    provider = Provider()

    async def main() -> None:
        for retry_failed in (False, True):
            summary = await run_file(
                provider,
                source,
                tmp_path / "out.jsonl",
                skip_invalid=True,
                retry_failed=retry_failed,
            )
            assert (summary.failed + summary.earlier_failed, summary.final_failures) == (1, 1)

    ASYNCIO_HOSTS[0].run(main)
    assert provider.calls == {"id-0": 1}


def test_failures_have_lines_and_are_sent_again_on_demand_only(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(10)])
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    healthy = False

    async def behave(number: int) -> None:
        if number % 2 and not healthy:
            raise ValueError("no")

    provider = Provider(behave)

    async def main() -> None:
        nonlocal healthy
        first = await run_file(provider, source, output, error_file=errors)
        assert not first.ok
        assert (first.succeeded, first.failed) == (5, 5)
        (group,) = first.failures
        assert (group.kind, group.count, group.status_code) == ("unknown", 5, None)
        assert group.message == "the call failed in an unexpected way (ValueError)"
        assert len(group.custom_ids) == 3
        assert len(ids_of(output)) == len(ids_of(errors)) == 5
        healthy = True
        second = await run_file(provider, source, output, error_file=errors)
        assert (second.earlier_failed, second.succeeded) == (5, 0)
        third = await run_file(provider, source, output, error_file=errors, retry_failed=True)
        assert third.ok
        assert (third.earlier_succeeded, third.earlier_failed, third.succeeded) == (5, 0, 5)
        assert sorted(ids_of(output)) == sorted(f"id-{number}" for number in range(10))
        assert ids_of(errors) == []
        # With nothing in it, the error file may go.
        fourth = await run_file(provider, source, output)
        assert (fourth.earlier_succeeded, fourth.succeeded) == (10, 0)

    host.run(main)


class Gate:
    """Calls that wait until they are let through."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._full = anyio.Event()
        self._open = anyio.Event()
        self._waiting = 0
        self.free = 0

    async def pass_through(self, number: int) -> None:
        if self.free > 0:
            self.free -= 1
            return
        self._waiting += 1
        if self._waiting >= self._at_once:
            self._full.set()
        await self._open.wait()

    async def until_full(self) -> None:
        await self._full.wait()

    def open(self) -> None:
        self._open.set()


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


def test_what_waits_for_a_rate_limit_is_not_sent_after_a_stop(host: Host, tmp_path: Path) -> None:
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

    host.run(main)


def test_what_waits_to_be_sent_again_is_not_sent_after_a_stop(host: Host, tmp_path: Path) -> None:
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

    host.run(main)


def test_a_stop_before_the_first_call_sends_nothing(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(5)])
    provider = Provider()

    async def main() -> None:
        stop = RunStop()
        stop.request()
        summary = await run_file(provider, source, tmp_path / "out.jsonl", stop=stop)
        assert (summary.ending, summary.unfinished) == ("stopped", 5)

    host.run(main)
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


def test_a_deadline_leaves_requests_for_the_next_run(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        gate = Gate(8)
        gate.free = 3
        provider = Provider(gate.pass_through)
        summary = await run_file(provider, source, output, concurrency=8, deadline=0.2)
        assert (summary.ending, summary.succeeded, summary.failed) == ("deadline", 3, 0)
        assert (summary.unfinished, summary.cut_off) == (47, 8)
        gate.open()
        again = await run_file(provider, source, output, concurrency=8, deadline=1000)
        assert again.ok
        assert sorted(ids_of(output)) == sorted(f"id-{number}" for number in range(50))

    host.run(main)


def test_a_budget_leaves_requests_for_the_next_run(host: Host, tmp_path: Path) -> None:
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

    host.run(main)
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

    TWO_WORLDS[1].run(main)
    assert not provider.calls
    assert not (tmp_path / "out.jsonl").exists()


def test_the_first_failure_ends_a_run_that_fails_fast(host: Host, tmp_path: Path) -> None:
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

    host.run(main)


def test_a_trial_and_then_the_whole(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(30)])
    output = tmp_path / "out.jsonl"
    provider = Provider()

    async def main() -> None:
        trial = await run_file(provider, source, output, limit=4)
        assert (trial.ending, trial.total, trial.succeeded) == ("complete", 4, 4)
        assert sorted(ids_of(output)) == [f"id-{number}" for number in range(4)]
        larger = await run_file(provider, source, output, limit=6)
        assert (larger.total, larger.succeeded) == (6, 2)
        assert (await run_file(provider, source, output)).succeeded == 24
        smaller = await run_file(provider, source, output, limit=3)
        assert (smaller.ending, smaller.total, smaller.unfinished) == ("complete", 3, 0)

    host.run(main)
    assert set(provider.calls.values()) == {1}


def test_the_output_is_sorted_when_all_is_done(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(30)])
    output = tmp_path / "out.jsonl"
    draw = random.Random(1)

    async def behave(_: int) -> None:
        for _ in range(draw.randrange(20)):
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        await run_file(Provider(behave), source, output, concurrency=9, order="input")
        assert ids_of(output) == [f"id-{number}" for number in range(30)]

    host.run(main)


def test_bad_lines_are_refused_or_written_as_failures(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0), {"custom_id": "bad"}, line(0), line(2)])
    output = tmp_path / "out.jsonl"
    provider = Provider()

    async def main() -> None:
        with pytest.raises(InputFileError, match="line 2: missing_required_parameter") as refused:
            await run_file(provider, source, output)
        assert "line 3: duplicate_custom_id" in str(refused.value)
        assert not provider.calls
        assert not output.exists()
        summary = await run_file(provider, source, output, skip_invalid=True)
        assert (summary.total, summary.succeeded, summary.failed) == (4, 2, 2)
        assert summary.ending == "complete"
        assert len(set(ids_of(output))) == 4
        for options in cast("list[dict[str, Any]]", [{}, {"limit": 2}]):
            again = await run_file(provider, source, output, skip_invalid=True, **options)
            assert (again.earlier_failed, again.failed, again.succeeded) == (2, 0, 0)
            assert (again.ending, again.unfinished) == ("complete", 0)

    host.run(main)
    assert set(provider.calls.values()) == {1}


def test_metadata_and_kept_columns_come_back_with_answers_and_failures(
    host: Host, tmp_path: Path
) -> None:
    """Exactly as they were, whatever the call did with its own copy."""
    odd = {"text": 'a"\U0001f389 sk-0123456789abcdef', "number": 2**70, "nested": [{"x": None}]}
    body = line(0)["body"]
    source = write_lines(
        tmp_path / "in.jsonl",
        [
            {**line(0), "metadata": odd, "source": odd},
            {**line(1), "source": 1},
            line(2, metadata={"of": "the body"}),
            {**body, "custom_id": "plain", "metadata": {"n": "1"}, "source": ["a"], "other": 1},
            {**line(4), "source": None},
        ],
    )
    output = tmp_path / "out.jsonl"
    sent: list[dict[str, Any]] = []

    async def provider(*, model: str, messages: Any, **arguments: Any) -> dict[str, Any]:
        sent.append(dict(arguments))
        arguments.get("metadata", {}).clear()
        if messages[0]["content"] == "4":
            raise ValueError("no")
        return answer_of("0")

    async def main() -> None:
        opened = InputFile(source, keep=["source"])
        with pytest.raises(InputFileError, match="'other': 1 line, first in line 4"):
            await run_file(provider, opened, output, skip_invalid=True)
        assert not sent
        assert not output.exists()
        opened = InputFile(source, keep=["source"], drop_columns=True)
        summary = await run_file(provider, opened, output, concurrency=1)
        assert (summary.succeeded, summary.failed) == (4, 1)

    host.run(main)
    assert sent == [{}, {}, {"metadata": {}}, {"metadata": {}}, {}]
    names = ("metadata", "columns")
    assert [
        {name: entry[name] for name in names if name in entry} for entry in lines_of(output)
    ] == [
        {"metadata": odd, "columns": {"source": odd}},
        {"columns": {"source": 1}},
        {"metadata": {"of": "the body"}},
        {"metadata": {"n": "1"}, "columns": {"source": ["a"]}},
        {"columns": {"source": None}},
    ]


def test_two_runs_on_one_output_are_refused(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(5)])

    async def main() -> None:
        gate = Gate(5)
        provider = Provider(gate.pass_through)
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                await run_file(provider, source, tmp_path / "out.jsonl")

            tasks.start_soon(run)
            await gate.until_full()
            with pytest.raises(JournalInUseError):
                await run_file(provider, source, tmp_path / "out.jsonl")
            gate.open()

    host.run(main)


def test_another_input_is_not_mixed_into_an_output(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", [line(0)])
    second = write_lines(tmp_path / "b.jsonl", [line(0), line(1)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        await run_file(Provider(), first, output)
        with pytest.raises(DifferentRunError, match="input"):
            await run_file(Provider(), second, output)
        with pytest.raises(DifferentRunError, match="temperature"):
            await run_file(Provider(), first, output, description={"temperature": 1})
        went_on = await run_file(Provider(), second, output, allow_changed=True)
        assert (went_on.earlier_succeeded, went_on.succeeded) == (1, 1)
        (change,) = json.loads(RunPaths.of(output).manifest.read_text())["changes"]
        assert change["differences"].keys() == {"input"}
        assert (await run_file(Provider(), second, output)).earlier_succeeded == 2
        assert (await run_file(Provider(), first, output, force_new=True)).succeeded == 1

    TWO_WORLDS[1].run(main)


def test_results_of_requests_that_are_gone_from_the_input_do_not_count(
    host: Host, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(20)])
    output = tmp_path / "out.jsonl"

    async def behave(number: int) -> None:
        if number in (0, 7):
            raise ValueError("no")

    openings: list[RunOpening] = []

    async def main() -> None:
        await run_file(Provider(behave), source, output)
        write_lines(source, [line(number) for number in (9, 8, 7, 6, 5, 30)])
        summary = await run_file(
            Provider(), source, output, allow_changed=True, order="input", on_open=openings.append
        )
        assert (summary.ending, summary.total, summary.unfinished) == ("complete", 6, 0)
        assert (summary.earlier_succeeded, summary.earlier_failed, summary.succeeded) == (4, 1, 1)
        assert ids_of(output)[:6] == ["id-9", "id-8", "id-7", "id-6", "id-5", "id-30"]
        assert len(ids_of(output)) == 21  # the others stay, behind them
        again = await run_file(
            Provider(), source, output, retry_failed=True, on_open=openings.append
        )
        assert (again.ok, again.succeeded, again.earlier_succeeded) == (True, 1, 5)

    host.run(main)
    assert [(o.total, o.left, o.others, o.journal.retried) for o in openings] == [
        (6, 1, 15, 0),
        (6, 1, 15, 1),
    ]
    assert "not in the input, which stay: 15" in " ".join(describe_opening(openings[0]))


def test_a_bad_line_that_is_written_before_is_no_failure_of_this_run(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0), {"custom_id": "bad"}])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        first = await run_file(Provider(), source, output, skip_invalid=True)
        (group,) = first.failures
        assert (first.failed, group.kind, group.count) == (1, "request", 1)
        assert group.message.startswith("missing_required_parameter: line ")
        second = await run_file(Provider(), source, output, skip_invalid=True)
        assert (second.earlier_failed, second.failed, second.failures) == (1, 0, [])

    TWO_WORLDS[1].run(main)


def test_lines_that_are_named_by_their_number_are_told_to_be_where_the_input_differs(
    tmp_path: Path,
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number)["body"] for number in range(3)])
    output = tmp_path / "out.jsonl"
    openings: list[RunOpening] = []

    async def main() -> None:
        await run_file(Provider(), source, output, limit=2)
        source.write_text("\n" + source.read_text())
        with pytest.raises(
            DifferentRunError, match=r"named by their number.*other lines"
        ) as refused:
            await run_file(Provider(), source, output)
        assert pickle.loads(pickle.dumps(refused.value)).note == refused.value.note
        await run_file(Provider(), source, output, allow_changed=True, on_open=openings.append)

    TWO_WORLDS[1].run(main)
    assert "named by their number" in " ".join(describe_opening(openings[0]))


@pytest.mark.parametrize("order", ["completion", "input"])
def test_an_input_that_changes_ends_the_run_in_order(
    host: Host, tmp_path: Path, order: Literal["completion", "input"]
) -> None:
    # Several blocks: what is behind the first is read after the change.
    lines = [line(number, user="x" * 40_000) for number in range(80)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    before = source.read_bytes()
    output = tmp_path / "out.jsonl"

    async def append(number: int) -> None:
        if number == 3:
            with source.open("a") as end:
                end.write(json.dumps(line(0, api_base="http://elsewhere")) + "\n")

    provider = Provider(append)

    async def main() -> None:
        summary = await run_file(provider, source, output, order=order)
        assert (summary.ending, summary.ok, summary.cut_off) == ("input", False, 0)
        assert "has been changed since it was checked" in (summary.input_error or "")
        assert 0 < summary.unfinished < 80
        assert len(ids_of(output)) == summary.succeeded == 80 - summary.unfinished
        source.write_bytes(before)
        assert (await run_file(provider, source, output, order=order)).ok

    host.run(main)
    assert provider.calls == {f"id-{number}": 1 for number in range(80)}


def test_an_input_that_has_grown_when_all_of_it_is_answered_is_told(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(3)])
    provider = Provider()

    def grow(progress: RunProgress) -> None:
        if progress.finished:
            write_lines(source, [line(number) for number in range(4)])

    async def main() -> None:
        output = tmp_path / "out.jsonl"
        summary = await run_file(provider, source, output, order="input", on_run_progress=grow)
        assert (summary.ending, summary.ok, summary.succeeded) == ("complete", False, 3)
        assert "has been changed" in (summary.input_error or "")
        assert len(ids_of(output)) == 3

    TWO_WORLDS[1].run(main)


def test_a_change_that_is_not_wanted_after_all_is_not_noted(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", [line(0)])
    second = write_lines(tmp_path / "b.jsonl", [line(0), line(1)])
    output = tmp_path / "out.jsonl"
    changes: list[object] = []

    def refuse(opening: RunOpening) -> bool:
        changes.append(opening.journal.changes)
        return False

    async def main() -> None:
        await run_file(Provider(), first, output)
        for retry_failed in (False, True):
            before = RunPaths.of(output).manifest.read_bytes()
            await run_file(
                Provider(),
                second,
                output,
                allow_changed=True,
                may_send=refuse,
                retry_failed=retry_failed,
            )
            assert RunPaths.of(output).manifest.read_bytes() == before
        assert all(changes)
        assert (await run_file(Provider(), first, output)).ok

    TWO_WORLDS[1].run(main)


def test_a_run_of_the_first_format_is_resumed_by_the_bytes_of_its_input(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0), line(1)])
    output = tmp_path / "out.jsonl"
    paths = RunPaths.of(output)
    meaning = [hashlib.sha256(source.read_bytes()).hexdigest(), "jsonl", None]
    digest = hashlib.sha256(json.dumps(meaning, separators=(",", ":")).encode()).hexdigest()

    def begun_by_version_0_1(**fields: Any) -> None:
        for path in paths.files:
            path.unlink(missing_ok=True)
        fields |= {"output file": "out.jsonl", "error file": None, "format": "jsonl"}
        older = older_names(paths)
        assert older is not None
        older.manifest.write_text(
            json.dumps({"fields": {"input": digest, **fields}, "format_version": 1})
        )
        answer = {"status_code": 200, "body": answer_of("0")}
        write_lines(output, [{"custom_id": "id-0", "response": answer, "error": None}])

    async def main() -> None:
        described = {"model gpt": "openai/gpt with 0123456789ab"}
        begun_by_version_0_1(
            **{"model gpt": "openai/gpt with ba9876543210", "model x": "x", "router": "config"}
        )
        summary = await run_file(Provider(), source, output, description=described)
        assert (summary.earlier_succeeded, summary.succeeded) == (1, 1)
        manifest = json.loads(paths.manifest.read_text())
        assert manifest["fields"].keys() == {"input", "model gpt"}
        for changed, what in (
            ({"model gpt": "openai/other"}, "model gpt"),
            ({"model gpt": "openai/gpt", "router": "demo"}, "router"),
            ({"input": "0" * 64}, "input"),
        ):
            begun_by_version_0_1(**changed)
            with pytest.raises(DifferentRunError) as refused:
                await run_file(Provider(), source, output, description=described)
            assert refused.value.differences.keys() == {what}
            if what == "input":
                assert "of an older version" in str(refused.value)
                assert digest not in str(refused.value)

    TWO_WORLDS[1].run(main)


def test_a_retry_that_is_stopped_leaves_the_failures_that_it_has_not_answered(
    host: Host, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(10)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        assert (await run_file(Provider(fails), source, output)).failed == 10
        gate = Gate(2)
        gate.free = 4
        stop = RunStop()

        async def behave(number: int) -> None:
            await gate.pass_through(number)

        async with anyio.create_task_group() as tasks:

            async def retry() -> None:
                summary = await run_file(
                    Provider(behave), source, output, retry_failed=True, concurrency=2, stop=stop
                )
                assert (summary.succeeded, summary.unfinished) == (4, 6)

            tasks.start_soon(retry)
            await gate.until_full()
            assert len(ids_of(output)) >= 10  # of each there is a line
            stop.request()
            stop.request()
        assert sorted(ids_of(output)) == [f"id-{number}" for number in range(10)]
        assert [entry["error"] is None for entry in lines_of(output)].count(True) == 4
        same = await run_file(Provider(fails), source, output)
        assert (same.earlier_succeeded, same.earlier_failed, same.unfinished) == (4, 6, 0)
        last = await run_file(Provider(), source, output, retry_failed=True)
        assert (last.ok, last.succeeded) == (True, 6)

    host.run(main)
    assert sorted(ids_of(output)) == [f"id-{number}" for number in range(10)]


def test_an_output_that_cannot_be_sorted_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(5)])
    output = tmp_path / "out.jsonl"
    write = Disk.write
    full = True

    def failing_write(self: Disk, fd: int, data: bytes | memoryview) -> int:
        if full and _is(fd, output.with_name(".out.jsonl.new")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, fd, data)

    monkeypatch.setattr(Disk, "write", failing_write)

    async def later(number: int) -> None:
        await anyio.sleep(0 if number else 0.01)

    async def main() -> None:
        nonlocal full
        summary = await run_file(Provider(later), source, output, order="input")
        assert summary.ok
        assert "could not be sorted (No space left on device (ENOSPC))" in (
            summary.not_sorted or ""
        )
        assert ids_of(output)[0] != "id-0"
        full = False
        summary = await run_file(Provider(), source, output, order="input")
        assert (summary.earlier_succeeded, summary.not_sorted) == (5, None)

    TWO_WORLDS[1].run(main)
    assert ids_of(output) == [f"id-{number}" for number in range(5)]


def test_what_is_told_as_done_is_on_disk(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(200)])
    output = tmp_path / "out.jsonl"
    told: list[RunProgress] = []
    openings: list[RunOpening] = []

    def on_progress(progress: RunProgress) -> None:
        told.append(progress)
        lines = output.read_text().count("\n")
        assert progress.done <= lines

    def on_open(opening: RunOpening) -> None:
        openings.append(opening)
        assert len(list(opening.requests())) == opening.left

    async def behave(number: int) -> None:
        await anyio.sleep(0.001)

    async def main() -> None:
        provider = Provider(behave)
        await run_file(
            provider, source, output, limit=50, on_run_progress=on_progress, on_open=on_open
        )
        assert told[-1].finished
        assert (told[-1].total, told[-1].succeeded, told[-1].earlier) == (50, 50, 0)
        await run_file(provider, source, output, on_run_progress=on_progress, on_open=on_open)
        assert (told[-1].total, told[-1].succeeded, told[-1].earlier) == (200, 150, 50)
        assert [(opening.total, opening.left) for opening in openings] == [(50, 50), (200, 150)]

    host.run(main)


@pytest.mark.parametrize("option", [None, "retry_failed", "force_new"])
def test_a_run_that_is_not_wanted_changes_nothing(tmp_path: Path, option: str | None) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(5)])
    output = tmp_path / "out.jsonl"
    plans: list[RunOpening] = []
    options: dict[str, Any] = {} if option is None else {option: True}

    async def behave(number: int) -> None:
        if number == 3:
            raise ValueError("no")

    provider = Provider(behave)

    def refuse(opening: RunOpening) -> bool:
        plans.append(opening)
        return False

    async def main() -> None:
        await run_file(provider, source, output, limit=4)
        before = output.read_bytes()
        summary = await run_file(provider, source, output, may_send=refuse, **options)
        left = left_of(option)
        assert [(plan.total, plan.left) for plan in plans] == [(5, left)]
        assert (summary.ending, summary.unfinished) == ("stopped", left)
        assert output.read_bytes() == before
        assert [path.name for path in files_of(tmp_path)] == [
            "in.jsonl",
            "out.jsonl",
            "out.jsonl.manifest.json",
            "out.jsonl.statistics.jsonl",
        ]
        await run_file(provider, source, output, may_send=lambda _: True, **options)
        assert len(set(ids_of(output))) == len(ids_of(output)) == 5

    TWO_WORLDS[1].run(main)
    assert sum(provider.calls.values()) == 4 + left_of(option)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def left_of(option: str | None) -> int:
    return {None: 1, "retry_failed": 2, "force_new": 5}[option]


def test_one_strange_answer_is_a_failure_of_its_own(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(20)])
    output = tmp_path / "out.jsonl"
    deep: Any = "deep"
    for _ in range(100_000):
        deep = [deep]

    class Hostile:
        def model_dump(self, **_: Any) -> Any:
            raise LookupError("hostile")

    class HostileError(Exception):
        def __init__(self) -> None:
            super().__init__()
            self.status_code = 400
            self.body = {"error": deep}

    async def answer(*, model: str, messages: Any, **_: Any) -> Any:
        number = int(messages[0]["content"])
        if number == 3:
            return {**answer_of("3"), "deep": deep}
        if number == 7:
            return Hostile()
        if number == 11:
            raise HostileError
        return answer_of(str(number))

    async def main() -> None:
        summary = await run_file(answer, source, output, concurrency=4)
        assert (summary.ending, summary.succeeded, summary.failed) == ("complete", 17, 3)
        failed = {entry["custom_id"]: entry["error"] for entry in lines_of(output)}
        assert {name for name, error in failed.items() if error} >= {"id-3", "id-7"}
        assert failed["id-3"]["code"] == failed["id-7"]["code"] == "invalid_response"

    host.run(main)


def test_the_input_is_never_written_to(tmp_path: Path) -> None:
    provider = Provider()

    async def refused(source: str, output: str, **options: Any) -> None:
        path = write_lines(tmp_path / source, [line(0)])
        before = path.read_bytes()
        with pytest.raises(InputFileError, match="is the input"):
            await run_file(provider, path, tmp_path / output, force_new=True, **options)
        assert path.read_bytes() == before

    async def main() -> None:
        await refused("a.jsonl", "a.jsonl")
        await refused("b.jsonl", "x.jsonl", error_file=tmp_path / "b.jsonl")
        await refused("c.jsonl.statistics.jsonl", "c.jsonl")
        (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
        await refused("a.jsonl", "link.jsonl")

    TWO_WORLDS[1].run(main)
    assert not provider.calls
    assert len(list(tmp_path.iterdir())) == 4


def test_bad_lines_are_sorted_in_their_place(tmp_path: Path) -> None:
    lines = [line(0), {"custom_id": "bad"}, line(2), line(0)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        await run_file(Provider(), source, output, skip_invalid=True, order="input")
        assert [name.partition("#")[0] for name in ids_of(output)] == [
            "id-0", "bad", "id-2", "id-0",
        ]  # fmt: skip

    TWO_WORLDS[1].run(main)


def test_a_trial_does_not_count_what_is_beyond_it(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(6)])

    async def behave(number: int) -> None:
        if number == 5:
            raise ValueError("no")

    async def main() -> None:
        output = tmp_path / "out.jsonl"
        assert (await run_file(Provider(behave), source, output)).failed == 1
        trial = await run_file(Provider(behave), source, output, limit=3)
        assert trial.ok
        assert (trial.total, trial.earlier_succeeded, trial.earlier_failed) == (3, 3, 0)

    TWO_WORLDS[1].run(main)


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


def test_a_full_disk_stops_calls_at_once_and_nothing_paid_is_lost(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(100)])
    output = tmp_path / "out.jsonl"
    full = True
    write = Disk.write

    def failing_write(self: Disk, fd: int, data: bytes | memoryview) -> int:
        if full and os.path.sameopenfile(fd, fd) and _is(fd, output):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, fd, data)

    monkeypatch.setattr(Disk, "write", failing_write)

    async def main() -> None:
        nonlocal full
        gate = Gate(8)
        gate.free = 11
        # Calls that nothing would end: nobody waits for them to hand over a result.
        provider = Provider(gate.pass_through)
        with pytest.raises(JournalError, match="rescue") as failed:
            await run_file(provider, source, output, concurrency=8)
        assert "No space left" in str(failed.value)
        assert provider.in_flight == 0
        assert sum(provider.calls.values()) == 19
        assert len(ids_of(RunPaths.of(output).rescue)) == 11
        full = False
        gate.open()
        summary = await run_file(provider, source, output, concurrency=8)
        assert summary.ok
        assert (summary.earlier_succeeded, summary.succeeded) == (11, 89)
        assert sorted(ids_of(output)) == sorted(f"id-{number}" for number in range(100))
        assert not RunPaths.of(output).rescue.exists()

    host.run(main)
    # Paid twice is only what was on its way.
    assert sum(provider_calls - 1 for provider_calls in Counter(ids_of(output)).values()) == 0


def _is(fd: int, path: Path) -> bool:
    return path.exists() and os.fstat(fd).st_ino == path.stat().st_ino


def test_a_crash_can_lose_no_more_than_the_calls_in_flight_and_a_group(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(500)])
    output = tmp_path / "out.jsonl"
    could_be_lost: list[int] = []
    synced = 0
    sync = Disk.sync

    def watched_sync(self: Disk, fd: int) -> None:
        nonlocal synced
        could_be_lost.append(sum(provider.calls.values()) - synced)
        sync(self, fd)
        if _is(fd, output):
            synced = output.read_bytes().count(b"\n")

    provider = Provider()
    monkeypatch.setattr(Disk, "sync", watched_sync)

    async def main() -> None:
        assert (await run_file(provider, source, output, concurrency=8)).ok

    host.run(main)
    assert len(could_be_lost) > 500 // 32
    assert 32 <= max(could_be_lost) <= 8 + 32


def test_options_that_are_wrong_are_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0)])
    output = tmp_path / "out.jsonl"
    provider = Provider()

    async def refused(match: str, **options: Any) -> None:
        with pytest.raises((TypeError, ValueError), match=match):
            await run_file(provider, source, output, **options)

    async def main() -> None:
        await refused("limit", limit=0)
        await refused("grace", grace=-1)
        await refused("order", order="random")
        await refused("on_run_progress", on_run_progress=1)
        await refused("concurrency", concurrency=0)
        await refused("timeout", timeout=-1)
        await refused("temperature", temperature=1)
        with pytest.raises(InputFileError):
            await run_file(provider, tmp_path / "nowhere.jsonl", output)

    TWO_WORLDS[1].run(main)
    assert not provider.calls
    assert not output.exists()


def test_an_input_that_is_open_stays_open(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0)])

    async def main() -> None:
        with InputFile(source) as opened:
            await run_file(Provider(), opened, tmp_path / "out.jsonl")
            assert [request.custom_id for request in opened.requests()] == ["id-0"]

    TWO_WORLDS[1].run(main)


Cut = st.tuples(
    st.sampled_from(["stop", "stop twice", "cancel", "deadline", "none"]), st.integers(0, 12)
)


@pytest.mark.parametrize("world", TWO_WORLDS, ids=lambda world: world.name)
@given(
    cuts=st.lists(Cut, max_size=4),
    failing=st.sets(st.integers(0, 19)),
    concurrency=st.integers(1, 9),
    split=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12)
def test_runs_that_are_cut_short_end_with_each_request_once(
    tmp_path_factory: pytest.TempPathFactory,
    world: Host,
    cuts: list[tuple[str, int]],
    failing: set[int],
    concurrency: int,
    split: bool,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    source = write_lines(folder / "in.jsonl", [line(number) for number in range(20)])
    output, errors = folder / "out.jsonl", folder / "errors.jsonl" if split else None
    draw = random.Random(seed)
    at_calls: Callable[[], None] = lambda: None  # noqa: E731 - replaced for each run

    async def behave(number: int) -> None:
        at_calls()
        for _ in range(draw.randrange(4)):
            await anyio.lowlevel.checkpoint()
        if number in failing:
            raise ValueError("no")

    provider = Provider(behave)
    cut_off = 0

    async def run(cut: str, after: int) -> None:
        nonlocal at_calls, cut_off
        stop = RunStop()
        calls = 0
        before = Counter(provider.calls)
        with anyio.CancelScope() as scope:

            def count() -> None:
                nonlocal calls
                calls += 1
                if calls == after + 1:
                    if cut == "cancel":
                        scope.cancel()
                    elif cut != "none":
                        stop.request()
                        if cut == "stop twice":
                            stop.request()

            at_calls = count
            summary = await run_file(
                provider,
                source,
                output,
                error_file=errors,
                concurrency=concurrency,
                stop=stop,
                deadline=0.001 * after + 0.0001 if cut == "deadline" else None,
            )
            cut_off += summary.cut_off
            assert provider.in_flight == 0
            return
        # A cancelled run has nobody to tell: whatever was sent and has no line was cut off.
        lines = set(ids_of(output)) | (set(ids_of(errors)) if errors else set())
        cut_off += sum((provider.calls - before)[name] for name in provider.calls - before
                       if name not in lines)  # fmt: skip

    async def main() -> None:
        for cut, after in cuts:
            await run(cut, after)
        await run("none", 0)

    world.run(main)
    answered = ids_of(output) + (ids_of(errors) if errors else [])
    assert sorted(answered) == sorted(f"id-{number}" for number in range(20))
    assert sum(provider.calls.values()) == 20 + cut_off  # nothing that has a line is sent again
    failed = {name for name in answered if int(name[3:]) in failing}
    in_errors = {entry["custom_id"] for entry in lines_of(errors or output) if entry["error"]}
    assert in_errors == failed


def test_the_run_is_public() -> None:
    assert parallel_core.run_file is run_file


@pytest.mark.parametrize("how", ["wrong key", "away", "overloaded", "overloaded for long"])
def test_what_cannot_get_through_has_no_line_and_is_sent_by_the_next_run(
    how: str, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])
    sent: list[str] = []

    class StatusError(Exception):
        status_code = 401 if how == "wrong key" else 429
        body: ClassVar = {"error": {"message": "no"}}
        litellm_response_headers: ClassVar = (
            {"retry-after": "1000"} if how == "overloaded for long" else {}
        )

    async def refuse(**arguments: Any) -> Any:
        sent.append(arguments["model"])
        raise ConnectionRefusedError if how == "away" else StatusError

    async def main() -> None:
        summary = await run_file(
            refuse, source, tmp_path / "out.jsonl", concurrency=2, retry=Retry(max_wait=5.0)
        )
        assert (summary.ending, summary.ok) == ("blocked", False)
        assert len(summary.blocked) == 1
        assert (summary.unfinished, summary.failed) == (50, 0)
        assert len(sent) < 40
        assert (tmp_path / "out.jsonl").read_text() == ""

    in_virtual_time(main)
    provider = Provider()

    async def again() -> None:
        summary = await run_file(
            provider, source, tmp_path / "out.jsonl", concurrency=2, retry_failed=True
        )
        assert summary.ok

    in_virtual_time(again)


def test_a_success_from_before_the_trouble_makes_no_failures_of_requests_that_came_later(
    tmp_path: Path,
) -> None:
    """A key is refused in the middle of a run: calls that were in flight before still succeed."""
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(20)])
    refused = 0

    class StatusError(Exception):
        status_code = 401
        body: ClassVar = {"error": {"message": "no"}}

    async def main() -> None:
        third_failure = anyio.Event()

        async def provider(**arguments: Any) -> Any:
            nonlocal refused
            if arguments["messages"][0]["content"] == "0":
                await third_failure.wait()
                return answer_of("0")
            refused += 1
            if refused == 3:
                third_failure.set()
            raise StatusError

        summary = await run_file(provider, source, tmp_path / "out.jsonl", concurrency=2)
        assert (summary.succeeded, summary.failed, summary.unfinished) == (1, 0, 19)
        assert summary.ending == "blocked"
        assert len(summary.blocked) == 1
        assert ids_of(tmp_path / "out.jsonl") == ["id-0"]

    in_virtual_time(main)
