"""Runs of files: read requests from one file and write each answer to another exactly once."""

from .file_run import ATTEMPT_TIMEOUT, LONGEST_OUTAGE, run_file
from .plan import check_requests
from .records import (
    FailureGroup,
    RunOpening,
    RunOptions,
    RunProgress,
    RunStop,
    RunStraggler,
    RunSummary,
)
from .scope import RunScope
from .selection import STANDARD_INPUT, RunSelection, checked_shard, read_ids, selection_of

__all__ = [
    "ATTEMPT_TIMEOUT",
    "LONGEST_OUTAGE",
    "STANDARD_INPUT",
    "FailureGroup",
    "RunOpening",
    "RunOptions",
    "RunProgress",
    "RunScope",
    "RunSelection",
    "RunStop",
    "RunStraggler",
    "RunSummary",
    "check_requests",
    "checked_shard",
    "read_ids",
    "run_file",
    "selection_of",
]
