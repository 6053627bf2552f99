"""Every snippet of the README and the docs runs as it stands, and so does every example.

The first snippet and the first command of the README run as a reader would run them. The others run
in forked processes, which do not import litellm again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from helpers.forked_processes import ForkedProcesses
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = [
    path
    for path in sorted((REPOSITORY / "examples").glob("*.py"))
    # These have tests of their own.
    if path.name not in ("make_requests.py", "trio_web.py", "movie_reviews_batch.py")
]
TIMEOUT = 100.0  # seconds
WARNINGS = ("default::ResourceWarning", "default::RuntimeWarning")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Run(Protocol):
    def __call__(
        self, command: Sequence[str], folder: Path = ..., *, afresh: bool = ...
    ) -> Done: ...


def snippets(language: str) -> list[Any]:
    """Each snippet, and whether it is the one that runs as a reader would run it."""
    params: list[Any] = []
    one_is_afresh = False
    for document in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        found = re.findall(
            rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL
        )
        for number, snippet in enumerate(found, 1):
            afresh = not one_is_afresh and not snippet.startswith("$ make")
            one_is_afresh = one_is_afresh or afresh
            params.append(pytest.param(snippet, afresh, id=f"{document.name}-{number}"))
    assert one_is_afresh
    return params


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """As on the machine of a reader, but OpenAI is the demo server."""
    settings = DemoServerSettings(latency_median=0.0, models={"gpt-4o-mini": 1.0})
    with DemoServerThread(settings) as server:
        yield {
            **os.environ,
            "OPENAI_BASE_URL": server.url,
            "OPENAI_API_KEY": "none",
            "PYTHONWARNINGS": ",".join(WARNINGS),
            # The command that was installed beside this Python.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "COLUMNS": "100",
        }


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkedProcesses]:
    with ForkedProcesses(warnings=WARNINGS) as started:
        yield started


@pytest.fixture
def run(forks: ForkedProcesses, environment: dict[str, str]) -> Run:
    """Run a command."""

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
        process = forks.start(arguments, script=script, folder=folder, environment=environment)
        return Done(process.wait(TIMEOUT), process.stdout, process.stderr)

    return run_it


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


@pytest.mark.parametrize(("snippet", "afresh"), snippets("python"))
def test_a_python_snippet(
    snippet: str, afresh: bool, run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "snippet.py"
    # example.org stands for a server that the reader has; here no network is needed.
    script.write_text(snippet.replace("https://example.org/", environment["OPENAI_BASE_URL"]))
    if "import ray\n" in snippet or "ray_engine" in snippet:
        pytest.importorskip("ray")
        done = run_with_ray(script, environment)
    else:
        done = run(["python", str(script)], afresh=afresh)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stdout
    assert "parallel_core" not in done.stderr, done.stderr


@pytest.mark.parametrize(("snippet", "afresh"), snippets("console"))
def test_a_console_snippet(snippet: str, afresh: bool, run: Run, tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    for line in snippet.splitlines():
        assert line.startswith("$ ")
        command = shlex.split(line.removeprefix("$ "), comments=True)
        if command[0] == "make":  # what these do is run by CI itself
            makefile = (REPOSITORY / "Makefile").read_text()
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE)
            continue
        done = run(command, tmp_path, afresh=afresh)
        afresh = False
        assert done.returncode == 0, done.stderr
        if command[1] == "run":
            assert re.search(r"^failed +0$", done.stdout, re.MULTILINE) or "--json" in command


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example(example: Path, run: Run) -> None:
    done = run(["python", str(example)])
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    if example.stem == "fail_fast":
        assert "the server saw 64 requests, 63 of them cancelled" in done.stdout
        assert "parallel_core: raised by request 20 (model 'fast')" in done.stdout
    elif example.stem == "stream_race":
        assert done.stdout.count("[synthetic]") == 3  # one of each model
        assert done.stdout.count("tokens in") == 4
        assert "failed" not in done.stdout
    else:
        assert len([line for line in done.stdout.splitlines() if "synthetic" in line]) == 50


def test_the_examples_are_those_that_the_readme_names() -> None:
    names = {path.stem for path in EXAMPLES}
    assert {"asyncio_batch", "trio_batch", "sync_batch", "fail_fast", "stream_race"} <= names
    lines = (REPOSITORY / "examples" / "requests.jsonl").read_text().splitlines()
    assert len({json.dumps(json.loads(line)["messages"]) for line in lines}) >= 200


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "docs/guide.md",
        "docs/cli.md",
        "docs/durability.md",
        "docs/failures.md",
        "docs/file-formats.md",
        "docs/report.md",
        "docs/controls.md",
        "docs/ray-data.md",
        "docs/streaming.md",
        "docs/trio.md",
        "docs/benchmarks.md",
        "docs/decisions.md",
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    path = REPOSITORY / document
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    for link in links:
        assert link.startswith("https://") or (path.parent / link).exists(), link
