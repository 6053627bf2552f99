"""Formats of a file of requests: a reader for each, and the choice between them.

A new format has a reader with the protocol :class:`RecordReader` in a module of its own, its name
in ``InputFormat``, its endings in ``_BY_ENDING``, and a branch in :func:`reader_of`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from parallel_core.errors import InputFileError
from parallel_core.files.endpoints import CHAT_COMPLETIONS, EndpointName, endpoint_named
from parallel_core.files.input_members import ColumnOptions
from parallel_core.files.input_records import RecordReader

from .csv_table import CsvTable
from .json_lines import JsonLines
from .text_lines import TextLines

InputFormat: TypeAlias = Literal["auto", "jsonl", "csv", "text"]

_BY_ENDING: Final[dict[str, InputFormat]] = {".csv": "csv", ".tsv": "csv", ".txt": "text"}


def reader_of(
    format: InputFormat,
    ending: str,
    *,
    template: str | None,
    model: str | None,
    columns: ColumnOptions,
    endpoint: EndpointName | None = None,
) -> RecordReader:
    """Return the reader of a file.

    Args:
        format: ``"auto"`` chooses the format by the ending.
        ending: ending of the file's name, in lower case: ``.csv``.
        template, model: as in :class:`InputFile`.
        columns: options for members that are not parameters.
        endpoint: as in :class:`InputFile`.

    Raises:
        InputFileError: the options do not fit the format, or each other.
        ValueError: there is no such format, or no such endpoint.
    """
    chosen = None if endpoint is None else endpoint_named(endpoint)
    if columns.drop and columns.send:
        raise InputFileError(
            "columns are dropped or sent, not both: give one of --drop-columns and --send-columns"
        )
    if format == "auto":
        format = _BY_ENDING.get(ending, "jsonl")
    if format == "jsonl":
        if template is not None:
            raise InputFileError(
                "a template is for CSV and text, but this is read as JSON lines: leave the "
                "template out, or set the format to csv or text"
            )
        return JsonLines(model, columns, chosen)
    if format not in ("csv", "text"):
        raise ValueError(f"format must be auto, jsonl, csv or text, not {format!r}")
    if not model:
        raise InputFileError(f"{format} does not name a model: give one (--model)")
    if columns.send or columns.trust or (format == "text" and columns.keep):
        raise InputFileError(
            f"{format} has no parameters to send (--send-columns, --trust-input), and text has no "
            "columns to keep (--keep)"
        )
    chosen = chosen or CHAT_COMPLETIONS
    if chosen.of_text is None:
        raise InputFileError(
            f"{chosen.name} needs more than one text, and {format} makes one of each line: write "
            "JSON lines"
        )
    if format == "text":
        return TextLines(model, template, chosen)
    return CsvTable(model, template, "\t" if ending == ".tsv" else ",", columns.keep, chosen)
