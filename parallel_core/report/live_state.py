"""A sentence about the state of a run that is followed."""

from __future__ import annotations

from parallel_core.quantities import count, counted, span

from .formats import moment
from .model import RunReport

_SILENCE = 60.0  # seconds without anything new, from which on it is said
_STEP = 10.0  # seconds between two values of it


def state_of(
    report: RunReport, now: float, last_change: float | None, *, is_behind: bool = False
) -> str:
    """Return the state of a run.

    Args:
        report: the report so far.
        now: seconds since the epoch.
        last_change: time at which something was last appended; None if nothing was.
        is_behind: True while there is more in the files than was read.
    """
    total = report.total
    if not total.requests and report.expected is None:
        return f"Waiting for results in {report.name}."
    done = counted(total.requests, "request")
    if is_behind:
        return f"Reading {report.name}: {done} so far."
    if report.expected is not None:
        done = f"{count(total.requests)} of {counted(report.expected, 'request')}"
    if report.ending == "complete":
        return f"The run has ended: {done}."
    if report.ending is not None:
        return f"The run has ended early ({report.ending}): {done}."
    what = "The run goes on" if report.expected is not None else "So far"
    silence = 0.0 if last_change is None else now - last_change
    quiet = ""
    if silence >= _SILENCE:
        quiet = f" Nothing was written for {span(silence // _STEP * _STEP)}."
    last_wait = report.waits[-1] if report.waits else None
    if last_wait is not None and last_wait.seconds is None:
        since = moment(last_wait.started_at)
        quiet = f" No call of {last_wait.model} gets through since {since}: {last_wait.reason}."
    last = "" if report.ended_at is None else f" The last call ended at {moment(report.ended_at)}."
    return f"{what}: {done}.{last}{quiet}"
