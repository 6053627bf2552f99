"""An input that has changed: what its results answer is known, whatever cuts a run off."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.disks import UnsyncedDisk
from helpers.journal_values import append, line_of
from helpers.thorough import thorough_but
from parallel_core.errors import ChangedRequestsError, DifferentRunError, JournalError
from parallel_core.journal import (
    AskedRequests,
    InputChange,
    Journal,
    JournalEntry,
    OnChanged,
    RequestRecords,
    id_key,
)
from parallel_core.journal.run_paths import RunPaths

BEFORE = {"a": "1", "b": "1", "c": "1", "d": "1"}


def number_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")


def asked(requests: Mapping[str, str], *others: str, note: str = "") -> AskedRequests:
    """Return the requests of an input: ids, each with the version of what is asked."""
    records = RequestRecords()
    for custom_id, version in requests.items():
        records.add(id_key(custom_id), number_of(custom_id + version))

    def find(wanted: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
        return ((line, name) for line, name in enumerate(requests, 1) if wanted(name))

    fingerprint = str(sum(number_of(name + version) for name, version in requests.items()))
    return AskedRequests(fingerprint, records, find, lambda: iter(others), note)


def opened(
    paths: RunPaths,
    requests: Mapping[str, str],
    on_changed: OnChanged = "refuse",
    *,
    others: tuple[str, ...] = (),
    model: str = "gpt",
    **options: Any,
) -> Journal:
    inputs = asked(requests, *others)
    manifest = {"input": inputs.fingerprint, "model": model}
    options = {"disk": UnsyncedDisk(), "group_size": 1, **options}
    return Journal.open(paths, manifest, requests=inputs, on_changed=on_changed, **options)


def result(custom_id: str, version: str, *, ok: bool = True) -> JournalEntry:
    return JournalEntry(custom_id, line_of(custom_id, ok=ok, text=version), ok)


def answer_all(journal: Journal, requests: Mapping[str, str]) -> list[str]:
    """Answer what is not finished; return the ids that were sent."""
    journal.begin()
    sent = [name for name in requests if not journal.is_finished(name)]
    append(journal, *(result(name, requests[name]) for name in sent))
    return sent


def run(
    paths: RunPaths, requests: Mapping[str, str], on_changed: OnChanged = "refuse", **options: Any
) -> list[str]:
    with opened(paths, requests, on_changed, **options) as journal:
        return answer_all(journal, requests)


def versions_in(*files: Path | None) -> list[tuple[str, str]]:
    """Return ids and versions of all lines, in order."""
    lines = [line for file in files if file is not None for line in file.read_bytes().splitlines()]
    return [
        (entry["custom_id"], entry["response"]["body"]["text"]) for entry in map(json.loads, lines)
    ]


def answers_in(*files: Path | None) -> dict[str, str]:
    """Return the version of each result. Every id has one line."""
    found = versions_in(*files)
    assert len(dict(found)) == len(found)
    return dict(found)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def note_contents(moments: list[dict[str, bytes]], folder: Path) -> None:
    moments.append(contents(folder))


def restore(folder: Path, content: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)


def test_what_is_new_is_sent_and_what_is_the_same_stays(paths: RunPaths) -> None:
    assert run(paths, BEFORE) == ["a", "b", "c", "d"]
    records = paths.requests.read_bytes()
    assert run(paths, dict(reversed(BEFORE.items()))) == []
    assert paths.requests.read_bytes() == records
    grown = {"new": "1", **BEFORE}
    del grown["b"]
    with opened(paths, grown) as journal:
        assert journal.opening.input_change == InputChange(added=1, gone=1, gone_ids=("b",))
        assert not journal.opening.changes
        assert answer_all(journal, grown) == ["new"]
    assert answers_in(paths.output).keys() == {"a", "b", "c", "d", "new"}
    # It was gone, and its record was not.
    assert run(paths, {**grown, "b": "1"}) == []
    (first, second) = json.loads(paths.manifest.read_text())["changes"]
    assert first["differences"].keys() == second["differences"].keys() == {"input"}
    with pytest.raises(ChangedRequestsError, match=r"line 5 \('b'\)"):
        opened(paths, {**grown, "b": "2"})


def test_changed_requests_with_an_answer_are_refused_by_name(paths: RunPaths) -> None:
    names = [f"id-{number}" for number in range(9)]
    run(paths, dict.fromkeys(names, "1"))
    before = contents(paths.output.parent)
    changed = {name: "2" if name != "id-1" else "1" for name in names}
    with pytest.raises(ChangedRequestsError) as caught:
        opened(paths, changed)
    error = caught.value
    assert (error.path, error.count) == (str(paths.output), 8)
    assert error.requests == tuple((n + 1, f"id-{n}") for n in (0, 2, 3, 4, 5))
    text = str(error)
    assert "8 requests have changed" in text
    assert "line 1 ('id-0'), line 3 ('id-2')" in text
    assert "and 3 more. --changed resend" in text
    assert contents(paths.output.parent) == before


@pytest.mark.parametrize("split", [False, True])
def test_changed_requests_are_sent_again_and_their_results_are_moved_aside(
    paths: RunPaths, split_paths: RunPaths, split: bool
) -> None:
    paths = split_paths if split else paths
    with opened(paths, BEFORE) as journal:
        journal.begin()
        append(journal, result("a", "1"), result("b", "1", ok=False))
        append(journal, result("c", "1"), result("d", "1", ok=False))
    paths.output.chmod(0o640)
    now = {"a": "2", "b": "2", "c": "1", "d": "1"}
    before = contents(paths.output.parent)
    with opened(paths, now, "resend") as journal:
        change = journal.opening.input_change
        assert change == InputChange(sent_again=2, requests=((1, "a"), (2, "b")))
        assert (journal.succeeded, journal.failed, journal.opening.resumed) == (1, 1, True)
        assert contents(paths.output.parent) == before  # until it begins
        with pytest.raises(RuntimeError, match="begin"):
            append(journal, result("a", "2"))
        journal.begin()
        backups = [path.name for path in journal.opening.backups]
        assert backups == (["out.jsonl.1", "failed.jsonl.1"] if split else ["out.jsonl.1"])
        assert answers_in(*journal.opening.backups) == {"a": "1", "b": "1"}
        assert answers_in(paths.output, paths.errors) == {"c": "1", "d": "1"}
        assert answer_all(journal, now) == ["a", "b"]
    assert answers_in(paths.output, paths.errors) == now
    modes = [path.stat().st_mode & 0o777 for path in (paths.output, *journal.opening.backups)]
    assert modes[:2] == [0o640, 0o640]
    again = {**now, "a": "3"}
    assert run(paths, again, "resend") == ["a"]
    assert answers_in(paths.output.with_name("out.jsonl.2")) == {"a": "2"}
    assert answers_in(paths.output, paths.errors) == again


def test_every_line_of_a_changed_request_is_moved_as_it_is(paths: RunPaths) -> None:
    run(paths, {"a": "1", "b": "1"})
    odd = line_of("a", text="TEXT").replace(b"TEXT", rb"half a pair: \ud800")
    kept = b"\n" + line_of("b", text="1") + b"\n"
    paths.output.write_bytes(odd + b"\n" + kept + odd + b"\n" + line_of("a", text="3"))
    assert run(paths, {"a": "2", "b": "1"}, "resend") == ["a"]
    assert paths.output.read_bytes() == kept + line_of("a", text="2") + b"\n"
    moved = paths.output.with_name("out.jsonl.1").read_bytes()
    assert moved == b"\n".join((odd, odd, line_of("a", text="3"), b""))


def test_a_failure_of_an_earlier_version_is_sent_again_unasked(paths: RunPaths) -> None:
    with opened(paths, {"a": "1", "b": "1"}) as journal:
        journal.begin()
        append(journal, result("a", "1", ok=False), result("b", "1", ok=False))
    with opened(paths, {"a": "2", "b": "1"}) as journal:
        assert journal.opening.input_change == InputChange(sent_again=1, requests=((1, "a"),))
        assert answer_all(journal, {"a": "2", "b": "1"}) == ["a"]
    assert answers_in(paths.output) == {"a": "2", "b": "1"}
    # With "keep" it stays, unless its kind is sent again.
    assert run(paths, {"a": "2", "b": "2"}, "keep") == []
    assert run(paths, {"a": "2", "b": "2"}, "keep", retry_failed=True) == ["b"]
    assert answers_in(paths.output) == {"a": "2", "b": "2"}


def test_what_is_kept_is_known_until_it_is_sent_again(paths: RunPaths) -> None:
    run(paths, BEFORE)
    now = {**BEFORE, "a": "2", "b": "2"}
    with opened(paths, now, "keep") as journal:
        change = journal.opening.input_change
        assert change == InputChange(kept=2, requests=((1, "a"), (2, "b")))
        assert answer_all(journal, now) == []
    # The same input resumes with what was kept; another one asks again.
    with opened(paths, now) as journal:
        assert journal.opening.input_change == change
        assert answer_all(journal, now) == []
    with pytest.raises(ChangedRequestsError, match="2 requests"):
        opened(paths, {**now, "e": "1"})
    assert run(paths, BEFORE) == []  # the old version is answered
    assert run(paths, now, "keep") == []
    assert run(paths, now, "resend") == ["a", "b"]
    assert answers_in(paths.output) == now
    assert answers_in(paths.output.with_name("out.jsonl.1")) == {"a": "1", "b": "1"}
    assert run(paths, now) == []


def test_a_kept_result_that_is_removed_by_hand_is_forgotten(paths: RunPaths) -> None:
    run(paths, BEFORE)
    now = {**BEFORE, "a": "2"}
    run(paths, now, "keep")
    lines = paths.output.read_bytes().splitlines(keepends=True)
    paths.output.write_bytes(b"".join(lines[1:]))
    assert run(paths, now) == ["a"]
    assert run(paths, {**now, "e": "1"}) == ["e"]  # nothing is kept any more


def test_a_line_that_was_invalid_is_a_changed_request(paths: RunPaths) -> None:
    with opened(paths, {"a": "1"}, others=("b", "c")) as journal:
        journal.begin()
        append(journal, result("a", "1"), result("b", "-", ok=False), result("c", "-", ok=False))
    with opened(paths, {"b": "1", "a": "1"}, others=("c",)) as journal:
        assert journal.opening.input_change == InputChange(sent_again=1, requests=((1, "b"),))
        assert answer_all(journal, {"b": "1", "a": "1"}) == ["b"]
    # A request that becomes invalid belongs to the input all the same.
    with opened(paths, {"b": "1", "d": "1"}, others=("a", "c")) as journal:
        assert journal.opening.input_change == InputChange(added=1)


def test_a_run_without_records_has_the_rule_of_earlier_versions(paths: RunPaths) -> None:
    run(paths, BEFORE)
    records = paths.requests.read_bytes()
    paths.requests.unlink()
    now = {**BEFORE, "a": "2"}
    with pytest.raises(DifferentRunError, match=r"There is no out\.jsonl\.requests.*which") as no:
        opened(paths, now)
    assert not isinstance(no.value, ChangedRequestsError)
    assert run(paths, BEFORE) == []  # the same input: the records are written
    assert paths.requests.read_bytes() == records
    paths.requests.unlink()
    with opened(paths, now, "keep", allow_changed=True) as journal:
        assert journal.opening.changes.keys() == {"input"}
        assert journal.opening.input_change is None
        assert answer_all(journal, now) == []
    assert run(paths, now) == []


def test_an_input_with_no_request_of_the_run_is_a_different_run(paths: RunPaths) -> None:
    run(paths, BEFORE)
    with pytest.raises(DifferentRunError, match="No request of the input has the id"):
        opened(paths, {"x": "1"})
    with opened(paths, {"x": "1"}, allow_changed=True) as journal:
        change = journal.opening.input_change
        assert change is not None
        assert (change.added, change.gone) == (1, 4)
        assert answer_all(journal, {"x": "1"}) == ["x"]


def test_another_model_still_has_to_be_allowed(paths: RunPaths) -> None:
    run(paths, BEFORE)
    now = {**BEFORE, "a": "2"}
    with pytest.raises(DifferentRunError) as refused:
        opened(paths, now, "resend", model="other")
    assert refused.value.differences.keys() == {"model"}
    with opened(paths, now, "resend", model="other", allow_changed=True) as journal:
        assert journal.opening.changes.keys() == {"model"}
        assert answer_all(journal, now) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not the record"),
        (b"[]\n", "not the record"),
        (b'{"format_version":2,"input":"x","kept":0}\n', "format 2"),
        (b'{"format_version":1,"input":"x","kept":0}\n\0\0\0', "a part of it is missing"),
        (b'{"format_version":1,"input":"x","kept":0}\n\0\0\0\1abc', "a part of it is missing"),
    ],
)
def test_records_that_cannot_be_read(paths: RunPaths, content: bytes, message: str) -> None:
    run(paths, BEFORE)
    paths.requests.write_bytes(content)
    before = contents(paths.output.parent)
    with pytest.raises(JournalError, match=message):
        opened(paths, {**BEFORE, "a": "2"}, "resend")
    assert contents(paths.output.parent) == before
    assert run(paths, BEFORE, force_new=True) == ["a", "b", "c", "d"]
    if content:
        assert paths.requests.with_name("out.jsonl.requests.1").read_bytes() == content


def test_records_of_a_run_without_results_mean_nothing(paths: RunPaths) -> None:
    run(paths, BEFORE)
    run(paths, {**BEFORE, "a": "2"}, "keep")
    for path in (paths.output, paths.manifest):
        path.unlink()
    assert len(run(paths, {**BEFORE, "a": "2"})) == 4
    assert run(paths, {**BEFORE, "a": "2", "e": "1"}) == ["e"]


def test_a_run_without_results_is_not_a_different_one(paths: RunPaths) -> None:
    with opened(paths, BEFORE) as journal:
        journal.begin()
    opened(paths, {"x": "1"}).close()  # its manifest is there, and its records are not
    assert run(paths, {"x": "1"}) == ["x"]


def test_rescued_answers_to_an_earlier_version_are_moved_aside_too(paths: RunPaths) -> None:
    run(paths, {"a": "1", "b": "1"})
    lines = paths.output.read_bytes().splitlines(keepends=True)
    now = {"a": "1", "b": "2"}
    for on_changed in ("refuse", "resend"):
        paths.output.write_bytes(lines[0])
        paths.rescue.write_bytes(lines[1])
        if on_changed == "refuse":
            with pytest.raises(ChangedRequestsError, match=r"line 2 \('b'\)"):
                opened(paths, now)
            assert answers_in(paths.output) == {"a": "1", "b": "1"}
        else:
            assert run(paths, now, "resend") == ["b"]
    assert answers_in(paths.output) == now
    assert versions_in(paths.output.with_name("out.jsonl.1")) == [("b", "1")]


class WatchedDisk(UnsyncedDisk):
    """Calls a function before each of its steps, in the middle of each write, and after it."""

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._look()
        written = super().write(fd, data[: max(len(data) // 2, 1)])
        self._look()
        return written

    def sync(self, fd: int) -> None:
        self._look()

    def sync_folder(self, folder: Path) -> None:
        self._look()


@pytest.mark.parametrize(
    ("on_changed", "split"),
    [
        ("resend", True),
        ("keep", False),
        pytest.param("resend", False, marks=pytest.mark.thorough),
        pytest.param("keep", True, marks=pytest.mark.thorough),
    ],
)
def test_a_crash_at_any_step_never_takes_an_old_answer_for_a_new_one(
    paths: RunPaths, split_paths: RunPaths, split: bool, on_changed: OnChanged
) -> None:
    paths = split_paths if split else paths
    folder = paths.output.parent
    with opened(paths, BEFORE) as journal:
        journal.begin()
        append(journal, result("a", "1"), result("b", "1", ok=False))
        append(journal, result("c", "1"), result("d", "1"))
    now = {"a": "2", "b": "2", "c": "1", "e": "1"}  # d is gone
    moments: list[dict[str, bytes]] = []
    disk = WatchedDisk(functools.partial(note_contents, moments, folder))
    with opened(paths, now, on_changed, disk=disk) as journal:
        answer_all(journal, now)
    moments.append(contents(folder))
    distinct = [moment for one, moment in enumerate(moments) if moment not in moments[:one]]
    assert len(distinct) > (20 if on_changed == "resend" else 8)
    kept = {} if on_changed == "resend" else {"a": "1", "b": "1"}
    for moment in distinct:
        # The same command goes on.
        restore(folder, moment)
        run(paths, now, on_changed)
        assert answers_in(paths.output, paths.errors) == {**now, "d": "1", **kept}
        results = [paths.output, *folder.glob("out.jsonl.[0-9]")]
        assert ("a", "1") in versions_in(*results)  # it was paid for
        # Another one: the old input again.
        restore(folder, moment)
        run(paths, BEFORE, "resend")
        found = answers_in(paths.output, paths.errors)
        assert {name: found[name] for name in BEFORE} == BEFORE
        # And without a decision: whatever is there now is an answer to the present requests.
        restore(folder, moment)
        refusal = None
        try:
            run(paths, now)
        except ChangedRequestsError as error:
            refusal = error
        if refusal is not None:
            assert ("a", "1") in versions_in(paths.output)
            assert refusal.requests == ((1, "a"),)
        else:
            assert answers_in(paths.output, paths.errors) == {**now, "d": "1", **kept}


class BreakingDisk(UnsyncedDisk):
    """Works for so many calls, and then no more."""

    def __init__(self, calls: int) -> None:
        self._left = calls

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, fd: int, data: bytes | memoryview) -> int:
        self._count()
        return super().write(fd, data)

    def sync(self, fd: int) -> None:
        self._count()


def test_a_disk_that_is_full_at_the_beginning_loses_no_answer(split_paths: RunPaths) -> None:
    paths, folder = split_paths, split_paths.output.parent
    with opened(paths, BEFORE) as journal:
        journal.begin()
        append(journal, result("a", "1"), result("b", "1", ok=False), result("c", "1"))
    before = contents(folder)
    now = {"a": "2", "b": "2", "c": "1", "d": "2"}
    broken = 0
    for calls in range(100):
        restore(folder, before)
        failure = None
        try:
            with opened(paths, now, "resend", disk=BreakingDisk(calls)) as journal:
                journal.begin()
        except JournalError as error:
            failure = str(error)
        if failure is None:
            break
        assert "No space left on device" in failure
        assert not list(folder.glob(".*.new"))
        broken += 1
        assert run(paths, now, "resend") == ["a", "b", "d"]
        assert answers_in(paths.output, paths.errors) == now
        assert ("a", "1") in versions_in(*folder.glob("out.jsonl.[0-9]"))
    assert broken > 8


@pytest.mark.parametrize("seed", thorough_but(range(6), range(24)))
def test_the_output_always_answers_what_is_asked_or_was_kept(tmp_path: Path, seed: int) -> None:
    """Inputs change at random, and runs are cut off at random, in every mode."""
    random_ = random.Random(seed)
    folder = tmp_path / "run"
    folder.mkdir()
    paths = RunPaths.of(folder / "out.jsonl", folder / "failed.jsonl" if seed % 2 else None)
    names = [f"id-{number}" for number in range(12)]
    answered: dict[str, str] = {}  # what the model of this test says is in the files
    with opened(paths, {"id-0": "0"}) as journal:  # stays, so that it is the same run
        answer_all(journal, {"id-0": "0"})
    answered["id-0"] = "0"
    failed: set[str] = set()
    for step in range(12):
        requests = {"id-0": "0"} | {
            name: str(random_.randrange(3)) for name in names if random_.random() < 0.7
        }
        mode: OnChanged = random_.choice(["refuse", "keep", "resend"])
        changed = {n for n, v in requests.items() if n in answered and answered[n] != v}
        refused = bool(changed - failed) and mode == "refuse"
        if refused:
            with pytest.raises(ChangedRequestsError) as caught:
                opened(paths, requests, mode)
            assert caught.value.count == len(changed - failed)
            continue
        moments: list[dict[str, bytes]] = []
        disk = WatchedDisk(functools.partial(note_contents, moments, folder))
        with opened(paths, requests, mode, disk=disk) as journal:
            change = journal.opening.input_change or InputChange()
            aside = set() if mode == "keep" else changed
            assert change.sent_again == len(aside), step
            assert change.kept == len(changed - aside)
            assert change.gone in (0, len(answered.keys() - requests.keys()))
            journal.begin()
            sent = [name for name in requests if not journal.is_finished(name)]
            assert set(sent) == requests.keys() - (answered.keys() - aside)
            if moments and random_.random() < 0.5:  # a crash, before anything was sent
                crashed = random_.choice(moments)
            else:
                crashed = None
                for name in aside:
                    del answered[name]
                failed -= aside
                for name in random_.sample(sent, random_.randint(0, len(sent))):
                    ok = random_.random() < 0.8
                    append(journal, result(name, requests[name], ok=ok))
                    answered[name] = requests[name]
                    failed |= set() if ok else {name}
        if crashed is not None:
            restore(folder, crashed)
            with opened(paths, requests, mode) as journal:
                journal.begin()
            for name in aside:
                del answered[name]
            failed -= aside
        assert answers_in(paths.output, paths.errors) == answered
