"""Each kind of failure in a batch of trio, through a Router as it comes, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from helpers.failures_matrix import Cell, FailuresOfAWay, send_by_library
from helpers.forked_processes import ForkedProcesses
from helpers.hosts import TRIO


class TestTrio(FailuresOfAWay):
    daily: ClassVar = [("fixed", 2)]

    @staticmethod
    def send(cells: list[Cell], folder: Path, commands: ForkedProcesses) -> None:
        send_by_library(TRIO, cells)
