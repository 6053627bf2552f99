"""The output file of a run is its checkpoint: no request in it is sent, or paid for, again.

``docs/durability.md`` lists the guarantees and describes how they are tested.
"""

from .journal import Journal
from .json_lines import json_line, one_line, read_json_line
from .manifest import ManifestFields, find_statistics
from .opening import JournalOpening
from .result_files import JournalEntry
from .result_lines import NULL, BadLineError, ResultLine, read_result_line, read_result_lines
from .run_paths import RunPaths
from .run_statistics import (
    BeginStatistics,
    CallStatistics,
    EndStatistics,
    LimitStatistics,
    RunStatistics,
    WaitStatistics,
    read_statistics,
    read_statistics_lines,
    statistics_line,
)
from .system import process_is_alive

__all__ = [
    "NULL",
    "BadLineError",
    "BeginStatistics",
    "CallStatistics",
    "EndStatistics",
    "Journal",
    "JournalEntry",
    "JournalOpening",
    "LimitStatistics",
    "ManifestFields",
    "ResultLine",
    "RunPaths",
    "RunStatistics",
    "WaitStatistics",
    "find_statistics",
    "json_line",
    "one_line",
    "process_is_alive",
    "read_json_line",
    "read_result_line",
    "read_result_lines",
    "read_statistics",
    "read_statistics_lines",
    "statistics_line",
]
