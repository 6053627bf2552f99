"""The command that resumes a run, as a line that can be pasted into a shell."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from helpers.run_values import summary_of
from parallel_core.cli.resume_command import resume_command
from parallel_core.cli.terminal import program, shell_line
from parallel_core.cli.text_view import TextView
from parallel_core.config import Redactor
from parallel_core.run import FailureGroup, RunSummary


@pytest.mark.parametrize(
    ("given", "summary", "expected"),
    [
        (
            [
                "run",
                "in.jsonl",
                "-o",
                "out.jsonl",
                "--max-cost",
                "5",
                "--total-timeout=3600",
                "--yes",
            ],
            summary_of(),
            [
                "run",
                "in.jsonl",
                "-o",
                "out.jsonl",
                "--max-cost",
                "5",
                "--total-timeout=3600",
                "--yes",
            ],
        ),
        (["run", "i", "-o", "o", "--force-new"], summary_of(), ["run", "i", "-o", "o"]),
        (  # what has not been tried again yet is left
            ["run", "i", "-o", "o", "--retry-failed"],
            summary_of(),
            ["run", "i", "-o", "o", "--retry-failed"],
        ),
        (
            ["run", "i", "-o", "o"],
            summary_of(unfinished=0, failed=2),
            ["run", "--retry-failed", "i", "-o", "o"],
        ),
        (  # what failed would fail again
            ["run", "i", "-o", "o"],
            summary_of(failed=2, final_failures=2),
            ["run", "i", "-o", "o"],
        ),
        (["run", "i", "-o", "o"], summary_of(unfinished=0, failed=2, final_failures=2), None),
        (
            ["run", "i", "-o", "o"],
            summary_of(unfinished=0, failed=1, earlier_failed=2, final_failures=2),
            ["run", "--retry-failed", "i", "-o", "o"],
        ),
        (
            ["run", "--retry-failed=overloaded", "i", "-o", "o"],
            summary_of(unfinished=0, failed=2),
            ["run", "--retry-failed=overloaded", "i", "-o", "o"],
        ),
        (
            ["run", "-o", "o", "--", "--force-new"],
            summary_of(unfinished=0, failed=2),
            ["run", "--retry-failed", "-o", "o", "--", "--force-new"],
        ),
        (  # none of these kinds is left, or they would have been sent
            ["run", "--retry-failed=timeout", "i"],
            summary_of(unfinished=0, earlier_failed=2),
            ["run", "--retry-failed", "i"],
        ),
        (
            ["run", "--retry-failed=timeout", "i"],
            summary_of(unfinished=0, failed=1, earlier_failed=2),
            ["run", "--retry-failed=timeout", "i"],
        ),
        (  # what stopped the model has failed its first requests, too
            ["run", "i", "-o", "o"],
            summary_of(
                ending="blocked",
                unfinished=5,
                failed=17,
                failures=[FailureGroup("overloaded", 17, "429: Slow down.", ["a"], 429)],
            ),
            ["run", "--retry-failed", "i", "-o", "o"],
        ),
        (
            ["run", "i"],
            summary_of(
                ending="blocked",
                unfinished=5,
                failed=1,
                failures=[FailureGroup("answer", 1, "no choices", ["a"])],
            ),
            ["run", "i"],
        ),
        (  # a key that is also a word is no reason to change the word
            ["run", "i", "-o", "o", "--model", "ollama/x", "--api-base", "http://u:ollama@h/v1"],
            summary_of(),
            ["run", "i", "-o", "o", "--model", "ollama/x", "--api-base", "http://[redacted]@h/v1"],
        ),
    ],
)
def test_the_command_that_resumes_repeats_every_option(
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    summary: RunSummary,
    expected: list[str] | None,
) -> None:
    monkeypatch.setattr(sys, "argv", ["parallel-core", *given])
    command = resume_command(summary, Redactor(["ollama"]))
    if expected is None:
        assert command is None
    else:
        assert command is not None
        assert shlex.split(command) == ["parallel-core", *expected]


@pytest.mark.parametrize("width", ["20", "80"])
def test_the_command_that_resumes_is_one_line(monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    command = (
        "parallel-core run 'a file.jsonl' -o out.jsonl --max-cost 5 " + "--total-timeout 3600 " * 9
    )
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, markup=False)
    TextView(error=console, output=console).summary(summary_of(), command)
    assert f"resume with: {command}\n" in shown.getvalue()


def test_the_command_that_resumes_starts_the_same_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "parallel-core"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert program() == ["parallel-core"]
    monkeypatch.setenv("PATH", "")
    assert program() == [str(script)]
    module = ModuleType("__main__")
    spec: Any = SimpleNamespace(name="parallel_core.cli")
    module.__spec__ = spec
    monkeypatch.setitem(sys.modules, "__main__", module)
    assert program() == [sys.executable, "-m", "parallel_core.cli"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_shell_reads_every_name_as_it_was(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    words = ["a b", "it's", "é", "x\x1b[31m\n'\\", os.fsdecode(b"\xff"), "", "$HOME", "\u202e"]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    line = shell_line(words)
    assert line.isprintable()
    line.encode(encoding)
    # bash reads $'…', as zsh, ksh and POSIX's shell of 2024 do.
    show = [sys.executable, "-c", "import os, sys; print([*map(os.fsencode, sys.argv[1:])])"]
    ran = subprocess.run(
        ["bash", "-c", f"{shlex.join(show)} {line}"], check=True, capture_output=True, text=True
    )
    assert ran.stdout == f"{[*map(os.fsencode, words)]}\n"
