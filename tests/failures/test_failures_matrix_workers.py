"""Each kind of failure in ``parallel-core run --workers``, over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from helpers.failures_matrix import Cell, FailuresOfARun, send_by_command
from helpers.forked_processes import ForkedProcesses

# What a worker does with a failure is what a run does with it.
pytestmark = pytest.mark.thorough


class TestWorkers(FailuresOfARun):
    ahead: ClassVar = 2  # as many again are at the workers before it is their turn

    @staticmethod
    def send(cells: list[Cell], folder: Path, commands: ForkedProcesses) -> None:
        pytest.importorskip("ray")
        from helpers.ray_runtime import running_ray

        with running_ray(cpus=len(cells)) as ray:
            address = ray.get_runtime_context().gcs_address
            send_by_command(cells, folder, commands, "--workers=1", f"--ray-address={address}")
