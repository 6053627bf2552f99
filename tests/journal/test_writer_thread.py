"""The thread that writes a journal: its groups, its counts, and what it says where it fails."""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from parallel_core.errors import JournalError
from parallel_core.journal import Journal, JournalEntry
from parallel_core.journal.files import Disk, LockedFile
from parallel_core.journal.run_paths import RunPaths

MANIFEST = {"input": "abc"}
FULL = "No space left on device (ENOSPC)"


@pytest.fixture(autouse=True)
def temporary_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths.of(tmp_path / "out.jsonl")


@pytest.fixture
def split_paths(tmp_path: Path) -> RunPaths:
    return RunPaths.of(tmp_path / "out.jsonl", tmp_path / "failed.jsonl")


class RecordingDisk(Disk):
    """Notes what is written and synced, by name; the names in ``broken`` cannot be written."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []
        self.broken: tuple[str, ...] = ()

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._note(fd, len(data))
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        self._note(fd, 0)

    def sync_folder(self, folder: Path) -> None:
        pass

    def _note(self, fd: int, size: int) -> None:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        if name in self.broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.done.append((name, size))


def entry(custom_id: object, *, ok: bool = True, statistics: bytes | None = None) -> JournalEntry:
    name = str(custom_id)
    response: dict[str, Any] = {"status_code": 200 if ok else 500, "request_id": "r", "body": {}}
    line = {"id": f"r-{name}", "custom_id": name, "response": response, "error": None}
    return JournalEntry(name, json.dumps(line).encode(), ok, statistics)


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


def append(journal: Journal, *entries: JournalEntry) -> None:
    async def main() -> None:
        for one in entries:
            await journal.append(one)

    trio.run(main)


def test_an_entry_does_not_show_its_line() -> None:
    assert repr(JournalEntry("a", b"secret", True)) == "<JournalEntry 'a' ok=True 6 bytes>"
    assert JournalEntry("a", b"", True).statistics is None


# --- groups ---


def writes_to(disk: RecordingDisk, name: str) -> list[int]:
    return [size for written, size in disk.done if written == name and size]


def test_a_whole_group_is_written_and_synced_at_once(split_paths: RunPaths) -> None:
    disk = RecordingDisk()
    told: list[tuple[int, int]] = []
    entries = [entry(0), entry(1, ok=False), entry(2)]
    full = threading.Event()

    def on_disk(succeeded: int, failed: int) -> None:
        told.append((succeeded, failed))
        full.set()

    with Journal.open(
        split_paths, MANIFEST, group_size=3, group_seconds=3600, disk=disk, on_disk=on_disk
    ) as journal:
        disk.done.clear()
        append(journal, *entries[:2])
        assert (journal.succeeded, journal.failed) == (0, 0)
        append(journal, entries[2])
        assert full.wait(60)
        assert told == [(2, 1)]
        output, errors = (
            sum(len(e.line) + 1 for e in entries if e.ok is ok) for ok in (True, False)
        )
        files = [one for one in disk.done if one[0] in ("out.jsonl", "failed.jsonl")]
        assert files == [
            ("out.jsonl", output),
            ("failed.jsonl", errors),
            ("out.jsonl", 0),
            ("failed.jsonl", 0),
        ]
        append(journal, entry(3))
        journal.flush()
        assert told == [(2, 1), (3, 1)]
        assert (journal.succeeded, journal.failed) == (3, 1)
    assert ids_in(split_paths.output) == ["0", "2", "3"]


def test_a_file_without_new_lines_is_not_touched(split_paths: RunPaths) -> None:
    disk = RecordingDisk()
    with Journal.open(split_paths, MANIFEST, disk=disk) as journal:
        disk.done.clear()
        append(journal, entry(0))
        journal.flush()
        assert not [one for one in disk.done if one[0] == "failed.jsonl"]
        disk.done.clear()
        append(journal, entry(1, ok=False))
        journal.flush()
        assert not [one for one in disk.done if one[0] == "out.jsonl"]


def test_a_group_is_written_some_time_after_its_first(paths: RunPaths) -> None:
    written = threading.Event()
    with Journal.open(
        paths, MANIFEST, group_size=100, group_seconds=0.05, on_disk=lambda *_: written.set()
    ) as journal:
        for number in range(2):
            append(journal, entry(number))
            assert written.wait(60)
            written.clear()
        assert journal.succeeded == 2


def test_records_make_a_group_too(paths: RunPaths) -> None:
    disk = RecordingDisk()
    statistics = paths.statistics.name
    with Journal.open(paths, MANIFEST, group_size=2, group_seconds=3600, disk=disk) as journal:
        for _ in range(2):
            journal.record(b"{}")
        append(journal, entry(0, statistics=b'{"a":1}'), entry(1))
        journal.flush()
    assert sorted(paths.statistics.read_bytes().splitlines()) == [b'{"a":1}', b"{}", b"{}"]
    assert set(writes_to(disk, statistics)) <= {6, 8, 14}
    assert not [one for one in disk.done if one == (statistics, 0)]  # it is not synced


def test_what_is_closed_takes_nothing(paths: RunPaths) -> None:
    journal = Journal.open(paths, MANIFEST, group_seconds=3600)
    append(journal, entry(0))
    journal.close()
    journal.record(b"{}")
    with pytest.raises(
        RuntimeError, match=r"^the journal is closed: append results before closing it$"
    ):
        append(journal, entry(1))
    assert ids_in(paths.output) == ["0"]
    assert not paths.statistics.exists()


def test_the_thread_has_a_name_and_keeps_no_process(paths: RunPaths) -> None:
    with Journal.open(paths, MANIFEST):
        (thread,) = (t for t in threading.enumerate() if t.name == "parallel_core journal")
        assert thread.daemon
    assert not thread.is_alive()


# --- failures ---


def failed(
    paths: RunPaths, disk: Disk, break_it: Callable[[], object], *entries: JournalEntry
) -> tuple[Journal, str, list[JournalError]]:
    told: list[JournalError] = []
    journal = Journal.open(paths, MANIFEST, group_size=1, disk=disk, on_failure=told.append)
    append(journal, entry("before"))
    break_it()
    for one in entries:
        with pytest.raises(JournalError):
            append(journal, one)
    with pytest.raises(JournalError) as caught:
        journal.close()
    return journal, str(caught.value), told


@pytest.mark.parametrize("number", [1, 2])
def test_what_was_rescued_and_where_is_said(paths: RunPaths, number: int) -> None:
    disk = RecordingDisk()
    entries = [entry(n) for n in range(number)]
    _, text, told = failed(paths, disk, lambda: setattr(disk, "broken", ("out.jsonl",)), *entries)
    results = "1 result" if number == 1 else "2 results"
    assert text == (
        f"{paths.output} cannot be written: {FULL}; {results} of calls that were "
        f"made could not be written and are in {paths.rescue}. Fix the cause and start the "
        "same run again: it resumes, and takes them from there"
    )
    # The first to be told is the callback, when one had been saved.
    assert [str(error) for error in told] == [text.replace("2 results", "1 result")]
    assert isinstance(told[0].__cause__, OSError)
    assert ids_in(paths.rescue) == [str(n) for n in range(number)]


def test_what_is_in_standard_error_is_to_be_kept(
    paths: RunPaths, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = RecordingDisk()
    broken = ("out.jsonl", paths.rescue.name)

    def break_it() -> None:
        disk.broken = broken
        temporary_folder.rmdir()

    _, text, _ = failed(paths, disk, break_it, entry(0))
    assert text.endswith(
        "1 result of calls that were made could not be written and are in the standard error "
        "stream: keep them"
    )


def test_what_is_lost_is_said(
    paths: RunPaths, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = RecordingDisk()

    def break_it() -> None:
        disk.broken = ("out.jsonl", paths.rescue.name)
        temporary_folder.rmdir()
        monkeypatch.setattr(Disk, "write_all", no_space)

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    _, text, _ = failed(paths, disk, break_it, entry(0))
    assert text.endswith(
        "; 1 result of calls that were made could not be written anywhere and are lost"
    )


def test_a_loss_after_some_were_rescued(
    paths: RunPaths, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = RecordingDisk()
    journal = Journal.open(paths, MANIFEST, group_size=1, disk=disk)
    disk.broken = ("out.jsonl",)
    with pytest.raises(JournalError):
        append(journal, entry(0))
    disk.broken = ("out.jsonl", paths.rescue.name)
    temporary_folder.rmdir()

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Disk, "write_all", no_space)
    with pytest.raises(JournalError):
        append(journal, entry(1))
    with pytest.raises(JournalError) as caught:
        journal.close()
    assert str(caught.value).endswith(
        "; 2 results of calls that were made could not be written anywhere and are lost, "
        f"except for those in {paths.rescue}"
    )


def test_a_torn_line_that_cannot_be_cut_is_named(
    paths: RunPaths, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    disk = RecordingDisk()

    def break_it() -> None:
        disk.broken = ("out.jsonl",)
        monkeypatch.setattr(LockedFile, "drop_uncommitted", full)

    failed(paths, disk, break_it, entry(0))
    assert [record.getMessage() for record in caplog.records] == [
        f"{paths.output} could not be cut to its last whole line"
    ]
    assert ids_in(paths.rescue) == ["0"]


def test_a_failure_that_cost_no_result(paths: RunPaths) -> None:
    journal = Journal.open(paths, MANIFEST)
    writer: Any = journal
    error = next(
        value.error() for value in vars(writer).values() if type(value).__name__ == "ResultFiles"
    )
    journal.close()
    assert str(error) == "None; fix the cause and start the same run again: it resumes"
    assert error.__cause__ is None


def test_callbacks_that_raise_are_named(paths: RunPaths, caplog: pytest.LogCaptureFixture) -> None:
    def raises(*_: object) -> None:
        raise LookupError("secret")

    disk = RecordingDisk()
    journal = Journal.open(
        paths, MANIFEST, group_size=1, disk=disk, on_disk=raises, on_failure=raises
    )
    append(journal, entry(0))
    disk.broken = ("out.jsonl",)
    with pytest.raises(JournalError):
        append(journal, entry(1))
    with pytest.raises(JournalError):
        journal.close()
    messages = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert messages == [(logging.WARNING, "a callback of the journal failed: LookupError")] * 2


def test_statistics_that_cannot_be_written_are_named_once(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    disk = RecordingDisk()
    disk.broken = (paths.statistics.name,)
    with Journal.open(paths, MANIFEST, group_size=1, disk=disk) as journal:
        append(journal, entry(0, statistics=b"{}"), entry(1, statistics=b"{}"))
    assert ids_in(paths.output) == ["0", "1"]
    assert [record.getMessage() for record in caplog.records] == [
        (f"{paths.statistics} cannot be written ({FULL}): the run continues without statistics")
    ]


def test_failures_that_stay_in_the_file_are_named(
    paths: RunPaths, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal.open(paths, MANIFEST) as journal:
        append(journal, entry(0, ok=False))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Journal.open(paths, MANIFEST, retry_failed=True) as journal:
        append(journal, entry(0))
        journal.flush()
        monkeypatch.setattr("parallel_core.journal.result_files.drop_superseded", full)
    assert [record.getMessage() for record in caplog.records] == [
        (
            f"{paths.output} still has failures of requests that have a newer result: it cannot "
            f"be rewritten ({FULL}). No result is lost; the next run drops these failures"
        )
    ]


def test_a_thread_that_breaks_ends_the_journal(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a fault of our own: nobody waits for ever, and nobody believes that it was written."""
    raised: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    journal = Journal.open(paths, MANIFEST, group_size=1)

    def breaks(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("parallel_core.journal.result_files.ResultFiles.commit", breaks)
    with pytest.raises(JournalError, match="the thread that writes the journal has ended"):
        append(journal, entry(0))
    with pytest.raises(JournalError, match="the thread that writes the journal has ended"):
        journal.close()
    assert [type(arguments.exc_value) for arguments in raised] == [KeyError]
