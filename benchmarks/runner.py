"""Cells in processes of their own, the peers in turn, round after round; medians and ratios."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGALRM
from typing import Any

from .peers import PEERS, Peer
from .question import Fit, Measured, Parameters, Question, Size

# What every cell needs, imported once for each round.
PRELOADED = ("asyncio", "trio", "parallel_core", "benchmarks.questions")

# Further rounds of a cell that has taken so long would make the whole too long. In seconds.
ENOUGH: dict[Size, float] = {"full": 2.0, "quick": 1.0, "smoke": 1.0}
ENOUGH_WITH_ROUTER = 30.0  # it takes seconds to begin, however little is asked

FRAMES_PER_ROUND = 5  # see cell.at_depth


@dataclass
class Cell:
    """What has been measured of one peer with one set of parameters."""

    peer: Peer
    parameters: Parameters
    rounds: list[Measured] = field(default_factory=list)
    problem: str | None = None  # why there is nothing, or no more
    took: float = 0.0  # seconds, all rounds

    def values(self, quantity: str) -> list[float]:
        measured = (one.get(quantity) for one in self.rounds)
        return [value for value in measured if value is not None]


@dataclass
class Group:
    """The cells of all peers with the same parameters."""

    parameters: Parameters
    cells: list[Cell]

    def of(self, key: str) -> Cell | None:
        return next((cell for cell in self.cells if cell.peer.key == key), None)


@dataclass
class Answer:
    """All that was measured for a question.

    Attributes:
        rounds: of each cell, where nothing has kept it from them.
        refused: the peers that it cannot be asked, by the reason.
    """

    question: Question
    rounds: int
    groups: list[Group]
    refused: dict[str, list[Peer]]


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
) -> Answer:
    """Measure every cell, ``rounds`` times."""
    answer = Answer(question, rounds, [], {})
    for parameters in question.cells(size):
        group = Group(parameters, [])
        for peer in peers:
            reason = question.refuses(peer, parameters)
            if reason is None:
                problem = "not installed" if peer.version is None else None
                group.cells.append(Cell(peer, parameters, problem=problem))
            elif peer not in answer.refused.setdefault(reason, []):
                answer.refused[reason].append(peer)
        answer.groups.append(group)
    for round_number in range(rounds):
        for with_router, enough in ((False, ENOUGH[size]), (True, ENOUGH_WITH_ROUTER)):
            due = [
                cell
                for group in answer.groups
                if question.uses_router(group.parameters) is with_router
                for cell in group.cells
                if cell.problem is None
                and cell.took < enough
                and round_number < (question.rounds(cell.parameters, size) or rounds)
            ]
            if not due:
                continue
            with CellProcesses.started(with_router=with_router) as processes:
                for cell in due:
                    cell.problem = _too_long(answer, cell)
                    if cell.problem is not None:
                        continue
                    progress(
                        f"{question.name}, round {round_number + 1} of {rounds}: "
                        f"{describe(cell.parameters)}, {cell.peer.title}"
                    )
                    began = time.monotonic()
                    processes.measure(question, cell, round_number)
                    cell.took += time.monotonic() - began
    return answer


def _too_long(answer: Answer, cell: Cell) -> str | None:
    """Where a tenth of the requests, say, took so long that these would take too long."""
    size, timeout = answer.question.size, answer.question.timeout
    if size is None or cell.rounds:
        return None
    smaller = [
        (group.parameters[size], before)
        for group in answer.groups
        if group.parameters[size] < cell.parameters[size]
        and {**group.parameters, size: 0} == {**cell.parameters, size: 0}
        and (before := group.of(cell.peer.key)) is not None
    ]
    if not smaller:
        return None
    count, before = max(smaller, key=lambda one: one[0])
    times = cell.parameters[size] / count
    if times > 10:  # a small cell says little: most of what it takes is its beginning
        return None
    if before.problem is not None:
        return before.problem
    took = before.took / len(before.rounds) * times
    return None if took < timeout else f"more than {timeout} s, going by {count:,}"


class CellProcesses:
    """Has each cell measured in a process of its own (:mod:`benchmarks.cell`)."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._answer = folder / "answer.json"
        self._errors = folder / "errors.txt"

    @classmethod
    @contextmanager
    def started(cls, *, with_router: bool) -> Generator[CellProcesses, None, None]:
        preloaded = [*PRELOADED, *(["litellm"] if with_router else [])]
        with (
            tempfile.TemporaryDirectory() as folder,
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.cell", *preloaded],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # litellm would ask the network for prices.
                env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
                cwd=Path(__file__).resolve().parent.parent,
            ) as process,
        ):
            yield cls(process, Path(folder))
            assert process.stdin is not None
            process.stdin.close()

    def measure(self, question: Question, cell: Cell, round_number: int) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {
            "question": question.name,
            "peer": cell.peer.key,
            "parameters": cell.parameters,
            "depth": FRAMES_PER_ROUND * round_number,
            "timeout": question.timeout,
            "answer": str(self._answer),
            "errors": str(self._errors),
        }
        print(json.dumps(job), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that measures has ended: see its message above")
        status = int(line)
        if status == 0:
            cell.rounds.append(json.loads(self._answer.read_text()))
        elif status == -SIGALRM:
            cell.problem = f"more than {question.timeout} s"
        else:
            last_line = (self._errors.read_text().strip() or f"exit status {status}").splitlines()
            cell.problem = f"failed: {last_line[-1][:100]}"
        self._answer.unlink(missing_ok=True)
        self._errors.unlink(missing_ok=True)


def ratios(cell: Cell, base: Cell, quantity: str) -> Spread | None:
    """Round by round, since what disturbs a machine disturbs neighbours alike."""
    return Spread.of(
        [
            mine / theirs
            for one, other in zip(cell.rounds, base.rounds, strict=False)
            if (mine := one.get(quantity)) is not None and (theirs := other.get(quantity))
        ]
    )


def exponent(fit: Fit, answer: Answer, peer: Peer) -> float | None:
    """Of the power law through a peer's medians: least squares of their logarithms."""
    points: list[tuple[float, float]] = []
    for group in answer.groups:
        cell = group.of(peer.key)
        if cell is not None and fit.where.items() <= group.parameters.items():
            spread = Spread.of(cell.values(fit.quantity))
            if spread is not None and spread.median > 0:
                points.append((math.log(group.parameters[fit.along]), math.log(spread.median)))
    if len(points) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


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
        "load": [round(load, 2) for load in os.getloadavg()],
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
