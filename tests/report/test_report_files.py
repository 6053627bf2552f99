"""Which files are reported, alone or with their statistics, and which are refused."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from helpers.report_runs import answer, call, failure, invoke, printed, write_run
from parallel_core.journal.run_paths import RunPaths
from parallel_core.journal.run_statistics import statistics_line
from parallel_core.report import ReportError, html_page, summarize


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
    lost = "Answers that are in the statistics but not in the output: 1. The output is incomplete."
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
    assert any("a loss of power damaged: 1" in note for note in summary.notes)


@pytest.mark.parametrize("torn", [b'{"id":"b-c","custom_id":"c","resp', b"\0\0\0\0"])
def test_a_torn_last_line_is_not_counted_and_told(tmp_path: Path, torn: bytes) -> None:
    output = write_run(tmp_path, [], [answer("a"), answer("b")])
    output.write_bytes(output.read_bytes() + torn)
    summary = summarize(output)
    assert summary.total.requests == 2
    assert any("The last line of out.jsonl is incomplete" in note for note in summary.notes)


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
        (b"\x89PNG\r\n\x1a\n\xff", "is not valid JSON"),
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
    told = " ".join(folder.stderr.replace("│", " ").split())  # its box wraps a long path
    assert re.search(r"is a (folder|directory)", told)
    with pytest.raises(ReportError, match="is a folder: name the output file of a run"):
        summarize(tmp_path)
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
        assert "input.jsonl exists and is not a report page" in done.stderr
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
