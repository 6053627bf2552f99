"""The command ``parallel-core run``, with a real Router, seen from outside of its process."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from helpers.forked_processes import PATIENCE, ForkedProcess, ForkedProcesses
from helpers.run_bench import (
    FAILS,
    HANGS,
    HELD,
    KEY,
    REFUSED,
    Bench,
    ids,
    in_this_process,
    the_end_of,
)
from parallel_core import _run_command
from parallel_core.demo_server import DemoServerSettings, DemoServerThread
from parallel_core.run_file import RunProgress, RunSummary


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    settings = DemoServerSettings(latency_median=0.0, models={"fast": 1.0, "demo": 1.0})
    with DemoServerThread(settings) as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path, server: DemoServerThread, commands: ForkedProcesses) -> Bench:
    return Bench(tmp_path, server, commands)


SCRIPTS = Path(__file__).parent / "scripts"

BODY = '{"model": "fast", "messages": [{"role": "user", "content": "Hi."}]}'

BATCH_LINE = (
    f'{{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {BODY}}}\n'
)

BAD_LINES = f"""\
{{"custom_id": "a", "body": {BODY}}}
{{"custom_id": "b",
{{"custom_id": "a", "body": {BODY}}}
{{"custom_id": "c", "body": {{"model": "fast"}}}}
"""


# --- options ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--config FILE, --model PROVIDER/MODEL, or --demo"),
        (["--api-base=http://127.0.0.1:9/v1"], "--api-base goes with --model"),
        (["--demo", "--config=c.yaml"], "--demo goes without --config"),
        (["--demo", "--api-base=http://127.0.0.1:9/v1"], "--api-base goes with --model"),
        (["--demo", "--order=random"], "--order is one of completion, input, not 'random'"),
        (["--demo", "--format=xml"], "--format is one of auto, jsonl, csv, text, not 'xml'"),
        (
            ["--demo", "--concurrency=0"],
            "--concurrency must be a number from 1 on or 'auto', not '0'",
        ),
        (["--demo", "--concurrency=many"], "--concurrency must be a number from 1 on or 'auto'"),
        (["--demo", "--hedge=nan"], "a percentile above p0 and below p100, such as p95; not 'nan'"),
        (["--demo", "--hedge=soon"], "--hedge must be a finite number of seconds above 0"),
        (["--demo", "--timeout=0"], "--timeout must be a finite number of seconds above 0"),
        (["--demo", "--deadline=-1"], "--deadline must be a finite number of seconds above 0"),
        (
            ["--demo", "--rpm=0"],
            "--rpm cannot be '0': --rpm takes a finite number above 0 or 'off'",
        ),
        (["--demo", "--tpm=fast=-1"], "--tpm cannot be 'fast=-1': --tpm takes a finite number"),
        (["--demo", "--tpm=nan"], "--tpm cannot be 'nan': --tpm takes a finite number above 0"),
        (["--demo", "--rpm=fast=abc"], "--rpm cannot be 'fast=abc': --rpm takes a finite number"),
        (["--demo", "--rpm==5"], "--rpm '=5' names no model: --rpm takes a finite number above 0"),
        (["--demo", "--rpm=5", "--rpm=6"], "--rpm is given twice for all models"),
        (["--demo", "--rpm=a=5", "--rpm=a=6"], "--rpm is given twice for a"),
        (["--demo", "--rpm=5", "--rpm=a=6"], "--rpm for all models together goes without --rpm"),
        (["--demo", "--rpm=5", "--tpm=a=6"], "--rpm for all models together goes without --tpm"),
        (["--demo", "--max-outage=-1"], "--max-outage"),
        (["--demo", "--max-outage=nan"], "--max-outage"),
        (["--demo", "--max-outage=inf"], "--max-outage must be a finite number of seconds from 0"),
        (
            ["--demo", "--attempt-timeout=inf"],
            "--attempt-timeout must be a finite number of seconds",
        ),
        (["--demo", "--max-cost=0"], "--max-cost must be a finite number of USD above 0, not 0"),
        (["--demo", "--max-cost=nan"], "--max-cost must be a finite number of USD above 0"),
        (["--demo", "--assume-output-tokens=9"], "--assume-output-tokens goes with --max-cost"),
        (["--demo", "--fair-by=user"], "--fair-by is 'model', not 'user'"),
        (["--demo", "--limit=0"], "--limit"),
        (["--demo", "--grace=-1"], "--grace"),
        (
            ["--demo", "--grace=inf"],
            "--grace must be a finite number of seconds from 0 on, not inf",
        ),
        (["--demo", "--confirm-above=-1"], "--confirm-above"),
        (["--demo", "--template={{text}}"], "a template is for CSV and text"),
        (["--demo", "--keep=id,,source"], "--keep takes names with commas between them"),
        (["--demo", "--keep=id"], "no line has a member 'id' to keep"),
        (["--demo", "--drop-columns", "--send-columns"], "columns are dropped or sent, not both"),
        (["--demo", "--retry-failed=late"], "there is no kind of failure 'late'; the kinds are"),
        (["--demo", "--retry-failed=timeout,"], "cooling_down, account, request, unreachable"),
        (["--retry-failed", "timeout", "--demo"], "write --retry-failed=timeout, with '='"),
        (["--demo", "--no-such-option"], "--no-such-option"),
    ],
)
def test_bad_options_are_told_and_nothing_is_made(
    tmp_path: Path, options: list[str], says: str
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"model": "fast", "messages": [{"role": "user", "content": "Hi."}]}\n')
    done = in_this_process([str(source), "-o", str(output), *options], env={"COLUMNS": "500"})
    assert done.code == 2
    assert says in done.said
    assert list(tmp_path.iterdir()) == [source]


def test_an_output_is_needed(tmp_path: Path) -> None:
    done = in_this_process([str(tmp_path / "in.jsonl"), "--demo"], env={"COLUMNS": "500"})
    assert done.code == 2
    assert "give --output FILE (-o)" in done.said


@pytest.mark.parametrize(
    ("name", "content", "options", "says"),
    [
        ("batch.jsonl", BATCH_LINE, [], "1 request (fast 1)"),
        ("rows.csv", "text,n\none,1\ntwo,2\n", ["--template=Say {{text}}."], "2 requests (m 2)"),
        ("rows.tsv", "text\tn\none\t1\n", ["--template=Say {{text}}."], "1 request (m 1)"),
        ("lines.txt", "one\ntwo\nthree\n", [], "3 requests (m 3)"),
        ("lines.text", "one\n", ["--format=text"], "1 request (m 1)"),
    ],
)
def test_validate_checks_each_format(
    bench: Bench, name: str, content: str, options: list[str], says: str
) -> None:
    bench.path(name).write_text(content)
    model = [] if name == "batch.jsonl" else ["--model=m", "--api-base=http://127.0.0.1:9/v1"]
    done = bench.run(name, "--validate", *options, *model, router=False)
    assert done.code == 0, done.said
    assert says in done.said


def test_validate_lists_every_bad_line_with_its_code_and_a_hint(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(BAD_LINES)
    done = in_this_process([str(source), "--validate", "--json"])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    problems = [event for event in events if event["event"] == "problem"]
    assert done.code == 2
    assert [(problem["line"], problem["code"]) for problem in problems] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
        (4, "missing_required_parameter"),
    ]
    assert all(problem["hint"] for problem in problems)
    told = in_this_process([str(source), "--validate"]).said
    assert all(
        f"line {line['line']}: {line['code']}: {line['message']}" in told for line in problems
    )
    assert "nothing was sent: correct these lines, or give --skip-invalid" in told


def test_columns_stop_a_run_until_somebody_decides_on_them(bench: Bench) -> None:
    rows = [
        {
            **json.loads(BODY),
            "source": f"page {number}",
            "id": number,
            "metadata": {"n": str(number)},
        }
        for number in range(3)
    ]
    path = bench.path("in.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused = in_this_process([str(path), "--validate", "--json"])
    checked, error = map(json.loads, refused.stdout.splitlines())
    assert refused.code == 2
    assert checked["columns"] == [
        {"name": "source", "lines": 3, "first_line": 1},
        {"name": "id", "lines": 3, "first_line": 1},
    ]
    assert "--drop-columns" in error["text"]
    told = in_this_process([str(path), "--validate"]).said
    assert told.count("'source': 3 lines, first in line 1") == 1
    assert in_this_process([str(path), "--validate", "--drop-columns"]).code == 0
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--keep=id", "--drop-columns", "--order=input")
    assert done.code == 0, done.said
    assert [(result["columns"], result["metadata"]) for result in bench.results()] == [
        ({"id": number}, {"n": str(number)}) for number in range(3)
    ]


def test_what_litellm_takes_for_itself_is_taken_from_a_file_that_is_trusted_only(
    bench: Bench,
) -> None:
    body = {**json.loads(BODY), "mock_response": "made up"}
    bench.path("in.jsonl").write_text(json.dumps({"custom_id": "a", "body": body}) + "\n")
    refused = bench.run("in.jsonl", "-o", "out.jsonl")
    assert refused.code == 2
    assert "line 1: forbidden_parameter: 'mock_response' must not come from a file" in refused.said
    assert "--trust-input" in refused.said
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--trust-input").code == 0
    (result,) = bench.results()
    assert result["response"]["body"]["choices"][0]["message"]["content"] == "made up"
    assert bench.accepted == 0


def test_bad_lines_stop_a_run_before_its_first_call(bench: Bench) -> None:
    bench.path("in.jsonl").write_text(BAD_LINES)
    done = bench.run("in.jsonl", "-o", "out.jsonl")
    assert done.code == 2
    assert bench.accepted == 0
    assert not bench.path("out.jsonl").exists()


def test_skip_invalid_writes_bad_lines_as_failures(bench: Bench) -> None:
    bench.path("in.jsonl").write_text(BAD_LINES)
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--skip-invalid")
    assert done.code == 1
    codes = [result["error"] and result["error"]["code"] for result in bench.results()]
    assert sorted(filter(None, codes)) == [
        "duplicate_custom_id",
        "invalid_json_line",
        "missing_required_parameter",
    ]
    assert codes.count(None) == bench.accepted == 1
    assert len(set(bench.ids())) == 4


def test_an_end_without_failures_is_0_and_the_same_again_sends_nothing(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    first = bench.run("in.jsonl", "-o", "out.jsonl")
    assert first.code == 0
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4)
    assert "5/5 (100.0 %), ok 5, failed 0" in first.stderr
    assert "\x1b" not in first.stdout + first.stderr
    assert "to go on" not in first.said
    again = bench.run("in.jsonl", "-o", "out.jsonl")
    assert again.code == 0
    assert "going on: 5 of 5 requests are finished" in again.said
    assert bench.accepted == 5


def test_failures_are_1_and_retry_failed_answers_them(bench: Bench) -> None:
    # The server fails while it has no room: whichever of them comes second.
    bench.server.set_capacity(1)
    bench.server.hold()
    bench.write(HELD, HELD)
    options = ("in.jsonl", "-o", "out.jsonl", "--error-file", "errors.jsonl", "--max-outage=0")
    run = bench.start(*options)
    bench.server.wait_finished(1, PATIENCE)
    bench.server.release()
    first = the_end_of(run)
    bench.server.set_capacity(None)
    assert first.code == 1
    (answered,) = bench.ids()
    assert sorted([answered, *bench.ids("errors.jsonl")]) == ids(0, 1)
    assert bench.results("errors.jsonl")[0]["response"]["status_code"] == 429
    assert "failed        1 (overloaded 1)\n" in first.stdout
    assert "overloaded 1: 429 over_capacity: Too many requests" in first.stdout
    same = bench.run(*options)
    assert same.code == 1
    assert "--retry-failed sends again what may pass" in same.stdout
    assert bench.accepted == 2
    done = bench.go_on(first.stdout)
    assert done.code == 0
    assert sorted(bench.ids()) == ids(0, 1)
    assert bench.results("errors.jsonl") == []
    assert bench.accepted == 3


def test_only_what_may_pass_is_sent_again_unless_kinds_are_named(bench: Bench) -> None:
    bench.write(REFUSED, FAILS, {})
    options = ("in.jsonl", "-o", "out.jsonl")
    first = bench.run(*options)
    assert first.code == 1
    assert "1 failure is final: it would fail again" in first.stdout
    assert bench.accepted == 2  # and one refused
    # The name of the input, which follows, is no value of the option.
    assert "1 failed request to send again" in bench.go_on(first.stdout).stderr
    assert bench.accepted == 3
    both = bench.run("--retry-failed=request,unknown", *options)
    assert "2 failed requests to send again" in both.stderr
    assert bench.accepted == 4
    assert "2 failed requests to send again" in bench.run(*options, "--retry-failed=all").stderr
    assert bench.accepted == 5
    bench.write(REFUSED)
    done = bench.run("in.jsonl", "-o", "other.jsonl", "--json")
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["final_failures"], summary["resume"]) == (1, None)


def test_a_trial_of_some_requests_is_gone_on_with_by_the_whole(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    trial = bench.run("in.jsonl", "-o", "out.jsonl", "--limit=2")
    assert (trial.code, sorted(bench.ids())) == (0, ids(0, 1))
    whole = bench.run("in.jsonl", "-o", "out.jsonl")
    assert (whole.code, sorted(bench.ids())) == (0, ids(0, 1, 2, 3, 4))
    assert bench.accepted == 5


def test_order_input_sorts_the_answers(bench: Bench) -> None:
    bench.server.hold()
    bench.write(HELD, {}, {})
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--json")
    run.wait_for('"succeeded":2')
    bench.server.release()
    assert run.wait() == 0
    assert bench.ids() in (ids(1, 2, 0), ids(2, 1, 0))
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--order=input").code == 0
    assert bench.ids() == ids(0, 1, 2)
    assert bench.accepted == 3


def test_a_different_run_is_refused_and_force_new_begins_anew(bench: Bench) -> None:
    bench.write({}, {})
    assert bench.run("in.jsonl", "-o", "out.jsonl").code == 0
    bench.write({}, {}, {})
    refused = bench.run("in.jsonl", "-o", "out.jsonl")
    assert refused.code == 2
    assert "out.jsonl holds the results of a different run: input was" in refused.said
    assert "--force-new" in refused.said
    assert len(bench.ids()) == 2
    forced = bench.run("in.jsonl", "-o", "out.jsonl", "--force-new")
    assert forced.code == 0
    assert "moved aside: " in forced.said
    assert (len(bench.ids()), len(bench.ids("out.jsonl.1"))) == (3, 2)


def test_a_run_is_the_same_while_its_answers_would_be(bench: Bench) -> None:
    bench.write({}, {})
    assert bench.run("in.jsonl", "-o", "out.jsonl").code == 0
    # Another address, other retries and limits, another model that nobody asks for; and the same
    # requests in another order, with a blank line at the end.
    config = bench.path("config.yaml")
    bench.config(
        ", num_retries: 2, ssl_verify: false, drop_params: true, rpm: 1000",
        "num_retries: 1, timeout: 60",
    )
    text = config.read_text().replace("127.0.0.1", "localhost")
    entry = "  - {model_name: idle, litellm_params: {model: openai/idle, api_key: none}}\n"
    config.write_text(text.replace("router_settings", f"{entry}router_settings"))
    lines = bench.path("in.jsonl").read_text().splitlines()
    bench.path("in.jsonl").write_text("\n".join([*reversed(lines), "", ""]))
    same = bench.run("in.jsonl", "-o", "out.jsonl")
    assert "2 of 2 requests are finished" in same.said
    bench.config(", temperature: 0.5")
    other = bench.run("in.jsonl", "-o", "out.jsonl")
    assert other.code == 2
    assert "model fast was 'openai/fast' and is now 'openai/fast with " in other.said
    assert "--allow-changed" in other.said
    assert bench.accepted == 2
    bench.write({}, {}, {})
    changed = bench.run("in.jsonl", "-o", "out.jsonl", "--allow-changed")
    assert changed.code == 0
    assert "resuming in spite of a change: input was" in changed.said
    assert "model fast was" in changed.said
    assert sorted(bench.ids()) == ids(0, 1, 2)
    assert bench.accepted == 3
    assert bench.run("in.jsonl", "-o", "out.jsonl").code == 0


def test_an_output_that_cannot_be_sorted_is_1_and_every_answer_is_safe(bench: Bench) -> None:
    bench.server.hold()
    bench.write(HELD, {})
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--order=input", "--json")
    run.wait_for('"succeeded":1')
    bench.path(".out.jsonl.new").mkdir()
    bench.server.release()
    assert run.wait() == 1
    assert "out.jsonl could not be sorted (Is a directory (EISDIR))" in run.stdout
    assert "Every result is in it" in run.stdout
    assert sorted(bench.ids()) == ids(0, 1)


def test_standard_input_is_read(bench: Bench) -> None:
    bench.write({}, {})
    content = bench.path("in.jsonl").read_bytes()
    for _again in range(2):
        assert bench.run("-", "-o", "out.jsonl", standard_input=content).code == 0
    assert sorted(bench.ids()) == ids(0, 1)
    assert bench.accepted == 2


def test_json_tells_all(bench: Bench) -> None:
    bench.server.hold()
    bench.write(HELD, {}, FAILS)
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--json")
    run.wait_for('"failed":1')
    bench.server.release()
    done = the_end_of(run)
    assert (done.code, done.stderr) == (1, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["checked", "estimate", "opened"] or kinds[:3] == [
        "checked",
        "opened",
        "estimate",
    ]
    assert kinds[-2:] == ["progress", "summary"]
    for event in events:
        if event["event"] == "progress":
            assert event.keys() >= {field.name for field in msgspec.structs.fields(RunProgress)}
    last, summary = events[-2:]
    assert last["finished"]
    assert (last["succeeded"], last["failed"], last["total"]) == (2, 1, 3)
    assert summary.keys() >= {field.name for field in msgspec.structs.fields(RunSummary)}
    assert (summary["succeeded"], summary["failed"], summary["unfinished"]) == (2, 1, 0)
    assert summary["paths"]["output"] == "out.jsonl"
    assert summary["resume"].startswith("parallel-core run --retry-failed in.jsonl ")
    group = {
        "kind": "unknown",
        "count": 1,
        "message": "500 server_error: The demo server fails on purpose.",
        "custom_ids": ["id-2"],
        "status_code": 500,
    }
    assert summary["failures"] == last["failures"] == [group]
    costs = [event["cost"] for event in events if event["event"] == "estimate"]
    assert [*costs, summary["usage"]["cost"]] == [None, None]


# --- the router ---


def test_a_model_without_a_price_gets_one_in_the_config(bench: Bench) -> None:
    bench.write({}, {})
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--max-cost=1")
    assert (done.code, bench.accepted) == (2, 0)
    assert "the price of 'fast' is unknown. Give input_cost_per_token and output" in done.said
    assert "Budget(" not in done.said
    prices = "input_cost_per_token: 0.001, output_cost_per_token: 0.001"
    bench.config(f", max_tokens: 10, {prices}")
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--max-cost=1").code == 0
    assert bench.accepted == 2
    assert [line["error"] for line in bench.results()] == [None, None]


def test_model_and_api_base_are_enough_for_a_text_file(bench: Bench) -> None:
    bench.path("in.txt").write_text("one\ntwo\n")
    router = ["--model=openai/fast", "--api-base", bench.server.url]
    done = bench.run("in.txt", "-o", "out.jsonl", "--template=Say {{line}}.", *router, router=False)
    assert done.code == 0, done.said
    assert sorted(bench.ids()) == ["1", "2"]


def test_demo_needs_no_key_and_leaves_no_server(bench: Bench) -> None:
    bench.write({}, {}, model="gpt-4o-mini")
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--demo", router=False)
    assert done.code == 0, done.said
    assert len(bench.ids()) == 2
    assert bench.accepted == 0


def test_a_model_that_the_config_lacks_is_told_before_the_first_call(bench: Bench) -> None:
    bench.write({}, {}, model="other")
    done = bench.run("in.jsonl", "-o", "out.jsonl")
    assert done.code == 2
    assert (
        "nothing was sent: the Router has no model 'other' (first asked for in line 1" in done.said
    )
    assert not bench.path("out.jsonl").exists()


def test_a_model_of_no_known_provider_is_told(bench: Bench) -> None:
    bench.path("in.txt").write_text("one\n")
    done = bench.run("in.txt", "-o", "out.jsonl", "--model=nosuchmodel", router=False)
    assert done.code == 2
    assert "litellm does not know the provider of the model 'nosuchmodel'" in done.said


# --- controls ---


def test_controls_are_options(bench: Bench) -> None:
    bench.write(*[{}] * 4)
    options = ["--concurrency=auto", "--rpm=6000", "--tpm=1000000", "--timeout=30", "--deadline=60"]
    options += ["--hedge=p95", "--fair-by=model", "--grace=1", "--yes"]
    done = bench.run("in.jsonl", "-o", "out.jsonl", *options)
    assert done.code == 0, done.said
    assert bench.accepted == 4


def test_the_rates_of_the_config_are_held_by_waiting(bench: Bench) -> None:
    deployment = (
        "  - model_name: fast\n"
        f"    litellm_params: {{model: openai/fast, api_base: '{bench.server.url}', api_key: none, "
        "rpm: 120}\n"
    )
    bench.path("config.yaml").write_text(f"model_list:\n{deployment}{deployment}")
    bench.write(*[{}] * 8)
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.code == 0, done.said
    assert [event["text"] for event in events if event["event"] == "note"] == [
        "holding 240 requests per minute for fast (its 2 deployments)"
    ]
    assert bench.accepted == 8
    # Four may go at once; the others, one each quarter of a second.
    assert events[-1]["elapsed"] >= 0.99


def test_hedged_calls_are_sent_twice(bench: Bench) -> None:
    bench.server.hold()
    bench.write(*[HELD] * 21)  # at most one of twenty calls
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--hedge=0.3", "--concurrency=40")
    bench.server.wait_in_flight(22, PATIENCE)
    bench.server.release()
    assert run.wait() == 0
    assert (bench.accepted, len(bench.ids())) == (22, 21)


@pytest.mark.parametrize(
    ("options", "left"), [(["--timeout=0.2"], 0), (["--deadline=0.5", "--concurrency=1"], 2)]
)
def test_a_timeout_fails_a_request_and_a_deadline_ends_the_run(
    bench: Bench, options: list[str], left: int
) -> None:
    bench.write(HANGS, {})
    done = bench.run("in.jsonl", "-o", "out.jsonl", *options)
    assert done.code == 1
    if left:
        assert "(the deadline has passed)" in done.stdout
        assert bench.results() == []
        assert "--retry-failed" not in done.stdout
    else:
        assert sorted(bench.ids()) == ids(0, 1)
        assert "--retry-failed" in done.stdout


def test_fail_fast_ends_at_the_first_failure(bench: Bench) -> None:
    # The server fails while it has no room: whichever of the first two comes second.
    bench.server.set_capacity(1)
    bench.server.hold()
    bench.write(*[HELD] * 6)
    options = ("--fail-fast", "--concurrency=2", "--max-outage=0")
    run = bench.start("in.jsonl", "-o", "out.jsonl", *options)
    bench.server.wait_finished(1, PATIENCE)
    bench.server.release()
    done = the_end_of(run)
    bench.server.set_capacity(None)
    assert done.code == 1
    assert "(a call has failed)" in done.stdout
    assert len(bench.ids()) < 6
    assert "parallel-core run --retry-failed" in done.stdout  # what failed is sent again, too
    assert bench.go_on(done.stdout).code == 0
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4, 5)


def test_a_line_that_is_appended_while_it_runs_is_not_sent(bench: Bench) -> None:
    bench.write(*[HELD] * 3)
    bench.server.hold()
    running = bench.start("in.jsonl", "-o", "out.jsonl", "--concurrency=1")
    bench.server.wait_in_flight(1, PATIENCE)
    before = bench.path("in.jsonl").read_bytes()
    evil = {"custom_id": "evil", "body": {"model": "fast", "api_base": "http://127.0.0.1:9/v1"}}
    with bench.path("in.jsonl").open("a") as lines:
        lines.write(json.dumps(evil) + "\n")
    bench.server.release()
    done = the_end_of(running)
    assert done.code == 1
    assert "has been changed since it was checked" in done.said
    assert "the same command goes on" in done.said
    assert "--allow-changed" in done.said
    assert "evil" not in bench.ids()
    bench.path("in.jsonl").write_bytes(before)
    assert bench.go_on(done.stdout).code == 0
    assert (sorted(bench.ids()), bench.accepted) == (ids(0, 1, 2), 3)


PRICES = ", input_cost_per_token: 0.000001, output_cost_per_token: 0.1"


def test_a_budget_ends_the_run_and_a_larger_one_goes_on(bench: Bench) -> None:
    bench.config(PRICES)
    bench.write(*[{"reply": "word " * 100}] * 4)  # 10 USD each
    options = ["--assume-output-tokens=10", "--concurrency=1"]
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--max-cost=25", *options)
    assert done.code == 1, done.said
    assert "(the budget is used up)" in done.stdout
    assert 0 < bench.accepted < 4
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--max-cost=300", *options).code == 0
    assert (bench.accepted, len(bench.ids())) == (4, 4)


# --- files ---


def test_an_input_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = in_this_process([str(tmp_path / "no.jsonl"), "-o", str(tmp_path / "out"), "--demo"])
    assert done.code == 2
    assert "no.jsonl" in done.said
    assert "nothing was sent" in done.said


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("folder", "is a folder: give the name of a file"),
        ("nowhere/out.jsonl", "there is no folder"),
        ("/dev/null", "is a pipe, a device or a socket"),
        ("other.jsonl", "is not empty"),
        ("in.jsonl", "is the input"),
    ],
)
def test_an_output_that_cannot_be_used_is_told(bench: Bench, output: str, says: str) -> None:
    bench.path("folder").mkdir()
    bench.write({})
    bench.write({}, name="other.jsonl")
    before = bench.path("in.jsonl").read_bytes()
    done = bench.run("in.jsonl", "-o", output)
    assert done.code == 2
    assert says in done.said
    assert bench.path("in.jsonl").read_bytes() == before
    assert bench.accepted == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_told(bench: Bench) -> None:
    bench.path("folder").mkdir(mode=0o500)
    bench.write({})
    done = bench.run("in.jsonl", "-o", "folder/out.jsonl")
    assert done.code == 2
    assert "is read-only" in done.said


def test_a_second_run_on_one_output_is_refused(bench: Bench) -> None:
    bench.write(HANGS)
    first = bench.start("in.jsonl", "-o", "out.jsonl", "--grace=0")
    bench.server.wait_in_flight(1, PATIENCE)
    second = bench.run("in.jsonl", "-o", "out.jsonl")
    assert second.code == 2
    assert f"out.jsonl is in use by another run, process {first.pid}" in second.said
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 130
    assert bench.accepted == 1


def test_an_output_that_vanishes_ends_the_run_with_3(bench: Bench) -> None:
    bench.server.hold()
    bench.write(HELD, HANGS)
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--concurrency=2")
    bench.server.wait_in_flight(2, PATIENCE)
    bench.path("out.jsonl").rename(bench.path("moved.jsonl"))
    bench.server.release()
    assert run.wait() == 3
    assert "out.jsonl cannot be written: it has been moved or replaced" in run.stderr
    assert str(bench.path("out.jsonl.rescue.jsonl")) in run.stderr
    assert bench.ids("out.jsonl.rescue.jsonl") == ids(0)
    bench.path("moved.jsonl").rename(bench.path("out.jsonl"))
    # Long enough for litellm's first call, which imports for a while.
    again = bench.run("in.jsonl", "-o", "out.jsonl", "--timeout=5")
    assert "put 1 results of the rescue file where they belong" in again.said
    assert sorted(bench.ids()) == ids(0, 1)
    assert bench.accepted == 3


class EchoingServer(http.server.BaseHTTPRequestHandler):
    """Tells in an error which key it was given, as some do."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        given = self.headers["Authorization"]
        body = json.dumps({"error": {"message": f"Bad key: {given}", "param": given}}).encode()
        self.send_response(400)  # a 401 would stop the run without a line
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-request-id", str(given).split()[-1])
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def echoing_server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), EchoingServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("view", [[], ["--json"]])
def test_a_key_that_a_server_echoes_is_nowhere(bench: Bench, view: list[str]) -> None:
    bench.write({}, {})
    with echoing_server() as url:
        done = bench.run(
            *("in.jsonl", "-o", "out.jsonl", "--model=fast", "--api-base", url, *view),
            router=False,
            environment={"OPENAI_API_KEY": KEY},
        )
    assert done.code == 1
    assert [result["response"]["status_code"] for result in bench.results()] == [400, 400]
    assert "[redacted]" in bench.path("out.jsonl").read_text()
    files = [path for path in bench.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {
        "out.jsonl.manifest.json",
        "out.jsonl.statistics.jsonl",
    }
    for text in (done.stdout, done.stderr, *(path.read_text() for path in files)):
        assert KEY not in text
        assert KEY[8:24] not in text


def test_variables_that_look_like_keys_change_no_answer(bench: Bench) -> None:
    """Whole answers are written as they are, and half ones are failures."""
    reply = "use ollama\u2028or\u0085content in production"
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hi."}]}
    streamed = {**body, "stream": True}
    lines = [
        {"custom_id": "a\u2028", "body": {**body, "extra_body": {"demo": {"reply": reply}}}},
        {"custom_id": "b", "body": {**streamed, "extra_body": {"demo": {"reply": reply}}}},
        {"custom_id": "c", "body": {**streamed, "extra_body": {"demo": {"cut_after": 1}}}},
    ]
    bench.path("in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = bench.run(
        *("in.jsonl", "-o", "out.jsonl", "--model=fast", "--api-base", bench.server.url),
        router=False,
        environment={
            "OPENAI_API_KEY": "ollama",
            "DJANGO_SECRET": "production",
            "FOO_SECRET": "content",
        },
    )
    assert done.code == 1
    results = {result["custom_id"]: result for result in bench.results()}
    assert set(results) == {"a\u2028", "b", "c"}
    for name in ("a\u2028", "b"):
        (choice,) = results[name]["response"]["body"]["choices"]
        assert choice["message"]["content"] == reply
        assert choice["finish_reason"] == "stop"
    assert results["c"]["response"] is None
    assert results["c"]["error"]["code"] == "stream_interrupted"


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_lets_calls_end_and_tells_how_to_go_on(
    bench: Bench, number: signal.Signals
) -> None:
    bench.server.hold()
    bench.write(*[HELD] * 3, *[{}] * 5)
    run = bench.start("in.jsonl", "-o", "out file.jsonl", "--concurrency=3")
    bench.server.wait_in_flight(3, PATIENCE)
    run.send_signal(number)
    run.wait_for(f"{number.name}: no new calls")
    bench.server.release()
    assert run.wait() == 130
    assert ("Ctrl-C again cancels them at once" in run.stderr) == (number == signal.SIGINT)
    assert sorted(bench.ids("out file.jsonl")) == ids(0, 1, 2)
    assert bench.accepted == 3
    assert "answered      3" in run.stdout
    assert "left          5 (the run was stopped)" in run.stdout
    rest = bench.go_on(run.stdout)
    assert rest.code == 0
    assert sorted(bench.ids("out file.jsonl")) == ids(*range(8))
    assert bench.accepted == 8


def test_the_second_signal_ends_it_at_once(bench: Bench) -> None:
    bench.write({}, *[HANGS] * 3)
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--concurrency=3", "--grace=1000", "--json")
    bench.server.wait_finished(1, PATIENCE)
    bench.server.wait_in_flight(3, PATIENCE)
    run.send_signal(signal.SIGINT)
    run.wait_for("SIGINT: no new calls")
    run.send_signal(signal.SIGINT)
    assert run.wait() == 130
    summary = json.loads(run.stdout.splitlines()[-1])
    assert (summary["ending"], summary["unfinished"], summary["cut_off"]) == ("stopped", 3, 3)
    assert bench.ids() == ids(0)
    assert (run.stderr, "Traceback" in run.stdout) == ("", False)


def test_calls_that_do_not_end_are_cut_off_when_the_grace_is_over(bench: Bench) -> None:
    bench.write({}, HANGS, HANGS)
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--concurrency=2", "--grace=0.7")
    bench.server.wait_finished(1, PATIENCE)
    bench.server.wait_in_flight(2, PATIENCE)  # so the first has its answer
    began = time.monotonic()
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 130
    assert time.monotonic() - began >= 0.7
    assert bench.ids() == ids(0)
    assert "left          2, 2 of them cut off (the run was stopped)" in run.stdout


def test_what_waits_for_its_pace_is_not_waited_for(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--rpm=1", "--grace=1000", "--json")
    run.wait_for('"succeeded":1')
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 130
    assert bench.accepted == len(bench.ids()) == 1


def real_process(bench: Bench, *arguments: str, shell: str = "") -> subprocess.Popen[str]:
    """With all that a start of Python does."""
    command = [sys.executable, str(SCRIPTS / "with_signals.py")]
    command += [sys.executable, "-m", "parallel_core.cli", "run", *arguments]
    return subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            f"exec {shlex.join(command)}" if not shell else shlex.join(command) + shell,
        ],
        cwd=bench.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_litellm_is_imported_ends_it_before_anything_is_sent(
    bench: Bench, number: signal.Signals
) -> None:
    bench.write({}, {})
    with real_process(bench, "in.jsonl", "-o", "out.jsonl", "--demo", "--json") as run:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline())["event"] == "checked"
        run.send_signal(number)
        # A server that is left behind has the pipe open, and there would be no end of it.
        rest, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 130
    assert "interrupted before anything was sent" in rest
    assert "Traceback" not in said
    assert not bench.path("out.jsonl").exists()


def test_nobody_reads_its_output_and_it_goes_on_all_the_same(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    options = ["in.jsonl", "-o", "out.jsonl", "--config=config.yaml", "--json"]
    with real_process(bench, *options, shell=" | head -n 1") as run:
        first, said = run.communicate(timeout=PATIENCE)
    assert json.loads(first)["event"] == "checked"
    assert said == ""
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4)


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_reader_that_goes_away_in_the_middle_ends_nothing(bench: Bench, words: list[str]) -> None:
    bench.server.hold()
    bench.write(*[HELD] * 5)
    reads, writes = os.pipe()
    options = ["in.jsonl", "-o", "out.jsonl", "--config=config.yaml", "--concurrency=1", *words]
    command = [sys.executable, "-m", "parallel_core.cli", "run", *options]
    with subprocess.Popen(command, cwd=bench.folder, stdout=writes, stderr=writes) as run:
        os.close(writes)
        bench.server.wait_in_flight(1, PATIENCE)
        os.close(reads)
        bench.server.release()
        assert run.wait(PATIENCE) == 0
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4)
    assert bench.accepted == 5


