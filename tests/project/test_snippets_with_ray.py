"""Snippets of the docs that need Ray run as they stand. Tests of ``ray_engine`` are quicker."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from helpers.snippets import Done, needs_ray, snippets, written

TIMEOUT = 100.0  # seconds
OF_RAY = {name: text for name, text in snippets("python").items() if needs_ray(text)}
assert OF_RAY
pytestmark = pytest.mark.thorough


def run_with_ray(script: Path, environment: dict[str, str]) -> Done:
    """Run a script that starts Ray, which writes into the home and has no place for long paths."""
    with tempfile.TemporaryDirectory(prefix="pc") as folder:
        places = {"HOME": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**environment, **places, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    # Ray tells of its start, and of where it has put its logs.
    told = done.stderr if done.returncode or "Error" in done.stderr else ""
    return Done(done.returncode, done.stdout, told)


@pytest.mark.parametrize("snippet", OF_RAY.values(), ids=OF_RAY)
def test_a_python_snippet(snippet: str, environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    done = run_with_ray(written(snippet, tmp_path, environment["OPENAI_BASE_URL"]), environment)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout
    assert "parallel_core" not in done.stderr, done.stderr
