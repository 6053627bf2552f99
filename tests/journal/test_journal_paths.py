"""The names of a run's files: what can be an output, what belongs to it, and older names."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import parallel_core
from helpers.journal_values import MANIFEST, entry, ids_in, line_of, outcomes_in, run_of
from parallel_core.errors import DifferentRunError, JournalError
from parallel_core.journal import Journal
from parallel_core.journal.run_paths import RunPaths


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


def test_what_another_output_has_does_not_count_for_a_run_without_results(tmp_path: Path) -> None:
    """Earlier versions gave the statistics of ``ans.jsonl`` the name of those of ``ans``."""
    bare, ended = RunPaths.of(tmp_path / "ans"), RunPaths.of(tmp_path / "ans.jsonl")
    run_of(bare, entry("a"))
    run_of(ended)
    ended.output.unlink()
    assert not ended.statistics.exists()
    run_of(ended, entry("b"))
    assert ids_in(ended.output) == ["b"]


def test_a_run_that_begins_anew_moves_nothing_of_another_output(tmp_path: Path) -> None:
    bare, ended = RunPaths.of(tmp_path / "ans"), RunPaths.of(tmp_path / "ans.jsonl")
    run_of(bare, entry("a"))
    bare.rescue.write_bytes(line_of("r") + b"\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    run_of(ended, entry("b"))
    run_of(ended, entry("c"), force_new=True)
    assert {path: path.read_bytes() for path in before} == before
    with Journal.open(bare, MANIFEST) as journal:
        assert (journal.opening.rescued, journal.succeeded) == (1, 2)


def test_an_old_output_that_is_gone_is_known_by_its_statistics(paths: RunPaths) -> None:
    old_run(paths.output, MANIFEST)
    paths.output.unlink()
    with pytest.raises(JournalError, match=r"out\.jsonl is gone"):
        Journal.open(paths, MANIFEST)


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
