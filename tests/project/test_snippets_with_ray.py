"""Snippets of the docs that need Ray run as they stand. Tests of ``ray_engine`` are quicker."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.ray_runtime import IGNORED_WARNINGS, running_ray
from helpers.snippets import needs_ray, snippets, written

TIMEOUT = 100.0  # seconds
OF_RAY = {name: text for name, text in snippets("python").items() if needs_ray(text)}
assert OF_RAY
pytestmark = [
    pytest.mark.thorough,
    *(pytest.mark.filterwarnings(one) for one in IGNORED_WARNINGS),
]


@pytest.fixture
def places(snippet: str) -> Iterator[dict[str, str]]:
    """The variables with which a snippet finds the Ray of the tests, or starts one of its own."""
    if "ray.init(" not in snippet:
        with running_ray() as ray:  # a start of its own takes half a minute
            address = ray.get_runtime_context().gcs_address
            yield {**os.environ, "RAY_ADDRESS": address}
        return
    # Ray writes into the home, and has no place for long paths.
    with tempfile.TemporaryDirectory(prefix="pc") as folder:
        yield {**os.environ, "HOME": folder, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("snippet", OF_RAY.values(), ids=OF_RAY)
def test_a_python_snippet(
    snippet: str, environment: dict[str, str], places: dict[str, str], tmp_path: Path
) -> None:
    provider = {name: environment[name] for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY")}
    done = subprocess.run(
        [sys.executable, str(written(snippet, tmp_path, environment["OPENAI_BASE_URL"]))],
        env={**places, **provider, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout
    # Ray reports its start there, or that it has been found.
    assert "Error" not in done.stderr
    assert "parallel_core" not in done.stderr, done.stderr
