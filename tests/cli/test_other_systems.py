"""What the package does on Windows and macOS, as far as Linux can play them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from helpers.forked_processes import ForkedProcesses
from parallel_core.cli.terminal import program, shell_line

SCRIPT = Path(__file__).parent / "scripts" / "run_on_another_system.py"


@pytest.mark.parametrize("system", ["windows", pytest.param("macos", marks=pytest.mark.thorough)])
def test_a_run(system: str, tmp_path: Path, commands: ForkedProcesses) -> None:
    process = commands.start([system, str(tmp_path)], script=SCRIPT, folder=tmp_path)
    assert process.wait() == 0, process.stderr


def test_a_name_with_backslashes_is_one_word_of_a_shell() -> None:
    path = r"C:\My Files\new\in.jsonl"
    assert shlex.split(shell_line(["parallel-core", "run", path])) == ["parallel-core", "run", path]


def test_the_command_is_named_without_its_exe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "parallel-core.exe"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == ["parallel-core.exe"]
    monkeypatch.setenv("PATH", "")
    assert program() == [str(script)]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "another.exe")])
    assert program() == ["parallel-core"]
