"""A run of a part of its input: requests that are named, and shards."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.file_runs import Provider, ids_of, line, lines_of, write_lines
from helpers.hosts import Host
from parallel_core import Budget, InputFileError
from parallel_core.run import RunOpening, RunProgress, run_file

KNOWN_SHARDS = [1, 1, 2, 1]  # of id-4 to id-7, of three, from 0
WANTED = ["id-3", "id-17", "id-29"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", [line(number) for number in range(40)])


def test_only_the_named_requests_are_sent_and_counted(
    either_library: Host, source: Path, tmp_path: Path
) -> None:
    output, provider = tmp_path / "out.jsonl", Provider()
    progress: list[RunProgress] = []
    openings: list[RunOpening] = []

    def may_send(opening: RunOpening) -> bool:
        openings.append(opening)
        return True

    async def main() -> None:
        summary = await run_file(
            provider,
            source,
            output,
            only=[*WANTED, WANTED[0]],
            on_run_progress=progress.append,
            may_send=may_send,
        )
        assert (summary.ending, summary.total, summary.succeeded) == ("complete", 3, 3)
        assert progress[-1].total == 3
        assert (openings[0].total, openings[0].left) == (3, 3)
        assert len(list(openings[0].requests())) == 3
        # Another selection, and then all: the same run resumes.
        more = await run_file(provider, source, output, only=["id-3", "id-4"])
        assert (more.total, more.earlier_succeeded, more.succeeded) == (2, 1, 1)
        rest = await run_file(provider, source, output)
        assert (rest.total, rest.earlier_succeeded, rest.succeeded) == (40, 4, 36)
        assert rest.ok

    either_library.run(main)
    assert set(provider.calls.values()) == {1}
    assert sorted(ids_of(output)) == sorted(f"id-{number}" for number in range(40))


def test_ids_come_from_a_file_and_need_no_id_in_the_input(tmp_path: Path) -> None:
    bodies = [line(number)["body"] for number in range(12)]
    source = write_lines(tmp_path / "in.jsonl", bodies)
    ids = tmp_path / "ids.txt"
    ids.write_bytes(b"\xef\xbb\xbf2\r\n\n11\n2")
    provider = Provider()

    async def main() -> None:
        summary = await run_file(provider, source, tmp_path / "out.jsonl", only=ids)
        assert summary.succeeded == summary.total == 2

    asyncio.run(main())
    assert set(provider.calls) == {"id-1", "id-10"}  # the contents of lines 2 and 11
    assert sorted(ids_of(tmp_path / "out.jsonl")) == ["11", "2"]


@pytest.mark.parametrize(
    ("only", "says"),
    [
        (["id-3", "nobody", "id-40"], "no request with the id 'id-40', 'nobody'; correct"),
        ([f"no-{number}" for number in range(9)], "'no-0', .*'no-4' and 4 more"),
        (["x" * 200], f"the id '{'x' * 60}…'"),
        (b"\xff\n", "line 1 is not valid UTF-8"),
        (b"\n \n", "there is no id to send"),
        (None, "cannot be read: No such file"),
    ],
)
def test_ids_that_cannot_be_sent_are_refused_before_the_first_call(
    source: Path, tmp_path: Path, only: Any, says: str
) -> None:
    provider, output = Provider(), tmp_path / "out.jsonl"
    if not isinstance(only, list):
        path = tmp_path / "ids.txt"
        if only is not None:
            path.write_bytes(only)
        only = path

    async def main() -> None:
        with pytest.raises(InputFileError, match=says):
            await run_file(provider, source, output, only=only)

    asyncio.run(main())
    assert not provider.calls
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"shard": (0, 3)}, ValueError),
        ({"shard": (4, 3)}, ValueError),
        ({"shard": (1.0, 3)}, TypeError),
        ({"shard": (1, 2, 3)}, TypeError),
        ({"only": []}, ValueError),
        ({"only": [1, 2]}, TypeError),
    ],
)
def test_selections_that_make_no_sense(
    source: Path, tmp_path: Path, options: Any, error: type[Exception]
) -> None:
    async def main() -> None:
        with pytest.raises(error):
            await run_file(Provider(), source, tmp_path / "out.jsonl", **options)

    asyncio.run(main())


def test_shards_are_disjoint_and_together_everything(source: Path, tmp_path: Path) -> None:
    provider = Provider()
    found: list[set[str]] = []

    async def main() -> None:
        for number in (1, 2, 3):
            output = tmp_path / f"out-{number}.jsonl"
            summary = await run_file(provider, source, output, shard=(number, 3))
            assert summary.ok
            assert summary.total == len(ids_of(output))
            found.append(set(ids_of(output)))

    asyncio.run(main())
    assert set(provider.calls.values()) == {1}
    assert set().union(*found) == {f"id-{number}" for number in range(40)}
    # The rule, which never changes: machines with different versions share a file.
    for number, ids in enumerate(found):
        for name in ids:
            digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
            assert int(digest, 16) % 3 == number
    shards = [next(n for n in range(3) if f"id-{k}" in found[n]) for k in (4, 5, 6, 7)]
    assert shards == KNOWN_SHARDS


def test_shards_one_after_the_other_into_one_output(source: Path, tmp_path: Path) -> None:
    provider, output = Provider(), tmp_path / "out.jsonl"

    async def main() -> None:
        totals = 0
        for number in (2, 1):
            summary = await run_file(provider, source, output, shard=(number, 2), order="input")
            assert (summary.ending, summary.earlier_succeeded) == ("complete", 0)
            assert summary.not_sorted is None
            totals += summary.succeeded
        assert totals == 40

    asyncio.run(main())
    assert set(provider.calls.values()) == {1}
    assert ids_of(output) == [f"id-{number}" for number in range(40)]


def test_an_empty_shard_is_complete(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(1)])
    totals: list[int] = []

    async def main() -> None:
        for number in (1, 2, 3, 4):
            output = tmp_path / f"{number}.jsonl"
            summary = await run_file(Provider(), source, output, shard=(number, 4))
            assert summary.ok
            assert output.exists()
            totals.append(summary.total)

    asyncio.run(main())
    assert sorted(totals) == [0, 0, 0, 1]


def test_selections_are_combined_with_a_limit(source: Path, tmp_path: Path) -> None:
    provider = Provider()

    async def main() -> None:
        summary = await run_file(
            provider, source, tmp_path / "out.jsonl", only=WANTED, limit=2, concurrency=1
        )
        assert (summary.ending, summary.total) == ("complete", 2)

    asyncio.run(main())
    assert set(provider.calls) == {"id-3", "id-17"}


def test_failures_that_are_sent_again_are_those_of_the_selection(
    source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.jsonl"

    async def behave(number: int) -> None:
        if number in (3, 4, 5):
            raise ValueError(f"{number} fails")

    async def main() -> None:
        first = await run_file(Provider(behave), source, output, retry=None)
        assert (first.succeeded, first.failed) == (37, 3)
        provider = Provider()
        again = await run_file(
            provider, source, output, only=["id-4", "id-8"], retry_failed=True, retry=None
        )
        assert set(provider.calls) == {"id-4"}
        assert (again.total, again.earlier_succeeded, again.succeeded) == (2, 1, 1)
        assert again.earlier_failed == 0
        by_kind = await run_file(
            provider, source, output, only=["id-5"], retry_failed=["timeout"], retry=None
        )
        assert (by_kind.earlier_failed, by_kind.succeeded) == (1, 0)
        assert set(provider.calls) == {"id-4"}

    asyncio.run(main())
    failed = [entry["custom_id"] for entry in lines_of(output) if entry["error"]]
    assert sorted(failed) == ["id-3", "id-5"]  # kept until there is something newer
    assert len(ids_of(output)) == 40


def test_bad_lines_are_in_one_shard_each(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    good = [json.dumps(line(number)) for number in range(9)]
    source.write_text("\n".join([*good, *(["{"] * 9)]) + "\n")
    written: list[str] = []

    async def main() -> None:
        for number in (1, 2):
            output = tmp_path / f"{number}.jsonl"
            summary = await run_file(
                Provider(), source, output, shard=(number, 2), skip_invalid=True, order="input"
            )
            assert summary.ending == "complete"
            assert summary.total == len(ids_of(output))
            written.extend(ids_of(output))
        only = await run_file(
            Provider(), source, tmp_path / "3.jsonl", only=["12", "id-2"], skip_invalid=True
        )
        assert (only.total, only.succeeded, only.failed) == (2, 1, 1)

    asyncio.run(main())
    assert sorted(written) == sorted(
        [*(f"id-{number}" for number in range(9)), *(str(number) for number in range(10, 19))]
    )


def test_a_budget_is_checked_for_the_selected_requests(tmp_path: Path) -> None:
    free: dict[str, Any] = {"max_tokens": 5}
    source = write_lines(tmp_path / "in.jsonl", [line(1, **free), line(2)])
    budget = Budget(max_tokens=100_000)

    async def main() -> None:
        with pytest.raises(ValueError, match="assume_output_tokens"):
            await run_file(Provider(), source, tmp_path / "out.jsonl", budget=budget)
        summary = await run_file(
            Provider(), source, tmp_path / "out.jsonl", budget=budget, only=["id-1"]
        )
        assert summary.ok

    asyncio.run(main())
