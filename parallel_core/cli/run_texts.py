"""Texts about a run: its opening, progress, failures, cost and end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from parallel_core.control import (
    cost_in_words,
    figures_in_words,
    held_up_in_words,
)
from parallel_core.errors import NAMED_BY_LINE, describe_differences, name_requests
from parallel_core.files import InputSummary, endpoint_of_operation
from parallel_core.journal import InputChange
from parallel_core.printable import printable_name
from parallel_core.quantities import clock, counted, money
from parallel_core.router import CostEstimate, describe_finishes
from parallel_core.run import FailureGroup, RunOpening, RunProgress, RunStraggler, RunSummary
from parallel_core.types import CHAT

_MOST_NAMED = 20  # models in a line
_LONGEST_NAME = 40  # characters of a custom_id
_ENDINGS = {
    "complete": "complete",
    "stopped": "the run was stopped",
    "total_timeout": "the total timeout has passed",
    "budget": "the budget is used up",
    "failure": "a call has failed",
    "blocked": "for the reason below",
    "input": "the input has been changed",
}


def describe_check(summary: InputSummary) -> list[str]:
    """Return lines that describe a checked input."""
    names = [f"{model} {count:,}" for model, count in summary.models.items()]
    models = ", ".join(names[:_MOST_NAMED]) or "none"
    if summary.operations.keys() - {CHAT}:
        counts = endpoints_of(summary).items()
        models = f"{', '.join(f'{name} {count:,}' for name, count in counts)}; {models}"
    if (more := len(names) - _MOST_NAMED) > 0:
        models += f" and {more:,} more"
    not_shown = summary.bad_lines - len(summary.problems)
    bad = f", {counted(summary.bad_lines, 'bad line')}" if summary.bad_lines else ""
    return [
        *([f"and {counted(not_shown, 'more bad line')}"] if not_shown else []),
        f"{counted(summary.requests, 'request')} ({models}){bad}",
    ]


def describe_selection(total: int, summary: InputSummary, shard: tuple[int, int] | None) -> str:
    """Return a line about the part of an input that a run must finish."""
    whole = summary.requests + summary.bad_lines
    of_shard = "" if shard is None else f" (shard {shard[0]:,} of {shard[1]:,})"
    return f"selected: {total:,} of {whole:,} lines{of_shard}"


def endpoints_of(summary: InputSummary) -> dict[str, int]:
    """Return the number of requests by endpoint."""
    return {
        endpoint_of_operation(operation).name: count
        for operation, count in summary.operations.items()
    }


def describe_progress(progress: RunProgress) -> str:
    """Return a snapshot as a line."""
    parts = [
        f"{progress.done:,}/{progress.total:,} ({share_done(progress):.1f} %)",
        f"ok {progress.succeeded:,}",
        f"failed {progress.failed:,}{_by_kind(progress.failures)}",
        *([f"earlier {progress.earlier:,}"] if progress.earlier else []),
        *figures_in_words(progress),
        *(["stopping"] if progress.stopping and not progress.finished else []),
        *held_up_in_words(progress),
        *describe_stragglers(progress.stragglers),
    ]
    return ", ".join(parts)


def share_done(progress: RunProgress) -> float:
    """Return how much of a run is done, in percent."""
    return 100 * progress.done / progress.total if progress.total else 100.0


def _by_kind(failures: Sequence[FailureGroup]) -> str:
    """Return the numbers of failures by kind, in brackets."""
    counts = Counter[str]()
    for group in failures:
        counts[group.kind] += group.count
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
    return f" ({kinds})" if kinds else ""


def describe_group(group: FailureGroup, *, with_count: bool = True) -> str:
    """Return the failures of one kind and status as a line."""
    more = ", …" if group.count > len(group.custom_ids) else ""
    ids = ", ".join(printable_name(_shortened(custom_id)) for custom_id in group.custom_ids)
    count = f" {group.count:,}" if with_count else ""
    return f"{group.kind}{count}: {group.message} ({ids}{more})"


def _shortened(name: str) -> str:
    """Shorten a name for a list of names."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def describe_stragglers(stragglers: Sequence[RunStraggler]) -> list[str]:
    """Name the calls that delay the end of a run, with the options that end them."""
    if not stragglers:
        return []
    names = ", ".join(f"{one.custom_id} ({one.seconds:,.0f} s)" for one in stragglers)
    verb = "takes" if len(stragglers) == 1 else "take"
    median = f"{stragglers[0].median:.2g} s"
    advice = "--timeout SECONDS ends such calls, --hedge p95 sends them twice"
    return [f"{names} {verb} much longer than the median of {median}: {advice}"]


def describe_estimate(estimate: CostEstimate) -> str:
    """Return the estimated cost of a run as a sentence."""
    if estimate.known_cost is None:
        return f"{counted(estimate.requests, 'request')}; the cost is not known"
    without = f", and {estimate.unpriced:,} whose price is not known" if estimate.unpriced else ""
    priced = estimate.requests - estimate.unpriced
    return f"about {money(estimate.cost)} USD for {counted(priced, 'request')}{without}"