def test_a_reader_that_reads_no_more_holds_up_neither_calls_nor_signals(bench: Bench) -> None:
    bench.write(*[{"latency": 0.05}] * 60, HANGS)
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)  # ten snapshots fill it
    options = ["in.jsonl", "-o", "out.jsonl", "--config=config.yaml", "--concurrency=1", "--json"]
    command = [sys.executable, "-m", "parallel_core.cli", "run", *options, "--grace=0"]
    with subprocess.Popen(command, cwd=bench.folder, stdout=writes) as run:
        os.close(writes)
        bench.server.wait_finished(60, PATIENCE)  # else calls wait for the reader
        bench.server.wait_in_flight(1, PATIENCE)
        run.send_signal(signal.SIGTERM)
        assert run.wait(PATIENCE) == 130
    os.close(reads)
    assert sorted(bench.ids()) == sorted(ids(*range(60)))


def test_a_password_in_an_address_is_not_told_again(bench: Bench) -> None:
    bench.write(FAILS)
    address = bench.server.url.replace("//", "//user:PASSWORD-xyz@")
    done = bench.run(
        *("in.jsonl", "-o", "out.jsonl", "--model=fast", "--api-base", address), router=False
    )
    assert done.code == 1
    assert "to go on: parallel-core run --retry-failed in.jsonl" in done.said
    assert "PASSWORD-xyz" not in done.said


