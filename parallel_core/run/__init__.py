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

__all__ = [
    "ATTEMPT_TIMEOUT",
    "LONGEST_OUTAGE",
    "FailureGroup",
    "RunOpening",
    "RunOptions",
    "RunProgress",
    "RunStop",
    "RunStraggler",
    "RunSummary",
    "check_requests",
    "run_file",
]
