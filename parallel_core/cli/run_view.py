"""What shows a run of ``parallel-core run``, and the thread in which it does so."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import Protocol

from parallel_core.files import InputProblem, InputSummary
from parallel_core.router import CostEstimate
from parallel_core.run import RunOpening, RunProgress, RunSummary

_PATIENCE = 2.0  # seconds to wait for a terminal that accepts no output


class RunView(Protocol):
    """Shows one run. Its methods do not raise if the output is closed."""

    def note(self, text: str) -> None:
        """Show a note for the user."""
        ...

    def error(self, text: str) -> None:
        """Show the reason why the run ends."""
        ...

    def problem(self, problem: InputProblem) -> None: ...

    def checked(self, summary: InputSummary) -> None:
        """Show the result of the check of the input."""
        ...

    def estimate(self, estimate: CostEstimate) -> None: ...

    def opened(self, opening: RunOpening) -> None: ...

    def progress(self, progress: RunProgress) -> None: ...

    def summary(self, summary: RunSummary, resume: str | None) -> None:
        """Show the summary of a run that has ended. ``resume`` is the command that resumes it."""
        ...

    def waiting(self, what: str) -> contextlib.AbstractContextManager[object]:
        """Show ``what`` as long as the block takes."""
        ...

    def close(self) -> None: ...


class Painter:
    """Shows a run from its own thread.

    A stopped terminal, or a full pipe without a reader, blocks this thread. It does not block the
    calls, or the signals that end them. Only the latest progress is shown.

    Attributes:
        stuck: True if the thread could not write all its output in the end.
    """

    def __init__(self, view: RunView) -> None:
        self.stuck = False
        self._view = view
        self._changed = threading.Condition()
        self._notes: list[str] = []
        self._progress: RunProgress | None = None
        self._waiting_for: str | None = None
        self._shown_wait: str | None = None
        self._thread = threading.Thread(target=self._paint, name="run view", daemon=True)
        self._ended = False

    def note(self, text: str) -> None:
        with self._changed:
            self._notes.append(text)
            self._changed.notify()

    def progress(self, progress: RunProgress) -> None:
        with self._changed:
            self._progress = progress
            self._changed.notify()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Generator[None]:
        """Show ``what`` as long as the block takes."""
        self._set_waiting_for(what)
        try:
            yield
        finally:
            self._set_waiting_for(None)

    def _set_waiting_for(self, what: str | None) -> None:
        with self._changed:
            self._waiting_for = what
            self._changed.notify()

    def __enter__(self) -> Painter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(_PATIENCE)
        self.stuck = self._thread.is_alive()

    def _paint(self) -> None:
        with contextlib.ExitStack() as waiting:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._has_news() or self._ended)
                    if not self._has_news():
                        return
                    notes, self._notes = self._notes, []
                    progress, self._progress = self._progress, None
                    waiting_for = self._waiting_for
                if waiting_for != self._shown_wait:
                    self._shown_wait = waiting_for
                    waiting.close()
                    if waiting_for is not None:
                        waiting.enter_context(self._view.waiting(waiting_for))
                for note in notes:
                    self._view.note(note)
                if progress is not None:
                    self._view.progress(progress)

    def _has_news(self) -> bool:
        return bool(self._notes or self._progress or self._waiting_for != self._shown_wait)
