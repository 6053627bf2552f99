"""Files of results as data frames of pandas and polars."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .batch_input import InputFile
from .result_tables import Column, ResultTable, tabular


def to_pandas(
    path: Path | str, *, columns: Sequence[str] | None = None, requests: InputFile | None = None
) -> Any:
    """Read a file of results into a ``pandas.DataFrame``.

    Args:
        path: the file of results.
        columns: names of the columns (see ``docs/file-formats.md``); None: the usual ones, and
            those that the results return.
        requests: the file of requests, for the column ``prompt``; rows are then in its order.

    Raises:
        ImportError: pandas is not installed.
        OSError, ValueError: as in :class:`ResultTable`.
    """
    pandas = _imported("pandas")
    table = ResultTable(path, columns, requests)
    types = {"count": "Int64", "number": "float64", "truth": "boolean", "vector": "object"}
    return pandas.DataFrame(
        {
            column.name: pandas.Series(values, dtype=types.get(column.kind, "string"))
            for column, values in _values(table)
        }
    )


def to_polars(
    path: Path | str, *, columns: Sequence[str] | None = None, requests: InputFile | None = None
) -> Any:
    """Read a file of results into a ``polars.DataFrame``; otherwise as :func:`to_pandas`.

    Raises:
        ImportError: polars is not installed.
        OSError, ValueError: as in :class:`ResultTable`.
    """
    polars = _imported("polars")
    table = ResultTable(path, columns, requests)
    types = {
        "count": polars.Int64,
        "number": polars.Float64,
        "truth": polars.Boolean,
        "vector": polars.List(polars.Float64),
    }
    schema = {column.name: types.get(column.kind, polars.String) for column in table.columns}
    return polars.DataFrame({c.name: values for c, values in _values(table)}, schema=schema)


def _values(table: ResultTable) -> Iterator[tuple[Column, list[Any]]]:
    values: list[list[Any]] = [[] for _ in table.columns]
    for row in table.rows():
        for column, whole, value in zip(table.columns, values, row, strict=True):
            whole.append(tabular(column.kind, value))
    return zip(table.columns, values, strict=True)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(
            f"to_{name} needs {name}, which is not installed: pip install {name}"
        ) from None
