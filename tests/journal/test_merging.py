"""Outputs of several runs, joined into one."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.file_runs import Provider, ids_of, line, lines_of, write_lines
from parallel_core import JournalError, JournalInUseError
from parallel_core.journal import (
    CallStatistics,
    Journal,
    OnChanged,
    RunPaths,
    merge_outputs,
    read_statistics,
)
from parallel_core.report import summarize
from parallel_core.run import run_file


def answer(custom_id: str, text: str = "yes") -> dict[str, Any]:
    body = {"choices": [{"index": 0, "message": {"content": text}}]}
    return {"custom_id": custom_id, "response": {"status_code": 200, "body": body}, "error": None}


def failure(custom_id: str, code: str = "request_timeout") -> dict[str, Any]:
    return {"custom_id": custom_id, "response": None, "error": {"code": code, "message": "no"}}


def shards_of(
    source: Path, folder: Path, number: int, provider: Any, *, error_files: bool = False
) -> list[Path]:
    async def main() -> list[Path]:
        outputs: list[Path] = []
        for shard in range(1, number + 1):
            outputs.append(folder / f"part-{shard}.jsonl")
            errors = folder / f"part-{shard}.errors.jsonl" if error_files else None
            part = (shard, number)
            await run_file(provider, source, outputs[-1], shard=part, error_file=errors, retry=None)
        return outputs

    return asyncio.run(main())


def test_an_answer_wins_and_the_first_one_and_the_last_failure(tmp_path: Path) -> None:
    one = write_lines(
        tmp_path / "1.jsonl",
        [failure("a"), answer("b", "first"), failure("c", "old"), answer("e")],
    )
    two = write_lines(
        tmp_path / "2.jsonl",
        [answer("a"), failure("b"), failure("c", "new"), answer("b", "second"), failure("d")],
    )
    output = tmp_path / "out.jsonl"
    summary = merge_outputs([one, two], output)
    found = {entry["custom_id"]: entry for entry in lines_of(output)}
    assert len(found) == len(lines_of(output)) == 5
    assert found["a"] == answer("a")
    assert found["b"] == answer("b", "first")
    assert found["c"] == failure("c", "new")
    assert (found["d"], found["e"]) == (failure("d"), answer("e"))
    assert (summary.answers, summary.failures, summary.superseded) == (3, 2, 3)
    assert (summary.duplicates, summary.duplicate_ids) == (1, ("b",))
    assert not summary.resumable
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jsonl", "2.jsonl", "out.jsonl"]


def test_lines_are_kept_as_they_are(tmp_path: Path) -> None:
    odd = b'{ "custom_id":"\xc3\xa4\\ud83d", "error":null,"response":{"body":{"x":1.50}} , "z":[]}'
    (tmp_path / "1.jsonl").write_bytes(odd)  # without a newline
    (tmp_path / "2.jsonl").write_bytes(json.dumps(answer("b")).encode() + b"\r\n\n")
    merge_outputs([tmp_path / "1.jsonl", tmp_path / "2.jsonl"], tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_bytes()
    assert written == odd + b"\n" + json.dumps(answer("b")).encode() + b"\n"


def test_shards_make_an_output_that_resumes_with_the_whole_input(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(30)])

    async def behave(number: int) -> None:
        if number in (3, 4):
            raise ValueError("no")

    provider = Provider(behave)
    parts = shards_of(source, tmp_path, 3, provider)
    output = tmp_path / "out.jsonl"
    summary = merge_outputs(parts, output)
    assert (summary.answers, summary.failures, summary.resumable) == (28, 2, True)
    assert not summary.notes

    async def main() -> None:
        whole = await run_file(provider, source, output, order="input")
        assert (whole.earlier_succeeded, whole.earlier_failed, whole.succeeded) == (28, 2, 0)
        assert set(provider.calls.values()) == {1}
        again = await run_file(Provider(), source, output, retry_failed=True)
        assert again.ok
        write_lines(source, [line(number) for number in range(32)])
        grown = await run_file(Provider(), source, output)  # it knows what the parts were asked
        assert (grown.earlier_succeeded, grown.succeeded) == (30, 2)

    asyncio.run(main())
    report = summarize(output)
    assert (report.total.requests, report.total.ok) == (32, 32)
    calls = [
        record
        for record in read_statistics(RunPaths.of(output).statistics)
        if isinstance(record, CallStatistics)
    ]
    assert len(calls) == 34
    assert len({call.custom_id for call in calls}) == 32


@pytest.mark.parametrize("first", [1, 2])
def test_kept_answers_of_changed_requests_are_still_known(tmp_path: Path, first: int) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(8)])
    parts = shards_of(source, tmp_path, 2, Provider())
    write_lines(source, [line(number, temperature=1) for number in range(8)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        # One shard keeps its old answers, and the other one gets new ones.
        for shard, part in enumerate(parts, 1):
            rule: OnChanged = "keep" if shard == first else "resend"
            await run_file(Provider(), source, part, shard=(shard, 2), changed=rule)
        old = set(ids_of(parts[first - 1]))
        assert 0 < len(old) < 8
        assert merge_outputs(parts, output).resumable
        provider = Provider()
        again = await run_file(provider, source, output, changed="resend")
        assert again.succeeded == len(old)
        assert set(provider.calls) == old

    asyncio.run(main())


def test_failures_come_from_the_error_files_that_manifests_name(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(8)])

    async def behave(number: int) -> None:
        if number % 2:
            raise ValueError("no")

    parts = shards_of(source, tmp_path, 2, Provider(behave), error_files=True)
    merged = merge_outputs(parts, tmp_path / "one.jsonl")
    assert (merged.answers, merged.failures) == (4, 4)
    assert len(ids_of(tmp_path / "one.jsonl")) == 8
    # An error file may also be named, and failures may have a file again.
    errors = tmp_path / "two.errors.jsonl"
    named = [*parts, tmp_path / "part-1.errors.jsonl"]
    merged = merge_outputs(named, tmp_path / "two.jsonl", error_file=errors)
    assert (len(ids_of(tmp_path / "two.jsonl")), len(ids_of(errors))) == (4, 4)
    assert merged.resumable

    async def main() -> None:
        output = tmp_path / "two.jsonl"
        whole = await run_file(Provider(), source, output, error_file=errors)
        assert (whole.earlier_succeeded, whole.earlier_failed, whole.succeeded) == (4, 4, 0)

    asyncio.run(main())
    (tmp_path / "part-2.errors.jsonl").unlink()
    merged = merge_outputs(parts, tmp_path / "three.jsonl")
    assert "the failures of" in merged.notes[0]
    assert merged.answers + merged.failures < 8


def test_parts_of_different_runs_have_no_manifest(tmp_path: Path) -> None:
    parts: list[Path] = []

    async def main() -> None:
        for number in (1, 2):
            source = write_lines(tmp_path / f"in-{number}.jsonl", [line(number)])
            parts.append(tmp_path / f"{number}.jsonl")
            await run_file(Provider(), source, parts[-1])

    asyncio.run(main())
    summary = merge_outputs(parts, tmp_path / "out.jsonl")
    assert summary.notes == ("the manifests of the parts differ in: input",)
    assert not RunPaths.of(tmp_path / "out.jsonl").manifest.exists()

    async def resume() -> None:
        with pytest.raises(JournalError, match=r"no out\.jsonl\.manifest\.json"):
            await run_file(Provider(), tmp_path / "in-1.jsonl", tmp_path / "out.jsonl")

    asyncio.run(resume())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"custom_id": "a"}\n', r"2\.jsonl, line 1 is not the result of a request"),
        (json.dumps(answer("a")).encode() + b"\n{]\n", r"2\.jsonl, line 2 is not valid JSON"),
        (None, "cannot be used"),
    ],
)
def test_a_part_that_is_invalid_is_refused(tmp_path: Path, content: Any, says: str) -> None:
    one = write_lines(tmp_path / "1.jsonl", [answer("a")])
    two = tmp_path / "2.jsonl"
    if content is not None:
        two.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(JournalError, match=says):
        merge_outputs([one, two], tmp_path / "out.jsonl")
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_is_refused(tmp_path: Path) -> None:
    part = write_lines(tmp_path / "1.jsonl", [answer("a")])
    for parts, output in (([part], Path()), ([part, Path()], tmp_path / "out.jsonl")):
        with pytest.raises(JournalError, match=r"\. is a folder: give the name of a file"):
            merge_outputs(parts, output)


def test_a_compressed_part_is_refused(tmp_path: Path) -> None:
    part = write_lines(tmp_path / "1.jsonl", [answer("a")])
    packed = tmp_path / "2.jsonl"
    packed.write_bytes(gzip.compress(part.read_bytes()))
    with pytest.raises(JournalError, match=r"2\.jsonl, line 1 is compressed data: unpack"):
        merge_outputs([part, packed], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_what_a_crash_has_damaged_is_left_out_and_told(tmp_path: Path) -> None:
    whole = json.dumps(answer("a")).encode() + b"\n"
    part = tmp_path / "1.jsonl"
    part.write_bytes(whole + b"\0" * 20 + b"\n" + whole[:30])
    summary = merge_outputs([part], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert "the last line of" in summary.notes[0]
    assert "1 damaged line" in summary.notes[1]


def test_results_in_a_rescue_file_and_running_runs_are_not_forgotten(tmp_path: Path) -> None:
    part = write_lines(tmp_path / "1.jsonl", [answer("a")])
    rescue = RunPaths.of(part).rescue
    rescue.write_text(json.dumps(answer("b")) + "\n")
    with pytest.raises(JournalError, match="resume that run first"):
        merge_outputs([part], tmp_path / "out.jsonl")
    rescue.unlink()
    with (
        Journal.open(RunPaths.of(part), {}, allow_changed=True),
        pytest.raises(JournalInUseError),
    ):
        merge_outputs([part], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    assert merge_outputs([part], tmp_path / "out.jsonl").answers == 1


def test_an_output_is_never_overwritten(tmp_path: Path) -> None:
    part = write_lines(tmp_path / "1.jsonl", [answer("a")])
    output = tmp_path / "out.jsonl"
    manifest = RunPaths.of(output).manifest
    manifest.write_text("{}")
    with pytest.raises(JournalError, match=r"manifest\.json exists: give another output"):
        merge_outputs([part], output)
    output.write_text("precious\n")
    with pytest.raises(JournalError, match=r"out\.jsonl exists"):
        merge_outputs([part], output)
    summary = merge_outputs([part], output, force=True)
    assert ids_of(output) == ["a"]
    assert [path.name for path in summary.backups] == ["out.jsonl.1", "out.jsonl.manifest.json.1"]
    assert (tmp_path / "out.jsonl.1").read_text() == "precious\n"
    for force in (False, True):
        with pytest.raises(JournalError, match="is a part and cannot be the output"):
            merge_outputs([part, output], output, force=force)
    with pytest.raises(JournalError, match="is given twice"):
        merge_outputs([part, part], tmp_path / "other.jsonl")
