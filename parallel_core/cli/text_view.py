"""Output of ``parallel-core run`` for people: redrawn on a terminal, else as plain lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

from rich.console import Console
from rich.text import Text

from parallel_core.control import LinePace, is_live
from parallel_core.control.live_lines import BAD, LiveLines
from parallel_core.files import InputProblem, InputSummary
from parallel_core.printable import printable
from parallel_core.router import CostEstimate
from parallel_core.run import RunOpening, RunProgress, RunSummary

from .live_picture import picture
from .run_texts import (
    describe_check,
    describe_end,
    describe_estimate,
    describe_group,
    describe_opening,
    describe_progress,
    summary_rows,
)
from .terminal import console, ignore_output_errors


class TextView:
    """A view for people: live if standard error is a terminal, else lines at a bounded rate."""

    def __init__(self, error: Console | None = None, output: Console | None = None) -> None:
        self._console = console(stderr=True) if error is None else error
        self._output = console(stderr=False) if output is None else output
        self._is_live = is_live(self._console)
        self._live: LiveLines | None = None
        self._pace = LinePace()
        self._shown_failures: set[tuple[str, int | None]] = set()  # kind and status code
        self._shown_as_waiting = False

    def note(self, text: str) -> None:
        self._print(self._console, Text(printable(text)))

    def error(self, text: str) -> None:
        self._print(self._console, Text(printable(text), style=BAD))

    def problem(self, problem: InputProblem) -> None:
        self.note(f"{problem.where}: {problem.code}: {problem.message}; {problem.hint}")

    def checked(self, summary: InputSummary) -> None:
        for line in describe_check(summary):
            self.note(line)

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
                self._live = LiveLines(self._console)
            self._live.show(picture(progress, self._console))
        if progress.finished:
            self.close()

    def _print_progress(self, progress: RunProgress) -> None:
        is_news = bool(progress.waiting) != self._shown_as_waiting
        is_due = self._pace.is_due(time.monotonic(), is_news=is_news)
        if is_due or progress.finished:
            self._shown_as_waiting = bool(progress.waiting)
            at = time.strftime("%H:%M:%S")
            self.note(f"{at} {describe_progress(progress)}")
            for group in progress.failures:
                kind = group.kind, group.status_code
                if kind not in self._shown_failures:
                    self._shown_failures.add(kind)
                    self.note(f"{at} {describe_group(group, with_count=False)}")

    def summary(self, summary: RunSummary, resume: str | None) -> None:
        self.close()
        for name, text in summary_rows(summary):
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
                live.close()

    def _print(self, console: Console, what: Text) -> None:
        with ignore_output_errors():
            # A line is not wrapped, even on a narrow terminal: so commands can be copied, and logs
            # have whole lines.
            console.print(what, soft_wrap=True)
