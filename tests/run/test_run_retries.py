"""Failed requests are sent again on demand, by the kind of their failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from helpers.file_runs import Gate, Provider, ids_of, line, lines_of, write_lines
from helpers.hosts import ASYNCIO_HOSTS, Host
from parallel_core.errors import StreamInterruptedError
from parallel_core.failures import KINDS, FailureKind
from parallel_core.run import RunOpening, RunStop, run_file


async def fails(_: int) -> None:
    raise ValueError("no")


def refused(status: int) -> Exception:
    """An answer of HTTP, as a Router raises it."""
    error = OSError(f"status {status}")
    vars(error).update(
        status_code=status, body={"message": "no"}, litellm_response_headers={"server": "x"}
    )
    return error


# The failure of each request at first, with its kind.
FAILURES: list[tuple[Exception, FailureKind]] = [
    (refused(400), "request"),
    (refused(413), "request"),
    (refused(429), "overloaded"),
    (refused(500), "unknown"),
    (TimeoutError(), "timeout"),
    (StreamInterruptedError(0, "gpt"), "answer"),
]


@pytest.mark.parametrize(
    ("retry_failed", "sent"),
    [
        (False, []),
        (True, [2, 3, 4, 5]),
        (["overloaded", "request"], [0, 1, 2]),
        ({"account"}, []),
        (KINDS, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_failures_of_these_kinds_are_sent_again(
    tmp_path: Path, retry_failed: bool | list[FailureKind], sent: list[int]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(7)])
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    looked: list[RunOpening] = []
    healthy = False

    async def behave(number: int) -> None:
        if not healthy and number < len(FAILURES):
            raise FAILURES[number][0]

    provider = Provider(behave)

    def may_send(opening: RunOpening) -> bool:
        looked.append(opening)
        return True

    async def main() -> None:
        nonlocal healthy
        first = await run_file(provider, source, output, error_file=errors, retry=None)
        assert (first.succeeded, first.failed, first.unfinished) == (1, 6, 0)
        assert (first.final_failures, first.failures_that_may_pass) == (2, 4)
        healthy = True
        provider.calls.clear()
        again = await run_file(
            provider,
            source,
            output,
            error_file=errors,
            retry_failed=retry_failed,
            may_send=may_send,
        )
        assert sorted(provider.calls) == [f"id-{number}" for number in sent]
        assert (looked[0].left, looked[0].total) == (len(sent), 7)
        assert looked[0].earlier_failed == 6 - len(sent)
        assert (again.succeeded, again.earlier_failed) == (len(sent), 6 - len(sent))
        assert again.final_failures == len({0, 1} - {*sent})

    ASYNCIO_HOSTS[0].run(main)
    left = {f"id-{number}" for number in range(6)} - provider.calls.keys()
    assert set(ids_of(errors)) == left
    assert len(ids_of(output)) == 7 - len(left)


def test_unknown_kinds_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(0)])
    provider = Provider()

    async def main() -> None:
        bad: Any = ["late"]
        with pytest.raises(ValueError, match="retry_failed: there is no kind of failure 'late'"):
            await run_file(provider, source, tmp_path / "out.jsonl", retry_failed=bad)

    ASYNCIO_HOSTS[0].run(main)
    assert not provider.calls
    assert not (tmp_path / "out.jsonl").exists()


def test_failures_have_lines_and_are_sent_again_on_demand_only(
    either_library: Host, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(10)])
    output, errors = tmp_path / "out.jsonl", tmp_path / "errors.jsonl"
    healthy = False

    async def behave(number: int) -> None:
        if number % 2 and not healthy:
            raise ValueError("no")

    provider = Provider(behave)

    async def main() -> None:
        nonlocal healthy
        first = await run_file(provider, source, output, error_file=errors)
        assert not first.ok
        assert (first.succeeded, first.failed) == (5, 5)
        (group,) = first.failures
        assert (group.kind, group.count, group.status_code) == ("unknown", 5, None)
        assert group.message == "the call failed in an unexpected way (ValueError)"
        assert len(group.custom_ids) == 3
        assert len(ids_of(output)) == len(ids_of(errors)) == 5
        healthy = True
        second = await run_file(provider, source, output, error_file=errors)
        assert (second.earlier_failed, second.succeeded) == (5, 0)
        third = await run_file(provider, source, output, error_file=errors, retry_failed=True)
        assert third.ok
        assert (third.earlier_succeeded, third.earlier_failed, third.succeeded) == (5, 0, 5)
        assert sorted(ids_of(output)) == sorted(f"id-{number}" for number in range(10))
        assert ids_of(errors) == []
        # With nothing in it, the error file may go.
        fourth = await run_file(provider, source, output)
        assert (fourth.earlier_succeeded, fourth.succeeded) == (10, 0)

    either_library.run(main)


def test_a_retry_that_is_stopped_leaves_the_failures_that_it_has_not_answered(
    either_library: Host, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(10)])
    output = tmp_path / "out.jsonl"

    async def main() -> None:
        assert (await run_file(Provider(fails), source, output)).failed == 10
        gate = Gate(2)
        gate.free = 4
        stop = RunStop()

        async def behave(number: int) -> None:
            await gate.pass_through(number)

        async with anyio.create_task_group() as tasks:

            async def retry() -> None:
                summary = await run_file(
                    Provider(behave), source, output, retry_failed=True, concurrency=2, stop=stop
                )
                assert (summary.succeeded, summary.unfinished) == (4, 6)

            tasks.start_soon(retry)
            await gate.until_full()
            assert len(ids_of(output)) >= 10  # of each there is a line
            stop.request()
            stop.request()
        assert sorted(ids_of(output)) == [f"id-{number}" for number in range(10)]
        assert [entry["error"] is None for entry in lines_of(output)].count(True) == 4
        same = await run_file(Provider(fails), source, output)
        assert (same.earlier_succeeded, same.earlier_failed, same.unfinished) == (4, 6, 0)
        last = await run_file(Provider(), source, output, retry_failed=True)
        assert (last.ok, last.succeeded) == (True, 6)

    either_library.run(main)
    assert sorted(ids_of(output)) == [f"id-{number}" for number in range(10)]
