"""Measures cells, each in a process of its own: ``python -m benchmarks.cell PRELOAD…``.

This process imports what every cell needs, and forks for each line that it reads: a cell begins
fresh, and does not spend its time on imports. The exit status of each is printed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from .question import Measured


def measure(job: dict[str, Any]) -> None:
    from .peers import PEERS
    from .questions import QUESTIONS

    def done(measured: Measured) -> NoReturn:
        Path(job["answer"]).write_text(json.dumps(measured))
        # Inside of the peer's loop: what it has left running there, a hundred thousand tasks, is
        # not waited for.
        os._exit(0)

    question, peer = QUESTIONS[job["question"]], PEERS[job["peer"]]
    at_depth(job["depth"], lambda: question.measure(peer, job["parameters"], done))


def at_depth(depth: int, function: Any) -> Any:
    """Call a function with so many frames below it.

    CPython keeps the frames of a thread in chunks of memory. A loop whose calls happen to cross
    the end of a chunk is slower than it would be some frames further up: by half and more, in what
    these benchmarks measure. Each round begins at another depth, so that this hits no side alone.
    """
    return function() if depth == 0 else at_depth(depth - 1, function)


def in_a_fork(job: dict[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            errors = os.open(job["errors"], os.O_WRONLY | os.O_CREAT)
            os.dup2(errors, 2)
            os.dup2(errors, 1)
            signal.alarm(job["timeout"])
            measure(job)
        except BaseException as exception:  # noqa: BLE001 - told to the runner
            print(f"{type(exception).__name__}: {exception}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):  # a server that it has started, if it was cut off
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        print(in_a_fork(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
