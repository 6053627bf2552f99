"""Output of ``parallel-core run``: live on a terminal, else as plain lines, or as JSON."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Generator, Sequence
from typing import Any, Protocol, TextIO

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from parallel_core.files import InputProblem, InputSummary
from parallel_core.router import CostEstimate
from parallel_core.run import RunOpening, RunProgress, RunSummary
from parallel_core.types import Usage

from .run_texts import (
    MOST_NAMED,
    describe_end,
    describe_estimate,
    describe_group,
    describe_opening,
    describe_progress,
    picture,
    requests,
    rows_of,
)
from .terminal import console, ignore_output_errors, is_live, json_line, printable

SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BEFORE_NEWS = 1.0  # least time to a line about a wait that has begun or ended
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


class TextView:
    """A view for people: live if standard error is a terminal, else a line every few seconds."""

    def __init__(self, error: Console | None = None, output: Console | None = None) -> None:
        self._console = console(stderr=True) if error is None else error
        self._output = console(stderr=False) if output is None else output
        self._is_live = is_live(self._console.file)
        self._live: Live | None = None
        self._line_at: float | None = None
        self._shown_failures: set[tuple[str, int | None]] = set()  # kind and status code
        self._shown_as_waiting = False

    def note(self, text: str) -> None:
        self._print(self._console, Text(printable(text)))

    def error(self, text: str) -> None:
        self._print(self._console, Text(printable(text), style="red"))

    def problem(self, problem: InputProblem) -> None:
        self.note(f"line {problem.line}: {problem.code}: {problem.message}; {problem.hint}")

    def checked(self, summary: InputSummary) -> None:
        models = _first_of([f"{model} {count:,}" for model, count in summary.models.items()])
        if more := summary.bad_lines - len(summary.problems):
            self.note(f"and {more:,} more bad {'line' if more == 1 else 'lines'}")
        lines = "line" if summary.bad_lines == 1 else "lines"
        bad = f", {summary.bad_lines:,} bad {lines}" if summary.bad_lines else ""
        number = summary.requests
        self.note(f"{number:,} {requests(number)} ({models or 'none'}){bad}")

    def estimate(self, estimate: CostEstimate) -> None:
        self.note(describe_estimate(estimate))

    def opened(self, opening: RunOpening) -> None:
        for line in describe_opening(opening):
            self.note(line)

    def progress(self, progress: RunProgress) -> None:
        if self._is_live:
            self._draw(progress)
        else:
            self._print_progress(progress)

    def _draw(self, progress: RunProgress) -> None:
        with ignore_output_errors():
            if self._live is None:
                # No thread of rich redraws: each snapshot does.
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(picture(progress), refresh=True)
        if progress.finished:
            self.close()

    def _print_progress(self, progress: RunProgress) -> None:
        now = time.monotonic()
        is_news = bool(progress.waiting) != self._shown_as_waiting
        pause = _SECONDS_BEFORE_NEWS if is_news else SECONDS_BETWEEN_LINES
        due = self._line_at is None or now - self._line_at >= pause
        if due or progress.finished:
            self._line_at = now
            self._shown_as_waiting = bool(progress.waiting)
            clock = time.strftime("%H:%M:%S")
            self.note(f"{clock} {describe_progress(progress)}")
            for group in progress.failures:
                kind = group.kind, group.status_code
                if kind not in self._shown_failures:
                    self._shown_failures.add(kind)
                    self.note(f"{clock} {describe_group(group, counted=False)}")

    def summary(self, summary: RunSummary, resume: str | None) -> None:
        self.close()
        for name, text in rows_of(summary):
            row = Text.assemble((f"{name:<14}", "bold"), printable(text))
            self._print(self._output, row)
        for line in describe_end(summary, resume):
            self._print(self._output, Text(printable(line)))

    @contextlib.contextmanager
    def waiting(self, what: str) -> Generator[None]:
        with contextlib.ExitStack() as stack:
            if self._is_live:
                stack.enter_context(self._console.status(Text(what)))
            yield

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with ignore_output_errors():
                live.stop()

    def _print(self, console: Console, what: Text) -> None:
        with ignore_output_errors():
            # A line is not wrapped, even on a narrow terminal: so commands can be copied, and logs
            # have whole lines.
            console.print(what, soft_wrap=True)


class JsonView:
    """A view for programs: a JSON object on each line of standard output, with its ``event``."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream

    def note(self, text: str) -> None:
        self._write("note", text=text)

    def error(self, text: str) -> None:
        self._write("error", text=text)

    def problem(self, problem: InputProblem) -> None:
        self._write("problem", **msgspec.structs.asdict(problem))

    def checked(self, summary: InputSummary) -> None:
        self._write(
            "checked",
            requests=summary.requests,
            problems=summary.bad_lines,
            models=summary.models,
            format=summary.format,
            columns=summary.columns,
        )

    def estimate(self, estimate: CostEstimate) -> None:
        fields = msgspec.structs.asdict(estimate)
        self._write("estimate", **{**fields, "cost": estimate.known_cost})

    def opened(self, opening: RunOpening) -> None:
        self._write(
            "opened", total=opening.total, left=opening.left, notes=describe_opening(opening)
        )

    def progress(self, progress: RunProgress) -> None:
        fields = msgspec.structs.asdict(progress)
        usage = _usage_fields(progress.usage)
        if progress.usage == Usage():  # no call has been answered, so the cost is not known
            usage["cost"] = None
        self._write("progress", **{**fields, "usage": usage})

    def summary(self, summary: RunSummary, resume: str | None) -> None:
        fields = msgspec.structs.asdict(summary)
        paths = {
            name: None if (path := getattr(summary.paths, name)) is None else str(path)
            for name in ("output", "errors", "statistics")
        }
        usage = _usage_fields(summary.usage)
        self._write("summary", **{**fields, "usage": usage, "paths": paths, "resume": resume})

    def waiting(self, what: str) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def close(self) -> None:
        pass

    def _write(self, event: str, **fields: Any) -> None:
        line = json_line(event=event, **fields)
        with ignore_output_errors():
            print(line, file=self._stream, flush=True)


def _usage_fields(usage: Usage) -> dict[str, Any]:
    return {**msgspec.structs.asdict(usage), "cost": usage.known_cost}


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


def _first_of(texts: Sequence[str]) -> str:
    more = len(texts) - MOST_NAMED
    return ", ".join(texts[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
