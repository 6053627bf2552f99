"""Runs of files that are killed, starved of disk and served badly.

``make torture`` does the same to the command, at length.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import torture
from helpers.forked_processes import ForkedProcesses
from helpers.torture_bench import Measured, NotAllowedError, Sabotage, Torture
from helpers.torture_output import custom_id_of, examine


def check(measured: Measured) -> None:
    """That nothing done to it did any harm. One to which nothing was done has a problem."""
    assert measured.problems == []
    assert 0 <= measured.paid_twice <= measured.allowed, measured


@pytest.fixture
def small(tmp_path: Path, commands: ForkedProcesses) -> Torture:
    return Torture(
        tmp_path, light=True, requests=600, kills=2, seed=5, latency=0.005, commands=commands
    )


def test_a_real_run_that_is_killed_ends_with_each_answer_once(small: Torture) -> None:
    check(
        torture.killed(dataclasses.replace(small, light=False, requests=150, kills=1, latency=0.02))
    )


@pytest.mark.thorough  # the real run is killed, too
def test_a_light_run_that_is_killed_ends_with_each_answer_once(small: Torture) -> None:
    check(torture.killed(dataclasses.replace(small, latency=0.01)))


@pytest.mark.thorough
def test_a_run_that_is_killed_again_and_again_ends_with_each_answer_once(small: Torture) -> None:
    measured = torture.killed(
        dataclasses.replace(small, requests=3000, kills=7, seed=3, latency=0.01)
    )
    check(measured)
    assert measured.kills >= 6


@pytest.mark.thorough  # test_run_signals ends runs by signals
def test_a_run_that_is_terminated_pays_for_nothing_twice(small: Torture) -> None:
    measured = torture.terminated(small)
    check(measured)
    assert measured.paid == 600


@pytest.mark.thorough  # it waits before it sends what has failed again
@pytest.mark.parametrize("split", [False, True], ids=["one file", "two files"])
def test_failed_requests_of_runs_that_are_killed_are_answered_in_the_end(
    small: Torture, split: bool
) -> None:
    check(torture.badly_served(small, split=split))


@pytest.mark.thorough  # tests/journal cuts a sort at each step
def test_a_run_that_is_killed_while_it_sorts_loses_nothing(small: Torture) -> None:
    measured = torture.killed_while_sorting(dataclasses.replace(small, kills=3))
    check(measured)
    assert measured.kills == 3


def test_a_server_that_is_restarted_costs_no_answer(small: Torture) -> None:
    check(torture.restarted_server(small))


@pytest.mark.thorough  # it waits for the server
def test_runs_that_are_killed_while_the_server_is_in_trouble_end_with_each_answer_once(
    small: Torture,
) -> None:
    check(torture.in_trouble(dataclasses.replace(small, requests=300)))


def test_a_disk_that_is_full_loses_no_answer_and_pays_for_none_again(small: Torture) -> None:
    try:
        measured = torture.full_disk(small)
    except NotAllowedError:
        pytest.skip("mounting a file system is not allowed here")
    check(measured)


def test_a_file_that_must_not_grow_loses_no_answer_and_pays_for_none_again(small: Torture) -> None:
    check(torture.file_too_large(small))


@pytest.mark.parametrize(
    ("scenario", "sabotage", "problem"),
    [
        (torture.killed, "forgets", "more than once"),
        pytest.param(torture.terminated, "writes-torn", "no result", marks=pytest.mark.thorough),
        pytest.param(
            torture.file_too_large,
            "rescues-nothing",
            "nothing was rescued",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_broken_promise_is_noticed(
    small: Torture,
    scenario: Callable[[Torture], Measured],
    sabotage: Sabotage,
    problem: str,
) -> None:
    measured = scenario(dataclasses.replace(small, requests=300, kills=1, sabotage=sabotage))
    assert not measured.kept
    assert problem in " ".join(measured.problems)


def result(number: int, reply: str | None = None) -> str:
    custom_id = custom_id_of(number)
    message = {"role": "assistant", "content": reply or f"answer {custom_id}"}
    body = {"choices": [{"index": 0, "message": message}]}
    return json.dumps({"custom_id": custom_id, "response": {"status_code": 200, "body": body}})


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([result(0)], "1 ids are missing"),
        ([result(0), result(1), result(1)], "1 ids are there more than once"),
        ([result(0), result(1), result(2)], "1 ids are of no request"),
        ([result(0), result(1, "of another")], "line 2 is not the answer to request-1"),
        ([result(0), result(1), '{"custom_id": '], "line 3 is no result"),
        ([result(0), result(1)[:-9]], "line 2 is no result"),
    ],
)
def test_the_check_of_an_output_finds_what_is_wrong(
    tmp_path: Path, lines: list[str], problem: str
) -> None:
    output = tmp_path / "answers.jsonl"
    output.write_text("\n".join([*lines, ""]))
    assert problem in examine(output, 2)


def test_more_paid_than_allowed_is_no_kept_promise() -> None:
    measured = Measured("killed", 100, 1, 150, paid=148, allowed=48, seconds=1.0, problems=[])
    assert measured.kept
    assert not dataclasses.replace(measured, paid=149).kept
    assert not dataclasses.replace(measured, paid=99).kept
    assert not dataclasses.replace(measured, problems=["one"]).kept
