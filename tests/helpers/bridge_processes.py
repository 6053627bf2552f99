"""Starts the scripts of the bridge's tests, and checks what they print."""

from __future__ import annotations

import signal
from pathlib import Path

from helpers.forked_processes import ForkedProcess, ForkedProcesses

SCRIPTS = Path(__file__).resolve().parents[1] / "bridge" / "scripts"

FORMS = ("list", "block", "plain", "background")  # as in helpers.bridge_scripts

NOISE = (
    "Task was destroyed",
    "never awaited",
    "async generator",
    "asynchronous generator",
    "TrioInternalError",
    "Task exception was never retrieved",
    "Exception ignored",
    "Unhandled exception",
    "unhandled exception",
    "ResourceWarning",
    "RuntimeWarning",
)


class Scripts:
    """Starts scripts, each in a process of its own."""

    def __init__(self, forks: ForkedProcesses) -> None:
        self._forks = forks

    def start(self, name: str, case: str, loop: str = "asyncio", *arguments: str) -> ForkedProcess:
        return self._forks.start(
            [case, loop, *arguments], folder=SCRIPTS, script=SCRIPTS / f"{name}.py"
        )

    def check(self, name: str, case: str, loop: str = "asyncio") -> None:
        """Run a script that checks itself: it must end with "fine" and print no error."""
        process = self.start(name, case, loop)
        code, out, err = finish(process)
        assert code == 0, err
        assert out.strip().splitlines()[-1:] == ["fine"], out + err
        assert not err, err


def finish(process: ForkedProcess, noise: tuple[str, ...] = NOISE) -> tuple[int, str, str]:
    """Wait for the end of a process; return its exit code, standard output and standard error."""
    code = process.wait()
    for word in noise:
        assert word not in process.stderr, process.stderr
    return code, process.stdout, process.stderr


def interrupt_at(process: ForkedProcess, line: str) -> None:
    """Press Ctrl-C when the process has printed a line."""
    try:
        process.wait_for(f"{line}\n")
    except BaseException:
        process.kill()
        raise
    process.send_signal(signal.SIGINT)
