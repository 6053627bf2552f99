"""Signals that end a run in good order, whenever they come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Generator
from typing import Any, Final

STOP_SIGNALS: Final = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


def _not_ignored() -> list[signal.Signals]:
    """What nohup has switched off stays so."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def interrupt_on_signals() -> dict[signal.Signals, Any]:
    """Make each of these signals a KeyboardInterrupt; return the handlers from before."""
    return {number: signal.signal(number, signal.default_int_handler) for number in _not_ignored()}


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """Before the run and after it, each of these signals is a KeyboardInterrupt: what was opened is
    closed, and a demo server ended."""
    previous = interrupt_on_signals()
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignals:
    """The stop signals of one run, while asyncio's loop runs and while it waits for an answer.

    Attributes:
        arrived: whether one has come.
    """

    def __init__(self) -> None:
        self.arrived = False
        self._was_the_answer = False  # to a question, which ends the run

    @contextlib.contextmanager
    def handled(self, on_signal: Callable[[int], None]) -> Generator[None]:
        """Have the running loop call a function for each signal."""
        loop = asyncio.get_running_loop()
        previous: dict[signal.Signals, Any] = {}

        def in_loop(number: int) -> None:
            self.arrived = True
            # One that came just before `read_line` has woken the loop, too.
            if not self._was_the_answer:
                on_signal(number)

        try:
            for number in _not_ignored():
                before = signal.getsignal(number)
                with contextlib.suppress(NotImplementedError):  # Windows
                    loop.add_signal_handler(number, in_loop, number)
                    # In the place of asyncio's handler, which does nothing: the loop is woken by
                    # the signal's number in its wake-up socket, and does not look there while
                    # `read_line` waits.
                    signal.signal(number, self._note)
                    previous[number] = before
            yield
        finally:
            for number, before in previous.items():
                loop.remove_signal_handler(number)
                signal.signal(number, before)

    def _note(self, *_: object) -> None:
        self.arrived = True

    def read_line(self) -> str | None:
        """Read a line from the terminal that is standard input; None at its end.

        Python's own reading loses a signal that comes just before it: the handler would run after
        the read, which waits. Here the signal's number is in a pipe that is waited for as well.

        Raises:
            KeyboardInterrupt: one of the signals has come, before this or meanwhile.
        """
        if os.name == "nt":  # it waits for sockets only
            return sys.stdin.readline() or None
        wakes, woken = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wakes, False)
        # 1. From here on a signal writes into this pipe. One that came before has been noted: its
        #    handler runs at the latest when the next function is called.
        loops = signal.set_wakeup_fd(woken)
        try:
            line = self._line_unless_signalled(wakes)
        finally:
            # 2. From here on signals wake the loop again.
            signal.set_wakeup_fd(loops)
            # 3. One that came with the answer counts, too.
            self._note_numbers(wakes)
            os.close(wakes)
            os.close(woken)
        if self.arrived:
            self._was_the_answer = True
            raise KeyboardInterrupt
        return line

    def _line_unless_signalled(self, wakes: int) -> str | None:
        terminal = sys.stdin.fileno()
        line = b""
        while not self.arrived and not line.endswith(b"\n"):
            readable, _, _ = select.select([terminal, wakes], [], [])
            if wakes in readable:
                self._note_numbers(wakes)
            elif not (piece := os.read(terminal, 4096)):
                break
            else:
                line += piece
        return line.decode(errors="replace") if line else None

    def _note_numbers(self, wakes: int) -> None:
        with contextlib.suppress(BlockingIOError):
            if any(number in STOP_SIGNALS for number in os.read(wakes, 4096)):
                self.arrived = True
