"""Processes of the command ``parallel-core``: see ``forked_processes``."""

from __future__ import annotations

from forked_processes import ForkedProcess as CommandProcess
from forked_processes import ForkedProcesses as Commands

__all__ = ["CommandProcess", "Commands"]
