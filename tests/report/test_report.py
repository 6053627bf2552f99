"""The report of a run: its numbers, its table, its page, its pictures, and what it refuses."""

from __future__ import annotations

import importlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from parallel_core import _report_png, report
from parallel_core._report_svg import linear_axis, log_axis, time_axis
from parallel_core._report_table import print_report
from parallel_core.report import ReportError, RunReport, html_page, summarize, write_pictures
from parallel_core.run_statistics import (
    CallStatistics,
    LimitStatistics,
    RunPaths,
    RunStatistics,
    statistics_line,
)

BEGIN = 1_780_000_000.0  # seconds since the epoch
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "report.md"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
NASTY = "<script>document.title='owned'</script>\"'><img src=x onerror=\"document.title='owned'\">&"

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(report.command)


def call(custom_id: str, begin: float, duration: float = 1.0, **more: Any) -> CallStatistics:
    fields: dict[str, Any] = {"model": "gpt", "ok": "error" not in more, **more}
    return CallStatistics(
        custom_id=custom_id, started_at=BEGIN + begin, duration=duration, **fields
    )


def answer(custom_id: str, **more: Any) -> dict[str, Any]:
    body = {"object": "chat.completion", "model": "gpt-of-the-provider", **more}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": f"b-{custom_id}", "custom_id": custom_id, "response": response, "error": None}


def failure(custom_id: str, status: int | None = None, code: str = "late") -> dict[str, Any]:
    error = {"message": "no", "type": "t", "param": None, "code": code}
    line = {"id": f"b-{custom_id}", "custom_id": custom_id, "response": None, "error": None}
    if status is None:
        return {**line, "error": {"code": code, "message": "no"}}
    response = {"status_code": status, "request_id": "r", "body": {"error": error}}
    return {**line, "response": response}


def write_run(
    folder: Path, records: Iterable[RunStatistics], lines: Sequence[object] | None = None
) -> Path:
    """Write the files of a run; without lines, those that belong to the records."""
    records = list(records)
    paths = RunPaths.of(folder / "out.jsonl")
    calls = {record.custom_id: record for record in records if isinstance(record, CallStatistics)}
    if lines is None:
        lines = [
            answer(name) if last.ok else failure(name, last.status_code)
            for name, last in calls.items()
        ]
    if records:
        paths.statistics.write_bytes(b"".join(statistics_line(r) + b"\n" for r in records))
    paths.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return paths.output


def example_run(folder: Path) -> Path:
    """A run of two parts, an hour apart, in which some calls fail."""
    draw = random.Random(7)
    records: list[RunStatistics] = []
    for part, begin in enumerate((0.0, 3660.0)):
        records.append(LimitStatistics(at=BEGIN + begin, limit=16))
        for number in range(120):
            if number == 60:
                records.append(
                    LimitStatistics(at=BEGIN + begin + 6, limit=20, reason="steady latency")
                )
            model, price = ("fast", 2e-7) if number % 3 else ("smart", 4e-6)
            duration = draw.lognormvariate(-0.3 if number % 3 else 0.3, 0.4)
            tokens = draw.randrange(200, 400), draw.randrange(20, 200)
            failed = draw.random() < 0.05
            fields: dict[str, Any] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
            fields["cost"] = price * (tokens[0] + 4 * tokens[1])
            if failed:
                fields = {"error": "RateLimitError", "status_code": 429, "attempts": 3}
                message = "429 rate_limit_exceeded: Rate limit reached for requests per minute."
                fields |= {"failure_kind": "overloaded", "message": message}
            elif model == "smart":
                fields["time_to_first_chunk"] = duration / 5
            name = f"review-{120 * part + number + 1}"
            records.append(call(name, begin + 0.1 * number, duration, model=model, **fields))
    return write_run(folder, records)


