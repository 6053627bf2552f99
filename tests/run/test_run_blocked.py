"""A wrong key, a dead server, an overloaded one: the run ends, the next one sends what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest

from helpers.file_runs import Provider, answer_of, ids_of, line, write_lines
from helpers.hosts import in_virtual_time
from parallel_core import Retry
from parallel_core.run import run_file


@pytest.mark.parametrize("how", ["wrong key", "away", "overloaded", "overloaded for long"])
def test_what_cannot_get_through_has_no_line_and_is_sent_by_the_next_run(
    how: str, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(50)])
    sent: list[str] = []

    class StatusError(Exception):
        status_code = 401 if how == "wrong key" else 429
        body: ClassVar = {"error": {"message": "no"}}
        litellm_response_headers: ClassVar = (
            {"retry-after": "1000"} if how == "overloaded for long" else {}
        )

    async def refuse(**arguments: Any) -> Any:
        sent.append(arguments["model"])
        raise ConnectionRefusedError if how == "away" else StatusError

    async def main() -> None:
        summary = await run_file(
            refuse, source, tmp_path / "out.jsonl", concurrency=2, retry=Retry(max_wait=5.0)
        )
        assert (summary.ending, summary.ok) == ("blocked", False)
        assert len(summary.blocked) == 1
        assert (summary.unfinished, summary.failed) == (50, 0)
        assert len(sent) < 40
        assert (tmp_path / "out.jsonl").read_text() == ""

    in_virtual_time(main)
    provider = Provider()

    async def again() -> None:
        summary = await run_file(
            provider, source, tmp_path / "out.jsonl", concurrency=2, retry_failed=True
        )
        assert summary.ok

    in_virtual_time(again)


def test_a_success_from_before_the_trouble_makes_no_failures_of_requests_that_came_later(
    tmp_path: Path,
) -> None:
    """A key is refused in the middle of a run: calls that were in flight before still succeed."""
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(20)])
    refused = 0

    class StatusError(Exception):
        status_code = 401
        body: ClassVar = {"error": {"message": "no"}}

    async def main() -> None:
        third_failure = anyio.Event()

        async def provider(**arguments: Any) -> Any:
            nonlocal refused
            if arguments["messages"][0]["content"] == "0":
                await third_failure.wait()
                return answer_of("0")
            refused += 1
            if refused == 3:
                third_failure.set()
            raise StatusError

        summary = await run_file(provider, source, tmp_path / "out.jsonl", concurrency=2)
        assert (summary.succeeded, summary.failed, summary.unfinished) == (1, 0, 19)
        assert summary.ending == "blocked"
        assert len(summary.blocked) == 1
        assert ids_of(tmp_path / "out.jsonl") == ["id-0"]

    in_virtual_time(main)
