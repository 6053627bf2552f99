"""``run_file`` with an input that has grown, or whose lines were mended, since the last run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from helpers.file_runs import Provider, ids_of, line, lines_of, write_lines
from helpers.hosts import ASYNCIO_HOSTS, Host
from parallel_core import ChangedRequestsError
from parallel_core.cli.run_texts import describe_opening
from parallel_core.journal import InputChange
from parallel_core.journal.run_paths import RunPaths
from parallel_core.run import RunOpening, run_file


def asking(custom_id: str, number: int) -> dict[str, Any]:
    """Return a request that is answered with this number."""
    return {**line(number), "custom_id": custom_id}


def answers_in(output: Path) -> dict[str, str]:
    results = lines_of(output)
    found = {
        result["custom_id"]: result["response"]["body"]["choices"][0]["message"]["content"]
        for result in results
        if result["response"] is not None
    }
    assert len(ids_of(output)) == len(results)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_changed_input_is_refused_kept_or_sent_again(
    either_library: Host, tmp_path: Path
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    errors = tmp_path / "failed.jsonl"
    openings: list[RunOpening] = []

    async def behave(number: int) -> None:
        if number == 2:
            raise ValueError("no")

    provider = Provider(behave)

    async def run(**options: Any) -> Any:
        return await run_file(
            provider, source, output, error_file=errors, on_open=openings.append, **options
        )

    async def main() -> None:
        write_lines(source, [asking(f"id-{n}", n) for n in range(5)])
        first = await run()
        assert (first.succeeded, first.failed) == (4, 1)
        # One is changed, one that has failed is mended, one is gone, one is new.
        changed = {"id-0": 0, "id-1": 11, "id-2": 12, "id-3": 3, "id-5": 5}
        write_lines(source, [asking(*request) for request in changed.items()])
        provider.calls.clear()
        with pytest.raises(ChangedRequestsError, match=r"1 request has changed.*line 2 \('id-1'\)"):
            await run()
        assert not provider.calls
        kept = await run(changed="keep")
        assert (kept.earlier_succeeded, kept.earlier_failed, kept.succeeded) == (3, 1, 1)
        assert provider.calls == {"id-5": 1}
        provider.calls.clear()
        sent = await run(changed="resend", order="input")
        assert (sent.ok, sent.earlier_succeeded, sent.succeeded) == (True, 3, 2)
        assert provider.calls == {"id-11": 1, "id-12": 1}
        assert (await run()).earlier_succeeded == 5

    either_library.run(main)
    answers = {"id-0": "0", "id-1": "11", "id-2": "12", "id-3": "3", "id-5": "5"}
    assert answers_in(output) == {**answers, "id-4": "4"}
    assert ids_of(output) == [*answers, "id-4"]
    assert answers_in(tmp_path / "out.jsonl.1") == {"id-1": "1"}
    assert (ids_of(errors), ids_of(tmp_path / "failed.jsonl.1")) == ([], ["id-2"])
    _, kept, sent, same = openings
    requests = ((2, "id-1"), (3, "id-2"))
    assert kept.journal.input_change == InputChange(
        added=1, kept=2, requests=requests, gone=1, gone_ids=("id-4",)
    )
    assert (kept.left, kept.earlier_failed, kept.others) == (1, 1, 1)
    assert describe_opening(kept) == [
        "1 new request in the input",
        "2 changed requests: 2 with the old result kept (line 2 ('id-1'), line 3 ('id-2'))",
        "kept 1 result of requests that are not in the input (id-4)",
        "resuming: 4 of 5 requests are finished",
    ]
    assert sent.journal.input_change == InputChange(
        sent_again=2, requests=requests, gone=1, gone_ids=("id-4",)
    )
    assert sent.left == 2
    moved = f"moved aside: {tmp_path / 'out.jsonl.1'}, {tmp_path / 'failed.jsonl.1'}"
    assert moved in describe_opening(sent)
    assert same.journal.input_change is None


def test_a_mended_request_that_had_failed_is_sent_without_being_asked_for(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    source = write_lines(tmp_path / "in.jsonl", [line(0), {"custom_id": "id-1"}, line(2)])

    async def behave(number: int) -> None:
        if number == 2:
            raise ValueError("no")

    async def main() -> None:
        provider = Provider(behave)
        first = await run_file(provider, source, output, skip_invalid=True)
        assert (first.succeeded, first.failed) == (1, 2)
        write_lines(source, [line(0), asking("id-1", 1), asking("id-2", 22)])
        mended = await run_file(provider, source, output, skip_invalid=True)
        assert (mended.ok, mended.earlier_succeeded, mended.succeeded) == (True, 1, 2)
        # An invalid line that had an answer keeps it.
        write_lines(source, [line(0), {"custom_id": "id-1"}, asking("id-2", 22)])
        openings: list[RunOpening] = []
        await run_file(provider, source, output, skip_invalid=True, on_open=openings.append)
        assert [(o.left, o.others, o.journal.input_change) for o in openings] == [(0, 0, None)]

    ASYNCIO_HOSTS[0].run(main)
    assert answers_in(output) == {"id-0": "0", "id-1": "1", "id-2": "22"}


@pytest.mark.parametrize("options", [{}, {"retry_failed": True}])
def test_a_changed_run_that_is_not_wanted_changes_nothing(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    output = tmp_path / "out.jsonl"
    source = write_lines(tmp_path / "in.jsonl", [line(n) for n in range(4)])
    openings: list[RunOpening] = []

    def refuse(opening: RunOpening) -> bool:
        openings.append(opening)
        return False

    async def main() -> None:
        await run_file(Provider(), source, output)
        write_lines(source, [asking("id-0", 10), line(1), line(2), line(3), line(4)])
        before = contents(tmp_path)
        summary = await run_file(
            Provider(), source, output, changed="resend", may_send=refuse, **options
        )
        assert (summary.unfinished, summary.earlier_succeeded) == (2, 3)
        assert contents(tmp_path) == before
        (opening,) = openings
        assert (opening.total, opening.left) == (5, 2)
        assert [str(r.messages[0]["content"]) for r in opening.requests()] == ["10", "4"]
        assert not opening.journal.backups

    ASYNCIO_HOSTS[0].run(main)


def test_lines_that_are_named_by_their_number_are_told_to_have_moved(tmp_path: Path) -> None:
    bodies = [line(number)["body"] for number in range(3)]
    source = write_lines(tmp_path / "in.jsonl", bodies)
    output = tmp_path / "out.jsonl"
    openings: list[RunOpening] = []

    async def main() -> None:
        await run_file(Provider(), source, output)
        write_lines(source, [*bodies, line(3)["body"]])  # at the end, nothing is moved
        await run_file(Provider(), source, output, on_open=openings.append)
        assert describe_opening(openings[0])[0] == "1 new request in the input"
        write_lines(source, [line(9)["body"], *bodies, line(3)["body"]])
        with pytest.raises(ChangedRequestsError) as refused:
            await run_file(Provider(), source, output)
        assert "4 requests have changed" in str(refused.value)
        assert "line 1, line 2, line 3, line 4. " in str(refused.value)
        assert "Give each line a custom_id" in refused.value.note
        copy = pickle.loads(pickle.dumps(refused.value))
        assert (str(copy), copy.requests) == (str(refused.value), refused.value.requests)
        summary = await run_file(
            Provider(), source, output, changed="resend", on_open=openings.append
        )
        assert (summary.ok, summary.succeeded) == (True, 5)
        assert "named by their number" in " ".join(describe_opening(openings[1]))

    ASYNCIO_HOSTS[0].run(main)
    assert answers_in(output) == {"1": "9", "2": "0", "3": "1", "4": "2", "5": "3"}


def test_a_limit_counts_what_is_left_of_a_changed_input(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(n) for n in range(6)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        await run_file(Provider(), source, output, limit=3)
        changed = [asking(f"id-{n}", n + 10 * (n in (1, 4))) for n in range(6)]
        write_lines(source, changed)  # the fifth has no answer yet: it is just sent
        with pytest.raises(ChangedRequestsError, match="1 request has changed"):
            await run_file(Provider(), source, output, limit=2)
        trial = await run_file(Provider(), source, output, limit=2, changed="resend")
        assert (trial.total, trial.earlier_succeeded, trial.succeeded) == (2, 1, 1)
        rest = await run_file(Provider(), source, output)
        assert (rest.total, rest.earlier_succeeded, rest.succeeded) == (6, 3, 3)

    ASYNCIO_HOSTS[0].run(main)
    found = {"id-0": "0", "id-1": "11", "id-2": "2", "id-3": "3", "id-4": "14", "id-5": "5"}
    assert answers_in(output) == found


def test_an_answer_that_was_rescued_answers_what_was_asked(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0), line(1)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        await run_file(Provider(), source, output)
        first, second = output.read_text().splitlines(keepends=True)
        output.write_text(first)
        RunPaths.of(output).rescue.write_text(second)
        write_lines(source, [line(0), asking("id-1", 11)])
        summary = await run_file(Provider(), source, output, changed="resend")
        assert (summary.ok, summary.succeeded) == (True, 1)

    ASYNCIO_HOSTS[0].run(main)
    assert answers_in(output) == {"id-0": "0", "id-1": "11"}
    assert answers_in(tmp_path / "out.jsonl.1") == {"id-1": "1"}


def test_changed_must_be_a_way_to_handle_changes(tmp_path: Path) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"changed": "send"}
        with pytest.raises(ValueError, match="'refuse', 'keep' or 'resend', not 'send'"):
            await run_file(Provider(), tmp_path / "in.jsonl", tmp_path / "out.jsonl", **options)

    ASYNCIO_HOSTS[0].run(main)
