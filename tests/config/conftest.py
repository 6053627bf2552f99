"""What the tests of configs share: a server, a folder, and none of this machine's keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from helpers.key_recorders import ANTHROPIC_KEY, GROQ_KEY, OPENAI_KEY, Recorder
from parallel_core.cli import app
from parallel_core.demo_server import DemoServerSettings, DemoServerThread

FAST = DemoServerSettings(latency_median=0.0, models={"fast": 1.0, "smart": 1.0})


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    with DemoServerThread(FAST) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_keys(no_keys_of_this_machine: None) -> None:
    """A key of this machine would change what a config finds."""


@pytest.fixture(scope="module")
def two_servers() -> Iterator[tuple[Recorder, Recorder]]:
    one, other = Recorder(), Recorder()
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def servers(two_servers: tuple[Recorder, Recorder]) -> tuple[Recorder, Recorder]:
    for server in two_servers:
        server.sent.clear()
    return two_servers


@pytest.fixture
def three_keys(no_keys_of_this_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set keys of three providers, and no others."""
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI_KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", ANTHROPIC_KEY)
    monkeypatch.setenv("GROQ_API_KEY", GROQ_KEY)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write_file


@pytest.fixture
def run_command(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run ``parallel-core run`` with one request; returns the exit code and the output."""

    def run(
        *options: str, model: str = "gpt", members: dict[str, Any] | None = None
    ) -> tuple[int, str]:
        line = {"model": model, "messages": [{"role": "user", "content": "?"}], **(members or {})}
        (tmp_path / "requests.jsonl").write_text(json.dumps(line) + "\n")
        files = [str(tmp_path / "requests.jsonl"), "-o", str(tmp_path / "answers.jsonl")]
        result = CliRunner().invoke(app, ["run", *files, *options], env={"COLUMNS": "300"})
        return result.exit_code, result.output

    return run
