"""Output of ``parallel-core run`` for people: redrawn on a terminal, else as plain lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parallel_core.control import describe_waiting, figures_in_words, is_live
from parallel_core.files import InputProblem, InputSummary
from parallel_core.quantities import clock, counted
from parallel_core.router import CostEstimate
from parallel_core.run import RunOpening, RunProgress, RunSummary

from .run_texts import (
    describe_check,
    describe_direct,
    describe_end,
    describe_estimate,
    describe_group,
    describe_opening,
    describe_progress,
    describe_stragglers,
    share_done,
    summary_rows,
)
from .terminal import console, ignore_output_errors, printable

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BEFORE_NEWS = 1.0  # least time to a line about a wait that has begun or ended
_MOST_GROUPS = 5  # groups of failures in a live view


class TextView:
    """A view for people: live if standard error is a terminal, else a line every few seconds."""

    def __init__(self, error: Console | None = None, output: Console | None = None) -> None:
        self._console = console(stderr=True) if error is None else error
        self._output = console(stderr=False) if output is None else output
        self._is_live = is_live(self._console)
        self._live: Live | None = None
        self._line_at: float | None = None
        self._shown_failures: set[tuple[str, int | None]] = set()  # kind and status code
        self._shown_as_waiting = False

    def note(self, text: str) -> None:
        self._print(self._console, Text(printable(text)))

    def error(self, text: str) -> None:
        self._print(self._console, Text(printable(text), style="red"))

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
                # No thread of rich redraws: each snapshot does.
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(_picture(progress), refresh=True)
        if progress.finished:
            self.close()

    def _print_progress(self, progress: RunProgress) -> None:
        now = time.monotonic()
        is_news = bool(progress.waiting) != self._shown_as_waiting
        pause = _SECONDS_BEFORE_NEWS if is_news else _SECONDS_BETWEEN_LINES
        due = self._line_at is None or now - self._line_at >= pause
        if due or progress.finished:
            self._line_at = now
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
                live.stop()

    def _print(self, console: Console, what: Text) -> None:
        with ignore_output_errors():
            # A line is not wrapped, even on a narrow terminal: so commands can be copied, and logs
            # have whole lines.
            console.print(what, soft_wrap=True)


def _picture(progress: RunProgress) -> Group:
    """Return a snapshot as lines for a terminal."""
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    bar.add_row(
        ProgressBar(total=max(progress.total, 1), completed=progress.done),
        Text(f"{progress.done:,}/{progress.total:,} {share_done(progress):5.1f} %"),
    )
    counts = Text.assemble(
        (f"ok {progress.succeeded:,}", "green"),
        "   ",
        (f"failed {progress.failed:,}", "red" if progress.failed else "dim"),
        f"   earlier {progress.earlier:,}" if progress.earlier else "",
        f"   {clock(progress.elapsed)}",
        (
            "   stopping: no new calls" if progress.stopping and not progress.finished else "",
            "bold",
        ),
    )
    figures = Text("   ".join(figures_in_words(progress)))
    rows: list[Any] = [bar, counts, figures]
    for group in progress.failures[:_MOST_GROUPS]:
        text = printable(describe_group(group))
        rows.append(Text(text, style="red", no_wrap=True, overflow="ellipsis"))
    if (more := len(progress.failures) - _MOST_GROUPS) > 0:
        rows.append(Text(f"and {counted(more, 'more kind')} of failures", style="red"))
    if progress.indirect_calls:
        direct = describe_direct(progress.direct_calls, progress.indirect_calls)
        rows.append(Text(f"direct {direct}", no_wrap=True, overflow="ellipsis"))
    held_up = [*describe_waiting(progress.waiting), *describe_stragglers(progress.stragglers)]
    rows += [Text(printable(line), style="yellow") for line in held_up]
    return Group(*rows)
