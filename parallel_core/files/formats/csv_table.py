"""Reader of tables (CSV): each row becomes a prompt."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, TypeAlias

from parallel_core.errors import InputFileError
from parallel_core.files.endpoints import CHAT_COMPLETIONS, Endpoint
from parallel_core.files.input_members import as_json
from parallel_core.files.input_records import (
    InputColumn,
    InputProblem,
    InputRequest,
    not_utf8,
    shown,
)

from .prompts import Template, listed, prompt_request

_ID_COLUMNS: Final = ("custom_id", "id")
_OTHER_DELIMITERS: Final = (";", "\t")
_LONGEST_FIELD: Final = 2**31 - 1  # characters; fits a C long on every platform

_CsvRow: TypeAlias = "list[str] | InputProblem"


class CsvTable:
    """Reads CSV as spreadsheets write it, with a row of column names at the top.

    The column ``custom_id``, or else ``id``, has the ids of the requests. If the row of names has
    semicolons or tabs and no commas, these are the delimiter.

    Args:
        model: model of all requests.
        template: template of the prompts.
        delimiter: character between columns.
        keep: columns that are copied to the output line.
        endpoint: endpoint of all requests.
    """

    format = "csv"

    def __init__(
        self,
        model: str,
        template: str | None,
        delimiter: str,
        keep: tuple[str, ...] = (),
        endpoint: Endpoint = CHAT_COMPLETIONS,
    ) -> None:
        self._endpoint = endpoint
        self._keep = keep
        self._kept: list[tuple[str, int]] = []  # name and index of each column to keep
        self._model = model
        self._source = template
        self._delimiter = delimiter
        self._columns: list[str] = []
        self._id_column: int | None = None
        self._template: Template

    @property
    def lines_are_ids(self) -> bool:
        return self._id_column is None

    names_lines = lines_are_ids

    def meaning(self) -> list[str | None]:
        return [self._model, self._source, self._delimiter]

    def refuse_missing(self) -> None:
        """Do nothing: ``rows`` already checked the row of names."""

    def undecided(self) -> list[InputColumn]:
        return []

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, _CsvRow]]:
        # Allow fields of any length. The limit is global to the process: never lower it.
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
        # Keep bytes that are not UTF-8; `check` reports them row by row.
        text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
        blank, names = 0, ""
        for names in text:
            if names.strip():
                break
            blank += 1
        if self._delimiter == ",":
            self._delimiter = _delimiter_of(names)
        lines = itertools.chain([names], text)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        has_names = False
        while True:
            line = blank + reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if not has_names:
                    raise InputFileError(
                        f"the row of column names is not valid CSV: {error}"
                    ) from None
                yield line, _not_csv(line, str(error))
                continue
            if not any(row):
                continue
            if has_names:
                yield line, row
            else:
                self._read_names(row)
                has_names = True

    def _read_names(self, row: list[str]) -> None:
        columns = [name.strip() for name in row]
        repeated = sorted({name for name in columns if columns.count(name) > 1})
        existing = listed(columns)
        if repeated:
            raise InputFileError(
                f"several columns have the same name: rename them; the columns are {existing}"
            )
        if self._source is None:
            raise InputFileError(
                "a CSV file needs a template that makes prompts from its columns, for instance "
                f'--template "{{{{{columns[-1]}}}}}": the columns of the file are: {existing}'
            )
        self._template = Template(self._source, columns)
        unknown = [name for name in self._keep if name not in columns]
        if unknown:
            raise InputFileError(
                f"there is no column {', '.join(map(shown, unknown))} to keep: the columns of the "
                f"file are: {existing}"
            )
        self._kept = [(name, columns.index(name)) for name in self._keep]
        self._columns = columns
        names = [name for name in _ID_COLUMNS if name in columns]
        self._id_column = columns.index(names[0]) if names else None

    def check(self, line: int, row: _CsvRow) -> InputRequest | InputProblem:
        if isinstance(row, InputProblem):
            return row
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            return not_utf8(line)
        if len(row) != len(self._columns):
            return _not_csv(line, f"{len(row)} fields for {len(self._columns)} columns")
        custom_id = str(line) if self._id_column is None else row[self._id_column]
        if not custom_id:
            name = self._columns[self._id_column or 0]
            return InputProblem(
                line,
                "missing_required_parameter",
                f"the column {name} is empty",
                "give each row a different id, or remove the column from the file",
                str(line),
            )
        prompt = self._template.fill(row)
        if not prompt.strip():
            return InputProblem(
                line,
                "missing_required_parameter",
                "the prompt is empty",
                "fill the columns that the template names",
                custom_id,
            )
        return InputRequest(line, custom_id, prompt_request(self._endpoint, self._model, prompt))

    def request(
        self, line: int, row: _CsvRow, finished: Callable[[str], bool]
    ) -> InputRequest | None:
        if isinstance(row, InputProblem):
            return None
        custom_id = str(line) if self._id_column is None else row[self._id_column]
        if finished(custom_id):
            return None
        columns = {name: row[place] for name, place in self._kept}
        returned = {"columns": as_json(columns)} if columns else None
        request = prompt_request(self._endpoint, self._model, self._template.fill(row))
        return InputRequest(line, custom_id, request, returned)


def _delimiter_of(names: str) -> str:
    """Return the delimiter of the row of column names."""
    for delimiter in (",", *_OTHER_DELIMITERS):
        with contextlib.suppress(csv.Error):
            if len(next(csv.reader([names], delimiter=delimiter), ())) > 1:
                return delimiter
    return ","


def _not_csv(line: int, reason: str) -> InputProblem:
    hint = "quote fields that contain commas, quotes or newlines, and double the quotes in them"
    return InputProblem(line, "invalid_csv_row", f"not a row of CSV: {reason}", hint, str(line))