def printed(summary: RunReport, width: int = 80) -> str:
    file = StringIO()
    print_report(summary, Console(file=file, width=width, highlight=False))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_what_calls_took_and_cost_is_added_up_for_each_model(tmp_path: Path) -> None:
    records = [
        call("a", 0, 1, prompt_tokens=10, completion_tokens=5, cached_tokens=4, cost=0.5),
        call("b", 0, 3, prompt_tokens=20, completion_tokens=6, reasoning_tokens=2, attempts=2),
        call("c", 1, 9, error="RateLimitError", status_code=429, attempts=3),
        call("d", 2, 2, error="RequestTimeoutError"),
        call("e", 5, 4, model="other", cost=2.0, time_to_first_chunk=0.25, estimated=True),
    ]
    summary = summarize(write_run(tmp_path, records))
    gpt, other = summary.models
    assert (gpt.model, gpt.requests, gpt.ok, gpt.failed, gpt.calls) == ("gpt", 4, 2, 2, 4)
    assert gpt.failures == {"RateLimitError (429)": 1, "RequestTimeoutError": 1}
    assert gpt.attempts == 7
    assert (gpt.prompt_tokens, gpt.completion_tokens) == (30, 11)
    assert (gpt.cached_tokens, gpt.reasoning_tokens) == (4, 2)
    assert (gpt.cost, gpt.unpriced_calls) == (0.5, 1)
    # Only those with an answer: 1 and 3 seconds.
    assert gpt.latency is not None
    assert (gpt.latency.count, gpt.latency.p50, gpt.latency.maximum) == (2, 2.0, 3.0)
    assert gpt.latency.p95 == pytest.approx(2.9)
    assert gpt.first_chunk is None
    assert other.first_chunk is not None
    assert other.first_chunk.p99 == 0.25
    assert (summary.total.requests, summary.total.cost) == (5, 2.5)
    assert summary.active_seconds == 10
    assert summary.total.calls_per_second == 0.5
    assert summary.peak_in_flight == 3
    assert "Calls whose tokens are estimated: 1." in summary.notes
    assert any("price is not known: 1." in note for note in summary.notes)


def test_of_a_request_that_was_tried_again_the_last_call_counts_and_all_cost(
    tmp_path: Path,
) -> None:
    records = [
        call("a", 0, error="InternalServerError", status_code=500, cost=0.25, prompt_tokens=7),
        call("b", 0, cost=1.0),
        call("a", 30, cost=0.5, prompt_tokens=7),
    ]
    total = summarize(write_run(tmp_path, records)).total
    assert (total.requests, total.ok, total.failed, total.calls) == (2, 2, 0, 3)
    assert total.failures == {}
    assert (total.cost, total.prompt_tokens) == (1.75, 14)


@pytest.mark.parametrize(
    ("calls", "active", "pauses"),
    [
        ([(0, 1), (61, 1)], 62.0, []),  # a minute is not longer than a minute
        ([(0, 1), (62, 1)], 2.0, [(1.0, 61.0)]),
        ([(0, 100), (1, 1), (90, 1)], 100.0, []),  # one call was in flight all the time
        ([(7200, 5), (0, 10), (100, 10)], 25.0, [(10.0, 90.0), (20.0, 7090.0)]),
    ],
)
def test_a_time_without_calls_does_not_count_from_a_minute_on(
    tmp_path: Path,
    calls: list[tuple[float, float]],
    active: float,
    pauses: list[tuple[float, float]],
) -> None:
    records = [call(f"{n}", begin, took) for n, (begin, took) in enumerate(calls)]
    summary = summarize(write_run(tmp_path, records))
    assert summary.active_seconds == pytest.approx(active)
    assert summary.timeline is not None
    found = [(pause.at, pause.seconds) for pause in summary.timeline.pauses]
    assert len(found) == len(pauses)
    for pause, expected in zip(found, pauses, strict=True):
        assert pause == pytest.approx(expected)
    assert summary.total.calls_per_second == pytest.approx(len(calls) / active)
    assert ("no call" in printed(summary, 200)) == bool(pauses)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 1000).map(lambda value: round(value, 2)),
            st.floats(0.01, 80).map(lambda value: round(value, 2)),
            st.booleans(),
        ),
        min_size=1,
        max_size=60,
    )
)
def test_every_call_is_somewhere_in_the_course_of_the_run(
    tmp_path_factory: pytest.TempPathFactory, calls: list[tuple[float, float, bool]]
) -> None:
    records = [
        call(f"{n}", begin, took, cost=0.5, **({} if ok else {"error": "E"}))
        for n, (begin, took, ok) in enumerate(calls)
    ]
    summary = summarize(write_run(tmp_path_factory.mktemp("run"), records))
    course = summary.timeline
    assert course is not None
    assert sum(course.ended) == len(calls)
    assert sum(course.in_flight) * course.step == pytest.approx(
        sum(took for _, took, _ in calls), abs=1e-3
    )
    assert sum(course.errors.get("E", [])) == sum(not ok for _, _, ok in calls)
    assert course.cost[-1] == pytest.approx(0.5 * len(calls))
    assert course.cost == sorted(course.cost)
    assert course.step * len(course.ended) == pytest.approx(summary.active_seconds)
    assert summary.peak_in_flight == max(
        sum(BEGIN + other <= BEGIN + begin < BEGIN + other + took for other, took, _ in calls)
        for begin, _, _ in calls
    )
    assert summary.latency is not None
    assert sum(summary.latency.ok) + sum(summary.latency.failed) == len(calls)


