"""Formats of a file of requests: a reader for each, and the choice between them.

A new format has a reader with the protocol :class:`RecordReader` in a module of its own, its name
in ``InputFormat``, its endings in ``_BY_ENDING``, and a branch in :func:`reader_of`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from parallel_core.errors import InputFileError
from parallel_core.files.contents import is_array, table_format
from parallel_core.files.input_members import ColumnOptions
from parallel_core.files.input_records import RecordReader

from .csv_table import CsvTable
from .json_array import JsonArray
from .json_lines import JsonLines
from .table_rows import PromptTable, RequestTable
from .text_lines import TextLines

InputFormat: TypeAlias = Literal["auto", "jsonl", "csv", "text"]

_BY_ENDING: Final[dict[str, Literal["jsonl", "csv", "text", "parquet", "arrow"]]] = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".txt": "text",
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
}
_TABLES: Final = ("parquet", "arrow")


def reader_of(
    format: InputFormat,
    ending: str,
    beginning: bytes | None = None,
    *,
    template: str | None,
    model: str | None,
    columns: ColumnOptions,
    longest: int,
) -> RecordReader:
    """Return the reader of a file.

    Args:
        format: ``"auto"`` chooses the format by the contents, and else by the ending.
        ending: ending of the file's name, in lower case: ``.csv``.
        beginning: first bytes of the contents; None before the file is opened.
        template, model: as in :class:`InputFile`.
        columns: options for members that are not parameters.
        longest: bytes of the longest line that is read.

    Raises:
        InputFileError: the options do not fit the format, or each other, or the contents.
        ValueError: there is no such format.
    """
    if columns.drop and columns.send:
        raise InputFileError(
            "columns are dropped or sent, not both: give one of --drop-columns and --send-columns"
        )
    if format not in ("auto", "jsonl", "csv", "text"):
        raise ValueError(f"format must be auto, jsonl, csv or text, not {format!r}")
    found = _format_of(format, ending, beginning)
    if found == "jsonl":
        # The contents may be a table.
        may_be_table = beginning is None and format == "auto" and ending not in _BY_ENDING
        if template is not None and not may_be_table:
            raise InputFileError(
                "a template is for CSV and text, but this is read as JSON lines: leave the "
                "template out, or set the format to csv or text"
            )
        is_in_array = beginning is not None and is_array(beginning)
        return (JsonArray if is_in_array else JsonLines)(model, columns, longest)
    if found in _TABLES and template is None:
        return RequestTable(found, model, columns, longest)
    if not model:
        raise InputFileError(f"{found} does not name a model: give one (--model)")
    if columns.send or columns.trust or (found == "text" and columns.keep):
        raise InputFileError(
            f"{found} has no parameters to send (--send-columns, --trust-input), and text has no "
            "columns to keep (--keep)"
        )
    if found == "text":
        return TextLines(model, template, longest)
    if found != "csv":
        assert template is not None
        return PromptTable(found, model, template, columns.keep, longest)
    return CsvTable(model, template, "\t" if ending == ".tsv" else ",", columns.keep, longest)


def _format_of(
    format: InputFormat, ending: str, beginning: bytes | None
) -> Literal["jsonl", "csv", "text", "parquet", "arrow"]:
    by_ending = _BY_ENDING.get(ending, "jsonl")
    table = None if beginning is None else table_format(beginning)
    if table is None and format != "auto":
        return format
    if table is None and beginning is not None and by_ending in _TABLES:
        raise InputFileError(
            f"the name of the file ends in {ending}, but it has another format: rename it, or "
            "give its --format"
        )
    if table is not None and format in ("jsonl", "text"):
        raise InputFileError(
            f"the file is a {table.capitalize()} file, but is to be read as {format}: leave out "
            "--format"
        )
    return table or by_ending
