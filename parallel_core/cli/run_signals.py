"""Handle signals that end a run cleanly, whenever they come."""

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
    """Return the stop signals that are not ignored. nohup ignores SIGHUP, for example."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def interrupt_on_signals() -> dict[signal.Signals, Any]:
    """Make each stop signal raise KeyboardInterrupt. Return the previous handlers."""
    return {number: signal.signal(number, signal.default_int_handler) for number in _not_ignored()}


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """Make each stop signal raise KeyboardInterrupt, before the run and after it.

    So open resources are closed, and a demo server is ended.
    """
    previous = interrupt_on_signals()
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignals:
    """The stop signals of one run, while its asyncio loop runs and while it asks the user.

    Attributes:
        arrived: True if a stop signal has come.
    """

    def __init__(self) -> None:
        self.arrived = False
        self._interrupted_read = False  # a signal has ended `read_line`, and with it the run

    @contextlib.contextmanager
    def handled(self, on_signal: Callable[[int], None]) -> Generator[None]:
        """Make the running loop call a function for each stop signal, until the block is left."""
        loop = asyncio.get_running_loop()
        previous: dict[signal.Signals, Any] = {}

        def in_loop(number: int) -> None:
            self.arrived = True
            # A signal that came just before `read_line` has also woken the loop.
            if not self._interrupted_read:
                on_signal(number)

        try:
            for number in _not_ignored():
                before = signal.getsignal(number)
                with contextlib.suppress(NotImplementedError):  # Windows
                    loop.add_signal_handler(number, in_loop, number)
                    # This replaces asyncio's handler, which does nothing. The loop wakes by the
                    # signal's number in its wake-up socket, and does not read the socket while
                    # `read_line` waits.
                    signal.signal(number, self._note_arrival)
                    previous[number] = before
            yield
        finally:
            for number, before in previous.items():
                loop.remove_signal_handler(number)
                signal.signal(number, before)

    def _note_arrival(self, *_: object) -> None:
        self.arrived = True

    def read_line(self) -> str | None:
        """Read a line from the terminal that is standard input; None at its end.

        Python's own reading misses a signal that comes just before it: the handler would run only
        after the blocking read. Here, the signal's number is written to a pipe, and the read waits
        for the terminal and for the pipe.

        Raises:
            KeyboardInterrupt: a stop signal has come, before this call or during it.
        """
        if os.name == "nt":  # on Windows, select takes only sockets
            return sys.stdin.readline() or None
        wake_reader, wake_writer = os.pipe()
        os.set_blocking(wake_writer, False)
        os.set_blocking(wake_reader, False)
        # 1. From here on, a signal writes to this pipe. An earlier signal has been noted: its
        #    handler runs at the latest when the next function is called.
        fd_of_loop = signal.set_wakeup_fd(wake_writer)
        try:
            line = self._line_unless_signalled(wake_reader)
        finally:
            # 2. From here on, signals wake the loop again.
            signal.set_wakeup_fd(fd_of_loop)
            # 3. A signal that came together with the answer counts, too.
            self._note_numbers(wake_reader)
            os.close(wake_reader)
            os.close(wake_writer)
        if self.arrived:
            self._interrupted_read = True
            raise KeyboardInterrupt
        return line

    def _line_unless_signalled(self, wake_reader: int) -> str | None:
        terminal = sys.stdin.fileno()
        line = b""
        while not self.arrived and not line.endswith(b"\n"):
            readable, _, _ = select.select([terminal, wake_reader], [], [])
            if wake_reader in readable:
                self._note_numbers(wake_reader)
            elif not (piece := os.read(terminal, 4096)):
                break
            else:
                line += piece
        return line.decode(errors="replace") if line else None

    def _note_numbers(self, wake_reader: int) -> None:
        with contextlib.suppress(BlockingIOError):
            if any(number in STOP_SIGNALS for number in os.read(wake_reader, 4096)):
                self.arrived = True