def test_answers_are_counted_by_how_they_ended(tmp_path: Path) -> None:
    other = {"message": {"content": None}, "finish_reason": "length"}
    output = write_run(
        tmp_path,
        [
            call("a", 0, finish_reason="stop"),
            call("b", 0, finish_reason="length"),
            call("b", 5, finish_reason="length", without_text=True),  # the last call counts
            call("c", 0, finish_reason="content_filter", model="other"),
            call("d", 0, error="Late"),
            call("e", 0),  # of an earlier version
            call("f", 0, finish_reason="length"),  # which has no answer in the output
        ],
        [
            *map(answer, "abce"),
            failure("d"),
            failure("f"),
            answer("g", choices=[other], model="third"),  # not in the statistics
            answer("h", choices="odd", model="third"),
        ],
    )
    summary = summarize(output)
    by_model = {model.model: model for model in summary.models}
    assert by_model["gpt"].finish_reasons == {"length": 1, "stop": 1}
    assert by_model["other"].finish_reasons == {"content_filter": 1}
    assert by_model["third"].finish_reasons == {"length": 1}
    assert summary.total.finish_reasons == {"length": 2, "content_filter": 1, "stop": 1}
    assert (by_model["gpt"].without_text, summary.total.without_text) == (1, 2)
    text = printed(summary)
    assert "answers     2 cut at max_tokens, 1 filtered, 2 without text" in text
    assert re.search(r"^other +content_filter +1$", text, re.MULTILINE)
    assert re.search(r"^all +length +2$", text, re.MULTILINE)
    assert "2 cut at max_tokens" in html_page(summary)


def test_statistics_of_an_earlier_version_say_no_finish_reason(tmp_path: Path) -> None:
    output = write_run(tmp_path, [call("a", 0)])
    assert b"finish" not in RunPaths.of(output).statistics.read_bytes()
    summary = summarize(output)
    assert (summary.total.finish_reasons, summary.total.without_text) == ({}, 0)
    assert "Finish reasons" not in printed(summary)


def test_the_limit_counts_by_how_long_it_held(tmp_path: Path) -> None:
    records: list[RunStatistics] = [
        LimitStatistics(at=BEGIN - 1, limit=99),  # before the first call
        LimitStatistics(at=BEGIN, limit=10),
        LimitStatistics(at=BEGIN + 20, limit=30, reason="steady latency"),
        LimitStatistics(at=BEGIN + 90, limit=20, reason="rate limited"),
        call("a", 0, 100),
    ]
    summary = summarize(write_run(tmp_path, records))
    limit = summary.limit
    assert limit is not None
    assert (limit.minimum, limit.median, limit.maximum, limit.changes) == (10, 30, 30, 2)
    assert summary.timeline is not None
    assert summary.timeline.limit == pytest.approx([10, 10, *[30] * 7, 20])
    assert "minimum 10, median 30, maximum 30; 2 changes" in printed(summary)


def test_a_limit_that_stays_is_one_number(tmp_path: Path) -> None:
    records: list[RunStatistics] = [LimitStatistics(at=BEGIN, limit=16), call("a", 0)]
    lines = printed(summarize(write_run(tmp_path, records))).splitlines()
    assert ["limit", "16"] in [line.split() for line in lines]


def test_a_request_that_was_not_sent_has_no_time(tmp_path: Path) -> None:
    never = CallStatistics(
        custom_id="never",
        model="gpt",
        started_at=0.0,
        duration=0.0,
        ok=False,
        error="BudgetExceededError",
    )
    summary = summarize(write_run(tmp_path, [call("a", 0, 2), never]))
    assert summary.active_seconds == 2
    assert (summary.total.requests, summary.total.calls) == (2, 1)
    assert summary.total.failures == {"BudgetExceededError": 1}


