"""What the command imports, when, and signals meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.odd_texts import write_requests
from parallel_core.cli.run_signals import STOP_SIGNALS

SCRIPTS = Path(__file__).parent / "scripts"
DAILY = {
    ("parallel_core", "SIGINT"),
    ("parallel_core.cli.run_command", "SIGHUP"),
    ("litellm", "SIGTERM"),
}


@pytest.mark.parametrize(
    ("module", "number"),
    [
        # Each signal once, and each import; litellm takes seconds.
        pytest.param(
            module,
            number,
            marks=[] if (module, number.name) in DAILY else pytest.mark.thorough,
        )
        for module in ("parallel_core", "parallel_core.cli.run_command", "litellm")
        for number in STOP_SIGNALS
    ],
)
def test_a_signal_during_the_imports_ends_with_one_line(
    module: str, number: signal.Signals, tmp_path: Path
) -> None:
    write_requests(tmp_path / "in.jsonl", "m")
    command = [sys.executable, str(SCRIPTS / "interrupted_import.py"), module, str(int(number))]
    command += ["run", "in.jsonl", "-o", "out", "--model=openai/m"]
    text = "interrupted before anything was sent"
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    checked = "1 request (m 1)\n" if module == "litellm" else ""
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"{checked}{text}\n")
    if module != "parallel_core":
        return
    ended = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "")
    assert json.loads(ended.stdout) == {"event": "error", "text": text}


def test_the_command_loads_no_client_before_it_needs_one() -> None:
    ran = subprocess.run(
        [sys.executable, SCRIPTS / "what_the_command_imports.py"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert ran[0].startswith("parallel-core ")
    assert ran[1:] == ["[]"]
