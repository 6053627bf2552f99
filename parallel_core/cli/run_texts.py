"""Texts about a run: its opening, progress, failures, cost and end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parallel_core.control import Waiting
from parallel_core.errors import NAMED_BY_LINE, describe_differences
from parallel_core.quantities import clock, money
from parallel_core.router import CostEstimate, describe_finishes
from parallel_core.run import FailureGroup, RunOpening, RunProgress, RunStraggler, RunSummary
from parallel_core.types import Usage

from .terminal import printable, printable_name

MOST_NAMED = 20  # models in a line
_MOST_GROUPS = 5  # groups of failures in a live view
_LONGEST_NAME = 40  # characters of a custom_id
_MOST_WAITING = 3  # endpoints in a list of waits


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
    eta = "" if progress.eta is None or progress.finished else f"ETA {clock(progress.eta)}"
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
        return f"{number:,} {requests(number)}; the cost is not known"
    without = f", and {estimate.unpriced:,} whose price is not known" if estimate.unpriced else ""
    priced = estimate.requests - estimate.unpriced
    return f"about {money(estimate.cost)} USD for {priced:,} {requests(priced)}{without}"


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
        lines.append(f"{found.retried:,} failed {requests(found.retried)} to send again")
    if found.duplicates:
        ids = ", ".join(found.duplicate_ids)
        answers = "answer" if found.duplicates == 1 else "answers"
        lines.append(f"kept {found.duplicates:,} duplicate {answers} ({ids})")
    if earlier:
        lines.append(f"resuming: {earlier:,} of {opening.total:,} requests are finished")
    return lines


def requests(number: int) -> str:
    return "request" if number == 1 else "requests"


def _results(number: int) -> str:
    return "result" if number == 1 else "results"


def picture(progress: RunProgress) -> Group:
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
        f"   {clock(progress.elapsed)}",
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


def rows_of(summary: RunSummary) -> list[tuple[str, str]]:
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
    if cost := _money(usage):
        row("cost", cost)
    done = summary.succeeded + summary.failed
    rate = f", {done / summary.elapsed:.1f} calls/s" if summary.elapsed > 0 and done else ""
    row("time", f"{clock(summary.elapsed)}{rate}")
    if summary.lost_workers:
        row(
            "workers",
            f"{summary.lost_workers:,} lost and replaced, {summary.resent_requests:,} "
            f"{requests(summary.resent_requests)} sent again",
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
    lines[-1] += f"; {left:,} {requests(left)} {'is' if left == 1 else 'are'} left"
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
    return f"{money(usage.cost)} USD{without}"
