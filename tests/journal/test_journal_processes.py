"""Processes that are killed, kept out, starved of disk or that forget their journal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.journal_values import ids_in
from parallel_core.errors import JournalInUseError
from parallel_core.journal import Journal
from parallel_core.journal.run_paths import RunPaths

SCRIPTS = Path(__file__).parent / "scripts"


def start(script: str, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, **options)


def test_what_is_told_to_be_on_disk_survives_sigkill(paths: RunPaths) -> None:
    on_disk = paid = 0
    kills = (2, 5, 9, 14)
    for groups in kills:
        with start("appending.py", paths.output) as process:
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
    with start("appending.py", paths.output) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(JournalInUseError) as caught:
            Journal.open(paths, {})
        if sys.platform == "linux":
            assert caught.value.process == process.pid
        process.kill()
    Journal.open(paths, {}).close()


def appended_to(process: subprocess.Popen[bytes], why: str = "") -> int:
    """How many results it has appended, all of which it must keep."""
    output, _ = process.communicate(timeout=60)
    appended, at_the_append, at_the_end = output.decode().splitlines()
    for message in (at_the_append, at_the_end):
        assert "could not be written and are in" in message
        assert why in message
    return int(appended)


def check_that_all_is_taken_up(paths: RunPaths, appended: int) -> None:
    with Journal.open(paths, {}) as journal:
        assert journal.succeeded == appended
        assert journal.opening.torn_bytes == 0
    assert ids_in(paths.output) == [str(number) for number in range(appended)]


def test_a_limit_on_the_size_of_files(paths: RunPaths) -> None:
    with start("out_of_room.py", paths.output, 100_000) as process:
        appended = appended_to(process)
    assert 0 < len(ids_in(paths.output)) < appended
    check_that_all_is_taken_up(paths, appended)


def test_a_disk_that_is_really_full(tmp_path: Path, temporary_folder: Path) -> None:
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
        with start("out_of_room.py", paths.output, env=environment) as process:
            appended = appended_to(process, "No space left on device")
        assert 0 < len(ids_in(paths.output)) < appended
        subprocess.run([mount, "-o", "remount,size=4m", str(folder)], check=True)
        check_that_all_is_taken_up(paths, appended)
    finally:
        subprocess.run([umount, str(folder)], check=True)


def test_a_journal_that_is_forgotten_is_written_at_the_end(paths: RunPaths) -> None:
    with start("forgetting.py", paths.output) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert ids_in(paths.output) == ["a"]