def test_what_litellm_logs_is_not_shown(bench: Bench) -> None:
    bench.write(FAILS)
    fallbacks = "num_retries: 0, fallbacks: [{fast: [fast]}]"
    bench.config("", fallbacks)
    done = bench.run("in.jsonl", "-o", "out.jsonl")
    assert done.code == 1
    assert "LiteLLM" not in done.said
    assert "fallback" not in done.said


def test_the_command_to_go_on_minds_arguments_after_two_dashes(bench: Bench) -> None:
    bench.write(FAILS, name="-a :heart: x.jsonl")
    done = bench.run("-o", "out [b].jsonl", "--config=config.yaml", "--", "-a :heart: x.jsonl",
                     router=False)  # fmt: skip
    assert done.code == 1
    again = bench.go_on(done.stdout)
    assert again.code == 1
    assert bench.accepted == 2


def test_it_needs_no_standard_error(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    options = ["in.jsonl", "-o", "out.jsonl", "--config=config.yaml"]
    with real_process(bench, *options, shell=" 2>&-") as run:
        told, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0
    assert "answered      5" in told
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4)


# --- a terminal ---


@dataclass
class Terminal:
    """Both ends of one."""

    screen: int
    process_end: int

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())


@pytest.fixture
def on_terminal(bench: Bench) -> Iterator[Callable[..., tuple[ForkedProcess, Terminal]]]:
    """Starts a command on a terminal of its own."""
    opened: list[int] = []

    def start(*arguments: object, router: bool = True) -> tuple[ForkedProcess, Terminal]:
        screen, process_end = pty.openpty()
        os.set_inheritable(process_end, True)
        opened.append(screen)
        terminal = Terminal(screen, process_end)
        environment = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        process = bench.start(
            *arguments, router=router, terminal=process_end, environment=environment
        )
        os.close(process_end)
        process.collect("stderr", os.dup(screen))
        return process, terminal

    yield start
    for fd in opened:
        os.close(fd)


