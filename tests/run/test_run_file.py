"""A file in, a file out: each request has one line, which is its answer or its failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

import parallel_core
from helpers.file_runs import Provider, answer_of, ids_of, line, lines_of, write_lines
from helpers.hosts import ASYNCIO_HOSTS, Host
from parallel_core import InputFileError
from parallel_core.files.batch_input import InputFile
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import CallStatistics, read_statistics
from parallel_core.run import RunOpening, run_file


def test_each_request_has_one_line_and_is_not_sent_again(host: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(40)])
    output = tmp_path / "out.jsonl"
    provider = Provider()

    async def main() -> None:
        first = await run_file(provider, source, output, concurrency=7)
        assert first.ok
        assert (first.ending, first.total, first.succeeded) == ("complete", 40, 40)
        assert first.usage.total_tokens == 120
        assert sorted(ids_of(output)) == sorted(f"id-{number}" for number in range(40))
        for entry in lines_of(output):
            content = entry["response"]["body"]["choices"][0]["message"]["content"]
            assert entry["custom_id"] == f"id-{content}"
        second = await run_file(provider, source, output, concurrency=7)
        assert (second.earlier_succeeded, second.succeeded, second.unfinished) == (40, 0, 0)

    host.run(main)
    assert set(provider.calls.values()) == {1}
    statistics = [
        record
        for record in read_statistics(RunPaths.of(output).statistics)
        if isinstance(record, CallStatistics)
    ]
    assert len(statistics) == 40
    assert all(record.ok and record.prompt_tokens == 2 for record in statistics)


def test_a_trial_and_then_the_whole(either_library: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(30)])
    output = tmp_path / "out.jsonl"
    provider = Provider()

    async def main() -> None:
        trial = await run_file(provider, source, output, limit=4)
        assert (trial.ending, trial.total, trial.succeeded) == ("complete", 4, 4)
        assert sorted(ids_of(output)) == [f"id-{number}" for number in range(4)]
        larger = await run_file(provider, source, output, limit=6)
        assert (larger.total, larger.succeeded) == (6, 2)
        assert (await run_file(provider, source, output)).succeeded == 24
        smaller = await run_file(provider, source, output, limit=3)
        assert (smaller.ending, smaller.total, smaller.unfinished) == ("complete", 3, 0)

    either_library.run(main)
    assert set(provider.calls.values()) == {1}


def test_a_trial_does_not_count_what_is_beyond_it(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(6)])

    async def behave(number: int) -> None:
        if number == 5:
            raise ValueError("no")

    async def main() -> None:
        output = tmp_path / "out.jsonl"
        assert (await run_file(Provider(behave), source, output)).failed == 1
        trial = await run_file(Provider(behave), source, output, limit=3)
        assert trial.ok
        assert (trial.total, trial.earlier_succeeded, trial.earlier_failed) == (3, 3, 0)

    ASYNCIO_HOSTS[0].run(main)


def test_bad_lines_are_refused_or_written_as_failures(either_library: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0), {"custom_id": "bad"}, line(0), line(2)])
    output = tmp_path / "out.jsonl"
    provider = Provider()

    async def main() -> None:
        with pytest.raises(InputFileError, match="line 2: missing_required_parameter") as refused:
            await run_file(provider, source, output)
        assert "line 3: duplicate_custom_id" in str(refused.value)
        assert not provider.calls
        assert not output.exists()
        summary = await run_file(provider, source, output, skip_invalid=True)
        assert (summary.total, summary.succeeded, summary.failed) == (4, 2, 2)
        assert summary.ending == "complete"
        assert len(set(ids_of(output))) == 4
        for options in cast("list[dict[str, Any]]", [{}, {"limit": 2}]):
            again = await run_file(provider, source, output, skip_invalid=True, **options)
            assert (again.earlier_failed, again.failed, again.succeeded) == (2, 0, 0)
            assert (again.ending, again.unfinished) == ("complete", 0)

    either_library.run(main)
    assert set(provider.calls.values()) == {1}


def test_bad_lines_are_final_failures(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps(line(0)) + "\nno JSON\n")
    provider = Provider()

    async def main() -> None:
        for retry_failed in (False, True):
            summary = await run_file(
                provider,
                source,
                tmp_path / "out.jsonl",
                skip_invalid=True,
                retry_failed=retry_failed,
            )
            assert (summary.failed + summary.earlier_failed, summary.final_failures) == (1, 1)

    ASYNCIO_HOSTS[0].run(main)
    assert provider.calls == {"id-0": 1}


def test_metadata_and_kept_columns_come_back_with_answers_and_failures(
    either_library: Host, tmp_path: Path
) -> None:
    """Exactly as they were, whatever the call did with its own copy."""
    odd = {"text": 'a"\U0001f389 sk-0123456789abcdef', "number": 2**70, "nested": [{"x": None}]}
    body = line(0)["body"]
    source = write_lines(
        tmp_path / "in.jsonl",
        [
            {**line(0), "metadata": odd, "source": odd},
            {**line(1), "source": 1},
            line(2, metadata={"of": "the body"}),
            {**body, "custom_id": "plain", "metadata": {"n": "1"}, "source": ["a"], "other": 1},
            {**line(4), "source": None},
        ],
    )
    output = tmp_path / "out.jsonl"
    sent: list[dict[str, Any]] = []

    async def provider(*, model: str, messages: Any, **arguments: Any) -> dict[str, Any]:
        sent.append(dict(arguments))
        arguments.get("metadata", {}).clear()
        if messages[0]["content"] == "4":
            raise ValueError("no")
        return answer_of("0")

    async def main() -> None:
        opened = InputFile(source, keep=["source"])
        with pytest.raises(InputFileError, match="'other': 1 line, first in line 4"):
            await run_file(provider, opened, output, skip_invalid=True)
        assert not sent
        assert not output.exists()
        opened = InputFile(source, keep=["source"], drop_columns=True)
        summary = await run_file(provider, opened, output, concurrency=1)
        assert (summary.succeeded, summary.failed) == (4, 1)

    either_library.run(main)
    assert sent == [{}, {}, {"metadata": {}}, {"metadata": {}}, {}]
    names = ("metadata", "columns")
    assert [
        {name: entry[name] for name in names if name in entry} for entry in lines_of(output)
    ] == [
        {"metadata": odd, "columns": {"source": odd}},
        {"columns": {"source": 1}},
        {"metadata": {"of": "the body"}},
        {"metadata": {"n": "1"}, "columns": {"source": ["a"]}},
        {"columns": {"source": None}},
    ]


def test_one_strange_answer_is_a_failure_of_its_own(either_library: Host, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(20)])
    output = tmp_path / "out.jsonl"
    deep: Any = "deep"
    for _ in range(100_000):
        deep = [deep]

    class Hostile:
        def model_dump(self, **_: Any) -> Any:
            raise LookupError("hostile")

    class HostileError(Exception):
        def __init__(self) -> None:
            super().__init__()
            self.status_code = 400
            self.body = {"error": deep}

    async def answer(*, model: str, messages: Any, **_: Any) -> Any:
        number = int(messages[0]["content"])
        if number == 3:
            return {**answer_of("3"), "deep": deep}
        if number == 7:
            return Hostile()
        if number == 11:
            raise HostileError
        return answer_of(str(number))

    async def main() -> None:
        summary = await run_file(answer, source, output, concurrency=4)
        assert (summary.ending, summary.succeeded, summary.failed) == ("complete", 17, 3)
        failed = {entry["custom_id"]: entry["error"] for entry in lines_of(output)}
        assert {name for name, error in failed.items() if error} >= {"id-3", "id-7"}
        assert failed["id-3"]["code"] == failed["id-7"]["code"] == "invalid_response"

    either_library.run(main)


def test_the_input_is_never_written_to(tmp_path: Path) -> None:
    provider = Provider()

    async def refused(source: str, output: str, **options: Any) -> None:
        path = write_lines(tmp_path / source, [line(0)])
        before = path.read_bytes()
        with pytest.raises(InputFileError, match="is the input"):
            await run_file(provider, path, tmp_path / output, force_new=True, **options)
        assert path.read_bytes() == before

    async def main() -> None:
        await refused("a.jsonl", "a.jsonl")
        await refused("b.jsonl", "x.jsonl", error_file=tmp_path / "b.jsonl")
        await refused("c.jsonl.statistics.jsonl", "c.jsonl")
        (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
        await refused("a.jsonl", "link.jsonl")

    ASYNCIO_HOSTS[0].run(main)
    assert not provider.calls
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("option", [None, "retry_failed", "force_new"])
def test_a_run_that_is_not_wanted_changes_nothing(tmp_path: Path, option: str | None) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(5)])
    output = tmp_path / "out.jsonl"
    plans: list[RunOpening] = []
    options: dict[str, Any] = {} if option is None else {option: True}

    async def behave(number: int) -> None:
        if number == 3:
            raise ValueError("no")

    provider = Provider(behave)

    def refuse(opening: RunOpening) -> bool:
        plans.append(opening)
        return False

    async def main() -> None:
        await run_file(provider, source, output, limit=4)
        before = output.read_bytes()
        summary = await run_file(provider, source, output, may_send=refuse, **options)
        left = left_of(option)
        assert [(plan.total, plan.left) for plan in plans] == [(5, left)]
        assert (summary.ending, summary.unfinished) == ("stopped", left)
        assert output.read_bytes() == before
        assert [path.name for path in files_of(tmp_path)] == [
            "in.jsonl",
            "out.jsonl",
            "out.jsonl.manifest.json",
            "out.jsonl.requests",
            "out.jsonl.statistics.jsonl",
        ]
        await run_file(provider, source, output, may_send=lambda _: True, **options)
        assert len(set(ids_of(output))) == len(ids_of(output)) == 5

    ASYNCIO_HOSTS[0].run(main)
    assert sum(provider.calls.values()) == 4 + left_of(option)


def left_of(option: str | None) -> int:
    return {None: 1, "retry_failed": 2, "force_new": 5}[option]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_options_that_are_wrong_are_refused(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0)])
    output = tmp_path / "out.jsonl"
    provider = Provider()

    async def refused(match: str, **options: Any) -> None:
        with pytest.raises((TypeError, ValueError), match=match):
            await run_file(provider, source, output, **options)

    async def main() -> None:
        await refused("limit", limit=0)
        await refused("grace", grace=-1)
        await refused("order", order="random")
        await refused("on_run_progress", on_run_progress=1)
        await refused("concurrency", concurrency=0)
        await refused("timeout", timeout=-1)
        await refused("temperature", temperature=1)
        with pytest.raises(InputFileError):
            await run_file(provider, tmp_path / "nowhere.jsonl", output)

    ASYNCIO_HOSTS[0].run(main)
    assert not provider.calls
    assert not output.exists()


def test_an_input_that_is_open_stays_open(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0)])

    async def main() -> None:
        with InputFile(source) as opened:
            await run_file(Provider(), opened, tmp_path / "out.jsonl")
            assert [request.custom_id for request in opened.requests()] == ["id-0"]

    ASYNCIO_HOSTS[0].run(main)


def test_the_run_is_public() -> None:
    assert parallel_core.run_file is run_file
