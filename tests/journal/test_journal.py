"""The journal of a run: what it says is on disk is on disk, whatever happens to the process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import parallel_core
from helpers.hosts import Host
from parallel_core._journal_files import Disk
from parallel_core._journal_scan import id_digest
from parallel_core.errors import DifferentRunError, JournalError, JournalInUseError, OrderError
from parallel_core.journal import Journal, JournalEntry
from parallel_core.run_statistics import RunPaths

MANIFEST = {"input": "abc", "model": "gpt"}
SECRET = "the answer nobody may see in a log"


def line_of(custom_id: str, *, ok: bool = True, text: str = SECRET) -> bytes:
    response = {"status_code": 200 if ok else 500, "request_id": "r", "body": {"text": text}}
    line = {"id": f"r-{custom_id}", "custom_id": custom_id, "response": response, "error": None}
    return json.dumps(line, ensure_ascii=False).encode()


def entry(custom_id: object, *, ok: bool = True) -> JournalEntry:
    name = str(custom_id)
    statistics = json.dumps({"kind": "call", "custom_id": name}, separators=(",", ":")).encode()
    return JournalEntry(name, line_of(name, ok=ok), ok, statistics)


def ids_in(path: Path) -> list[str]:
    """The ids of a file, every line of which is whole."""
    content = path.read_bytes()
    assert not content or content.endswith(b"\n")
    return [json.loads(line)["custom_id"] for line in content.splitlines()]


def append(journal: Journal, *entries: JournalEntry) -> None:
    async def main() -> None:
        for one in entries:
            await journal.append(one)

    asyncio.run(main())


def run_of(paths: RunPaths, *entries: JournalEntry, **options: Any) -> None:
    """A whole run that ends well."""
    with Journal.open(paths, MANIFEST, **options) as journal:
        append(journal, *entries)


def begun(paths: RunPaths, content: bytes, **options: Any) -> None:
    """A run whose output has come to this content."""
    run_of(paths, **options)
    paths.output.write_bytes(content)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths.of(tmp_path / "out.jsonl")


@pytest.fixture
def split_paths(tmp_path: Path) -> RunPaths:
    return RunPaths.of(tmp_path / "out.jsonl", tmp_path / "failed.jsonl")


@pytest.fixture(autouse=True)
def temporary_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_left_over() -> Iterator[None]:
    files = open_files()
    yield
    gc.collect()
    assert not [thread for thread in threading.enumerate() if "journal" in thread.name]
    assert open_files() == files


def open_files() -> list[str]:
    names: list[str] = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            names.append(str(fd.readlink()))
    return sorted(name for name in names if ".jsonl" in name or ".json" in name)


def name_of(fd: int) -> str:
    return Path(f"/proc/self/fd/{fd}").readlink().name.removesuffix(" (deleted)")


class UnsyncedDisk(Disk):
    """Quick, for many small runs."""

    def sync(self, fd: int) -> None:
        pass


class FaultyDisk(Disk):
    """Fails when it is told to, on files whose name ends in a certain way."""

    def __init__(self) -> None:
        self.fault: int | None = None
        self.at = "write"
        self.files: tuple[str, ...] = ("out.jsonl", "failed.jsonl")
        self.room = 0  # bytes that a failing write still writes
        self.hold: threading.Event | None = None
        self.syncing = threading.Event()
        self.syncs: list[str] = []

    def _fails(self, fd: int, what: str) -> bool:
        name = name_of(fd)
        return self.fault is not None and what == self.at and name.endswith(self.files)

    def write(self, fd: int, data: bytes | memoryview) -> int:
        if not self._fails(fd, "write"):
            return super().write(fd, data[:7])  # short writes are allowed at all times
        if self.room:
            room, self.room = self.room, 0
            return super().write(fd, data[:room])
        assert self.fault is not None
        raise OSError(self.fault, os.strerror(self.fault))

    def sync(self, fd: int) -> None:
        self.syncs.append(name_of(fd))
        self.syncing.set()
        if self.hold is not None:
            assert self.hold.wait(100)
        if self._fails(fd, "sync"):
            assert self.fault is not None
            raise OSError(self.fault, os.strerror(self.fault))
        super().sync(fd)


# Opening


def test_a_run_begins_with_a_manifest_and_goes_on_where_it_stopped(paths: RunPaths) -> None:
    with Journal.open(paths, MANIFEST) as journal:
        manifest = json.loads(paths.manifest.read_text())
        assert manifest["fields"].items() >= MANIFEST.items()
        assert not journal.opening.resumed
        append(journal, entry("a"), entry("b", ok=False))
    assert (journal.succeeded, journal.failed) == (1, 1)
    with Journal.open(paths, MANIFEST) as journal:
        assert journal.opening.resumed
        assert (journal.opening.succeeded, journal.opening.failed) == (1, 1)
        assert [journal.is_finished(name) for name in "abc"] == [True, True, False]
        append(journal, entry("c"))
    assert (journal.succeeded, journal.failed) == (2, 1)
    assert ids_in(paths.output) == ["a", "b", "c"]
    assert len(paths.statistics.read_bytes().splitlines()) == 3
    names = {path.name for path in paths.output.parent.iterdir()}
    assert names == {"out.jsonl", "out.jsonl.manifest.json", "out.jsonl.statistics.jsonl"}


def test_failures_go_to_the_error_file(split_paths: RunPaths) -> None:
    assert split_paths.errors is not None
    run_of(split_paths, entry("a"), entry("b", ok=False), entry("c"))
    assert ids_in(split_paths.output) == ["a", "c"]
    assert ids_in(split_paths.errors) == ["b"]
    with Journal.open(split_paths, MANIFEST) as journal:
        assert (journal.succeeded, journal.failed) == (2, 1)
        assert journal.is_finished("b")


@pytest.mark.parametrize(
    ("line", "ok"),
    [
        ('{"custom_id":"x","response":{"status_code":200,"body":{}},"error":null}', True),
        ('{"custom_id":"x","response":{"status_code":201,"body":{}}}', True),
        ('{"custom_id":"x","response":{"status_code":429,"body":{"error":1}},"error":null}', False),
        ('{"custom_id":"x","response":null,"error":{"code":"timeout","message":"m"}}', False),
        # vLLM
        ('{"id":"v","custom_id":"x","response":{"status_code":200,"body":{}},"error":null}', True),
        ('{"id":"v","custom_id":"x","response":{"status_code":400},"error":{"code":400}}', False),
    ],
)
def test_lines_of_several_makers_are_understood(paths: RunPaths, line: str, ok: bool) -> None:
    begun(paths, f"{line}\n".encode())
    with Journal.open(paths, MANIFEST) as journal:
        assert (journal.succeeded, journal.failed) == (int(ok), int(not ok))
        assert journal.is_finished("x")


CONTENT = b"".join(
    line_of(name, ok=name != "b", text=text) + b"\n"
    for name, text in (("a", "x"), ("b", 'q"}\\n'), ("ü", "ä€😀"))
)


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0" * 5000])
def test_every_prefix_of_an_output_is_gone_on_with(paths: RunPaths, tail: bytes) -> None:
    run_of(paths)
    lines = CONTENT.splitlines(keepends=True)
    for cut in range(len(CONTENT) + 1):
        paths.output.write_bytes(CONTENT[:cut] + tail)
        whole, length = 0, 0
        for line in lines:
            if cut < length + len(line) - 1:  # a line without its end is whole
                break
            length += len(line)
            whole += 1
        journal = Journal.open(paths, MANIFEST, disk=UnsyncedDisk())
        journal.close()
        assert paths.output.read_bytes() == b"".join(lines[:whole]), cut
        assert journal.succeeded + journal.failed == whole
        assert journal.opening.torn_bytes == max(cut - length, 0) + len(tail)


@settings(max_examples=50)
@given(
    lines=st.lists(st.tuples(st.text(max_size=8), st.booleans(), st.text(max_size=12)), max_size=8),
    cut=st.integers(0, 2000),
    tail=st.binary(max_size=20).filter(lambda data: b"\n" not in data),
)
def test_any_torn_file_is_gone_on_with(
    lines: list[tuple[str, bool, str]], cut: int, tail: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths.of(Path(folder) / "out.jsonl")
        content = b"".join(line_of(name, ok=ok, text=text) + b"\n" for name, ok, text in lines)
        kept = content[: content.rfind(b"\n", 0, cut) + 1]
        begun(paths, kept + b"{" + tail, disk=UnsyncedDisk())
        with Journal.open(paths, MANIFEST, disk=UnsyncedDisk()) as journal:
            append(journal, entry("and another one"))
        assert paths.output.read_bytes() == kept + line_of("and another one") + b"\n"
        assert journal.opening.torn_bytes == 1 + len(tail)
        distinct = {name for name, _, _ in lines[: kept.count(b"\n")]}
        assert journal.opening.succeeded + journal.opening.failed == len(distinct)


def test_a_hole_that_a_loss_of_power_leaves_takes_nothing_with_it(paths: RunPaths) -> None:
    a, b, c, d = (line_of(name) + b"\n" for name in "abcd")
    begun(paths, a + b[:9] + bytes(4096) + c[30:] + d + b"{torn")
    with Journal.open(paths, MANIFEST) as journal:
        assert [journal.is_finished(name) for name in "abcd"] == [True, False, False, True]
    assert paths.output.read_bytes() == a + d
    assert journal.opening.torn_bytes == 9 + 4096 + len(c) - 30 + 5


@pytest.mark.parametrize("broken", [b"{torn", b'{"custom_id": 5}', b'{"custom_id":"x"}', b"[]"])
def test_a_broken_line_in_the_middle_is_named_and_nothing_changed(
    paths: RunPaths, broken: bytes
) -> None:
    content = line_of("a") + b"\n\n" + broken + b"\n" + line_of("b")[:20]
    begun(paths, content)
    with pytest.raises(JournalError, match=r"out\.jsonl, line 3 is no (JSON|result)"):
        Journal.open(paths, MANIFEST)
    assert paths.output.read_bytes() == content


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (b'{"note": "mine"}\n', "is no result of a request"),
        (b'{"note": "mine"}', "is no result of a request"),
        (b"{not JSON}\n", "is no JSON"),
        (b'{"custom_id":"b","response":{"status_co\n', "is no JSON"),
        (b"a note of mine", "is no JSON"),
    ],
)
def test_a_last_line_that_no_crash_leaves_is_named_and_not_cut(
    paths: RunPaths, last: bytes, why: str
) -> None:
    content = line_of("a") + b"\n" + last
    begun(paths, content)
    with pytest.raises(JournalError, match=f"line 2 {why}"):
        Journal.open(paths, MANIFEST)
    assert paths.output.read_bytes() == content


def test_an_answer_that_is_there_twice_is_told_and_a_failure_before_it_dropped(
    paths: RunPaths,
) -> None:
    lines = [line_of("a", ok=False), line_of("b"), line_of("a"), line_of("b")]
    begun(paths, b"\n".join(lines) + b"\n")
    for _ in range(2):
        with Journal.open(paths, MANIFEST) as journal:
            assert (journal.succeeded, journal.failed) == (2, 0)
            assert journal.opening.duplicates == 1
            assert journal.opening.duplicate_ids == ("b",)
        assert ids_in(paths.output) == ["b", "a", "b"]


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


def outcomes_in(*files: Path) -> dict[str, bool]:
    """Whether each request has an answer; every one of them has one line."""
    lines = [json.loads(line) for file in files for line in file.read_bytes().splitlines()]
    found = {line["custom_id"]: line["response"]["status_code"] == 200 for line in lines}
    assert len(found) == len(lines)
    return found


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


def test_a_different_run_is_refused_by_the_name_of_what_differs(paths: RunPaths) -> None:
    run_of(paths, entry("a"))
    before = paths.output.read_bytes()
    with pytest.raises(DifferentRunError) as caught:
        Journal.open(paths, {"input": "abc", "model": "other", "seed": 3})
    assert caught.value.differences == {"model": ("gpt", "other"), "seed": (None, 3)}
    assert "model was 'gpt' and is now 'other'; seed was not set and is now 3" in str(caught.value)
    assert paths.output.read_bytes() == before
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.differences) == (str(caught.value), caught.value.differences)


def test_a_run_is_resumed_in_spite_of_a_difference_when_that_is_allowed(paths: RunPaths) -> None:
    run_of(paths, entry("a"))
    other = {"input": "abc", "model": "other"}
    for _ in range(2):  # without a result nothing is noted
        with Journal.open(paths, other, allow_changed=True) as journal:
            assert journal.opening.changes == {"model": ("gpt", "other")}
            assert journal.is_finished("a")
        with pytest.raises(DifferentRunError):
            Journal.open(paths, other)
    with Journal.open(paths, other, allow_changed=True) as journal:
        append(journal, entry("b"))
    manifest = json.loads(paths.manifest.read_text())
    assert manifest["fields"] == other
    (change,) = manifest["changes"]
    assert change["differences"] == {"model": {"then": "gpt", "now": "other"}}
    assert change["at"].startswith("20")
    with Journal.open(paths, other) as journal:
        assert journal.succeeded == 2
        assert not journal.opening.changes
    with Journal.open(paths, MANIFEST, allow_changed=True) as journal:
        append(journal, entry("c"))
    assert len(json.loads(paths.manifest.read_text())["changes"]) == 2
    assert ids_in(paths.output) == ["a", "b", "c"]


def test_a_change_that_cannot_be_noted_is_a_failure_of_the_disk(paths: RunPaths) -> None:
    run_of(paths, entry("a"))
    disk = FaultyDisk()
    journal = Journal.open(paths, {"model": "other"}, allow_changed=True, disk=disk)
    disk.fault, disk.files = errno.ENOSPC, (".json.new",)
    with pytest.raises(JournalError, match="1 result of calls that were made could not be written"):
        append(journal, entry("b"))
        journal.flush()
    with pytest.raises(JournalError):
        journal.close()
    assert ids_in(paths.output) == ["a"]
    with Journal.open(paths, {"model": "other"}, allow_changed=True) as journal:
        assert journal.opening.rescued == 1
    assert ids_in(paths.output) == ["a", "b"]


def test_an_output_without_a_manifest_is_taken_over_when_that_is_allowed(paths: RunPaths) -> None:
    paths.output.write_bytes(line_of("a") + b"\n")
    with Journal.open(paths, MANIFEST, allow_changed=True) as journal:
        assert journal.is_finished("a")
        append(journal, entry("b"))
    manifest = json.loads(paths.manifest.read_text())
    assert manifest["fields"] == MANIFEST
    assert manifest["changes"][0]["differences"]["model"] == {"then": None, "now": "gpt"}
    run_of(paths)


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


# Names and formats of before


def old_run(output: Path, fields: dict[str, Any], errors: str | None = None) -> dict[str, bytes]:
    """Files as version 0.1.0 wrote them."""
    stem = output.name.removesuffix(".jsonl")
    fields = {**fields, "output file": output.name, "error file": errors}
    manifest = json.dumps({"fields": fields, "format_version": 1}, indent=2) + "\n"
    written = {
        output.name: line_of("a") + b"\n",
        f"{stem}.manifest.json": manifest.encode(),
        f"{stem}.statistics.jsonl": b'{"kind":"call","custom_id":"a"}\n',
        f"{stem}.rescue.jsonl": line_of("r") + b"\n",
    }
    for name, content in written.items():
        output.with_name(name).write_bytes(content)
    return written


def test_a_run_of_the_first_format_is_resumed_and_gets_the_names_of_today(
    paths: RunPaths,
) -> None:
    written = old_run(paths.output, MANIFEST)
    folder = paths.output.parent
    # A crash leaves some of the files renamed, and the manifest last.
    for renamed in range(4):
        for path in folder.iterdir():
            path.unlink()
        for number, (name, content) in enumerate(reversed(written.items())):
            new = name.replace("out.", "out.jsonl.") if name != "out.jsonl" else name
            (folder / (new if number < renamed else name)).write_bytes(content)
        with Journal.open(paths, MANIFEST) as journal:
            assert (journal.opening.rescued, journal.succeeded) == (1, 2)
        assert {path.name for path in folder.iterdir()} == {
            "out.jsonl",
            "out.jsonl.manifest.json",
            "out.jsonl.statistics.jsonl",
        }
        manifest = json.loads(paths.manifest.read_text())
        assert manifest["format_version"] == 2
        assert manifest["version"] == parallel_core.__version__
        assert manifest["fields"] == MANIFEST
        assert ids_in(paths.output) == ["a", "r"]
        run_of(paths)


def test_the_fields_of_the_first_format_are_read_by_whoever_knows_them(paths: RunPaths) -> None:
    old_run(paths.output, {"input": "old digest", "gone": 1})
    with pytest.raises(DifferentRunError):
        Journal.open(paths, MANIFEST)

    def read_older(fields: Any) -> Any:
        assert fields == {"input": "old digest", "gone": 1}
        return MANIFEST

    Journal.open(paths, MANIFEST, read_older=read_older).close()
    Journal.open(paths, MANIFEST, read_older=lambda _: {}).close()  # it is of today now


def test_two_outputs_share_no_file(tmp_path: Path) -> None:
    bare, ended = RunPaths.of(tmp_path / "ans"), RunPaths.of(tmp_path / "ans.jsonl")
    for _ in range(2):
        for paths in (bare, ended):
            run_of(paths, entry(paths.output.name))
    for paths in (bare, ended):
        with Journal.open(paths, MANIFEST) as journal:
            assert journal.succeeded == 1
    assert len(list(tmp_path.iterdir())) == 6


def test_a_manifest_of_another_output_is_never_replaced(tmp_path: Path) -> None:
    bare, ended = RunPaths.of(tmp_path / "ans"), RunPaths.of(tmp_path / "ans.jsonl")
    old_run(ended.output, MANIFEST)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    all_options: list[dict[str, Any]] = [{}, {"force_new": True}, {"allow_changed": True}]
    for options in all_options:
        with pytest.raises(JournalError, match=r"ans\.manifest\.json belongs to ans\.jsonl"):
            Journal.open(bare, MANIFEST, **options)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    run_of(ended)
    run_of(bare, entry("b"))
    assert ids_in(bare.output) == ["b"]


def test_an_old_run_that_begins_anew_is_moved_aside_as_a_whole(paths: RunPaths) -> None:
    old_run(paths.output, MANIFEST)
    with Journal.open(paths, {}, force_new=True) as journal:
        assert {path.name for path in journal.opening.backups} == {
            "out.jsonl.1",
            "out.jsonl.manifest.json.1",
            "out.jsonl.rescue.jsonl.1",
            "out.jsonl.statistics.jsonl.1",
        }


def test_a_run_without_results_may_change(paths: RunPaths) -> None:
    run_of(paths)
    with Journal.open(paths, {"model": "other"}) as journal:
        assert not journal.opening.resumed
    assert json.loads(paths.manifest.read_text())["fields"]["model"] == "other"


def test_a_new_run_is_forced_and_moves_the_old_one_aside(split_paths: RunPaths) -> None:
    paths = split_paths
    run_of(paths, entry("a"), entry("b", ok=False))
    for number in (1, 2):
        with Journal.open(paths, {"run": number}, force_new=True) as journal:
            assert not journal.is_finished("a")
            with pytest.raises(JournalInUseError):
                Journal.open(paths, {"run": number}, force_new=True)
            append(journal, entry(f"new {number}"))
        backups = {path.name for path in journal.opening.backups}
        assert f"out.jsonl.{number}" in backups
        assert f"out.jsonl.manifest.json.{number}" in backups
    folder = paths.output.parent
    assert ids_in(folder / "out.jsonl.1") == ["a"]
    assert ids_in(folder / "failed.jsonl.1") == ["b"]
    assert ids_in(folder / "out.jsonl.2") == ["new 1"]
    assert ids_in(paths.output) == ["new 2"]
    assert len(paths.statistics.read_bytes().splitlines()) == 1


def test_an_output_of_nobody_knows_which_run_is_refused(paths: RunPaths) -> None:
    paths.output.write_bytes(line_of("a") + b"\n")
    with pytest.raises(
        JournalError, match=r"not empty, and there is no out\.jsonl\.manifest\.json"
    ):
        Journal.open(paths, MANIFEST)
    assert ids_in(paths.output) == ["a"]
    assert not paths.manifest.exists()
    with Journal.open(paths, MANIFEST, force_new=True):
        pass
    assert ids_in(paths.output.with_name("out.jsonl.1")) == ["a"]


def test_an_output_that_is_gone_is_not_paid_for_again_unasked(paths: RunPaths) -> None:
    run_of(paths)
    paths.output.unlink()
    run_of(paths, entry("a"))  # there had been nothing in it
    paths.output.unlink()
    for _ in range(2):
        with pytest.raises(JournalError, match=r"out\.jsonl is gone"):
            Journal.open(paths, MANIFEST)
        assert not paths.output.exists()
    paths.statistics.unlink()  # the manifest knows
    for allow_changed, retry_failed in ((False, False), (True, False), (False, True)):
        with pytest.raises(JournalError, match=r"out\.jsonl is gone.*--force-new"):
            Journal.open(paths, MANIFEST, allow_changed=allow_changed, retry_failed=retry_failed)
    run_of(paths, entry("b"), force_new=True)
    assert ids_in(paths.output) == ["b"]


def test_results_are_known_to_the_manifest_before_they_are_written(paths: RunPaths) -> None:
    disk = FaultyDisk()
    with pytest.raises(JournalError), Journal.open(paths, MANIFEST, disk=disk) as journal:
        assert not json.loads(paths.manifest.read_text())["has_results"]
        disk.fault = errno.ENOSPC
        append(journal, entry("a"))
        journal.flush()
    assert json.loads(paths.manifest.read_text())["has_results"]
    paths.rescue.unlink()
    with Journal.open(paths, MANIFEST) as journal:  # an empty output is none that is gone
        assert not journal.opening.resumed


def test_a_manifest_without_a_note_of_results_gets_one_when_its_run_is_resumed(
    split_paths: RunPaths,
) -> None:
    run_of(split_paths, entry("a"), entry("b", ok=False))
    manifest = json.loads(split_paths.manifest.read_text())
    assert manifest.pop("has_results")
    assert manifest.pop("has_failures")
    split_paths.manifest.write_text(json.dumps(manifest))
    run_of(split_paths)
    manifest = json.loads(split_paths.manifest.read_text())
    assert (manifest["has_results"], manifest["has_failures"]) == (True, True)


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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_of_files_need_not_be_texts(tmp_path: Path) -> None:
    paths = RunPaths.of(*(tmp_path / os.fsdecode(name) for name in (b"o\xff.jsonl", b"e\xff")))
    assert paths.errors is not None
    run_of(paths, entry("a"), entry("b", ok=False))
    with Journal.open(paths, MANIFEST) as journal:
        assert (journal.succeeded, journal.failed) == (1, 1)
    other = RunPaths.of(paths.output)
    with pytest.raises(JournalError, match="give it as the error file again"):
        Journal.open(other, MANIFEST)
    paths.errors.unlink()
    with pytest.raises(JournalError, match="is gone"):
        Journal.open(paths, MANIFEST)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no manifest of a run"),
        (b"[]", "no manifest of a run"),
        (b'{"format_version": 99, "fields": {}}', "has the format 99, and this version .* knows"),
        (b'{"format_version": 2, "fields": {}}', "no manifest of a run"),
        (b'{"format_version": "2", "fields": {}}', "no manifest of a run"),
    ],
)
def test_a_manifest_that_cannot_be_read(paths: RunPaths, content: bytes, message: str) -> None:
    run_of(paths, entry("a"))
    paths.manifest.write_bytes(content)
    with pytest.raises(JournalError, match=message):
        Journal.open(paths, MANIFEST)


def test_two_runs_on_one_output_are_refused_at_once(paths: RunPaths) -> None:
    with Journal.open(paths, MANIFEST) as journal:
        with pytest.raises(JournalInUseError) as caught:
            Journal.open(paths, MANIFEST)
        assert caught.value.process in (os.getpid(), None)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
        append(journal, entry("a"))
    run_of(paths, entry("b"))
    assert ids_in(paths.output) == ["a", "b"]


def test_two_runs_with_one_error_file_are_refused(split_paths: RunPaths, tmp_path: Path) -> None:
    other = RunPaths.of(tmp_path / "other.jsonl", split_paths.errors)
    with Journal.open(split_paths, MANIFEST):
        with pytest.raises(JournalInUseError, match=r"failed\.jsonl"):
            Journal.open(other, MANIFEST)
        assert not other.output.exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "no folder", "no permission"])
def test_what_cannot_be_an_output(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out.jsonl"
    message = "give the name of a file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "no folder":
        path, message = tmp_path / "missing" / "out.jsonl", "there is no folder"
    else:
        path, message = Path("/proc/self/out.jsonl"), "cannot be"
    with pytest.raises(JournalError, match=message):
        Journal.open(RunPaths.of(path), MANIFEST)


@pytest.mark.parametrize("how", ["same", "link", "hard link", "statistics"])
def test_one_file_for_two_purposes_is_refused(tmp_path: Path, how: str) -> None:
    output = errors = tmp_path / "out.jsonl"
    if how != "same":
        errors = tmp_path / (
            "out.jsonl.statistics.jsonl" if how == "statistics" else "errors.jsonl"
        )
    if how == "link":
        errors.symlink_to(output)
    elif how == "hard link":
        output.touch()
        errors.hardlink_to(output)
    with pytest.raises(JournalError, match="two names"):
        Journal.open(RunPaths.of(output, errors), MANIFEST)


def test_a_link_leads_to_the_output(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "out.jsonl", tmp_path / "elsewhere" / "real.jsonl"
    link.symlink_to(file)
    run_of(RunPaths.of(link), entry("a"), entry("b", ok=False))
    run_of(RunPaths.of(link), entry("b"), retry_failed=True)
    assert link.is_symlink()
    assert outcomes_in(file) == {"a": True, "b": True}


def test_ids_of_any_characters_have_digests_of_their_own() -> None:
    names = ["", "a", "ä", "\ud800", "\ud801", "a\0", "x" * 1000, "x" * 1001]
    assert len({id_digest(name) for name in names}) == len(names)


# Writing


@settings(max_examples=25)
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


def test_bad_options(paths: RunPaths) -> None:
    bad: list[dict[str, Any]] = [
        {"group_size": 0},
        {"group_seconds": -1.0},
        {"group_seconds": float("nan")},
    ]
    for options in bad:
        with pytest.raises(ValueError, match="group"):
            Journal.open(paths, MANIFEST, **options)
    assert not paths.output.exists()


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


# Failures


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
            await in_thread(disk.syncing.wait)
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


# In order


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


# Processes

APPENDING = """
import asyncio, os, sys
from parallel_core.journal import Journal, JournalEntry
from parallel_core.run_statistics import RunPaths

