"""Disks that fail, files that are taken away: what was paid for is rescued and taken up again."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from helpers.disks import FaultyDisk, UnsyncedDisk
from helpers.hosts import Host
from helpers.journal_values import MANIFEST, SECRET, append, entry, ids_in, line_of, run_of
from parallel_core.errors import JournalError
from parallel_core.journal import Journal
from parallel_core.journal.files import Disk
from parallel_core.journal.rescue import Rescue
from parallel_core.journal.run_paths import RunPaths


def fail(
    paths: RunPaths, disk: FaultyDisk, fault: int = errno.ENOSPC
) -> tuple[Journal, JournalError]:
    """A run in which the disk works for some results, and then no more."""
    failures: list[JournalError] = []
    journal = Journal.open(paths, MANIFEST, group_size=1, disk=disk, on_failure=failures.append)
    append(journal, entry(0), entry(1))
    disk.fault = fault
    for number in range(2, 6):  # calls in flight: they were paid for all the same
        with pytest.raises(JournalError) as caught:
            append(journal, entry(number))
        assert SECRET not in str(caught.value)
    with pytest.raises(JournalError) as caught:
        journal.close()
    journal.close()  # told once
    assert journal.succeeded == 2
    assert len(failures) == 1
    assert journal.failure is not None
    return journal, caught.value


@pytest.mark.parametrize("at", ["write", "sync"])
@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_what_a_broken_disk_does_not_take_is_rescued_and_taken_up(
    paths: RunPaths, at: str, fault: int
) -> None:
    disk = FaultyDisk()
    disk.at = at
    disk.room = 5  # a part of the first line that fails is written
    _, error = fail(paths, disk, fault)
    assert os.strerror(fault) in str(error)
    assert f"4 results of calls that were made could not be written and are in {paths.rescue}" in (
        str(error)
    )
    assert ids_in(paths.output) == ["0", "1"]
    assert ids_in(paths.rescue) == ["2", "3", "4", "5"]
    with Journal.open(paths, MANIFEST) as journal:
        assert journal.opening.rescued == 4
        assert journal.succeeded == 6
        assert not paths.rescue.exists()
    assert ids_in(paths.output) == [str(number) for number in range(6)]


def test_a_disk_that_takes_nothing_and_a_rescue_file_of_another_kind(paths: RunPaths) -> None:
    class Silent(Disk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            return 0

    with (
        pytest.raises(OSError, match="wrote nothing and gave no reason"),
        paths.output.open("wb") as file,
    ):
        Silent().write_all(file.fileno(), b"x")
    rescue = Rescue(paths.rescue, paths.output, [b"run"], Disk())
    with pytest.raises(PermissionError, match="is not a regular file of this user"):
        rescue._append(Path(os.devnull), b"x")


def test_rescued_results_are_there_once(paths: RunPaths) -> None:
    run_of(paths, entry("a"))
    paths.rescue.write_bytes(b"\n".join(line_of(name) for name in "abb") + b"\n" + b"{torn")
    with Journal.open(paths, MANIFEST) as journal:
        assert journal.opening.rescued == 1
    assert ids_in(paths.output) == ["a", "b"]


def test_the_temporary_folder_takes_what_the_folder_of_the_output_does_not(
    paths: RunPaths, temporary_folder: Path
) -> None:
    disk = FaultyDisk()
    disk.files = ("out.jsonl", "out.jsonl.rescue.jsonl")
    _, error = fail(paths, disk)
    (rescue,) = temporary_folder.iterdir()
    assert str(rescue) in str(error)
    assert rescue.stat().st_mode & 0o777 == 0o600
    assert ids_in(rescue) == ["2", "3", "4", "5"]
    assert not paths.rescue.exists()
    with Journal.open(paths, MANIFEST) as journal:
        assert journal.opening.rescued == 4
    assert ids_in(paths.output) == [str(number) for number in range(6)]
    assert not rescue.exists()


@pytest.mark.parametrize("at", ["write", "sync"])
def test_a_place_that_fails_in_the_middle_keeps_nothing_of_it(
    paths: RunPaths, temporary_folder: Path, at: str
) -> None:
    """Else what is also in the next place would be taken up twice, or be a torn line."""
    earlier = line_of("earlier") + b"\n"
    paths.rescue.write_bytes(earlier)
    paths.rescue.chmod(0o600)
    disk = FaultyDisk()
    disk.at = at
    disk.files = ("out.jsonl.rescue.jsonl",)
    disk.fault = errno.ENOSPC
    disk.room = 5  # bytes of a line
    rescue = Rescue(paths.rescue, paths.output, [b"run"], disk)
    rescue.write([line_of("a") + b"\n"])
    assert paths.rescue.read_bytes() == earlier
    (other,) = temporary_folder.iterdir()
    assert rescue.used == [str(other)]
    assert ids_in(other) == ["a"]


def test_a_new_run_takes_nothing_up_from_the_temporary_folder(
    paths: RunPaths, temporary_folder: Path
) -> None:
    disk = FaultyDisk()
    disk.files = ("out.jsonl", "out.jsonl.rescue.jsonl")
    fail(paths, disk)
    with Journal.open(paths, MANIFEST, force_new=True) as journal:
        assert journal.opening.rescued == 0
    assert not list(temporary_folder.iterdir())
    backup = paths.rescue.with_name(f"{paths.rescue.name}.1")
    assert ids_in(backup) == ["2", "3", "4", "5"]


def test_what_no_file_takes_goes_to_standard_error(
    paths: RunPaths, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = FaultyDisk()
    disk.files = ("jsonl",)
    _, error = fail(paths, disk)
    printed = capfd.readouterr().err.splitlines()
    assert [json.loads(line)["custom_id"] for line in printed] == ["2", "3", "4", "5"]
    assert "are in the standard error stream: keep them" in str(error)


def test_a_link_in_the_place_of_the_rescue_file_is_not_followed(
    paths: RunPaths, tmp_path: Path, temporary_folder: Path
) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    paths.rescue.symlink_to(victim)
    fail(paths, FaultyDisk())
    assert victim.read_bytes() == b""
    assert len(list(temporary_folder.iterdir())) == 1


def break_underneath(paths: RunPaths, break_it: Callable[[], object]) -> JournalError:
    journal = Journal.open(paths, MANIFEST, group_size=1)
    append(journal, entry("a"), entry("b"))
    break_it()
    with pytest.raises(JournalError) as caught:
        append(journal, entry("c"))
    with pytest.raises(JournalError):
        journal.close()
    return caught.value


def test_an_output_that_is_removed_is_put_back(paths: RunPaths) -> None:
    error = break_underneath(paths, paths.output.unlink)
    assert "has been removed during the run; it has been put back" in str(error)
    assert ids_in(paths.output) == ["a", "b"]
    with Journal.open(paths, MANIFEST) as journal:
        assert journal.succeeded == 3
    assert ids_in(paths.output) == ["a", "b", "c"]


def test_a_folder_that_is_removed_takes_no_answer_with_it(
    tmp_path: Path, temporary_folder: Path
) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    paths = RunPaths.of(folder / "out.jsonl")
    error = break_underneath(paths, lambda: shutil.rmtree(folder))
    (rescue,) = temporary_folder.iterdir()
    assert str(rescue) in str(error)
    assert ids_in(rescue) == ["a", "b", "c"]
    folder.mkdir()
    with Journal.open(paths, MANIFEST) as journal:
        assert journal.opening.rescued == 3
    assert ids_in(paths.output) == ["a", "b", "c"]


def test_an_output_that_is_moved_or_replaced_is_left_alone(paths: RunPaths) -> None:
    moved = paths.output.with_name("moved")
    error = break_underneath(paths, lambda: paths.output.rename(moved))
    assert "has been moved or replaced during the run" in str(error)
    assert ids_in(moved) == ["a", "b"]
    assert ids_in(paths.rescue) == ["c"]
    with pytest.raises(JournalError, match="put it back"):
        Journal.open(paths, MANIFEST)
    moved.rename(paths.output)
    with Journal.open(paths, MANIFEST):
        assert ids_in(paths.output) == ["a", "b", "c"]


def test_what_somebody_else_writes_is_not_cut(paths: RunPaths) -> None:
    def write() -> None:
        with paths.output.open("ab") as file:
            file.write(line_of("x") + b"\n")

    error = break_underneath(paths, write)
    assert "something else has written to it" in str(error)
    assert ids_in(paths.output) == ["a", "b", "x"]
    assert ids_in(paths.rescue) == ["c"]


def test_tasks_that_wait_for_room_are_told_of_a_failure(host: Host, paths: RunPaths) -> None:
    disk = FaultyDisk()

    async def main() -> None:
        journal = Journal.open(paths, MANIFEST, group_size=2, disk=disk)
        disk.hold = threading.Event()
        disk.fault, disk.at = errno.EIO, "sync"
        disk.syncing.clear()
        told: list[JournalError] = []

        async def one(number: int) -> None:
            try:
                await journal.append(entry(number))
            except JournalError as error:
                told.append(error)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(one, number)
            await anyio.to_thread.run_sync(disk.syncing.wait)
            disk.hold.set()
        with pytest.raises(JournalError):
            await journal.aclose()
        assert len(told) >= 7  # the first may have found room

    with_room: Callable[[], Awaitable[None]] = main
    host.run(with_room)
    assert ids_in(paths.output) == []
    assert len(ids_in(paths.rescue)) == 8


def test_an_error_on_its_way_is_not_hidden_by_the_journal(paths: RunPaths) -> None:
    disk = FaultyDisk()
    with (
        pytest.raises(LookupError),
        Journal.open(paths, MANIFEST, group_size=1, disk=disk) as journal,
    ):
        disk.fault = errno.ENOSPC
        with pytest.raises(JournalError):
            append(journal, entry("a"))
        raise LookupError


def test_a_disk_that_is_full_from_the_beginning(paths: RunPaths) -> None:
    disk = FaultyDisk()
    disk.fault, disk.files = errno.ENOSPC, (".json.new",)
    with pytest.raises(JournalError, match="No space left on device"):
        Journal.open(paths, MANIFEST, disk=disk)
    assert not list(paths.output.parent.iterdir())


def test_rescued_results_stay_where_they_are_while_the_disk_is_full(paths: RunPaths) -> None:
    run_of(paths, entry("a"))
    before = paths.output.read_bytes()
    rescued = line_of("b") + b"\n"
    paths.rescue.write_bytes(rescued)
    disk = FaultyDisk()
    disk.fault, disk.at = errno.EIO, "sync"
    with pytest.raises(JournalError, match="Input/output error"):
        Journal.open(paths, MANIFEST, disk=disk)
    assert paths.rescue.read_bytes() == rescued
    assert paths.output.read_bytes()[: len(before)] == before
    with Journal.open(paths, MANIFEST):
        assert ids_in(paths.output) == ["a", "b"]


class BreakingDisk(Disk):
    """Works for so many calls, and then no more."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._count()
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        self._count()


