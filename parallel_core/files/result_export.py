"""Write a file of results as a table: Parquet, CSV or JSON lines."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from parallel_core.journal import RunPaths, json_line

from .batch_input import InputFile
from .file_results import list_or_empty
from .result_tables import Column, ResultTable, json_text, tabular

_ROWS: Final = 10_000  # of a group of rows in Parquet, at most
_CHARACTERS: Final = 1 << 25  # of its texts
_FLOATS: Final = 8  # characters that a float counts as

_Writer: TypeAlias = Callable[[ResultTable, Path], int]
"""Writes a table to a file; returns the number of rows."""


class ExportSummary(NamedTuple):
    """What an export has written.

    Attributes:
        rows: number of rows.
        columns: names of the columns.
        has_costs: True if there is a file of statistics, which has the costs.
        without_request: number of rows whose request is not in the file of requests; 0 without one.
    """

    rows: int
    columns: list[str]
    has_costs: bool
    without_request: int


def export_results(
    path: Path | str,
    target: Path | str,
    *,
    columns: Sequence[str] | None = None,
    requests: InputFile | None = None,
    force: bool = False,
) -> ExportSummary:
    """Write a file of results as a table, in parts: the memory does not depend on long answers.

    Args:
        path: the file of results.
        target: file to write; its ending is ``.parquet``, ``.csv`` or ``.jsonl``. It has its name
            only when it is complete.
        columns: names of the columns, in order; None: the usual ones, and those that the results
            return (:class:`ResultTable`).
        requests: the file of requests, for the column ``prompt``.
        force: overwrite an existing target.

    Raises:
        ImportError: Parquet needs pyarrow, which is not installed.
        OSError: a file cannot be read or written.
        ValueError: the ending or a column is unknown, the target exists or is a file of the run, or
            a line is not a result.
    """
    path, target = Path(path), Path(target)
    write = _WRITERS.get(target.suffix.lower())
    if write is None:
        raise ValueError(f"{target}: the ending must be one of {', '.join(_WRITERS)}")
    if target.exists():
        own = [*RunPaths.of(path).files, *([] if requests is None else [requests.path])]
        if any(file.exists() and file.samefile(target) for file in own):
            raise ValueError(f"{target} is a file of the run itself: give another name")
        if not force:
            raise ValueError(f"{target} exists: give another name, or --force to overwrite it")
    table = ResultTable(path, columns, requests)
    temporary = target.with_name(f".{target.name}.new")
    try:
        rows = write(table, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    names = [column.name for column in table.columns]
    return ExportSummary(rows, names, table.has_costs, table.without_request)


def _write_csv(table: ResultTable, target: Path) -> int:
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([column.name for column in table.columns])
        number = 0
        for number, row in enumerate(table.rows(), 1):  # noqa: B007 - it is counted
            writer.writerow(map(_cell, row))
    return number


def _cell(value: Any) -> str | int | float:
    """Return a value as CSV has it: nothing for null, JSON for what is not a text or a number."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json_text(value)


def _write_jsonl(table: ResultTable, target: Path) -> int:
    names = [column.name for column in table.columns]
    number = 0
    with target.open("wb") as file:
        for number, row in enumerate(table.rows(), 1):  # noqa: B007 - it is counted
            file.write(json_line(dict(zip(names, row, strict=True))) + b"\n")
    return number


def _write_parquet(table: ResultTable, target: Path) -> int:
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ImportError(
            "Parquet needs pyarrow, which is not installed: pip install 'parallel_core[parquet]'; "
            "CSV and JSON lines do not need it"
        ) from None
    schema = arrow.schema(
        [arrow.field(column.name, _arrow_type(arrow, column)) for column in table.columns]
    )
    number = 0
    with parquet.ParquetWriter(target, schema) as writer:
        for group in _groups(table):
            arrays = [
                arrow.array(values, type=field.type)
                for values, field in zip(group, schema, strict=True)
            ]
            writer.write_batch(arrow.RecordBatch.from_arrays(arrays, schema=schema))
            number += len(arrays[0])
    return number


def _arrow_type(arrow: Any, column: Column) -> Any:
    types = {"count": arrow.int64(), "number": arrow.float64(), "truth": arrow.bool_()}
    if column.kind == "vector":
        return arrow.list_(arrow.float64())
    return types.get(column.kind, arrow.string())


def _groups(table: ResultTable) -> Iterator[list[list[Any]]]:
    """Yield rows in groups, as the values of each column."""
    group: list[list[Any]] = [[] for _ in table.columns]
    rows = size = 0
    for row in table.rows():
        for column, values, value in zip(table.columns, group, row, strict=True):
            cell = tabular(column.kind, value)
            values.append(cell)
            size += _size_of(cell)
        rows += 1
        if rows == _ROWS or size >= _CHARACTERS:
            yield group
            group = [[] for _ in table.columns]
            rows = size = 0
    if rows:
        yield group


def _size_of(cell: Any) -> int:
    if isinstance(cell, str):
        return len(cell)
    return _FLOATS * len(list_or_empty(cell)) or 1


_WRITERS: Final[Mapping[str, _Writer]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
