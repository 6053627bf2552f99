"""Snippets of the docs that need Ray run as they stand. Tests of ``ray_engine`` are quicker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.ray_runtime import IGNORED_WARNINGS, ray_environment, running_ray
from helpers.snippets import needs_ray, snippets, written

TIMEOUT = 100.0  # seconds
pytestmark = [
    pytest.mark.thorough,
    *(pytest.mark.filterwarnings(text) for text in IGNORED_WARNINGS),
]
OF_RAY = {name: text for name, text in snippets("python").items() if needs_ray(text)}
# Those that start a Ray of their own, as they say.
STARTING = {name: text for name, text in OF_RAY.items() if "ray.init(" in text}
JOINING = {name: text for name, text in OF_RAY.items() if name not in STARTING}
assert STARTING
assert JOINING


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """One Ray for all snippets that need not start one: the variables that lead to it."""
    with running_ray() as ray:
        yield {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def run(
    snippet: str, environment: dict[str, str], folder: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    script = written(snippet, folder, environment["OPENAI_BASE_URL"])
    with ray_environment() as home:
        places = {"HOME": home, "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0"}
        return subprocess.run(
            [sys.executable, str(script)],
            env={**environment, **places, "PYTHONWARNINGS": "ignore", **more},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )


def check(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout
    # Ray tells of its start, and of where it has put its logs.
    assert "Error" not in done.stderr, done.stderr


@pytest.mark.parametrize("snippet", STARTING.values(), ids=STARTING)
def test_a_snippet_that_starts_ray(
    snippet: str, environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    check(run(snippet, environment, tmp_path))


@pytest.mark.parametrize("snippet", JOINING.values(), ids=JOINING)
def test_a_snippet_on_a_cluster(
    snippet: str, environment: dict[str, str], tmp_path: Path, cluster: dict[str, str]
) -> None:
    done = run(snippet, environment, tmp_path, **cluster)
    check(done)
    assert "False" not in done.stdout  # each request is answered
