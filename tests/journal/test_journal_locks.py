"""Two runs never write to one output, also where the file system has no locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.journal_values import MANIFEST, append, entry, ids_in, run_of
from parallel_core.errors import JournalError, JournalInUseError
from parallel_core.journal import Journal
from parallel_core.journal.run_paths import RunPaths


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
    script = "import sys; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
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