def tell(succeeded, failed):
    os.write(1, b"%d\\n" % succeeded)

async def main():
    paths = RunPaths.of(sys.argv[1])
    journal = Journal.open(paths, {}, on_disk=tell, group_seconds=0.002)
    tell(journal.succeeded, 0)
    numbers = iter(range(10_000_000))
    async def slot():
        for number in numbers:
            name = str(number)
            if not journal.is_finished(name):
                line = '{"custom_id":"%s","response":{"body":"%s"}}' % (name, "x" * 300)
                os.write(1, b"paid\\n")
                await journal.append(JournalEntry(name, line.encode(), True))
                await asyncio.sleep(0.0001 * (number % 7))
    await asyncio.gather(*(slot() for _ in range(16)))

asyncio.run(main())
"""


def start(script: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, **options)


def test_what_is_told_to_be_on_disk_survives_sigkill(paths: RunPaths) -> None:
    on_disk = paid = 0
    kills = (2, 5, 9, 14)
    for groups in kills:
        with start(APPENDING, paths.output) as process:
            assert process.stdout is not None
            lines: list[bytes] = []
            while sum(line != b"paid\n" for line in lines) < groups:
                lines.append(process.stdout.readline())
                assert lines[-1]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
            process.wait()
            assert process.returncode == -signal.SIGKILL
        told = [int(line) for line in lines if line != b"paid\n"]
        assert told[0] >= on_disk
        on_disk = told[-1]
        paid += lines.count(b"paid\n")
    with Journal.open(paths, {}) as journal:
        names = ids_in(paths.output)
        assert len(names) == len(set(names)) == journal.succeeded >= on_disk
        assert 0 <= paid - len(names) <= len(kills) * (32 + 16)  # a group, and one of each slot


def test_a_second_process_is_refused_with_the_number_of_the_first(paths: RunPaths) -> None:
    with start(APPENDING, paths.output) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(JournalInUseError) as caught:
            Journal.open(paths, {})
        if sys.platform == "linux":
            assert caught.value.process == process.pid
        process.kill()
    Journal.open(paths, {}).close()


LIMITED = """
import asyncio, sys
from parallel_core.errors import JournalError
from parallel_core.journal import Journal, JournalEntry
from parallel_core.run_statistics import RunPaths