def test_results_of_others_are_told_from_their_lines_alone(tmp_path: Path) -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    of_vllm = {"object": "error", "message": "no", "type": "BadRequestError", "code": 400}
    output = write_run(
        tmp_path,
        [],
        [
            answer("a", usage=usage),
            {**answer("b"), "response": {"status_code": 200, "body": "no chat"}},
            failure("c", 429, "rate_limit_exceeded"),
            failure("d", code="batch_expired"),
            {"id": "v", "custom_id": "e", "response": None, "error": of_vllm},
            {**failure("f", 503), "response": {"status_code": 503, "body": None}},
        ],
    )
    summary = summarize(output)
    total = summary.total
    assert (total.requests, total.ok, total.failed, total.calls) == (6, 2, 4, 0)
    assert total.failures == {
        "BadRequestError": 1,
        "HTTP (503)": 1,
        "batch_expired": 1,
        "rate_limit_exceeded (429)": 1,
    }
    assert (total.prompt_tokens, total.completion_tokens) == (10, 4)
    assert (total.cached_tokens, total.reasoning_tokens) == (3, 2)
    assert [model.model for model in summary.models] == ["unknown", "gpt-of-the-provider"]
    assert total.latency is None
    assert summary.timeline is None
    assert any("There is no out.jsonl.statistics.jsonl" in note for note in summary.notes)
    assert "Cost" not in printed(summary)
    assert "<figure>" not in html_page(summary)


def test_results_without_statistics_are_counted_and_told(tmp_path: Path) -> None:
    output = write_run(tmp_path, [call("a", 0)], [answer("a"), answer("b"), failure("c", 500)])
    summary = summarize(output)
    assert (summary.total.requests, summary.total.ok, summary.total.calls) == (3, 2, 1)
    assert any(
        note.startswith("Results that are not in the statistics: 2.") for note in summary.notes
    )


def test_the_output_says_how_a_request_ended(tmp_path: Path) -> None:
    records = [call("a", 0, error="RateLimitError", status_code=429), call("b", 0), call("c", 0)]
    output = write_run(tmp_path, records, [answer("a"), failure("b", 500, "server_error")])
    summary = summarize(output)
    assert summary.total.failures == {"server_error (500)": 1}
    assert (summary.total.ok, summary.total.failed) == (2, 1)
    lost = "Answers that are in the statistics and not in the output: 1. It is not whole."
    assert lost in summary.notes


def test_failures_may_be_in_a_file_of_their_own(tmp_path: Path) -> None:
    output = write_run(tmp_path, [], [answer("a")])
    errors = tmp_path / "errors.jsonl"
    errors.write_text(json.dumps(failure("b", 429, "slow")) + "\n")
    assert summarize(output).total.failed == 0
    assert summarize(output, errors).total.failures == {"slow (429)": 1}
    done = invoke(output, "--error-file", errors)
    assert done.exit_code == 0
    assert "slow (429)" in done.stdout


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("measured", [False, True])
def test_a_request_that_is_sent_again_is_counted_once(
    tmp_path: Path, split: bool, measured: bool
) -> None:
    """While failures are retried, and after a crash then, the old lines are there still."""
    usage = {"prompt_tokens": 10, "completion_tokens": 4}
    failures = [failure("a", 429, "slow"), failure("b", 500, "broken"), failure("c", 500)]
    new = [answer("a", usage=usage), failure("b", 429, "slow")]
    records = [
        *(call(name, 0, error="E", status_code=500) for name in "abc"),
        call("a", 9, prompt_tokens=10, completion_tokens=4),
        call("b", 9, error="E", status_code=429),
    ]
    lines = new[:1] if split else failures + new
    output = write_run(tmp_path, records if measured else [], lines)
    errors = tmp_path / "errors.jsonl"
    errors.write_text("".join(json.dumps(line) + "\n" for line in failures + new[1:]))
    total = summarize(output, errors if split else None).total
    assert (total.requests, total.ok, total.failed) == (3, 1, 2)
    assert (total.prompt_tokens, total.completion_tokens) == (10, 4)


def test_a_run_of_an_older_version_is_reported_with_its_statistics(tmp_path: Path) -> None:
    output = write_run(tmp_path, [call("a", 0)])
    statistics = RunPaths.of(output).statistics.rename(tmp_path / "out.statistics.jsonl")
    assert summarize(output).total.calls == 1
    done = invoke(output, "--html", statistics)
    assert "is a file of the run itself" in done.stderr
    manifest = tmp_path / "out.manifest.json"
    for whose, calls in (("out.jsonl", 1), ("out", 0)):
        fields = {"output file": whose, "error file": None}
        manifest.write_text(json.dumps({"fields": fields, "format_version": 1}))
        assert summarize(output).total.calls == calls


