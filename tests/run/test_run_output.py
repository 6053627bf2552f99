"""What is said to be done is on disk, whatever the disk does; one run writes to it; sorting."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helpers.file_runs import Gate, Provider, ids_of, is_file, line, write_lines
from helpers.hosts import ASYNCIO_HOSTS, Host
from parallel_core import JournalError
from parallel_core.errors import JournalInUseError
from parallel_core.journal.files import Disk
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import CallStatistics, read_statistics
from parallel_core.run import RunOpening, RunProgress, run_file


def test_two_runs_on_one_output_are_refused(either_library: Host, tmp_path: Path) -> None:
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

    either_library.run(main)


def test_runs_whose_outputs_have_one_stem_share_nothing(
    either_library: Host, tmp_path: Path
) -> None:
    """Five at once in one folder: half of each, and then the rest."""
    names = ["out", "out.jsonl", "out.csv", "out.txt", "out.jsonl.jsonl"]
    sources = {
        name: write_lines(tmp_path / f"in {number}", [line(100 * number + n) for n in range(10)])
        for number, name in enumerate(names)
    }
    provider = Provider()

    async def main() -> None:
        for first in (5, None):
            gate = Gate(len(names))
            waiting = Provider(gate.pass_through)

            async def run(
                name: str, limit: int | None = first, waiting: Provider = waiting
            ) -> None:
                output, errors = tmp_path / name, tmp_path / f"{name}.errors"
                options: dict[str, Any] = {"error_file": errors, "order": "input", "limit": limit}
                summary = await run_file(waiting, sources[name], output, concurrency=1, **options)
                assert (summary.ok, summary.succeeded) == (True, 5)

            async with anyio.create_task_group() as tasks:
                for name in names:
                    tasks.start_soon(run, name)
                await gate.until_full()  # all have their files open
                gate.open()
            provider.calls += waiting.calls

    either_library.run(main)
    assert set(provider.calls.values()) == {1}
    for number, name in enumerate(names):
        expected = [f"id-{100 * number + n}" for n in range(10)]
        assert ids_of(tmp_path / name) == expected
        statistics = read_statistics(RunPaths.of(tmp_path / name).statistics)
        measured = [one.custom_id for one in statistics if isinstance(one, CallStatistics)]
        assert sorted(measured) == sorted(expected)


def test_what_is_told_as_done_is_on_disk(either_library: Host, tmp_path: Path) -> None:
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

    either_library.run(main)


def test_a_full_disk_stops_calls_at_once_and_nothing_paid_is_lost(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(100)])
    output = tmp_path / "out.jsonl"
    full = True
    write = Disk.write

    def failing_write(self: Disk, fd: int, data: bytes | memoryview) -> int:
        if full and is_file(fd, output):
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
        if is_file(fd, output):
            synced = output.read_bytes().count(b"\n")

    provider = Provider()
    monkeypatch.setattr(Disk, "sync", watched_sync)

    async def main() -> None:
        assert (await run_file(provider, source, output, concurrency=8)).ok

    host.run(main)
    assert len(could_be_lost) > 500 // 32
    # On a busy machine, groups are not always full.
    assert 8 <= max(could_be_lost) <= 8 + 32


def test_the_output_is_sorted_when_all_is_done(either_library: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(30)])
    output = tmp_path / "out.jsonl"
    draw = random.Random(1)

    async def behave(_: int) -> None:
        for _ in range(draw.randrange(20)):
            await anyio.lowlevel.checkpoint()

    async def main() -> None:
        await run_file(Provider(behave), source, output, concurrency=9, order="input")
        assert ids_of(output) == [f"id-{number}" for number in range(30)]

    either_library.run(main)


def test_bad_lines_are_sorted_in_their_place(tmp_path: Path) -> None:
    lines = [line(0), {"custom_id": "bad"}, line(2), line(0)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        await run_file(Provider(), source, output, skip_invalid=True, order="input")
        assert [name.partition("#")[0] for name in ids_of(output)] == [
            "id-0", "bad", "id-2", "id-0",
        ]  # fmt: skip

    ASYNCIO_HOSTS[0].run(main)


def test_an_output_that_cannot_be_sorted_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(5)])
    output = tmp_path / "out.jsonl"
    write = Disk.write
    full = True

    def failing_write(self: Disk, fd: int, data: bytes | memoryview) -> int:
        if full and is_file(fd, output.with_name(".out.jsonl.new")):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, fd, data)

    monkeypatch.setattr(Disk, "write", failing_write)

    async def main() -> None:
        nonlocal full
        last = anyio.Event()

        async def later(number: int) -> None:
            if number == 4:
                last.set()
            if number == 0:
                await last.wait()

        summary = await run_file(Provider(later), source, output, order="input")
        assert summary.ok
        assert "could not be sorted (No space left on device (ENOSPC))" in (
            summary.not_sorted or ""
        )
        assert ids_of(output)[0] != "id-0"
        full = False
        summary = await run_file(Provider(), source, output, order="input")
        assert (summary.earlier_succeeded, summary.not_sorted) == (5, None)

    ASYNCIO_HOSTS[0].run(main)
    assert ids_of(output) == [f"id-{number}" for number in range(5)]