async def main():
    journal = Journal.open(RunPaths.of(sys.argv[1]), {}, group_size=8)
    with_failure = 0
    try:
        for number in range(400):
            line = '{"custom_id":"%d","response":{"body":"%s"}}' % (number, "x" * 500)
            await journal.append(JournalEntry(str(number), line.encode(), True))
    except JournalError as error:
        print(number + 1, flush=True)
        print(error, flush=True)
    try:
        await journal.aclose()
    except JournalError:
        pass

asyncio.run(main())
"""


def check_full_disk(paths: RunPaths, process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=60)
    appended, message = output.decode().splitlines()
    assert "could not be written and are in" in message
    on_disk = ids_in(paths.output)
    assert 0 < len(on_disk) < int(appended)
    with Journal.open(paths, {}) as journal:
        assert journal.succeeded == int(appended)
        assert journal.opening.torn_bytes == 0
    assert ids_in(paths.output) == [str(number) for number in range(int(appended))]


def test_a_limit_on_the_size_of_files(paths: RunPaths) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with start(LIMITED, paths.output, preexec_fn=limit) as process:
        check_full_disk(paths, process)


def test_a_disk_that_is_really_full(
    tmp_path: Path, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder = tmp_path / "small"
    folder.mkdir()
    if mount is None or umount is None:
        pytest.skip("no mount here")
    command = [mount, "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system may not be mounted here")
    try:
        paths = RunPaths.of(folder / "out.jsonl")
        environment = {**os.environ, "TMPDIR": str(temporary_folder)}
        with start(LIMITED, paths.output, env=environment) as process:
            output, _ = process.communicate(timeout=60)
        appended, message = output.decode().splitlines()
        assert "No space left on device" in message
        on_disk = ids_in(paths.output)
        assert 0 < len(on_disk) < int(appended)
        subprocess.run([mount, "-o", "remount,size=4m", str(folder)], check=True)
        with Journal.open(paths, {}) as journal:
            assert journal.succeeded == int(appended)
        assert ids_in(paths.output) == [str(number) for number in range(int(appended))]
    finally:
        subprocess.run([umount, str(folder)], check=True)


FORGOTTEN = """
import asyncio, sys
from parallel_core.journal import Journal, JournalEntry
from parallel_core.run_statistics import RunPaths