def test_lines_that_a_loss_of_power_has_spoiled_are_told(tmp_path: Path) -> None:
    output = write_run(tmp_path, [], [answer("a")])
    output.write_bytes(bytes(99) + b"\n" + output.read_bytes())
    summary = summarize(output)
    assert summary.total.requests == 1
    assert any("a loss of power has spoiled: 1" in note for note in summary.notes)


@pytest.mark.parametrize("torn", [b'{"id":"b-c","custom_id":"c","resp', b"\0\0\0\0"])
def test_a_torn_last_line_is_not_counted_and_told(tmp_path: Path, torn: bytes) -> None:
    output = write_run(tmp_path, [], [answer("a"), answer("b")])
    output.write_bytes(output.read_bytes() + torn)
    summary = summarize(output)
    assert summary.total.requests == 2
    assert any("The last line of out.jsonl is torn" in note for note in summary.notes)


TOO_DEEP = "nested too deeply"


def deep(before: str, brackets: str, after: str) -> bytes:
    closing = "}" if brackets.startswith("{") else "]"
    return f"{before}{brackets * 100_000}1{closing * 100_000}{after}\n".encode()


REQUEST = {"custom_id": "a", "method": "POST", "body": {"messages": []}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no results yet"),
        (b"\n\n", "has no results yet"),
        (b'{"custom_id":"a","respo', "has no results yet"),
        (b"name,age\nx,1\n", "line 1 of"),
        (b"\x89PNG\r\n\x1a\n\xff", "is no JSON"),
        (b"[1, 2]\n", "needs a custom_id"),
        (b"null", "needs a custom_id"),
        (json.dumps(REQUEST).encode(), "it is a request"),
        (b'{"model": "gpt", "messages": []}\n', "it is a request"),
        (statistics_line(call("a", 0)), "a statistics file"),
        (b'{"custom_id": 7, "response": null, "error": {}}\n', "Expected `str`, got `int`"),
        (json.dumps(answer("a")).encode() + b"\n{oops\n", "line 2 of"),
        (json.dumps(answer("a")).encode() + b'\n{"custom_id":"b","res\n', "line 2 of"),
        (b'{"custom_id":"1","response":{"body":{"model":"\xff"}}}\n', "is not valid UTF-8"),
        (b'{"custom_id":"\xff","response":{}}\n', "is not valid UTF-8"),
        (deep('{"custom_id":"1","response":{"status_code":200,"body":', "[", "}}"), TOO_DEEP),
        (deep('{"custom_id":"1","response":{"body":{"model":"x","z":', "[", "}}}"), TOO_DEEP),
        (deep('{"custom_id":"1","response":null,"error":', "[", "}"), TOO_DEEP),
        (deep('{"custom_id":"1","response":null,"error":{"code":', '{"a":', "}}"), TOO_DEEP),
    ],
)
def test_a_file_that_is_no_output_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    output = tmp_path / "out.jsonl"
    output.write_bytes(content)
    done = invoke(output, "--html", tmp_path / "report.html")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert "out.jsonl" in done.stderr
    assert not (tmp_path / "report.html").exists()


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    missing = invoke(tmp_path / "missing.jsonl")
    assert missing.exit_code == 2
    assert "missing.jsonl does not exist" in missing.stderr
    folder = invoke(tmp_path)
    assert folder.exit_code == 2
    assert "is a folder" in folder.stderr
    output = write_run(tmp_path, [call("a", 0)])
    unwritable = invoke(output, "--html", tmp_path / "no" / "report.html")
    assert unwritable.exit_code == 2
    assert "report.html cannot be written: No such file or directory" in unwritable.stderr


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.statistics.jsonl"])
def test_the_page_never_overwrites_a_file_of_the_run(tmp_path: Path, name: str) -> None:
    output = write_run(tmp_path, [call("a", 0)])
    before = (tmp_path / name).read_bytes()
    done = invoke(output, "--html", tmp_path / name)
    assert done.exit_code == 2
    assert "is a file of the run itself" in done.stderr
    assert (tmp_path / name).read_bytes() == before


