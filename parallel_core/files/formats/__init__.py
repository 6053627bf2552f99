"""Formats of a file of requests: a reader for each, and the choice between them.

A new format has a reader with the protocol :class:`RecordReader` in a module of its own, its name
in ``InputFormat``, its endings in ``_BY_ENDING``, and a branch in :func:`reader_of`.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from parallel_core.errors import InputFileError
from parallel_core.files.contents import is_array, table_format
from parallel_core.files.endpoints import CHAT_COMPLETIONS
from parallel_core.files.input_members import ColumnOptions
from parallel_core.files.input_records import RecordReader

from .csv_table import CsvTable
from .json_array import JsonArray, JsonArrayRows
from .json_lines import JsonLines
from .json_rows import JsonRows
from .request_options import RequestOptions
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
    requests: RequestOptions,
    longest: int,
) -> RecordReader:
    """Return the reader of a file.

    Args:
        format: ``"auto"`` chooses the format by the contents, and else by the ending.
        ending: ending of the file's name, in lower case: ``.csv``.
        beginning: first bytes of the contents; None before the file is opened.
        template, model: as in :class:`InputFile`.
        columns: options for members that are not parameters.
        requests: options for what the requests have in common.
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
    endpoint = requests.endpoint
    requests.parameters.check(columns, endpoint)
    found = _format_of(format, ending, beginning)
    if template is None and found not in ("csv", "text"):
        _check_for_requests(columns, requests)
        if found in _TABLES:
            return RequestTable(found, model, columns, requests, longest)
        lines = JsonArray if _is_in_array(beginning) else JsonLines
        return lines(model, columns, requests, longest)
    kind = "a template" if found == "jsonl" else found
    model = requests.override_model or model
    if not model:
        raise InputFileError(f"{kind} does not name a model: give one (--model)")
    trusts = columns.trust and not requests.parameters
    if columns.send or trusts:
        raise InputFileError(
            f"{kind} has no parameters to send: leave out --send-columns and --trust-input"
        )
    if found == "text" and columns.keep:
        raise InputFileError("text has no columns to keep: leave out --keep")
    if endpoint is not None and endpoint.of_text is None:
        raise InputFileError(
            f"{endpoint.name} needs more than one text, and {kind} makes one of each line: write "
            "JSON lines"
        )
    if requests.system is not None and endpoint not in (None, CHAT_COMPLETIONS):
        raise InputFileError(f"--system is for chat, not for {endpoint.name}: leave it out")
    if found == "text":
        if requests.id_column is not None:
            raise InputFileError("text has no column of ids: leave --id-column out")
        return TextLines(model, template, requests, longest)
    if found == "csv":
        delimiter = "\t" if ending == ".tsv" else ","
        return CsvTable(model, template, delimiter, columns.keep, requests, longest)
    assert template is not None
    if found in _TABLES:
        return PromptTable(found, model, template, columns.keep, requests, longest)
    rows = JsonArrayRows if _is_in_array(beginning) else JsonRows
    return rows(model, template, columns, requests, longest)


def _check_for_requests(columns: ColumnOptions, requests: RequestOptions) -> None:
    """Check the options for a file that holds requests instead of data."""
    if requests.system is not None:
        raise InputFileError(
            "--system goes before the prompts that --template makes, but these lines are whole "
            "requests: leave it out, or give a template"
        )
    if requests.id_column is not None and requests.id_column in columns.keep:
        raise InputFileError(
            f"{requests.id_column} has the ids, which are in each line of the output anyway: "
            "leave it out of --keep"
        )


def _is_in_array(beginning: bytes | None) -> bool:
    return beginning is not None and is_array(beginning)


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
