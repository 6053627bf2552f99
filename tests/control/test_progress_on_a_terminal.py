"""The bar of a process on a real terminal, and what its imports cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.progress_values import HIDE_CURSOR, SHOW_CURSOR, rows

SCRIPTS = Path(__file__).parent / "scripts"
ENVIRONMENT = {"TERM": "xterm", "COLUMNS": "120", "LINES": "30", "PYTHONWARNINGS": "error"}


def environment() -> dict[str, str]:
    unwanted = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | ENVIRONMENT


def run_on_a_terminal(*, pipe_stdout: bool) -> tuple[str, str]:
    """What appears on the terminal, and what comes out of the pipe."""
    pty = pytest.importorskip("pty")  # not on Windows
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / "two_bars.py")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if pipe_stdout else slave,
        stderr=slave,
        env=environment(),
    )
    os.close(slave)
    shown = b""
    with open(master, "rb", buffering=0) as terminal:  # noqa: PTH123 - it is a descriptor
        while True:
            try:
                part = terminal.read(65536)
            except OSError:  # how Linux says that nobody has it open any more
                break
            if not part:
                break
            shown += part
    piped, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown.decode()
    return shown.decode(), (piped or b"").decode()


def test_on_a_terminal() -> None:
    shown, _ = run_on_a_terminal(pipe_stdout=False)
    assert (shown.count(HIDE_CURSOR), shown.count(SHOW_CURSOR)) == (1, 1)
    for text in ("printed to stdout", "printed to stderr", "without an end", "afterwards"):
        assert shown.count(text) == 1
    before_the_end, after_the_end = shown.split(SHOW_CURSOR)
    assert rows(after_the_end) == ["afterwards"]
    lines = rows(before_the_end)
    assert "9/9 9 ok" in lines[-1]
    # Above the bar: it is drawn again below what has been printed.
    for text in ("printed to stdout", "printed to stderr"):
        assert "1/9 1 ok" in lines[lines.index(text) + 1]


def test_results_that_are_piped_go_on_into_the_pipe() -> None:
    shown, piped = run_on_a_terminal(pipe_stdout=True)
    assert piped.splitlines() == ["printed to stdout", "without an endafterwards"]
    assert "printed to stdout" not in shown
    assert shown.count("printed to stderr") == 1
    assert "9/9 9 ok" in rows(shown)[-1]


def test_in_a_pipe() -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPTS / "two_bars.py")],
        capture_output=True,
        text=True,
        env=environment() | {"FORCE_COLOR": "1"},
        timeout=60,
        check=True,
    )
    assert run.stderr == "printed to stderr\n"


def test_rich_is_imported_only_for_a_bar() -> None:
    subprocess.run([sys.executable, str(SCRIPTS / "imports_of_the_bar.py")], check=True, timeout=60)


def test_the_package_imports_no_rich() -> None:
    script = "import parallel_core, sys; assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
