"""Summaries and progress of a run, made up."""

from __future__ import annotations

from typing import Any

from parallel_core import Usage
from parallel_core.journal.run_paths import RunPaths
from parallel_core.run import RunProgress, RunSummary


def summary_of(**fields: Any) -> RunSummary:
    values: dict[str, Any] = {
        "ending": "stopped",
        "total": 3,
        "earlier_succeeded": 0,
        "earlier_failed": 0,
        "succeeded": 1,
        "failed": 0,
        "failures": [],
        "unfinished": 2,
        "cut_off": 0,
        "usage": Usage(),
        "elapsed": 1.0,
        "paths": RunPaths.of("out.jsonl"),
    }
    return RunSummary(**{**values, **fields})


def progress_of(**fields: Any) -> RunProgress:
    values: dict[str, Any] = {
        "total": 3,
        "started": 2,
        "earlier": 0,
        "succeeded": 1,
        "failed": 0,
        "in_flight": 1,
        "elapsed": 1.0,
        "rate": 1.0,
        "token_rate": 1.0,
        "eta": None,
        "usage": Usage(),
        "limit": 4,
        "failures": [],
        "stopping": False,
        "finished": False,
    }
    return RunProgress(**{**values, **fields})
