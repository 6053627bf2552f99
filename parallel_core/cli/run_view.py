"""Output of ``parallel-core run``: live on a terminal, else as plain lines, or as JSON."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from datetime import timedelta
from typing import Any, Protocol, TextIO

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parallel_core.control import Waiting
from parallel_core.errors import NAMED_BY_LINE, describe_differences
from parallel_core.files import InputProblem, InputSummary
from parallel_core.router import CostEstimate, describe_finishes
from parallel_core.run import FailureGroup, RunOpening, RunProgress, RunStraggler, RunSummary
from parallel_core.types import Usage

from .terminal import console, ignore_output_errors, is_live, json_line, printable, printable_name

SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BEFORE_NEWS = 1.0  # least time to a line about a wait that has begun or ended
_MOST_NAMED = 20  # models in a line
_MOST_GROUPS = 5  # groups of failures in a live view
_LONGEST_NAME = 40  # characters of a custom_id
_MOST_WAITING = 3  # endpoints in a list of waits
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
        self.note(f"{number:,} {_requests(number)} ({models or 'none'}){bad}")

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
        for name, text in _rows_of(summary):
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


# --- texts ---


def _first_of(texts: Sequence[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def describe_progress(progress: RunProgress) -> str:
    """Return a snapshot as a line."""
    share = 100 * progress.done / progress.total if progress.total else 100.0
    parts = [
        f"{progress.done:,}/{progress.total:,} ({share:.1f} %)",
        f"ok {progress.succeeded:,}",
        f"failed {progress.failed:,}{_counts(progress.failures)}",
        *([f"earlier {progress.earlier:,}"] if progress.earlier else []),
        *_figures(progress),
        *(["stopping"] if progress.stopping and not progress.finished else []),
        *describe_waiting(progress.waiting),
        *describe_stragglers(progress.stragglers),
    ]
    return ", ".join(parts)


def _counts(failures: Sequence[FailureGroup]) -> str:
    """Return the numbers of failures by kind, in brackets."""
    counts = Counter[str]()
    for group in failures:
        counts[group.kind] += group.count
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
    return f" ({kinds})" if kinds else ""


def describe_group(group: FailureGroup, *, counted: bool = True) -> str:
    """Return the failures of one kind and status as a line."""
    more = ", …" if group.count > len(group.custom_ids) else ""
    ids = ", ".join(printable_name(shortened(custom_id)) for custom_id in group.custom_ids)
    count = f" {group.count:,}" if counted else ""
    return f"{group.kind}{count}: {group.message} ({ids}{more})"


def shortened(name: str) -> str:
    """Shorten a name for a list of names."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def describe_waiting(waiting: Sequence[Waiting]) -> list[str]:
    """Describe what a run waits for: a text for each endpoint and reason."""
    found: dict[tuple[str, str], list[Waiting]] = {}
    for one in waiting:
        found.setdefault((one.endpoint or one.model or "", one.reason), []).append(one)
    texts = [
        f"waiting for {whom}: {reason}, since {max(one.since for one in ones):,.0f} s, "
        f"{_next_try(ones)}"
        for (whom, reason), ones in found.items()
    ]
    more = len(texts) - _MOST_WAITING
    return texts[:_MOST_WAITING] + ([f"and {more:,} more"] if more > 0 else [])


def _next_try(waiting: Sequence[Waiting]) -> str:
    times = [one.next_try for one in waiting if one.next_try is not None]
    if len(times) < len(waiting):
        return "trying now"
    return f"next try in {math.ceil(min(times)):,} s"


def describe_stragglers(stragglers: Sequence[RunStraggler]) -> list[str]:
    """Name the calls that delay the end of a run, with the options that end them."""
    if not stragglers:
        return []
    names = ", ".join(f"{one.custom_id} ({one.seconds:,.0f} s)" for one in stragglers)
    verb = "takes" if len(stragglers) == 1 else "take"
    median = f"{stragglers[0].median:.2g} s"
    advice = "--timeout SECONDS ends such calls, --hedge p95 sends them twice"
    return [f"{names} {verb} much longer than the median of {median}: {advice}"]


def _figures(progress: RunProgress) -> list[str]:
    eta = "" if progress.eta is None or progress.finished else f"ETA {_clock(progress.eta)}"
    return [
        figure
        for figure in (
            f"in flight {progress.in_flight}/{progress.limit}",
            f"{progress.rate:.1f} calls/s",
            f"{progress.token_rate:,.0f} tokens/s",
            _money(progress.usage),
            eta,
        )
        if figure
    ]


def describe_estimate(estimate: CostEstimate) -> str:
    """Return the estimated cost of a run as a sentence."""
    if estimate.known_cost is None:
        number = estimate.requests
        return f"{number:,} {_requests(number)}; the cost is not known"
    without = f", and {estimate.unpriced:,} whose price is not known" if estimate.unpriced else ""
    priced = estimate.requests - estimate.unpriced
    return f"about {estimate.cost:.2f} USD for {priced:,} {_requests(priced)}{without}"


def describe_opening(opening: RunOpening) -> list[str]:
    """Return lines about an existing output: what was found, and what was changed."""
    found = opening.journal
    earlier = opening.total - opening.left
    lines: list[str] = []
    if found.backups:
        lines.append(f"moved aside: {', '.join(map(printable_name, found.backups))}")
    if found.torn_bytes:
        unit = "byte" if found.torn_bytes == 1 else "bytes"
        lines.append(f"removed {found.torn_bytes:,} {unit} of an unfinished line")
    if found.rescued:
        lines.append(
            f"moved {found.rescued:,} {_results(found.rescued)} from the rescue file to the output"
        )
    if found.changes:
        lines.append(f"resuming in spite of a change: {describe_differences(found.changes)}")
    if "input" in found.changes and opening.named_by_line:
        lines.append(NAMED_BY_LINE)
    if opening.others:
        lines.append(
            f"kept {opening.others:,} {_results(opening.others)} of requests that are not in the "
            "input"
        )
    if found.retried:
        lines.append(f"{found.retried:,} failed {_requests(found.retried)} to send again")
    if found.duplicates:
        ids = ", ".join(found.duplicate_ids)
        answers = "answer" if found.duplicates == 1 else "answers"
        lines.append(f"kept {found.duplicates:,} duplicate {answers} ({ids})")
    if earlier:
        lines.append(f"resuming: {earlier:,} of {opening.total:,} requests are finished")
    return lines


