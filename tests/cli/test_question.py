"""The question before a dear run, and a signal at any moment of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import select
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from parallel_core.cli import run_signals
from parallel_core.cli.json_view import JsonView
from parallel_core.cli.question import Question, RunState
from parallel_core.cli.run_signals import StopSignals

PATIENCE = 30.0


class Moments:
    """Sends a signal before a given line of the code that asks is run, and counts the lines."""

    def __init__(self, at: int) -> None:
        self.number = 0
        self.sent = False
        self._at = at

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if code is not Question.ask.__code__ and code.co_filename != run_signals.__file__:
            return None
        if event == "line":
            self.number += 1
            if self.number == self._at:
                self.sent = True
                signal.raise_signal(signal.SIGTERM)
        return self


@contextlib.contextmanager
def traced(trace: Any) -> Generator[None]:
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def ask(
    at: int, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> tuple[RunState, list[int], Moments]:
    """Ask on a terminal. Gives the state after it and the signals that the loop has seen."""
    keyboard, terminal = pty.openpty()
    state = RunState()
    signals = StopSignals()
    real_select: Any = select.select

    def wait(*arguments: Sequence[Any]) -> Any:
        if not moments.sent:  # else only the signal can end the wait
            os.write(keyboard, answer)
        return real_select(*arguments)

    router: Any = None  # a question needs none
    question = Question(JsonView(io.StringIO()), state, signals, router, 0.0)
    moments = Moments(at)
    seen: list[int] = []

    async def run() -> None:
        with signals.handled(seen.append):
            with traced(moments):
                question.ask("Send?")
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    with os.fdopen(terminal, "r", closefd=False) as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        monkeypatch.setattr(run_signals, "select", SimpleNamespace(select=wait))
        # Where a signal is lost, this ends the wait, with another outcome.
        late = threading.Timer(PATIENCE, os.write, (keyboard, b"n\n"))
        late.start()
        try:
            asyncio.run(run())
        finally:
            late.cancel()
            late.join()
            monkeypatch.undo()
    os.close(keyboard)
    os.close(terminal)
    return state, seen, moments


def test_a_signal_at_any_moment_ends_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted, whole = 0, 1
    at = 0
    while at < whole:
        at += 1
        state, seen, moments = ask(at, b"y\n", monkeypatch)
        whole = max(whole, moments.number)
        if not moments.sent:  # a signal makes more lines
            break
        assert state.declined == state.interrupted
        # When the answer has been taken, the signal is the loop's. It is told once.
        assert seen == ([] if state.interrupted else [signal.SIGTERM])
        interrupted += state.interrupted
    assert 20 < interrupted < whole


@pytest.mark.parametrize(
    ("answer", "declined"),
    [(b"y\n", False), (b"YES\n", False), (b"n\n", True), (b"\n", True), (b"x\ny\n", False)],
)
def test_a_question_takes_yes_and_no(
    monkeypatch: pytest.MonkeyPatch, answer: bytes, declined: bool
) -> None:
    state, seen, _ = ask(0, answer, monkeypatch)
    assert (state.declined, state.interrupted, seen) == (declined, False, [])
