"""The manifest: another run is not mixed into an output, and nothing is paid for again unasked."""

from __future__ import annotations

import errno
import json
import pickle

import pytest

from helpers.disks import FaultyDisk
from helpers.journal_values import MANIFEST, append, entry, ids_in, line_of, run_of
from parallel_core.errors import DifferentRunError, JournalError, JournalInUseError
from parallel_core.journal import Journal
from parallel_core.journal.run_paths import RunPaths


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not the manifest of a run"),
        (b"[]", "not the manifest of a run"),
        (b'{"format_version": 99, "fields": {}}', "has the format 99, and this version .* knows"),
        (b'{"format_version": 2, "fields": {}}', "not the manifest of a run"),
        (b'{"format_version": "2", "fields": {}}', "not the manifest of a run"),
    ],
)
def test_a_manifest_that_cannot_be_read(paths: RunPaths, content: bytes, message: str) -> None:
    run_of(paths, entry("a"))
    paths.manifest.write_bytes(content)
    with pytest.raises(JournalError, match=message):
        Journal.open(paths, MANIFEST)
