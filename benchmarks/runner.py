"""Cells in processes of their own, the peers in turn, round after round; medians and ratios."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .peers import PEERS, Peer
from .question import Measured, Parameters, Question, Size

CELL_TIMEOUT = 90.0  # seconds


@dataclass
class Cell:
    """What has been measured of one peer with one set of parameters."""

    peer: Peer
    parameters: Parameters
    rounds: list[Measured] = field(default_factory=list)
    problem: str | None = None  # why there is nothing, or no more

    def values(self, quantity: str) -> list[float]:
        measured = (one[quantity] for one in self.rounds)
        return [value for value in measured if value is not None]


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, with the smallest and the largest."""

    median: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread | None:
        return cls(statistics.median(values), min(values), max(values)) if values else None


def run_question(
    question: Question,
    size: Size,
    rounds: int,
    peers: Iterable[Peer],
    progress: Callable[[str], None],
) -> list[list[Cell]]:
    """Measure every cell; a list of cells, one for each peer, for each set of parameters."""
    groups: list[list[Cell]] = []
    for parameters in question.cells(size):
        cells = [Cell(peer, parameters) for peer in peers if question.asks(peer, parameters)]
        for cell in cells:
            if cell.peer.version is None:
                cell.problem = "not installed"
        for number in range(question.rounds(parameters) or rounds):
            for cell in cells:
                if cell.problem is None:
                    progress(
                        f"{question.name} {describe(parameters)}: {cell.peer.key}, {number + 1}"
                    )
                    _measure(question, cell)
        groups.append(cells)
    return groups


def _measure(question: Question, cell: Cell) -> None:
    command = [sys.executable, "-m", "benchmarks.cell", question.name, cell.peer.key]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        try:
            done = subprocess.run(
                [*command, json.dumps(cell.parameters), str(answer)],
                capture_output=True,
                text=True,
                timeout=CELL_TIMEOUT,
                env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
                cwd=Path(__file__).resolve().parent.parent,
            )
        except subprocess.TimeoutExpired:
            cell.problem = f"took more than {CELL_TIMEOUT:.0f} s"
            return
        if done.returncode or not answer.exists():
            last_line = (done.stderr.strip() or "no output").splitlines()[-1]
            cell.problem = f"failed: {last_line[:100]}"
            return
        cell.rounds.append(json.loads(answer.read_text()))


def ratios(cell: Cell, base: Cell, quantity: str) -> Spread | None:
    """Round by round, since what disturbs a machine disturbs neighbours alike."""
    pairs = zip(cell.rounds, base.rounds, strict=False)
    return Spread.of(
        [
            mine[quantity] / theirs[quantity]  # type: ignore[operator]  # None was left out
            for mine, theirs in pairs
            if mine[quantity] is not None and theirs[quantity]
        ]
    )


def describe(parameters: Parameters) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {_plain(value)}" for name, value in parameters.items()
    )


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {
            peer.distribution: peer.version for peer in PEERS.values() if peer.distribution
        },
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
