"""Parquet and Arrow files of chats, made by the libraries that people use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather as feather

CHATS = [
    {
        "prompt": f"Question {number}?",
        "prompt_id": f"p-{number}",
        "messages": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": "An answer."},
            {"role": "user", "content": "And then?"},
        ],
    }
    for number in range(100)
]


def by_pandas(path: Path) -> None:
    pd.DataFrame(CHATS).to_parquet(path)


def by_polars(path: Path) -> None:
    pl.DataFrame(CHATS).write_parquet(path)


def by_duckdb(path: Path) -> None:
    lines = path.with_suffix(".ndjson")
    lines.write_text("\n".join(map(json.dumps, CHATS)))
    with duckdb.connect() as database:
        database.execute(
            f"COPY (SELECT * FROM read_json_auto('{lines}')) TO '{path}' (FORMAT parquet)"
        )


def by_feather(path: Path) -> None:
    feather.write_feather(pa.Table.from_pylist(CHATS), path)


def by_arrow_stream(path: Path) -> None:  # as the package datasets keeps its tables
    table = pa.Table.from_pylist(CHATS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


def by_polars_ipc(path: Path) -> None:  # its texts are string_view
    pl.DataFrame(CHATS).write_ipc(path, compression="zstd")


WRITERS: dict[str, Callable[[Path], None]] = {
    "pandas.parquet": by_pandas,
    "polars.parquet": by_polars,
    "duckdb.parquet": by_duckdb,
    "pyarrow.feather": by_feather,
    "datasets.arrow": by_arrow_stream,
    "polars.arrow": by_polars_ipc,
}
