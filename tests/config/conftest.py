"""What the tests of configs share: a server, a folder, and none of this machine's keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from parallel_core.demo_server import DemoServerSettings, DemoServerThread

FAST = DemoServerSettings(latency_median=0.0, models={"fast": 1.0, "smart": 1.0})


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    with DemoServerThread(FAST) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_keys(no_keys_of_this_machine: None) -> None:
    """A key of this machine would change what a config finds."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_file(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        return path

    return write_file
