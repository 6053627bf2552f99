"""A folder, a server and the command, for the tests of ``parallel-core run``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.forked_processes import ForkedProcesses
from helpers.run_bench import (
    Bench,
)
from parallel_core.demo_server import DemoServerSettings, DemoServerThread


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServerThread]:
    settings = DemoServerSettings(latency_median=0.0, models={"fast": 1.0, "demo": 1.0})
    with DemoServerThread(settings) as running:
        yield running


@pytest.fixture
def bench(tmp_path: Path, server: DemoServerThread, commands: ForkedProcesses) -> Bench:
    return Bench(tmp_path, server, commands)
