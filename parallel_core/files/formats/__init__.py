"""Formats of a file of requests: a reader for each, and the choice between them.

A new format has a reader with the protocol :class:`RecordReader` in a module of its own, its name
in ``InputFormat``, its endings in ``_BY_ENDING``, and a branch in :func:`reader_of`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from parallel_core.errors import InputFileError
from parallel_core.files.input_members import ColumnOptions
from parallel_core.files.input_records import RecordReader

from .csv_table import CsvTable
from .json_lines import JsonLines
from .json_rows import JsonRows
from .request_options import RequestOptions
from .text_lines import TextLines

_NO_OPTIONS: Final = RequestOptions()

InputFormat: TypeAlias = Literal["auto", "jsonl", "csv", "text"]

_BY_ENDING: Final[dict[str, InputFormat]] = {".csv": "csv", ".tsv": "csv", ".txt": "text"}


def reader_of(
    format: InputFormat,
    ending: str,
    *,
    template: str | None,
    model: str | None,
    columns: ColumnOptions,
    requests: RequestOptions = _NO_OPTIONS,
) -> RecordReader:
    """Return the reader of a file.

    Args:
        format: ``"auto"`` chooses the format by the ending.
        ending: ending of the file's name, in lower case: ``.csv``.
        template, model: as in :class:`InputFile`.
        columns: options for members that are not parameters.
        requests: options for what the requests have in common.

    Raises:
        InputFileError: the options do not fit the format, or each other.
        ValueError: there is no such format.
    """
    if columns.drop and columns.send:
        raise InputFileError(
            "columns are dropped or sent, not both: give one of --drop-columns and --send-columns"
        )
    requests.parameters.check(columns)
    if format == "auto":
        format = _BY_ENDING.get(ending, "jsonl")
    if format == "jsonl" and template is None:
        if requests.system is not None:
            raise InputFileError(
                "--system goes before the prompts that --template makes, but these lines have "
                "their own messages: leave it out, or give a template"
            )
        if requests.id_column is not None and requests.id_column in columns.keep:
            raise InputFileError(
                f"{requests.id_column} has the ids, which are in each line of the output anyway: "
                "leave it out of --keep"
            )
        return JsonLines(model, columns, requests)
    if format not in ("jsonl", "csv", "text"):
        raise ValueError(f"format must be auto, jsonl, csv or text, not {format!r}")
    model = requests.override_model or model
    kind = "a template" if format == "jsonl" else format
    if not model:
        raise InputFileError(f"{kind} does not name a model: give one (--model)")
    trusts = columns.trust and not requests.parameters
    if columns.send or trusts or (format == "text" and columns.keep):
        raise InputFileError(
            f"{kind} has no parameters to send (--send-columns, --trust-input), and text has no "
            "columns to keep (--keep)"
        )
    if format == "text":
        if requests.id_column is not None:
            raise InputFileError("text has no column of ids: leave --id-column out")
        return TextLines(model, template, requests)
    if format == "jsonl":
        return JsonRows(model, str(template), columns, requests)
    delimiter = "\t" if ending == ".tsv" else ","
    return CsvTable(model, template, delimiter, columns.keep, requests)