def _requests(number: int) -> str:
    return "request" if number == 1 else "requests"


def _results(number: int) -> str:
    return "result" if number == 1 else "results"


def _picture(progress: RunProgress) -> Group:
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    share = 100 * progress.done / progress.total if progress.total else 100.0
    bar.add_row(
        ProgressBar(total=max(progress.total, 1), completed=progress.done),
        Text(f"{progress.done:,}/{progress.total:,} {share:5.1f} %"),
    )
    counts = Text.assemble(
        (f"ok {progress.succeeded:,}", "green"),
        "   ",
        (f"failed {progress.failed:,}", "red" if progress.failed else "dim"),
        f"   earlier {progress.earlier:,}" if progress.earlier else "",
        f"   {_clock(progress.elapsed)}",
        (
            "   stopping: no new calls" if progress.stopping and not progress.finished else "",
            "bold",
        ),
    )
    figures = Text("   ".join(_figures(progress)))
    rows: list[Any] = [bar, counts, figures]
    for group in progress.failures[:_MOST_GROUPS]:
        text = printable(describe_group(group))
        rows.append(Text(text, style="red", no_wrap=True, overflow="ellipsis"))
    if (more := len(progress.failures) - _MOST_GROUPS) > 0:
        kinds = "kind" if more == 1 else "kinds"
        rows.append(Text(f"and {more} more {kinds} of failures", style="red"))
    held_up = [*describe_waiting(progress.waiting), *describe_stragglers(progress.stragglers)]
    rows += [Text(printable(line), style="yellow") for line in held_up]
    return Group(*rows)


def _rows_of(summary: RunSummary) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []

    def row(name: str, text: str) -> None:
        rows.append((name, text))

    row("requests", f"{summary.total:,}")
    before = f", {summary.earlier_succeeded:,} before" if summary.earlier_succeeded else ""
    row("answered", f"{summary.succeeded:,}{before}")
    if unusual := describe_finishes(summary.finish_reasons, summary.without_text):
        row("of these", unusual)
    row("failed", f"{summary.failed:,}{_counts(summary.failures)}")
    for group in summary.failures:
        row("", describe_group(group))
    if summary.earlier_failed:
        again = ""
        if summary.failures_that_may_pass:
            again = ": --retry-failed sends again what may pass"
        row("failed before", f"{summary.earlier_failed:,}{again}")
    if summary.final_failures == 1:
        row("final", "1 failure is final: it would fail again")
    elif summary.final_failures:
        row("final", f"{summary.final_failures:,} failures are final: they would fail again")
    for why in summary.failed_deployments.values():
        if why not in summary.blocked.values():
            row("skipped", f"{why}; its requests went to other deployments")
    if summary.unfinished:
        cut_off = f", {summary.cut_off:,} of them cut off" if summary.cut_off else ""
        row("left", f"{summary.unfinished:,}{cut_off} ({_ENDINGS[summary.ending]})")
    usage = summary.usage
    calls = "call" if usage.estimated_calls == 1 else "calls"
    row(
        "tokens",
        f"{usage.prompt_tokens:,} + {usage.completion_tokens:,}"
        + (f", {usage.estimated_calls:,} {calls} estimated" if usage.estimated_calls else ""),
    )
    if money := _money(usage):
        row("cost", money)
    done = summary.succeeded + summary.failed
    rate = f", {done / summary.elapsed:.1f} calls/s" if summary.elapsed > 0 and done else ""
    row("time", f"{_clock(summary.elapsed)}{rate}")
    if summary.lost_workers:
        row(
            "workers",
            f"{summary.lost_workers:,} lost and replaced, {summary.resent_requests:,} "
            f"{_requests(summary.resent_requests)} sent again",
        )
    row("output", printable_name(summary.paths.output))
    if summary.paths.errors is not None:
        row("errors", printable_name(summary.paths.errors))
    return rows


def describe_end(summary: RunSummary, resume: str | None) -> list[str]:
    """Return lines with the reason why a run was stopped, and the command that resumes it."""
    if summary.ending != "blocked":
        again = [] if resume is None else [f"resume with: {resume}"]
        return [*(f"cannot get through: {why}" for why in summary.blocked.values()), *again]
    lines = [f"stopped: {reason}" for reason in summary.blocked.values()]
    left = summary.unfinished
    lines[-1] += f"; {left:,} {_requests(left)} {'is' if left == 1 else 'are'} left"
    if resume is not None:
        lines[-1] += f"; fix it and resume with: {resume}"
    return lines


_ENDINGS = {
    "complete": "complete",
    "stopped": "the run was stopped",
    "total_timeout": "the total timeout has passed",
    "budget": "the budget is used up",
    "failure": "a call has failed",
    "blocked": "for the reason below",
    "input": "the input has been changed",
}


def _money(usage: Usage) -> str:
    if usage.known_cost is None:
        return "price unknown"
    if not usage.cost:
        return ""
    without = f" + {usage.unpriced_calls:,} without price" if usage.unpriced_calls else ""
    return f"{usage.cost:.4f} USD{without}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(min(seconds, 8.64e9))))