def test_the_page_overwrites_an_older_page_and_nothing_else(tmp_path: Path) -> None:
    output = write_run(tmp_path, [call("a", 0)])
    page, other = tmp_path / "report.html", tmp_path / "input.jsonl"
    assert invoke(output, "--html", page).exit_code == 0
    first = page.read_bytes()
    page.write_bytes(first + b"older")
    assert invoke(output, "--html", page).exit_code == 0
    assert page.read_bytes() == first
    for content in (b"my prompts", b"<!DOCTYPE html>\n<html lang='en'>" + b"x" * 200):
        other.write_bytes(content)
        done = invoke(output, "--html", other)
        assert done.exit_code == 2
        assert "input.jsonl exists, and is no page of a report" in done.stderr
        assert other.read_bytes() == content
    other.write_bytes(b"")
    assert invoke(output, "--html", other).exit_code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_reported(tmp_path: Path) -> None:
    output = tmp_path / os.fsdecode(b"out\xff.jsonl")
    output.write_bytes(json.dumps(answer("a")).encode() + b'\n{"custom_id": "b')
    page = tmp_path / os.fsdecode(b"page\xff.html")
    done = invoke(output, "--html", page)
    assert done.exit_code == 0, done.stderr
    assert "Report of out?.jsonl" in done.stdout
    assert "<title>Report of out?.jsonl" in page.read_text()
    output.write_bytes(b"")
    done = invoke(output)
    assert (done.exit_code, "out\\udcff.jsonl has no results yet" in done.stderr) == (2, True)


def test_a_cost_that_nobody_knows_is_no_zero(tmp_path: Path) -> None:
    records = [call("a", 0, model="free", cost=0.0), call("b", 0, model="unknown")]
    records += [call("c", 0, model="dear", cost=0.5), call("d", 0, model="dear")]
    lines = printed(summarize(write_run(tmp_path, records))).splitlines()
    rows = [line.split() for line in lines[lines.index("Cost") :]]
    assert ["free", "0.00", "0.00", "0"] in rows
    assert ["unknown", "unknown", "-", "1"] in rows
    assert ["dear", "0.5000", "250.00", "1"] in rows


def test_the_table_of_millions_fits_into_80_columns(tmp_path: Path) -> None:
    million = 1_000_000
    records = [
        call(
            f"{n}",
            n,
            100_000,
            model=model,
            prompt_tokens=400 * million,
            cached_tokens=300 * million,
            completion_tokens=500 * million,
            reasoning_tokens=200 * million,
            cost=12_345.0,
            time_to_first_chunk=0.5,
        )
        for n, model in enumerate(("anthropic/claude-sonnet-4-5-20250929", "gpt-4o-mini"))
    ]
    text = printed(summarize(write_run(tmp_path, records)))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "800,000,000" in text
    assert "…" not in text
    assert "24,690.00" in text


def test_names_are_no_markup_and_obey_no_terminal(tmp_path: Path) -> None:
    records = [call("a", 0, model="[red]x[/red]"), call("b", 0, model="y\x1b[31m\n", error="[/]")]
    text = printed(summarize(write_run(tmp_path, records)))
    assert "[red]x[/red]" in text
    assert "y\N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}" in text
    assert "[/]" in text
    assert "\x1b" not in text


def test_of_endlessly_many_names_the_later_ones_are_one(tmp_path: Path) -> None:
    records = [call(f"{n}", 0, error=f"Kind{n}", model=f"m{n}" * 99) for n in range(1500)]
    summary = summarize(write_run(tmp_path, records))
    assert len(summary.models) == 1001
    assert summary.models[0].model == "other models"
    assert summary.models[0].requests == 500
    assert max(len(model.model) for model in summary.models) == 120
    assert summary.total.failures["other failures"] == 1400


