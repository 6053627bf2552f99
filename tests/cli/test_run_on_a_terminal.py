"""``parallel-core run`` on a terminal: its bar, its question, Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from helpers.forked_processes import PATIENCE, ForkedProcess
from helpers.run_bench import (
    FAILS,
    HELD,
    Bench,
    ids,
)
from helpers.terminal_screen import TerminalScreen
from parallel_core.cli import question

PRICES = ", input_cost_per_token: 0.000001, output_cost_per_token: 0.1"


@dataclass
class Terminal:
    """Both ends of one."""

    screen: int
    process_end: int

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))


@pytest.fixture
def on_terminal(bench: Bench) -> Iterator[Callable[..., tuple[ForkedProcess, Terminal]]]:
    """Starts a command on a terminal of its own."""
    opened: list[int] = []

    def start(
        *arguments: object, router: bool = True, **variables: str
    ) -> tuple[ForkedProcess, Terminal]:
        screen, process_end = pty.openpty()
        os.set_inheritable(process_end, True)
        opened.append(screen)
        terminal = Terminal(screen, process_end)
        terminal.resize(100)
        environment = {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **variables}
        process = bench.start(
            *arguments, router=router, terminal=process_end, environment=environment
        )
        os.close(process_end)
        process.collect("stderr", os.dup(screen))
        return process, terminal

    yield start
    for fd in opened:
        os.close(fd)


StartOnTerminal = Callable[..., tuple[ForkedProcess, Terminal]]


def test_a_terminal_shows_a_bar_and_figures(bench: Bench, on_terminal: StartOnTerminal) -> None:
    bench.server.hold()
    bench.write(FAILS, *[HELD] * 4)
    run, _ = on_terminal("in.jsonl", "-o", "out.jsonl", "--concurrency=3")
    run.wait_for("500 server_error: The demo server fails on purpose. (id-0)")
    run.wait_for("in flight 3/3")
    bench.server.release()
    assert run.wait() == 1
    drawn = run.stderr
    assert "━" in drawn
    assert "ok 4" in drawn
    assert "failed 1" in drawn
    assert "in flight 3/3" in drawn
    assert "5/5 100.0 %" in drawn
    assert drawn.rindex("answered") > drawn.rindex("━")
    assert "\x1b[?25h" in drawn[drawn.rindex("\x1b[?25l") :]  # the cursor is there again


@pytest.mark.thorough  # test_live_lines has it without a run
def test_nothing_is_left_behind_when_the_terminal_is_resized(
    bench: Bench, on_terminal: StartOnTerminal
) -> None:
    bench.server.hold()
    bench.write(FAILS, *[HELD] * 4)
    # Without COLUMNS, the width is that of the terminal.
    run, terminal = on_terminal("in.jsonl", "-o", "out.jsonl", "--concurrency=3", COLUMNS="")
    run.wait_for("500 server_error")  # from now on, the bar shows the same number
    terminal.resize(42)
    run.wait_for(_bar(42))
    bench.server.release()
    assert run.wait() == 1
    before, after = _split_before(run.stderr, _bar(42))
    screen = TerminalScreen(100)
    screen.write(before)
    screen.resize(42)
    screen.write(after)
    shown = screen.text()
    assert sum("━" in line or "─" in line for line in shown) == 1
    assert sum(line.startswith("in flight") for line in shown) == 1
    assert shown[:2] == ["5 requests (fast 5)", "5 requests; the cost is not known"]
    assert shown[2].endswith("5/5 100.0 %")
    assert shown[3].split() == ["ok", "4", "failed", "1"]


def _bar(width: int) -> str:
    """Return the rest of the bar of a run with one of five requests done."""
    figures = " 1/5  20.0 %"
    return f"\x1b[2m{'─' * round(0.8 * (width - len(figures)))}\x1b[0m"


def _split_before(output: str, bar: str) -> tuple[str, str]:
    """Split an output before the sequences that move the cursor to the first line with this bar."""
    begin = output[: output.index(bar)]
    moves = re.search(r"(?:\r|\x1b\[2K|\x1b\[1?A|\x1b\[[0-9;]*m|━)*$", begin)
    assert moves is not None
    return begin[: moves.start()], output[moves.start() :]


def test_a_terminal_in_ascii_shows_it_too(bench: Bench, on_terminal: StartOnTerminal) -> None:
    bench.write({}, FAILS)
    options = ["in.jsonl", "-o", "out-é€😀.jsonl"]
    run, _ = on_terminal(*options, PYTHONIOENCODING="ascii")
    assert run.wait() == 1, run.stderr
    assert run.stderr.isascii()
    assert "Traceback" not in run.stderr
    assert "2/2 100.0 %" in run.stderr
    assert r"out-\xe9\u20ac\U0001f600.jsonl" in run.stderr


@pytest.mark.parametrize(
    ("answer", "code", "sent"),
    [("y\n", 0, 2), ("n\n", 2, 0), ("\n", 2, 0), ("\x04", 2, 0), ("\x03", 130, 0)],
)
def test_a_dear_run_asks_before_it_sends(
    bench: Bench, on_terminal: StartOnTerminal, answer: str, code: int, sent: int
) -> None:
    bench.config(PRICES)
    bench.write({}, {})
    run, terminal = on_terminal("in.jsonl", "-o", "out.jsonl", "--confirm-above=1")
    run.wait_for("Send 2 requests? [y/N]")
    terminal.type(answer)
    assert run.wait() == code, run.stderr
    assert bench.accepted == sent
    if not sent:
        assert (
            "nothing was sent" if code == 2 else "interrupted before anything was sent"
        ) in run.stderr
        assert "no new calls" not in run.stderr
    assert "USD for 2 requests" in run.stderr


def test_a_question_does_not_outlive_a_signal(bench: Bench, on_terminal: StartOnTerminal) -> None:
    bench.config(PRICES)
    bench.write({}, {})
    run, _ = on_terminal("in.jsonl", "-o", "out.jsonl", "--confirm-above=1")
    run.wait_for("Send 2 requests? [y/N]")
    run.send_signal(signal.SIGTERM)
    assert run.wait() == 130
    assert "interrupted before anything was sent" in run.stderr
    assert bench.accepted == 0


@pytest.mark.parametrize("name", ["stdin", "stderr"])
def test_nobody_is_asked_where_a_stream_is_closed(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, name, None)
    assert not question.somebody_is_there()


@pytest.mark.parametrize("options", [["--yes"], ["--confirm-above=1000000"]])
def test_it_need_not_ask(bench: Bench, on_terminal: StartOnTerminal, options: list[str]) -> None:
    bench.config(PRICES)
    bench.write({}, {})
    run, _ = on_terminal("in.jsonl", "-o", "out.jsonl", *options)
    assert run.wait() == 0
    assert "Send 2 requests?" not in run.stderr


def test_ctrl_c_on_a_terminal_stops_in_good_order(
    bench: Bench, on_terminal: StartOnTerminal
) -> None:
    bench.server.hold()
    bench.write(*[HELD] * 2, *[{}] * 3)
    options = ["--concurrency=2", "--total-timeout=3600", "--timeout=1800", "--grace=1000"]
    run, terminal = on_terminal("in.jsonl", "-o", "out.jsonl", *options)
    bench.server.wait_in_flight(2, PATIENCE)
    terminal.type("\x03")
    run.wait_for(
        "SIGINT: no new calls, those in flight have 1,000 s; Ctrl-C again cancels them at once"
    )
    run.wait_for("stopping: no new calls")
    bench.server.release()
    assert run.wait() == 130
    assert sorted(bench.ids()) == ids(0, 1)
    # It is wider than the terminal, and one line all the same.
    again = f"resume with: parallel-core run in.jsonl -o out.jsonl {' '.join(options)} --config="
    assert again in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.thorough  # the live view is not needed for it
def test_ctrl_c_does_not_reach_the_demo_server(bench: Bench, on_terminal: StartOnTerminal) -> None:
    bench.write(*[{"latency": 0.5}] * 2000)  # more than can be answered before the signal
    options = ["--demo", "--concurrency=20", "--grace=1000"]
    run, terminal = on_terminal("in.jsonl", "-o", "out.jsonl", *options, router=False)
    run.wait_for("in flight 20/20")
    terminal.type("\x03")
    assert run.wait() == 130
    assert 20 <= len(bench.results()) < 2000
    assert [result["error"] for result in bench.results() if result["error"]] == []
    assert "cut off" not in run.stderr
