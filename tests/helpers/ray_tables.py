"""Tables for ParallelCompletions, in each of the formats of ray.data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from parallel_core.ray_engine.ray_data_tables import COLUMNS

numpy = pytest.importorskip("numpy")


pandas = pytest.importorskip("pandas")


pyarrow = pytest.importorskip("pyarrow")


Values = dict[str, list[Any]]


KEY = "sk-secret-key"


ARROW = {"text": "string", "count": "int64", "number": "double"}


TYPES = {name: ARROW[kind] for name, kind in COLUMNS.items()}


def as_numpy(values: Values) -> Any:
    columns = {}
    for name, given in values.items():
        columns[name] = numpy.empty(len(given), dtype=object)
        columns[name][:] = given
    return columns


def as_pandas(values: Values) -> Any:
    return pandas.DataFrame(
        {name: pandas.Series(given, dtype=object) for name, given in values.items()}
    )


def as_arrow(values: Values) -> Any:
    return pyarrow.table(values)


def listed(table: Any) -> Values:
    """The columns with None for whatever stands for nothing."""
    if isinstance(table, pyarrow.Table):
        return dict(table.to_pydict())
    return {name: [None if is_nothing(value) else value for value in table[name]] for name in table}


def is_nothing(value: Any) -> bool:
    return value is None or value is pandas.NA or value != value


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def replying(reply: str, **more: Any) -> str:
    return json.dumps({"extra_body": {"demo": {"reply": reply, **more}}})