journal = Journal.open(RunPaths.of(sys.argv[1]), {}, group_seconds=3600.0)
line = b'{"custom_id":"a","response":{}}'
asyncio.run(journal.append(JournalEntry("a", line, True)))
"""


def test_a_journal_that_is_forgotten_is_written_at_the_end(paths: RunPaths) -> None:
    with start(FORGOTTEN, paths.output) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert ids_in(paths.output) == ["a"]


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


# Locks and syncs


def test_where_flock_is_not_supported_a_lock_file_is_taken(
    split_paths: RunPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = iter([errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])

    def flock(fd: int, operation: int) -> None:
        number = next(names, errno.ENOLCK)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = split_paths.output.with_name("out.jsonl.lock")
    with Journal.open(split_paths, MANIFEST) as journal:
        assert "a file system without locks (No locks available (ENOLCK))" in caplog.text
        holder = json.loads(lock.read_text())
        assert (holder["host"], holder["process"]) == (socket.gethostname(), os.getpid())
        with pytest.raises(JournalInUseError) as caught:
            Journal.open(split_paths, MANIFEST)
        assert caught.value.process == os.getpid()
        append(journal, entry("a"), entry("b", ok=False))
    with Journal.open(split_paths, MANIFEST, retry_failed=True) as journal:
        append(journal, entry("b"))
        journal.rewrite_in_order("ab")
        assert lock.exists()
    assert ids_in(split_paths.output) == ["a", "b"]
    assert not list(lock.parent.glob("*.lock*"))
    begin_anew: dict[str, Any] = {"force_new": True}
    run_of(split_paths, **begin_anew)
    assert not list(lock.parent.glob("*.lock*"))


def test_a_lock_file_of_a_dead_process_is_taken_over_and_of_others_not(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = paths.output.with_name("out.jsonl.lock")
    here = socket.gethostname()
    with start("import sys; print(flush=True); sys.stdin.read()", stdin=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        lock.write_text(json.dumps({"host": here, "process": other.pid}))
        with pytest.raises(JournalInUseError, match=f"process {other.pid}"):
            Journal.open(paths, MANIFEST)
        if sys.platform == "linux":  # the number of the dead one is in use again
            lock.write_text(json.dumps({"host": here, "process": other.pid, "started": "boot 1"}))
            run_of(paths, entry("a"))
            assert not lock.exists()
        other.communicate()
    lock.write_text(json.dumps({"host": here, "process": other.pid}))
    run_of(paths, entry("b"))
    # In a container, each run may have the same number.
    lock.write_text(json.dumps({"host": here, "process": os.getpid()}))
    run_of(paths, entry("c"))
    for content, message in (
        ({"host": "elsewhere", "process": other.pid}, r"host elsewhere.*remove .*out\.jsonl\.lock"),
        ([], r"does not say by whom.*remove"),
    ):
        lock.write_text(json.dumps(content))
        with pytest.raises(JournalError, match=message):
            Journal.open(paths, MANIFEST)
    lock.write_text("")
    with pytest.raises(JournalError, match=r"does not say by whom"):
        Journal.open(paths, MANIFEST)
    lock.unlink()
    assert len(ids_in(paths.output)) >= 2


def test_what_flock_refuses_for_another_reason_is_told(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(JournalError, match="cannot be locked"):
        Journal.open(paths, MANIFEST)


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
