"""Commands and scripts that run as on the machine of a reader."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from helpers.forked_processes import ForkedProcesses
from helpers.snippets import REPOSITORY, Done, Run
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

TIMEOUT = 100.0  # seconds


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """As on the machine of a reader, but OpenAI is the demo server."""
    settings = DemoServerSettings(latency_median=0.0, models={"gpt-4o-mini": 1.0})
    with DemoServerThread(settings) as server:
        yield {
            **os.environ,
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "none",
            "PYTHONWARNINGS": "default::ResourceWarning,default::RuntimeWarning",
            # The command that was installed beside this Python.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "COLUMNS": "100",
        }


@pytest.fixture
def run(commands: ForkedProcesses, environment: dict[str, str]) -> Run:
    """Run a command: in a forked process, which does not import litellm again, or afresh."""

    def run_it(command: Sequence[str], folder: Path = REPOSITORY, *, afresh: bool = False) -> Done:
        program, *arguments = command
        if afresh or program not in ("python", "parallel-core"):
            done = subprocess.run(
                command,
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            return Done(done.returncode, done.stdout, done.stderr)
        script = folder / arguments.pop(0) if program == "python" else None
        process = commands.start(arguments, script=script, folder=folder, environment=environment)
        return Done(process.wait(TIMEOUT), process.stdout, process.stderr)

    return run_it