class Page(HTMLParser):
    """Checks the form of a page while it reads it."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def nasty_run(folder: Path) -> Path:
    records: list[RunStatistics] = [LimitStatistics(at=BEGIN, limit=2, reason=NASTY)]
    for number in range(20):
        failed = {"error": NASTY, "status_code": 500} if number % 4 == 0 else {"cost": 0.1}
        records.append(call(f"{NASTY}{number}", number, 2, model=NASTY, **failed))
    return write_run(folder, records)


def test_the_page_is_one_file_without_scripts_and_addresses(tmp_path: Path) -> None:
    text = html_page(summarize(nasty_run(tmp_path)))
    page = Page(text)
    assert page.open == []
    assert NASTY in page.text
    for tag in ("script", "img", "link", "iframe", "object", "a", "image", "use"):
        assert page.count(tag) == 0, tag
    names = {name for _, attributes in page.elements for name in attributes}
    assert not any(name.startswith("on") or name in ("src", "href", "style") for name in names)
    assert not re.search(r"https?:|url\(|@import|//", text)
    policy = [a.get("content") for tag, a in page.elements if tag == "meta"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in policy
    assert "prefers-color-scheme: dark" in text


def test_the_page_can_be_read_aloud(tmp_path: Path) -> None:
    page = Page(html_page(summarize(example_run(tmp_path))))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    charts = [a for tag, a in page.elements if tag == "svg" and a.get("role") == "img"]
    assert len(charts) == 5 == page.count("figure") == page.count("desc")
    for attributes in charts:
        for name in (attributes["aria-labelledby"] or "").split():
            assert name in ids
    assert {a.get("scope") for tag, a in page.elements if tag == "th"} == {"col", "row"}
    assert ("html", {"lang": "en"}) in page.elements
    assert "a pause of 1 h 01 min" in page.text


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_shows_the_page_and_runs_nothing(tmp_path: Path) -> None:
    assert BROWSER is not None
    page = tmp_path / "report.html"
    assert invoke(nasty_run(tmp_path), "--html", page).exit_code == 0
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,844"]
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    seen = Page(done.stdout)
    assert "<title>Report of out.jsonl</title>" in done.stdout
    assert seen.count("script") == 0
    assert seen.count("img") == 0
    assert seen.count("figure") == 5
    assert NASTY in seen.text


def test_pictures_are_drawn_by_matplotlib(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = invoke(nasty_run(tmp_path), "--png", tmp_path / "a" / "b")
    assert done.exit_code == 0, done.stderr
    names = {path.name: path for path in (tmp_path / "a" / "b").iterdir()}
    assert set(names) == {f"{n}.png" for n in ("throughput", "latency", "errors", "cost", "limit")}
    for path in names.values():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"{path}" in done.stdout.replace("\n", "")


def test_the_names_of_colors_hide_no_bars(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures: Any = importlib.import_module("matplotlib.figure")
    records = [call(f"{n}", n, error=f"A rather long name of a failure {n % 6}") for n in range(60)]
    summary = summarize(write_run(tmp_path, records))
    assert summary.timeline is not None
    figure: Any = figures.Figure(figsize=(8, 4.2), layout="constrained")
    axes: Any = figure.add_subplot()
    _report_png.draw_errors(summary.timeline, [axes])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 6
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_labels_of_percentiles_are_apart(tmp_path: Path) -> None:
    page = html_page(summarize(write_run(tmp_path, [call(f"{n}", n) for n in range(9)])))
    heights = [float(y) for y in re.findall(r'<g class="mark"><text x="[\d.]+" y="([\d.]+)"', page)]
    largest = max(int(size) for size in re.findall(r"svg text \{ font-size: (\d+)px", page))
    assert len(heights) == 3
    assert min(after - before for before, after in pairwise(heights)) >= largest + 4


def test_there_is_no_picture_of_what_was_not_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    summary = summarize(write_run(tmp_path, [call("\N{SNOWMAN}$x_", 0, model="\U000e0001$")]))
    written = write_pictures(summary, tmp_path / "pictures")
    assert [path.name for path in written] == ["throughput.png", "latency.png"]


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    output = write_run(tmp_path, [call("a", 0)])
    done = invoke(output, "--png", tmp_path / "pictures")
    assert done.exit_code == 2
    assert "pip install 'parallel_core[report]'" in done.stderr
    assert not (tmp_path / "pictures").exists()


def test_lines_that_are_no_statistics_are_passed_over(tmp_path: Path) -> None:
    output = write_run(tmp_path, [call("a", 0)], [answer("a")])
    path = RunPaths.of(output).statistics
    good = path.read_bytes()
    nonsense = [b'{"kind":"call","model":"\xff"}', b'{"z":' + b"[" * 100_000, b"\0\0", b"{}"]
    path.write_bytes(b"\n".join([*nonsense, good, *nonsense]))
    assert summarize(output).total.calls == 1


def test_numbers_that_cannot_be_are_passed_over(tmp_path: Path) -> None:
    odd = [
        call("a", 0, model="", time_to_first_chunk=-1.0, attempts=-5, prompt_tokens=-7),
        call("b", 0, model="", time_to_first_chunk=1e300, attempts=10**30),
        call("c", 0, model="", time_to_first_chunk=0.5, attempts=2, prompt_tokens=3),
    ]
    summary = summarize(write_run(tmp_path, odd, [answer(name) for name in "abc"]))
    (model,) = summary.models
    assert (model.model, model.attempts, model.prompt_tokens) == ("(none)", 2, 3)
    assert model.first_chunk is not None
    assert (model.first_chunk.count, model.first_chunk.maximum) == (1, 0.5)


@pytest.mark.parametrize(
    ("response", "error", "kind"),
    [
        (None, "a text", "error"),
        ({"status_code": 400, "body": None}, "a text", "error (400)"),
        (None, {"message": "a text"}, "error"),
        ({"status_code": 502, "body": "<html>"}, None, "HTTP (502)"),
    ],
)
def test_an_error_without_a_name_is_one(
    tmp_path: Path, response: object, error: object, kind: str
) -> None:
    line = {"custom_id": "a", "response": response, "error": error}
    assert summarize(write_run(tmp_path, [], [line])).total.failures == {kind: 1}


FLOATS = st.floats(-1e300, 1e300)


@given(
    st.lists(
        st.builds(
            CallStatistics,
            custom_id=st.sampled_from("abcd"),
            model=st.text(max_size=2),  # no "nan"
            started_at=st.one_of(FLOATS, st.floats(0, 1e-3), st.just(BEGIN)),
            duration=st.one_of(FLOATS, st.floats(0, 1e-3)),
            ok=st.booleans(),
            error=st.none() | st.text(max_size=2),
            status_code=st.none() | st.integers(-(10**6), 10**6),
            time_to_first_chunk=st.none() | FLOATS,
            prompt_tokens=st.integers(0, 10**30),
            cost=st.none() | FLOATS,
        )
        | st.builds(LimitStatistics, at=FLOATS | st.just(BEGIN), limit=st.integers(-1, 10**30)),
        max_size=8,
    )
)
def test_odd_statistics_are_no_reason_to_fail(
    tmp_path_factory: pytest.TempPathFactory, records: list[RunStatistics]
) -> None:
    output = write_run(tmp_path_factory.mktemp("run"), records, [answer("x")])
    summary = summarize(output)
    assert Page(html_page(summary)).open == []
    assert "nan" not in printed(summary)
    assert summary.total.ok + summary.total.failed == summary.total.requests


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(0, 600) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["custom_id", "response", "error", "status_code", "body", "usage", "code"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=4), st.binary(max_size=6))
def test_any_file_is_reported_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[object], end: bytes
) -> None:
    output = write_run(tmp_path_factory.mktemp("run"), [], lines)
    output.write_bytes(output.read_bytes() + end)
    summary: RunReport | None = None
    refused = ""
    try:
        summary = summarize(output)
    except ReportError as error:
        refused = str(error)
    assert ("out.jsonl" in refused) == (summary is None)
    assert summary is None or 0 < summary.total.requests <= len(lines) + 1


@pytest.mark.parametrize("most", [0.0, 1e-15, 0.003, 1.0, 7.0, 99.9, 1234.0, 5e11])
def test_an_axis_has_few_round_ticks_and_holds_everything(most: float) -> None:
    axis = linear_axis("calls", most)
    assert axis.high >= most
    assert 2 <= len(axis.ticks) <= 7
    assert axis.place(axis.high) == 1.0
    labels = [label for _, label in axis.ticks]
    assert len(set(labels)) == len(labels)


def test_axes_of_time_and_latency_have_units_and_decades() -> None:
    assert time_axis(90).title == "active time, s"
    assert time_axis(3600).title == "active time, min"
    assert [label for _, label in time_axis(86_400).ticks] == ["0", "5", "10", "15", "20"]
    assert time_axis(86_400 * 9).title == "active time, days"
    assert [label for _, label in log_axis("s", 0.1, 5).ticks] == [
        *("0.1", "0.2", "0.5", "1", "2", "5"),
    ]
    wide = log_axis("s", 1e-4, 1e6)
    assert [value for value, _ in wide.ticks] == pytest.approx([1e-4, 1e-1, 1e2, 1e5])
    assert wide.place(10.0) == pytest.approx(0.5)


def test_a_call_needs_few_bytes(tmp_path: Path) -> None:
    number = 20_000
    output = write_run(tmp_path, (call(f"request-{n}", n / 10, 2, cost=0.1) for n in range(number)))
    summarize(output)  # what is made once
    tracemalloc.start()
    try:
        summary = summarize(output)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert summary.total.ok == number
    assert math.isclose(summary.total.cost, 0.1 * number)
    assert peak / number < 250


def test_the_example_of_the_documentation_is_what_is_printed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(example_run(tmp_path))], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    text = "\n".join(line.rstrip() for line in done.stdout.splitlines())
    assert f"```text\n{text}\n```" in DOCUMENT.read_text(encoding="utf-8")
