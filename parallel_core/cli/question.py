"""The question before an expensive run, and the state of a run that its answer changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from parallel_core.config.run_router import RunRouter
from parallel_core.router import estimate_cost
from parallel_core.run import RunOpening

from .run_signals import StopSignals
from .run_view import RunView


@dataclass
class RunState:
    """Progress of a run, as far as its exit code depends on it.

    Attributes:
        begun: True if calls may have been made.
        declined: True if the user was asked and said no.
        interrupted: True if a signal came instead of an answer.
        stuck: True if the terminal takes no more output.
    """

    begun: bool = False
    declined: bool = False
    interrupted: bool = False
    stuck: bool = False


class Question:
    """Shows what a run will cost. On a terminal, asks before an expensive one."""

    def __init__(
        self,
        view: RunView,
        state: RunState,
        signals: StopSignals,
        router: RunRouter,
        confirm_above: float | None,
        notes: Sequence[str] = (),
    ) -> None:
        self._view = view
        self._state = state
        self._signals = signals
        self._router = router
        self._confirm_above = confirm_above
        self._notes = notes

    def may_send(self, opening: RunOpening) -> bool:
        """Show the estimate and return True if the run may send. Nothing has been changed yet."""
        if opening.left and self._router.kind != "demo":
            estimate = estimate_cost(self._router.router, opening.requests())
            if estimate.requests:
                self._view.estimate(estimate)
            above = self._confirm_above
            if above is not None and estimate.cost > above and somebody_is_there():
                self.ask(f"Send {opening.left:,} requests?")
        return not self._state.declined

    def opened(self, opening: RunOpening) -> None:
        """Show how much is left to send, before the first call."""
        self._state.begun = True
        self._view.opened(opening)
        if opening.left:
            for note in self._notes:
                self._view.note(note)

    def ask(self, question: str) -> None:
        """Ask until the answer is yes or no. An empty one, or the end of the input, is no."""
        answer: str | None = None
        try:
            while answer not in ("y", "yes", "n", "no", ""):
                sys.stderr.write(f"{question} [y/N]: ")
                sys.stderr.flush()
                line = self._signals.read_line()
                answer = "" if line is None else line.strip().lower()
        except KeyboardInterrupt:
            self._state.interrupted = True
        except OSError:  # the terminal has gone
            pass
        self._state.declined = answer not in ("y", "yes")


def somebody_is_there() -> bool:
    """Return True if standard input and standard error are terminals."""
    streams: list[TextIO | None] = [sys.stdin, sys.stderr]
    # A stream that was closed when Python started is None.
    return all(stream is not None and stream.isatty() for stream in streams)
