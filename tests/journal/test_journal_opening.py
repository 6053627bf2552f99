"""What an output may hold when its run is resumed: whole, torn, spoiled and foreign lines."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.disks import UnsyncedDisk
from helpers.journal_values import MANIFEST, append, begun, entry, ids_in, line_of, run_of
from parallel_core.errors import JournalError
from parallel_core.journal import Journal
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.scan import id_digest


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


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"", id="nothing", marks=pytest.mark.thorough),
        pytest.param(b"\0", id="a zero", marks=pytest.mark.thorough),
        pytest.param(b"\0" * 5000, id="many zeros"),
    ],
)
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


def is_no_object(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return True
    return False


@given(
    lines=st.lists(
        st.tuples(st.text(max_size=8), st.booleans(), st.text(max_size=12)),
        max_size=8,
        unique_by=lambda line: line[0],
    ),
    cut=st.integers(0, 2000),
    torn=st.binary(max_size=20)
    .map(lambda data: b"{" + data.replace(b"\n", b""))
    .filter(is_no_object),
)
def test_any_torn_file_is_gone_on_with(
    lines: list[tuple[str, bool, str]], cut: int, torn: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = RunPaths.of(Path(folder) / "out.jsonl")
        content = b"".join(line_of(name, ok=ok, text=text) + b"\n" for name, ok, text in lines)
        kept = content[: content.rfind(b"\n", 0, cut) + 1]
        begun(paths, kept + torn, disk=UnsyncedDisk())
        with Journal.open(paths, MANIFEST, disk=UnsyncedDisk()) as journal:
            append(journal, entry("and another one"))
        assert paths.output.read_bytes() == kept + line_of("and another one") + b"\n"
        assert journal.opening.torn_bytes == len(torn)
        assert journal.opening.succeeded + journal.opening.failed == kept.count(b"\n")


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
    with pytest.raises(JournalError, match=r"out\.jsonl, line 3 is not (valid JSON|the result)"):
        Journal.open(paths, MANIFEST)
    assert paths.output.read_bytes() == content


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (b'{"note": "mine"}\n', "is not the result of a request"),
        (b'{"note": "mine"}', "is not the result of a request"),
        (b"{not JSON}\n", "is not valid JSON"),
        (b'{"custom_id":"b","response":{"status_co\n', "is not valid JSON"),
        (b"a note of mine", "is not valid JSON"),
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


def test_ids_of_any_characters_have_digests_of_their_own() -> None:
    names = ["", "a", "ä", "\ud800", "\ud801", "a\0", "x" * 1000, "x" * 1001]
    assert len({id_digest(name) for name in names}) == len(names)


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
