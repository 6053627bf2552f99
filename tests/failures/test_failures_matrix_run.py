"""Each kind of failure in ``parallel-core run``, through a Router as it comes, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from helpers.failures_matrix import Cell, FailuresOfARun, send_by_command
from helpers.forked_processes import ForkedProcesses


class TestRun(FailuresOfARun):
    daily: ClassVar = [("fixed", 3)]

    @staticmethod
    def send(cells: list[Cell], folder: Path, commands: ForkedProcesses) -> None:
        send_by_command(cells, folder, commands)
