"""Readers of Parquet and Arrow files: rows that become prompts, and rows that are requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final, Literal

from parallel_core.errors import InputFileError
from parallel_core.files.input_members import ColumnOptions
from parallel_core.files.input_records import InputProblem, InputRequest, LineError, RecordUnit
from parallel_core.files.line_limits import too_long

from .arrow_tables import ArrowTable, TableRow, json_of
from .csv_table import CsvTable
from .json_lines import JsonLines
from .prompts import listed
from .request_options import RequestOptions

# A table with one of these columns has requests in its rows.
_REQUEST_COLUMNS: Final = ("messages", "body", "params", "request", "contents", "input", "query")
_COLUMNS_OF_PROMPTS: Final = ("prompt", "question", "instruction", "text", "content")
_BEGINNING: Final = 8  # bytes


class PromptTable(CsvTable):
    """Reads Parquet and Arrow as CSV is read: a template makes a prompt of each row.

    Args:
        format: name of the format.
        model, template, keep, options, longest: as in :class:`CsvTable`.
    """

    unit: RecordUnit = "row"

    def __init__(
        self,
        format: Literal["parquet", "arrow"],
        model: str,
        template: str,
        keep: tuple[str, ...],
        options: RequestOptions,
        longest: int,
    ) -> None:
        super().__init__(model, template, ",", keep, options, longest)
        self.format = format

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
        table = _table(stream)
        self._read_names(table.names)
        yield from enumerate(table.rows(), 1)

    def check(self, line: int, row: Any) -> InputRequest | InputProblem:
        found: InputRequest | InputProblem
        try:
            found = self._check_values(line, row)
        except LineError as error:
            found = InputProblem(line, error.code, error.message, error.hint, str(line))
        return too_long(line, self._longest) if row.size > self._longest else found

    def place_of(self, line: int, row: Any) -> str:
        return f"row {line}"

    def _kept_value(self, row: Any, place: int) -> object:
        return json_of(row.value(place))


class RequestTable(JsonLines):
    """Reads Parquet and Arrow whose rows are requests: the columns are the members of lines.

    Args:
        format: name of the format.
        model, columns, options, longest: as in :class:`JsonLines`.
    """

    unit: RecordUnit = "row"

    def __init__(
        self,
        format: Literal["parquet", "arrow"],
        model: str | None,
        columns: ColumnOptions,
        options: RequestOptions,
        longest: int,
    ) -> None:
        super().__init__(model, columns, options, longest)
        self.format = format

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, bytes | InputProblem]]:
        table = _table(stream)
        is_chosen = self._requests.endpoint is not None
        if not is_chosen and not any(name in _REQUEST_COLUMNS for name in table.names):
            raise InputFileError(
                "the table has no column that holds requests, such as messages, input or body: "
                "give a template that makes a prompt of each row, for instance --template "
                f'"{{{{{_likely_prompt(table.names)}}}}}", or --endpoint if its columns are the '
                f"parameters of one; its columns are: {listed(table.names)}"
            )
        for number, row in enumerate(table.rows(), 1):
            yield number, self._line(number, row)

    def place_of(self, line: int, row: Any) -> str:
        return f"row {line}"

    def _line(self, number: int, row: TableRow) -> bytes | InputProblem:
        """Return a row as the line of JSON that it stands for."""
        keep = self._options.keep
        try:
            members = {n: v for n, v in row.members() if v is not None or n in keep}
        except LineError as error:
            return InputProblem(number, error.code, error.message, error.hint, str(number))
        if type(members.get("custom_id")) is int:  # a column of numbers cannot be put into quotes
            members["custom_id"] = str(members["custom_id"])
        line = bytes(json_of(members))
        return too_long(number, self._longest) if len(line) > self._longest else line


def _likely_prompt(columns: Sequence[str]) -> str:
    """Return the column that has the prompts, by its name; without one, the last column."""
    likely = [name for name in _COLUMNS_OF_PROMPTS if name in columns]
    return [*columns[-1:], *likely[:1]][-1] if columns else "column"


def _table(stream: BinaryIO) -> ArrowTable:
    beginning = stream.read(_BEGINNING)
    stream.seek(0)
    return ArrowTable(stream, beginning)