StartOnTerminal = Callable[..., tuple[ForkedProcess, Terminal]]


def test_a_terminal_shows_a_bar_and_figures(bench: Bench, on_terminal: StartOnTerminal) -> None:
    bench.server.hold()
    bench.write(FAILS, *[HELD] * 4)
    run, _ = on_terminal("in.jsonl", "-o", "out.jsonl", "--concurrency=3")
    run.wait_for("unknown 1: 500 server_error: The demo server fails on purpose. (id-0)")
    run.wait_for("in flight 3/3")
    bench.server.release()
    assert run.wait() == 1
    drawn = run.stderr
    assert "━" in drawn
    assert "ok 4" in drawn
    assert "failed 1" in drawn
    assert "in flight 3/3" in drawn
    assert "5/5 100.0 %" in drawn
    assert drawn.rindex("answered") > drawn.rindex("━")
    assert "\x1b[?25h" in drawn[drawn.rindex("\x1b[?25l") :]  # the cursor is there again


@pytest.mark.parametrize(
    ("answer", "code", "sent"),
    [("y\n", 0, 2), ("n\n", 2, 0), ("\n", 2, 0), ("\x04", 2, 0), ("\x03", 130, 0)],
)
def test_a_dear_run_asks_before_it_sends(
    bench: Bench, on_terminal: StartOnTerminal, answer: str, code: int, sent: int
) -> None:
    bench.config(PRICES)
    bench.write({}, {})
    run, terminal = on_terminal("in.jsonl", "-o", "out.jsonl", "--confirm-above=1")
    run.wait_for("Send 2 requests? [y/N]")
    terminal.type(answer)
    assert run.wait() == code, run.stderr
    assert bench.accepted == sent
    if not sent:
        assert (
            "nothing was sent" if code == 2 else "interrupted before anything was sent"
        ) in run.stderr
        assert "no new calls" not in run.stderr
    assert "USD for 2 requests" in run.stderr