def describe_opening(opening: RunOpening) -> list[str]:
    """Return lines about an existing output: what was found, and what was changed."""
    found = opening.journal
    earlier = opening.total - opening.left
    lines: list[str] = []
    if found.backups:
        lines.append(f"moved aside: {', '.join(map(printable_name, found.backups))}")
    if found.torn_bytes:
        lines.append(f"removed {counted(found.torn_bytes, 'byte')} of an unfinished line")
    if found.rescued:
        lines.append(f"moved {counted(found.rescued, 'result')} from the rescue file to the output")
    if found.changes:
        lines.append(f"resuming in spite of a change: {describe_differences(found.changes)}")
    change = found.input_change or InputChange()
    if change.added:
        lines.append(f"{counted(change.added, 'new request')} in the input")
    if changed := change.sent_again + change.kept:
        lines.append(f"{counted(changed, 'changed request')}: {_describe_changed(change)}")
    if opening.named_by_line and (changed or "input" in found.changes):
        lines.append(NAMED_BY_LINE)
    if others := max(opening.others, change.gone):
        lines.append(
            f"kept {counted(others, 'result')} of requests that are not in the input"
            + _in_brackets(change.gone_ids, others)
        )
    if found.retried:
        lines.append(f"{counted(found.retried, 'failed request')} to send again")
    if found.duplicates:
        ids = ", ".join(found.duplicate_ids)
        lines.append(f"kept {counted(found.duplicates, 'duplicate answer')} ({ids})")
    if earlier:
        lines.append(f"resuming: {earlier:,} of {opening.total:,} requests are finished")
    return lines


def _describe_changed(change: InputChange) -> str:
    """Return what happens to requests that have changed, with the names of the first ones."""
    changed = change.sent_again + change.kept
    parts = [
        *([f"{change.sent_again:,} to send again"] if change.sent_again else []),
        *([f"{change.kept:,} with the old result kept"] if change.kept else []),
    ]
    return f"{', '.join(parts)} ({name_requests(change.requests, changed)})"


def _in_brackets(names: Sequence[str], count: int) -> str:
    """Return the first of so many names, in brackets."""
    if not names:
        return ""
    more = ", …" if count > len(names) else ""
    return f" ({', '.join(printable_name(_shortened(name)) for name in names)}{more})"


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """Return the summary of a run as names and texts."""
    rows: list[tuple[str, str]] = []

    def row(name: str, text: str) -> None:
        rows.append((name, text))

    row("requests", f"{summary.total:,}")
    before = f", {summary.earlier_succeeded:,} before" if summary.earlier_succeeded else ""
    row("answered", f"{summary.succeeded:,}{before}")
    if unusual := describe_finishes(summary.finish_reasons, summary.without_text):
        row("of these", unusual)
    row("failed", f"{summary.failed:,}{_by_kind(summary.failures)}")
    for group in summary.failures:
        row("", describe_group(group))
    if summary.earlier_failed:
        row("failed before", f"{summary.earlier_failed:,}")
    if summary.final_failures == 1:
        row("final", "1 failure is final: it would fail again")
    elif summary.final_failures:
        row("final", f"{summary.final_failures:,} failures are final: they would fail again")
    if may_pass := summary.failures_that_may_pass:
        row("may pass", f"{counted(may_pass, 'failure')}: --retry-failed sends again what may pass")
    for why in summary.failed_deployments.values():
        if why not in summary.blocked.values():
            row("skipped", f"{why}; its requests went to other deployments")
    if summary.unfinished:
        cut_off = f", {summary.cut_off:,} of them cut off" if summary.cut_off else ""
        row("left", f"{summary.unfinished:,}{cut_off} ({_ENDINGS[summary.ending]})")
    usage = summary.usage
    guessed = usage.estimated_calls
    estimated = f", {counted(guessed, 'call')} estimated" if guessed else ""
    row("tokens", f"{usage.prompt_tokens:,} + {usage.completion_tokens:,}{estimated}")
    if cost := cost_in_words(usage):
        row("cost", cost)
    if summary.direct_calls or summary.indirect_calls:
        row("direct", describe_direct(summary.direct_calls, summary.indirect_calls))
    done = summary.succeeded + summary.failed
    rate = f", {done / summary.elapsed:.1f} calls/s" if summary.elapsed > 0 and done else ""
    row("time", f"{clock(summary.elapsed)}{rate}")
    if summary.lost_workers:
        row(
            "workers",
            f"{summary.lost_workers:,} lost and replaced, "
            f"{counted(summary.resent_requests, 'request')} sent again",
        )
    row("output", printable_name(summary.paths.output))
    if summary.paths.errors is not None:
        row("errors", printable_name(summary.paths.errors))
    return rows


def describe_direct(direct: int, indirect: Mapping[str, int]) -> str:
    """Return how many attempts were sent directly, and why the others were not."""
    most = sorted(indirect.items(), key=lambda reason: -reason[1])[:3]
    reasons = "; ".join(f"{why} {count:,}" for why, count in most)
    others = f", {sum(indirect.values()):,} by litellm ({reasons})" if indirect else ""
    return f"{direct:,}{others}"


def describe_end(summary: RunSummary, resume: str | None) -> list[str]:
    """Return lines with the reason why a run was stopped, and the command that resumes it."""
    if summary.ending != "blocked":
        again = [] if resume is None else [f"resume with: {resume}"]
        return [*(f"cannot get through: {why}" for why in summary.blocked.values()), *again]
    lines = [f"stopped: {reason}" for reason in summary.blocked.values()]
    left = summary.unfinished
    lines[-1] += f"; {counted(left, 'request')} {'is' if left == 1 else 'are'} left"
    if resume is not None:
        lines[-1] += f"; fix it and resume with: {resume}"
    return lines
