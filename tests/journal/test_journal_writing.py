"""Writing results: in groups, counted when they are synced, and waited for when it is closed."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.disks import FaultyDisk, UnsyncedDisk
from helpers.hosts import Host
from helpers.journal_values import MANIFEST, SECRET, append, entry, ids_in, run_of
from parallel_core.errors import JournalError, OrderError
from parallel_core.journal import Journal, JournalEntry
from parallel_core.journal.files import Disk
from parallel_core.journal.run_paths import RunPaths


@settings(max_examples=max(25, settings().max_examples // 4))
@given(
    outcomes=st.lists(st.booleans(), max_size=70),
    tasks=st.integers(1, 9),
    group_size=st.integers(1, 40),
    group_seconds=st.sampled_from([0.0, 0.001]),
    split=st.booleans(),
    library=st.sampled_from(["trio", "asyncio"]),
)
def test_every_result_is_written_once_in_groups(
    outcomes: list[bool],
    tasks: int,
    group_size: int,
    group_seconds: float,
    split: bool,
    library: str,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        paths = RunPaths.of(place / "out.jsonl", place / "failed.jsonl" if split else None)
        told: list[tuple[int, int]] = []
        too_many: list[int] = []

        def on_disk(succeeded: int, failed: int) -> None:
            told.append((succeeded, failed))
            files = [paths.output, *([] if paths.errors is None else [paths.errors])]
            if sum(len(ids_in(file)) for file in files) < succeeded + failed:
                too_many.append(succeeded + failed)

        async def main() -> None:
            journal = Journal.open(
                paths,
                MANIFEST,
                group_size=group_size,
                group_seconds=group_seconds,
                on_disk=on_disk,
                disk=UnsyncedDisk(),
            )
            numbered = iter(list(enumerate(outcomes)))

            async def slot() -> None:
                for number, ok in numbered:
                    await journal.append(entry(number, ok=ok))

            async with journal, anyio.create_task_group() as group:
                for _ in range(tasks):
                    group.start_soon(slot)
            assert (journal.succeeded, journal.failed) == (sum(outcomes), outcomes.count(False))

        anyio.run(main, backend=library)
        assert not too_many
        assert told == sorted(told)
        written = ids_in(paths.output)
        if paths.errors is not None:
            failed = [str(number) for number, ok in enumerate(outcomes) if not ok]
            assert sorted(ids_in(paths.errors), key=int) == failed
            written += failed
        assert sorted(written, key=int) == [str(number) for number in range(len(outcomes))]


async def in_thread(function: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(function)


def test_a_result_counts_when_it_is_synced_and_not_before(host: Host, paths: RunPaths) -> None:
    disk = FaultyDisk()

    async def main() -> None:
        with anyio.fail_after(100):
            journal = Journal.open(paths, MANIFEST, group_size=3, group_seconds=0.0, disk=disk)
            disk.hold = threading.Event()
            disk.syncing.clear()
            await journal.append(entry("a"))
            await in_thread(disk.syncing.wait)
            await journal.append(entry("b"))  # there is room
            full = anyio.Event()

            async def third() -> None:
                await journal.append(entry("c"))
                full.set()

            async with anyio.create_task_group() as group:
                group.start_soon(third)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert not full.is_set()
                assert journal.succeeded == 0
                disk.hold.set()
                await full.wait()
            assert journal.succeeded > 0
            await journal.aclose()
            assert journal.succeeded == 3

    host.run(main)
    assert ids_in(paths.output) == ["a", "b", "c"]


def test_a_result_is_taken_in_a_scope_that_is_cancelled(host: Host, paths: RunPaths) -> None:
    async def main() -> None:
        journal = Journal.open(paths, MANIFEST, group_size=1, group_seconds=0.0)
        for number in range(5):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await journal.append(entry(number))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await journal.aclose()
        assert journal.succeeded == 5

    host.run(main)
    assert sorted(ids_in(paths.output)) == ["0", "1", "2", "3", "4"]


def test_closing_waits_for_the_disk_in_spite_of_task_cancel(
    asyncio_host: Host, paths: RunPaths
) -> None:
    disk = FaultyDisk()

    async def main() -> None:
        journal = Journal.open(paths, MANIFEST, group_seconds=0.0, disk=disk)
        disk.hold = threading.Event()
        disk.syncing.clear()
        await journal.append(entry("a"))
        await in_thread(disk.syncing.wait)
        closing = asyncio.create_task(journal.aclose())
        for _ in range(3):
            await asyncio.sleep(0)
            closing.cancel()
        await asyncio.sleep(0)
        assert not closing.done()
        disk.hold.set()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert journal.succeeded == 1

    asyncio_host.run(main)
    assert ids_in(paths.output) == ["a"]


def test_a_loop_that_is_closed_meanwhile_is_no_error(host: Host, paths: RunPaths) -> None:
    disk = FaultyDisk()
    journal = Journal.open(paths, MANIFEST, group_size=1, disk=disk)
    disk.hold = threading.Event()
    disk.syncing.clear()

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(journal.append, entry("a"))
            await in_thread(disk.syncing.wait)
            group.cancel_scope.cancel()

    host.run(main)
    disk.hold.set()
    journal.close()
    assert ids_in(paths.output) == ["a"]


def test_an_idle_writer_does_not_wake(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float | None] = []
    wait = threading.Condition.wait

    def counted(self: threading.Condition, timeout: float | None = None) -> bool:
        if threading.current_thread().name == "parallel_core journal":
            timeouts.append(timeout)
        return wait(self, timeout)

    monkeypatch.setattr(threading.Condition, "wait", counted)
    written = threading.Event()
    with Journal.open(
        paths, MANIFEST, group_seconds=0.0, on_disk=lambda succeeded, failed: written.set()
    ) as journal:
        append(journal, entry("a"))
        assert written.wait(100)
    assert set(timeouts) <= {None}


def test_what_was_handed_over_can_be_waited_for(paths: RunPaths) -> None:
    disk = FaultyDisk()
    journal = Journal.open(paths, MANIFEST, group_seconds=3600.0, disk=disk)
    journal.flush()
    for number in (1, 2):
        append(journal, entry(number))
        journal.flush()
        assert journal.succeeded == number
    disk.fault = errno.EIO
    append(journal, entry(3))
    for call in (journal.flush, lambda: journal.rewrite_in_order([]), journal.close):
        with pytest.raises(JournalError, match="1 result of calls that were made"):
            call()


def test_both_files_are_synced(split_paths: RunPaths) -> None:
    disk = FaultyDisk()
    run_of(split_paths, entry("a"), entry("b", ok=False), disk=disk, group_seconds=30.0)
    assert disk.syncs[-2:] == ["out.jsonl", "failed.jsonl"]


def test_a_folder_is_synced_when_a_file_may_be_new_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "errors").mkdir()
    paths = RunPaths.of(tmp_path / "out.jsonl", tmp_path / "errors" / "failed.jsonl")
    run_of(paths)
    assert paths.errors is not None
    paths.errors.unlink()
    synced: list[Path] = []

    class WatchedDisk(FaultyDisk):
        def sync_folder(self, folder: Path) -> None:
            synced.append(folder)
            super().sync_folder(folder)

    disk = WatchedDisk()
    with pytest.raises(JournalError), Journal.open(paths, MANIFEST, disk=disk) as journal:
        assert set(synced) == {tmp_path, tmp_path / "errors"}
        assert paths.errors.exists()
        synced.clear()
        disk.fault = errno.ENOSPC
        append(journal, entry("a"))
        journal.flush()
    assert ids_in(paths.rescue) == ["a"]
    assert synced == [tmp_path] * 2  # of the manifest, and of the rescue file


@pytest.mark.parametrize(
    "number", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY, errno.EIO], ids=errno.errorcode.get
)
def test_a_full_sync_falls_back_where_the_file_system_has_none(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    synced: list[int] = []

    def full_sync(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full_sync)
    monkeypatch.setattr(os, "fsync", synced.append)
    if number == errno.EIO:
        with pytest.raises(OSError):
            Disk().sync(7)
        assert not synced
    else:
        Disk().sync(7)
        assert synced == [7]


def test_a_sync_is_that_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, int]] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(("fsync", fd)))
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(("data", fd)), raising=False)
    Disk().sync(7)
    monkeypatch.delattr(os, "fdatasync")
    Disk().sync(8)
    assert synced == [("data", 7), ("fsync", 8)]


def test_lines_that_are_none(paths: RunPaths) -> None:
    with Journal.open(paths, MANIFEST) as journal:
        for line in (b"", b"a\nb"):
            with pytest.raises(ValueError, match="line"):
                append(journal, JournalEntry("a", line, ok=True))
    with pytest.raises(RuntimeError, match="closed"):
        append(journal, entry("a"))
    journal.record(b"{}")
    journal.close()
    assert ids_in(paths.output) == []


def test_a_callback_that_raises_loses_nothing(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    def on_disk(succeeded: int, failed: int) -> None:
        raise LookupError(SECRET)

    run_of(paths, entry("a"), on_disk=on_disk)
    assert ids_in(paths.output) == ["a"]
    assert "LookupError" in caplog.text
    assert SECRET not in caplog.text


def test_statistics_are_written_by_the_way(paths: RunPaths) -> None:
    paths.statistics.write_bytes(b'{"kind":"call","custom')  # torn
    with Journal.open(paths, MANIFEST) as journal:
        journal.record(b'{"kind":"limit"}')
        append(journal, entry("a"))
    lines = paths.statistics.read_bytes().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines if line.endswith(b"}")]
    assert sorted(kinds) == ["call", "limit"]


def test_statistics_that_cannot_be_written_fail_nothing(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    paths.statistics.symlink_to("/dev/full")
    with Journal.open(paths, MANIFEST, group_size=1) as journal:
        append(journal, *(entry(number) for number in range(4)))
    assert journal.succeeded == 4
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left" in caplog.text
    assert SECRET not in caplog.text


def test_nothing_shows_an_answer(paths: RunPaths) -> None:
    assert SECRET not in repr(entry("a"))
    with Journal.open(paths, MANIFEST) as journal:
        assert repr(journal) == "<Journal succeeded=0 failed=0>"


def test_a_journal_is_used_by_two_loops_at_once(paths: RunPaths) -> None:
    with Journal.open(paths, MANIFEST, group_size=4) as journal:

        async def main(name: str) -> None:
            for number in range(40):
                await journal.append(entry(f"{name}{number}"))

        other = threading.Thread(target=trio.run, args=(main, "trio"))
        other.start()
        asyncio.run(main("asyncio"))
        other.join()
    assert journal.succeeded == len(set(ids_in(paths.output))) == 80


@pytest.mark.parametrize("split", [False, True])
def test_the_output_is_brought_into_the_order_of_the_input(
    paths: RunPaths, split_paths: RunPaths, split: bool
) -> None:
    paths = split_paths if split else paths
    with Journal.open(paths, MANIFEST) as journal:
        append(journal, *(entry(number, ok=number % 3 > 0) for number in (5, 0, 3, 9, 4, 1)))
        journal.rewrite_in_order(str(number) for number in range(6))
        append(journal, entry("after"))
    assert (journal.succeeded, journal.failed) == (4, 3)
    if paths.errors is None:
        assert ids_in(paths.output) == ["0", "1", "3", "4", "5", "9", "after"]
    else:
        assert ids_in(paths.output) == ["1", "4", "5", "after"]
        assert ids_in(paths.errors) == ["0", "3", "9"]
    names = {path.name for path in paths.output.parent.iterdir()}
    assert not any(name.endswith(".new") for name in names)


def test_an_order_that_cannot_be_written_changes_nothing(paths: RunPaths) -> None:
    disk = FaultyDisk()
    with Journal.open(paths, MANIFEST, disk=disk, group_seconds=0.0) as journal:
        append(journal, entry("b"), entry("a"))
        journal.rewrite_in_order(["b", "a"])
        disk.fault, disk.files = errno.ENOSPC, ("out.jsonl.new",)
        with pytest.raises(OrderError, match="Every result is in it"):
            journal.rewrite_in_order(["a", "b"])
        assert ids_in(paths.output) == ["b", "a"]
        append(journal, entry("c"))
    assert ids_in(paths.output) == ["b", "a", "c"]