@pytest.mark.parametrize("force_new", [False, True])
def test_an_opening_that_breaks_anywhere_loses_no_answer(
    split_paths: RunPaths, tmp_path: Path, force_new: bool
) -> None:
    run_of(split_paths, entry("a"), entry("b", ok=False), entry("c"))
    with split_paths.output.open("ab") as file:
        file.write(line_of("d") + b"\n" + bytes(99) + b"\n" + line_of("e") + b"\n{torn")
    split_paths.rescue.write_bytes(line_of("f") + b"\n" + line_of("g", ok=False) + b"\n")
    split_paths.output.parent.joinpath("other").mkdir()
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for calls in range(100):
        folder = tmp_path / "other" / str(calls)
        folder.mkdir()
        for name, content in kept.items():
            (folder / name).write_bytes(content)
        paths = RunPaths.of(folder / "out.jsonl", folder / "failed.jsonl")
        options: dict[str, Any] = {"retry_failed": not force_new, "force_new": force_new}
        try:
            Journal.open(paths, MANIFEST, disk=BreakingDisk(calls), **options).close()
        except JournalError:
            if force_new:  # what is moved aside is all there
                parts = [path.read_bytes() for path in folder.glob("*.jsonl*")]
                assert line_of("a") in b"\n".join(parts)
                continue
            Journal.open(paths, MANIFEST, disk=UnsyncedDisk(), **options).close()
            assert ids_in(paths.output) == ["a", "c", "d", "e", "f"]
        else:
            assert calls > 1
            break
    else:
        raise AssertionError("it never succeeds")