def test_a_question_does_not_outlive_a_signal(bench: Bench, on_terminal: StartOnTerminal) -> None:
    bench.config(PRICES)
    bench.write({}, {})
    run, _ = on_terminal("in.jsonl", "-o", "out.jsonl", "--confirm-above=1")
    run.wait_for("Send 2 requests? [y/N]")
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 130
    assert "interrupted before anything was sent" in run.stderr
    assert bench.accepted == 0


@pytest.mark.parametrize("name", ["stdin", "stderr"])
def test_nobody_is_asked_where_a_stream_is_closed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, name, None)
    assert not _run_command.somebody_is_there()


@pytest.mark.parametrize("options", [["--yes"], ["--confirm-above=1000000"]])
def test_it_need_not_ask(bench: Bench, on_terminal: StartOnTerminal, options: list[str]) -> None:
    bench.config(PRICES)
    bench.write({}, {})
    run, _ = on_terminal("in.jsonl", "-o", "out.jsonl", *options)
    assert run.wait() == 0
    assert "Send 2 requests?" not in run.stderr


def test_ctrl_c_on_a_terminal_stops_in_good_order(
    bench: Bench, on_terminal: StartOnTerminal
) -> None:
    bench.server.hold()
    bench.write(*[HELD] * 2, *[{}] * 3)
    options = ["--concurrency=2", "--deadline=3600", "--timeout=1800", "--grace=1000"]
    run, terminal = on_terminal("in.jsonl", "-o", "out.jsonl", *options)
    bench.server.wait_in_flight(2, PATIENCE)
    terminal.type("\x03")
    run.wait_for(
        "SIGINT: no new calls, those in flight have 1,000 s; Ctrl-C again cancels them at once"
    )
    run.wait_for("stopping: no new calls")
    bench.server.release()
    assert run.wait() == 130
    assert sorted(bench.ids()) == ids(0, 1)
    # It is wider than the terminal, and one line all the same.
    again = f"to go on: parallel-core run in.jsonl -o out.jsonl {' '.join(options)} --config="
    assert again in run.stderr
    assert "Traceback" not in run.stderr


def test_ctrl_c_does_not_reach_the_demo_server(bench: Bench, on_terminal: StartOnTerminal) -> None:
    bench.write(*[{"latency": 0.5}] * 200)
    options = ["--demo", "--concurrency=20", "--grace=1000"]
    run, terminal = on_terminal("in.jsonl", "-o", "out.jsonl", *options, router=False)
    run.wait_for("in flight 20/20")
    terminal.type("\x03")
    assert run.wait() == 130
    assert 20 <= len(bench.results()) < 200
    assert [result["error"] for result in bench.results() if result["error"]] == []
    assert "cut off" not in run.stderr


def test_many_bad_lines_are_all_written_as_failures(bench: Bench) -> None:
    bench.path("in.jsonl").write_text("{\n" * 50 + f'{{"custom_id": "a", "body": {BODY}}}\n')
    done = bench.run("in.jsonl", "-o", "out.jsonl", "--skip-invalid", "--order=input")
    assert done.code == 1
    assert bench.ids() == [*map(str, range(1, 51)), "a"]
    assert "and 30 more bad lines" in done.said
    assert bench.run("in.jsonl", "-o", "out.jsonl", "--skip-invalid").code == 1
    assert (len(bench.ids()), bench.accepted) == (51, 1)
