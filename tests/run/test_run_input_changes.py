"""An input that is another one, or changes during a run or between two."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest

from helpers.file_runs import Provider, answer_of, ids_of, line, write_lines
from helpers.hosts import ASYNCIO_HOSTS, Host
from parallel_core.cli.run_texts import describe_opening
from parallel_core.errors import DifferentRunError
from parallel_core.journal import InputChange
from parallel_core.journal.run_paths import RunPaths, older_names
from parallel_core.run import RunOpening, RunProgress, run_file


def test_another_input_is_not_mixed_into_an_output(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", [line(0)])
    second = write_lines(tmp_path / "b.jsonl", [line(1)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        await run_file(Provider(), first, output)
        with pytest.raises(DifferentRunError, match="input"):
            await run_file(Provider(), second, output)
        with pytest.raises(DifferentRunError, match="temperature"):
            await run_file(Provider(), first, output, description={"temperature": 1})
        went_on = await run_file(Provider(), second, output, allow_changed=True)
        assert (went_on.earlier_succeeded, went_on.succeeded) == (0, 1)
        (change,) = json.loads(RunPaths.of(output).manifest.read_text())["changes"]
        assert change["differences"].keys() == {"input"}
        assert (await run_file(Provider(), second, output)).earlier_succeeded == 1
        assert (await run_file(Provider(), first, output, force_new=True)).succeeded == 1

    ASYNCIO_HOSTS[0].run(main)


def test_results_of_requests_that_are_gone_from_the_input_do_not_count(
    either_library: Host, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(20)])
    output = tmp_path / "out.jsonl"

    async def behave(number: int) -> None:
        if number in (0, 7):
            raise ValueError("no")

    openings: list[RunOpening] = []

    async def main() -> None:
        await run_file(Provider(behave), source, output)
        write_lines(source, [line(number) for number in (9, 8, 7, 6, 5, 30)])
        summary = await run_file(
            Provider(), source, output, allow_changed=True, order="input", on_open=openings.append
        )
        assert (summary.ending, summary.total, summary.unfinished) == ("complete", 6, 0)
        assert (summary.earlier_succeeded, summary.earlier_failed, summary.succeeded) == (4, 1, 1)
        assert ids_of(output)[:6] == ["id-9", "id-8", "id-7", "id-6", "id-5", "id-30"]
        assert len(ids_of(output)) == 21  # the others stay, behind them
        again = await run_file(
            Provider(), source, output, retry_failed=True, on_open=openings.append
        )
        assert (again.ok, again.succeeded, again.earlier_succeeded) == (True, 1, 5)

    either_library.run(main)
    assert [(o.total, o.left, o.others, o.journal.retried) for o in openings] == [
        (6, 1, 15, 0),
        (6, 1, 15, 1),
    ]
    kept = "kept 15 results of requests that are not in the input"
    named, counted = ("; ".join(describe_opening(opening)) for opening in openings)
    assert f"{kept} (id-" in named
    assert f"{kept};" in counted


def test_a_bad_line_that_is_written_before_is_no_failure_of_this_run(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0), {"custom_id": "bad"}])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        first = await run_file(Provider(), source, output, skip_invalid=True)
        (group,) = first.failures
        assert (first.failed, group.kind, group.count) == (1, "request", 1)
        assert group.message.startswith("missing_required_parameter: line ")
        second = await run_file(Provider(), source, output, skip_invalid=True)
        assert (second.earlier_failed, second.failed, second.failures) == (1, 0, [])

    ASYNCIO_HOSTS[0].run(main)


def test_lines_that_are_named_by_their_number_are_told_to_be_where_the_input_differs(
    tmp_path: Path,
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number)["body"] for number in range(3)])
    output = tmp_path / "out.jsonl"
    openings: list[RunOpening] = []

    async def main() -> None:
        await run_file(Provider(), source, output, limit=2)
        source.write_text("\n" + source.read_text())
        with pytest.raises(
            DifferentRunError, match=r"named by their number.*other lines"
        ) as refused:
            await run_file(Provider(), source, output)
        assert pickle.loads(pickle.dumps(refused.value)).note == refused.value.note
        await run_file(Provider(), source, output, allow_changed=True, on_open=openings.append)

    ASYNCIO_HOSTS[0].run(main)
    assert "named by their number" in " ".join(describe_opening(openings[0]))


@pytest.mark.parametrize("order", ["completion", "input"])
def test_an_input_that_changes_ends_the_run_in_order(
    either_library: Host, tmp_path: Path, order: Literal["completion", "input"]
) -> None:
    # Several blocks: what is behind the first is read after the change.
    lines = [line(number, user="x" * 40_000) for number in range(80)]
    source = write_lines(tmp_path / "in.jsonl", lines)
    before = source.read_bytes()
    output = tmp_path / "out.jsonl"

    async def append(number: int) -> None:
        if number == 3:
            with source.open("a") as end:
                end.write(json.dumps(line(0, api_base="http://elsewhere")) + "\n")

    provider = Provider(append)

    async def main() -> None:
        summary = await run_file(provider, source, output, order=order)
        assert (summary.ending, summary.ok, summary.cut_off) == ("input", False, 0)
        assert "has been changed since it was checked" in (summary.input_error or "")
        assert 0 < summary.unfinished < 80
        assert len(ids_of(output)) == summary.succeeded == 80 - summary.unfinished
        source.write_bytes(before)
        assert (await run_file(provider, source, output, order=order)).ok

    either_library.run(main)
    assert provider.calls == {f"id-{number}": 1 for number in range(80)}


def test_an_input_that_has_grown_when_all_of_it_is_answered_is_told(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(3)])
    provider = Provider()

    def grow(progress: RunProgress) -> None:
        if progress.finished:
            write_lines(source, [line(number) for number in range(4)])

    async def main() -> None:
        output = tmp_path / "out.jsonl"
        summary = await run_file(provider, source, output, order="input", on_run_progress=grow)
        assert (summary.ending, summary.ok, summary.succeeded) == ("complete", False, 3)
        assert "has been changed" in (summary.input_error or "")
        assert len(ids_of(output)) == 3

    ASYNCIO_HOSTS[0].run(main)


def test_a_change_that_is_not_wanted_after_all_is_not_noted(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", [line(0)])
    second = write_lines(tmp_path / "b.jsonl", [line(0), line(1)])
    output = tmp_path / "out.jsonl"
    changes: list[object] = []

    def refuse(opening: RunOpening) -> bool:
        changes.append(opening.journal.changes.keys() == {"model"})
        changes.append(opening.journal.input_change == InputChange(added=1))
        return False

    async def main() -> None:
        await run_file(Provider(), first, output, description={"model": "a"})
        for retry_failed in (False, True):
            before = RunPaths.of(output).manifest.read_bytes()
            await run_file(
                Provider(),
                second,
                output,
                allow_changed=True,
                description={"model": "b"},
                may_send=refuse,
                retry_failed=retry_failed,
            )
            assert RunPaths.of(output).manifest.read_bytes() == before
        assert changes == [True] * 4
        assert (await run_file(Provider(), first, output, description={"model": "a"})).ok

    ASYNCIO_HOSTS[0].run(main)


def test_a_run_of_the_first_format_is_resumed_by_the_bytes_of_its_input(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0), line(1)])
    output = tmp_path / "out.jsonl"
    paths = RunPaths.of(output)
    meaning = [hashlib.sha256(source.read_bytes()).hexdigest(), "jsonl", None]
    digest = hashlib.sha256(json.dumps(meaning, separators=(",", ":")).encode()).hexdigest()

    def begun_by_version_0_1(**fields: Any) -> None:
        for path in paths.files:
            path.unlink(missing_ok=True)
        fields |= {"output file": "out.jsonl", "error file": None, "format": "jsonl"}
        older = older_names(paths)
        assert older is not None
        older.manifest.write_text(
            json.dumps({"fields": {"input": digest, **fields}, "format_version": 1})
        )
        answer = {"status_code": 200, "body": answer_of("0")}
        write_lines(output, [{"custom_id": "id-0", "response": answer, "error": None}])

    async def main() -> None:
        described = {"model gpt": "openai/gpt with 0123456789ab"}
        begun_by_version_0_1(
            **{"model gpt": "openai/gpt with ba9876543210", "model x": "x", "router": "config"}
        )
        summary = await run_file(Provider(), source, output, description=described)
        assert (summary.earlier_succeeded, summary.succeeded) == (1, 1)
        manifest = json.loads(paths.manifest.read_text())
        assert manifest["fields"].keys() == {"input", "model gpt"}
        for changed, what in (
            ({"model gpt": "openai/other"}, "model gpt"),
            ({"model gpt": "openai/gpt", "router": "demo"}, "router"),
            ({"input": "0" * 64}, "input"),
        ):
            begun_by_version_0_1(**changed)
            with pytest.raises(DifferentRunError) as refused:
                await run_file(Provider(), source, output, description=described)
            assert refused.value.differences.keys() == {what}
            if what == "input":
                assert "of an older version" in str(refused.value)
                assert digest not in str(refused.value)

    ASYNCIO_HOSTS[0].run(main)
