"""Errors as users and programs read them: wrong options as events, many bad lines, many models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.odd_texts import MESSAGES, write_requests
from parallel_core import (
    cli,
)
from parallel_core.files.batch_input import InputFile


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--json", "--nosuch"], "--nosuch"),
        (["run", "in", "--json", "--limit=abc"], "--limit"),
        (["run", "in", "--json", "--limit=0"], "--limit"),
        (["run", "--json"], "Missing argument 'INPUT'"),
        (["run", "in", "-o", "out", "--json"], "no Router is given"),
        (["run", "in", "-o", "out", "--demo", "--json", "--order=random"], "is not one of"),
        (["run", "in", "--demo", "--json"], "give --output FILE"),
        (["--nosuch", "run", "--json"], "--nosuch"),
        (["nosuch", "--json"], "No such command 'nosuch'"),
        (["doctor", "--json", "--api-base", "x"], "--api-base is the address of a model"),
        (["doctor", "--json", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_a_wrong_option_is_an_event_in_json(words: list[str], says: str) -> None:
    done = CliRunner().invoke(cli.app, words)
    assert (done.exit_code, done.stderr) == (2, "")
    (event,) = map(json.loads, done.stdout.splitlines())
    assert event["event"] == "error"
    assert says in event["text"]


def test_of_many_bad_lines_twenty_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{\n" * 1000)
    shown = CliRunner().invoke(cli.app, ["run", str(source), "--validate"]).stderr
    assert shown.count("invalid_json_line") == 20
    assert "and 980 more bad lines\n0 requests (none), 1,000 bad lines\n" in shown
    done = CliRunner().invoke(cli.app, ["run", str(source), "--validate", "--json"])
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["problem"] * 20 + ["checked", "error"]
    assert events[20]["problems"] == 1000


def test_bad_lines_are_read_again_with_names_of_their_own(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    good = {"model": "m", "messages": MESSAGES}
    lines: list[Any] = [{"custom_id": "a", **good}, *[{"custom_id": "a", **good}] * 30]
    lines += [{"custom_id": "40"}, {"custom_id": "33", **good}, {"custom_id": "a#line-2"}]
    lines += [*range(6), {"custom_id": "b", **good}, {"custom_id": "b", **good}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with InputFile(source) as file:
        summary = file.check()
        problems = list(file.problems())
        assert (summary.requests, summary.bad_lines) == (3, len(problems)) == (3, 39)
        assert problems[:20] == summary.problems
        names = [problem.custom_id for problem in problems]
        names += [request.custom_id for request in file.requests()]
        assert len(set(names)) == len(names) == len(lines)
        assert list(file.problems()) == problems
        assert "is already used by line 1" in problems[0].message
        assert problems[-1].message.endswith("is already used by line 41")
        assert names[:2] == ["a#line-2#line-2", "a#line-3"] or names[0] == "a#line-2"


def test_of_many_models_some_are_named(tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", *(f"m{number}" for number in range(100)))
    shown = CliRunner().invoke(cli.app, ["run", str(source), "--validate"]).stderr
    assert "100 requests (m0 1, m1 1, " in shown
    assert "m19 1 and 80 more)" in shown
