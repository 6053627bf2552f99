"""Failures of a run: grouped, explained in one line, and without prompts or keys."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from helpers.failure_groups import GROUPS, KEY, PROMPT, HTTPStatusError, shown_by
from helpers.run_values import progress_of, summary_of
from parallel_core import RouterParallelRequest, RouterParallelResult
from parallel_core.cli.json_view import JsonView
from parallel_core.cli.run_texts import describe_end
from parallel_core.cli.text_view import TextView
from parallel_core.config import Redactor
from parallel_core.files.batch_output import failure_in
from parallel_core.files.line_failures import LineFailure
from parallel_core.run import FailureGroup
from parallel_core.run.failure_groups import FailureGroups, safe_message


def request_of(prompt: str = PROMPT, **kwargs: Any) -> RouterParallelRequest:
    return RouterParallelRequest("m", [{"role": "user", "content": prompt}], kwargs)


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (429, "Rate limit reached for gpt-4o.", "429 oops: Rate limit reached for gpt-4o."),
        (429, "Slow\n  down", "429 oops: Slow down"),
        (400, "x" * 500, f"400 oops: {'x' * 119}…"),
        (
            401,
            "Incorrect API key provided: sk-abc***wxyz.",
            "401 oops: Incorrect API key provided: ",
        ),
        (401, f"{KEY} is wrong", "401 oops: [redacted] is wrong"),
        (401, "the key that ends in wxyz is wrong", "the provider refused the key (401 oops)"),
        (401, "no such key: 0123456", "the provider refused the key (401 oops)"),
        (400, f"Refused: {PROMPT}", "the provider refused the request (400 oops)"),
        (400, "Refused: MY  NEIGHBOUR\\nZEBEDEE", "the provider refused the request (400 oops)"),
        (400, "Refused: zebedee", "the provider refused the request (400 oops)"),
        (400, "Refused 'bour Zeb'", "the provider refused the request (400 oops)"),
        (400, "Not with 4711 in it", "the provider refused the request (400 oops)"),
        (500, "neighbour Zebedee", "the provider failed (500 oops)"),
        (400, "y" * 110 + f" of '{PROMPT}'", "the provider refused the request (400 oops)"),
    ],
)
def test_a_message_has_neither_keys_nor_contents(status: int, message: str, expected: str) -> None:
    said = safe_message(HTTPStatusError(status, message, "oops"), request_of(), Redactor([KEY]))
    assert said.startswith(expected)
    assert "wxyz" not in said


@pytest.mark.parametrize(
    ("prompt", "kwargs", "message"),
    [
        ("我的邻居偷了甜甜圈", {}, "输入包含邻居偷了的内容"),
        ("我的邻居偷了甜甜圈", {}, r"\u90bb\u5c45\u5077\u4e86"),
        ("Hi.", {}, "Hi is no question"),
        ("x", {"tools": [{"function": {"name": "fire_doris"}}]}, "No tool is called fire_doris"),
        ("x", {"response_format": {"schema": {"salary": {}}}}, "Property 'salary' is unknown"),
    ],
)
def test_contents_are_found_in_any_script_and_anywhere_in_a_request(
    prompt: str, kwargs: dict[str, Any], message: str
) -> None:
    request = request_of(prompt, **kwargs)
    assert safe_message(HTTPStatusError(400, message), request, Redactor()) == (
        "the provider refused the request (400)"
    )
    assert safe_message(HTTPStatusError(400, message), request_of("Other."), Redactor()) == (
        f"400: {message}"
    )


def test_an_exception_without_an_answer_is_named_and_not_quoted() -> None:
    assert safe_message(KeyError(PROMPT), request_of(), Redactor()) == (
        "the call failed in an unexpected way (KeyError)"
    )


def test_groups_are_as_many_as_kinds_and_statuses() -> None:
    groups = FailureGroups(Redactor())
    failure: LineFailure | None = None
    for number in range(1000):
        error = HTTPStatusError((429, 503, 400, 401)[number % 4], f"message {number}")
        result = RouterParallelResult(number, request_of(), exception=error)
        failure = failure_in(result)
        assert failure is not None
        first = groups.add(f"id-{number}", failure, result)
        assert (first is None) == (number >= 4)
    assert failure is not None
    groups.add("one more", failure, result)
    assert groups.all()[0] == FailureGroup(
        "account", 251, "401: message 3", ["id-3", "id-7", "id-11"], 401
    )
    assert [group.kind for group in groups.all()] == [
        "account", "overloaded", "overloaded", "request",
    ]  # fmt: skip


def test_groups_add_up_to_the_failures_that_are_on_disk() -> None:
    groups = FailureGroups(Redactor())
    for number, status in enumerate((429, 429, 400, 400, 400)):
        result = RouterParallelResult(number, request_of(), exception=HTTPStatusError(status, "no"))
        failure = failure_in(result)
        assert failure is not None
        groups.add(f"id-{number}", failure, result)
    for on_disk in range(6):
        shown = groups.first(on_disk)
        assert sum(group.count for group in shown) == on_disk
        assert all(group.message for group in shown)
    assert [(group.status_code, group.count) for group in groups.all()] == [(400, 3), (429, 2)]


def test_plain_lines_count_kinds_and_say_each_once() -> None:
    def show(view: TextView) -> None:
        for finished in (False, True):
            view.progress(progress_of(failed=65, failures=GROUPS, finished=finished))

    text = shown_by(300, live=False, show=show)
    assert text.count("failed 65 (overloaded 64, request 1)") == 2
    assert text.count(f"overloaded: 429 slow: Slow down. (a, b, {'c' * 39}…, …)") == 1
    assert text.count(r"request: 400 bad: Bad. (x\x1b\n)") == 1


def test_a_live_view_has_a_row_for_each_kind() -> None:
    many = [FailureGroup("overloaded", 9 - n, f"{500 + n}", ["a"], 500 + n) for n in range(7)]
    shown = shown_by(60, live=True, show=lambda view: view.progress(progress_of(failures=many)))
    text = re.sub(r"\x1b\[[0-9;?]*\w", "", shown)
    assert "overloaded 9: 500 (a, …)" in text
    assert "overloaded 5: 504" in text
    assert "505" not in text
    assert "and 2 more kinds of failures" in text


def test_a_summary_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(failed=65, failures=GROUPS)
    text = shown_by(80, live=False, show=lambda view: view.summary(summary, None))
    assert "failed        65 (overloaded 64, request 1)\n" in text
    assert "\n              overloaded 64: 429 slow: Slow down. (a, b, " in text
    JsonView().summary(summary, None)
    event = json.loads(capsys.readouterr().out)
    assert event["failures"][1]["message"] == "400 bad: Bad."


def test_a_blocked_run_says_what_is_left_and_how_to_resume() -> None:
    summary = summary_of(
        ending="blocked", unfinished=9940, blocked={"a": "no connection", "b": "the key is wrong"}
    )
    assert describe_end(summary, "run") == [
        "stopped: no connection",
        "stopped: the key is wrong; 9,940 requests are left; fix it and resume with: run",
    ]
    stopped = summary_of(ending="stopped", blocked={"a": "no connection"})
    assert describe_end(stopped, "run") == ["cannot get through: no connection", "resume with: run"]
