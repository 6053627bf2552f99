"""Read the files of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from parallel_core.journal import (
    BadLineError,
    CallStatistics,
    ResultLine,
    RunPaths,
    find_statistics,
    read_result_lines,
    read_statistics,
)

from .model import ReportError
from .records import HIGHEST_LIMIT, LATEST, OK, Records

_FAILURE, _ANSWER = 1, 2


def read_run(paths: RunPaths) -> Records:
    """Read the statistics of a run and its output.

    The output decides how a request ended; everything else comes from the statistics.

    Raises:
        ReportError: a file cannot be read, or is not the output of a run.
    """
    records = Records()
    if not paths.output.exists():
        raise ReportError(f"{paths.output} does not exist: name the output file of a run")
    _read_calls(find_statistics(paths), records)
    _read_results(paths, records)
    if not records.last:
        raise ReportError(f"{paths.output} has no results yet")
    return records


def _read_calls(path: Path, records: Records) -> None:
    try:
        for record in read_statistics(path):
            if isinstance(record, CallStatistics):
                records.add_call(record)
            elif 0.0 < record.at < LATEST and 0 <= record.limit <= HIGHEST_LIMIT:
                records.limits.append((record.at, record.limit, bool(record.reason)))
    except FileNotFoundError:
        records.notes.append(
            f"There is no {text_of(path.name)} beside the output: latency, cost and times are not "
            "known, and models have the names that the providers use."
        )
    except OSError as error:
        raise _unreadable(path, error) from None


def _read_results(paths: RunPaths, records: Records) -> None:
    measured = len(records.model)
    seen = bytearray(measured)  # by row: 0, `_FAILURE` or `_ANSWER`
    without_statistics = 0
    for path in (paths.output, paths.errors):
        if path is None:
            continue
        for result in _results(path, records.notes):
            row = records.last.get(hash(result.custom_id))
            if row is None or (row >= measured and result.ok and seen[row] == _FAILURE):
                without_statistics += row is None
                records.add_result_without_statistics(result)
                seen.append(_ANSWER if result.ok else _FAILURE)
            elif result.ok or seen[row] != _ANSWER:
                # An answer takes precedence: the failure is of an attempt before a retry.
                seen[row] = _ANSWER if result.ok else _FAILURE
                if result.ok != (records.outcome_of(row) == OK):
                    records.outcome[row] = records.kind_of(result)
            if not result.ok:
                records.note_failure(result.custom_id)
    if measured and without_statistics:
        records.notes.append(
            f"Results that are not in the statistics: {without_statistics:,}. Their latency, cost "
            "and times are not known."
        )
    lost = sum(
        row < measured and records.kind[row] == OK and not seen[row]
        for row in records.last.values()
    )
    if lost:
        records.notes.append(
            f"Answers that are in the statistics but not in the output: {lost:,}. The output is "
            "incomplete."
        )


def _results(path: Path, notes: list[str]) -> Iterator[ResultLine]:
    holes = 0
    try:
        with path.open("rb") as lines:
            for found in read_result_lines(lines):
                if found.result is not None:
                    yield found.result
                elif found.what == "torn":
                    notes.append(
                        f"The last line of {text_of(path.name)} is incomplete and is not counted: "
                        "the run was interrupted while writing it, or is writing it now."
                    )
                holes += found.what == "hole"
    except BadLineError as error:
        hint = (
            ""
            if ":" in error.why
            else ": name an output file of parallel-core run, OpenAI's Batch API or vLLM"
        )
        raise ReportError(f"line {error.number} of {path} {error.why}{hint}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if holes:
        notes.append(
            f"Lines of {text_of(path.name)} that a loss of power damaged: {holes:,}. They are "
            "not counted."
        )


def _unreadable(path: Path, error: OSError) -> ReportError:
    if isinstance(error, IsADirectoryError) or path.is_dir():
        return ReportError(f"{path} is a folder: name the output file of a run")
    return ReportError(f"{path} cannot be read: {error.strerror or type(error).__name__}")


def text_of(name: str) -> str:
    """Return a file name as valid text: it may have bytes that are not UTF-8."""
    return name.encode("utf-8", "replace").decode()
