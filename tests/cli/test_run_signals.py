"""Signals end ``parallel-core run`` in good order; readers of its output that leave end nothing."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from helpers.forked_processes import PATIENCE
from helpers.run_bench import (
    FAILS,
    HANGS,
    HELD,
    Bench,
    ids,
    the_end_of,
)
from parallel_core.run import RunProgress, RunSummary

SCRIPTS = Path(__file__).parent / "scripts"


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


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.thorough)]
)
def test_a_signal_while_litellm_is_imported_ends_it_before_anything_is_sent(
    bench: Bench, number: signal.Signals
) -> None:
    bench.write({}, {})
    command = [sys.executable, str(SCRIPTS / "interrupted_import.py"), "litellm", str(int(number))]
    command += ["run", "in.jsonl", "-o", "out.jsonl", "--demo", "--json"]
    # A server that is left behind has the pipe open, and there would be no end of it.
    done = subprocess.run(
        command, cwd=bench.folder, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 130
    checked, *rest = map(json.loads, done.stdout.splitlines())
    assert checked["event"] == "checked"
    assert rest[-1] == {"event": "error", "text": "interrupted before anything was sent"}
    assert "Traceback" not in done.stderr
    assert not bench.path("out.jsonl").exists()


@pytest.mark.thorough  # a fresh process; the next test forks one
def test_nobody_reads_its_output_and_it_goes_on_all_the_same(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    options = ["in.jsonl", "-o", "out.jsonl", "--config=config.yaml", "--json"]
    with real_process(bench, *options, shell=" | head -n 1") as run:
        first, said = run.communicate(timeout=PATIENCE)
    assert json.loads(first)["event"] == "checked"
    assert said == ""
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4)


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_a_reader_that_goes_away_in_the_middle_ends_nothing(bench: Bench, words: list[str]) -> None:
    bench.server.hold()
    bench.write(*[HELD] * 5)
    reads, writes = os.pipe()
    run = bench.start("in.jsonl", "-o", "out.jsonl", "--concurrency=1", *words, output=writes)
    os.close(writes)
    bench.server.wait_in_flight(1, PATIENCE)
    os.close(reads)
    bench.server.release()
    assert run.wait() == 0
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4)
    assert bench.accepted == 5


# What the end of an interpreter does to such streams.
@pytest.mark.thorough
@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_a_reader_that_has_gone_does_not_change_the_exit_code(
    bench: Bench, words: list[str]
) -> None:
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


@pytest.mark.thorough  # enough to fill a pipe
def test_a_reader_that_reads_no_more_holds_up_neither_calls_nor_signals(bench: Bench) -> None:
    bench.write(*[{"latency": 0.05}] * 60, HANGS)
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)  # ten snapshots fill it
    options = ["in.jsonl", "-o", "out.jsonl", "--concurrency=1", "--json", "--grace=0"]
    run = bench.start(*options, output=writes)
    os.close(writes)
    bench.server.wait_finished(60, PATIENCE)  # else calls wait for the reader
    bench.server.wait_in_flight(1, PATIENCE)
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 130
    os.close(reads)
    assert sorted(bench.ids()) == sorted(ids(*range(60)))


# With all that a start of Python does, which takes seconds.
@pytest.mark.thorough
def test_it_needs_no_standard_error(bench: Bench) -> None:
    bench.write(*[{}] * 5)
    options = ["in.jsonl", "-o", "out.jsonl", "--config=config.yaml"]
    with real_process(bench, *options, shell=" 2>&-") as run:
        told, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0
    assert "answered      5" in told
    assert sorted(bench.ids()) == ids(0, 1, 2, 3, 4)
