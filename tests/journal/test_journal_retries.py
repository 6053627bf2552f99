"""Failed requests are sent again when asked for, and each keeps one line, whatever cuts it off."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from helpers.disks import FaultyDisk, UnsyncedDisk
from helpers.journal_values import MANIFEST, append, entry, ids_in, line_of, outcomes_in, run_of
from parallel_core.errors import JournalError, JournalInUseError
from parallel_core.journal import Journal
from parallel_core.journal.run_paths import RunPaths


@pytest.mark.parametrize("split", [False, True])
def test_failed_requests_are_tried_again_when_asked_for(
    paths: RunPaths, split_paths: RunPaths, split: bool
) -> None:
    paths = split_paths if split else paths
    run_of(paths, entry("a"), entry("b", ok=False), entry("c"), entry("d", ok=False))
    files = [path for path in (paths.output, paths.errors) if path is not None]
    before = [path.read_bytes() for path in files]
    inode = files[-1].stat().st_ino
    files[-1].chmod(0o640)
    with Journal.open(paths, MANIFEST, retry_failed=True) as journal:
        assert journal.opening.retried == 2
        assert (journal.succeeded, journal.failed) == (2, 0)
        assert not journal.is_finished("b")
        assert [path.read_bytes() for path in files] == before  # until there is a result
        append(journal, entry("d"))
        journal.flush()
        assert (journal.succeeded, journal.failed) == (3, 0)
    assert files[-1].stat().st_ino != inode
    assert files[-1].stat().st_mode & 0o777 == 0o640
    assert outcomes_in(*files) == {"a": True, "b": False, "c": True, "d": True}
    with Journal.open(paths, MANIFEST, retry_failed=True) as journal:
        append(journal, entry("b", ok=False))
        journal.rewrite_in_order("abcd")
        assert outcomes_in(*files) == {"a": True, "b": False, "c": True, "d": True}
        with pytest.raises(JournalInUseError):  # the lock has moved to the new files
            Journal.open(paths, MANIFEST)
    assert (journal.succeeded, journal.failed) == (3, 1)


@pytest.mark.parametrize("split", [False, True])
def test_a_retry_that_is_cut_off_anywhere_leaves_each_request_its_line(
    paths: RunPaths, split_paths: RunPaths, split: bool, tmp_path: Path
) -> None:
    """At each write and sync of a retry, the disk as a crash there leaves it is resumed."""
    paths = split_paths if split else paths
    run_of(paths, entry("a"), *(entry(name, ok=False) for name in "bcd"))
    files = [path for path in (paths.output, paths.errors) if path is not None]
    moments: list[list[bytes]] = []

    class WatchedDisk(UnsyncedDisk):
        def write(self, fd: int, data: bytes | memoryview) -> int:
            written = super().write(fd, data[: max(len(data) // 2, 1)])
            moments.append([path.read_bytes() for path in files])
            return written

    with Journal.open(
        paths, MANIFEST, retry_failed=True, disk=WatchedDisk(), group_size=1
    ) as journal:
        for one in (entry("c"), entry("b", ok=False)):
            append(journal, one)
            journal.flush()
    assert outcomes_in(*files) == {"a": True, "b": False, "c": True, "d": False}
    assert len(moments) > 10
    for moment in moments:
        for path, content in zip(files, moment, strict=True):
            path.write_bytes(content)
        with Journal.open(paths, MANIFEST, disk=UnsyncedDisk()) as journal:
            assert journal.succeeded + journal.failed == 4  # nothing would be sent
        outcomes = outcomes_in(*files)
        assert outcomes.keys() == set("abcd")
        assert not outcomes["d"]
        with Journal.open(paths, MANIFEST, retry_failed=True, disk=UnsyncedDisk()) as journal:
            append(journal, *(entry(name) for name in "bcd" if not journal.is_finished(name)))
        assert outcomes_in(*files) == dict.fromkeys("abcd", True)


def test_an_answer_of_a_retry_that_was_rescued_supersedes_the_failure(
    split_paths: RunPaths,
) -> None:
    run_of(split_paths, entry("a", ok=False), entry("b", ok=False))
    split_paths.rescue.write_bytes(line_of("a") + b"\n" + line_of("b", ok=False) + b"\n")
    with Journal.open(split_paths, MANIFEST) as journal:
        assert journal.opening.rescued == 1
        assert (journal.succeeded, journal.failed) == (1, 1)
    assert split_paths.errors is not None
    assert outcomes_in(split_paths.output, split_paths.errors) == {"a": True, "b": False}


def test_failures_that_cannot_be_dropped_at_the_end_lose_nothing(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    run_of(paths, entry("a", ok=False))
    disk = FaultyDisk()
    with Journal.open(paths, MANIFEST, retry_failed=True, disk=disk) as journal:
        append(journal, entry("a"))
        journal.flush()
        disk.fault, disk.files = errno.ENOSPC, ("out.jsonl.new",)
    assert "No result is lost" in caplog.text
    assert ids_in(paths.output) == ["a", "a"]
    run_of(paths)
    assert outcomes_in(paths.output) == {"a": True}


def test_failures_out_of_sight_are_not_sent_again(paths: RunPaths, split_paths: RunPaths) -> None:
    run_of(split_paths, entry("a", ok=False))
    for allow_changed in (False, True):
        with pytest.raises(JournalError, match=r"failures .* are in .*failed\.jsonl: give it"):
            Journal.open(paths, MANIFEST, allow_changed=allow_changed)
    assert split_paths.errors is not None
    split_paths.errors.write_bytes(b"")
    run_of(paths, entry("b", ok=False))
    with Journal.open(split_paths, MANIFEST) as journal:  # those of before stay where they are
        assert journal.failed == 1


def test_failures_that_are_gone_are_not_sent_again_unasked(split_paths: RunPaths) -> None:
    errors = split_paths.errors
    assert errors is not None
    run_of(split_paths, entry("a"))
    errors.unlink()
    run_of(split_paths, entry("b", ok=False))  # there had been nothing in it
    errors.unlink()
    for paths in (split_paths, RunPaths.of(split_paths.output)):
        with pytest.raises(JournalError, match=r"failed\.jsonl is gone.*--retry-failed"):
            Journal.open(paths, MANIFEST)
        assert not errors.exists()
    run_of(split_paths, entry("b", ok=False), retry_failed=True)
    run_of(split_paths, entry("b"), retry_failed=True)
    assert errors.read_bytes() == b""
    errors.unlink()
    run_of(split_paths)  # there are none any more
    assert ids_in(split_paths.output) == ["a", "b"]
