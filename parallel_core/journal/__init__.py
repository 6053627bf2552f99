"""The output file of a run is its checkpoint: no request in it is sent, or paid for, again.

The page ``docs/durability.md`` lists the guarantees and describes how they are tested.
"""

from .input_changes import AskedRequests, InputChange, OnChanged
from .journal import Journal
from .json_lines import json_line, one_line, read_json_line
from .manifest import ManifestFields, find_statistics
from .merging import MergeSummary, merge_outputs
from .opening import JournalOpening
from .request_records import RequestRecords, id_key
from .result_files import JournalEntry
from .result_lines import (
    NULL,
    BadLineError,
    FoundLine,
    ResultLine,
    read_result_line,
    read_result_lines,
)
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
from .scan import id_digest
from .system import process_is_alive

__all__ = [
    "NULL",
    "AskedRequests",
    "BadLineError",
    "BeginStatistics",
    "CallStatistics",
    "EndStatistics",
    "FoundLine",
    "InputChange",
    "Journal",
    "JournalEntry",
    "JournalOpening",
    "LimitStatistics",
    "ManifestFields",
    "MergeSummary",
    "OnChanged",
    "RequestRecords",
    "ResultLine",
    "RunPaths",
    "RunStatistics",
    "WaitStatistics",
    "find_statistics",
    "id_digest",
    "id_key",
    "json_line",
    "merge_outputs",
    "one_line",
    "process_is_alive",
    "read_json_line",
    "read_result_line",
    "read_result_lines",
    "read_statistics",
    "read_statistics_lines",
    "statistics_line",
]
