"""Reader of rows of data as JSON lines: a template makes the prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from parallel_core.errors import InputFileError
from parallel_core.files.input_members import ColumnOptions, as_json
from parallel_core.files.input_records import (
    InputProblem,
    InputRequest,
    LineError,
    missing,
    not_utf8,
    shown,
)

from .batch_lines import NOT_GIVEN
from .json_lines import JsonLines
from .line_ids import id_in_column
from .prompts import Prompts, empty_prompt
from .request_options import RequestOptions
from .translation import as_text

_ID_COLUMNS: Final = ("custom_id", "id")


class JsonRows(JsonLines):
    """Reads rows of data: objects whose members are columns, as in a table.

    A row is named by its ``custom_id``, or else its ``id``, unless an option names another column.

    Args:
        model: model of all requests.
        template: template of the prompts.
        columns: names the columns that are copied to the output line.
        options: what the requests have in common.
        longest: bytes of the longest line that is read.

    Raises:
        InputFileError: the template has no columns.
    """

    def __init__(
        self,
        model: str,
        template: str,
        columns: ColumnOptions,
        options: RequestOptions,
        longest: int,
    ) -> None:
        super().__init__(model, columns, options, longest)
        self._template = template
        self._prompts = Prompts(model, template, options)
        self._keep = columns.keep
        self._not_found = set(columns.keep)
        self._id_columns = _ID_COLUMNS if options.id_column is None else (options.id_column,)
        if not self._prompts.has_columns:
            raise InputFileError(
                "the template has no {{column}}, so all prompts would be the same: name a member "
                "of the lines"
            )

    def meaning(self) -> list[str | None]:
        return [self._model, self._template, *self._requests.meaning()]

    def refuse_missing(self) -> None:
        if self._not_found:
            names = ", ".join(map(shown, sorted(self._not_found)))
            raise InputFileError(f"no line has a member {names} to keep: correct --keep")

    def check(self, line: int, row: Any) -> InputRequest | InputProblem:
        if type(row) is InputProblem:
            return row
        custom_id = str(line)
        try:
            record = self._record(row)
            given = self._id_of(record)
            if given is not NOT_GIVEN:
                custom_id = given
            request = self._prompts.request(self._values(record))
        except UnicodeDecodeError:
            return not_utf8(line)
        except LineError as error:
            return InputProblem(line, error.code, error.message, error.hint, custom_id)
        if request is None:
            return empty_prompt(line, custom_id)
        self._not_found.difference_update(record)
        self.names_lines |= given is NOT_GIVEN
        return InputRequest(line, custom_id, request)

    def request(self, line: int, row: Any, finished: Callable[[str], bool]) -> InputRequest | None:
        record = self._record(row)
        given = self._id_of(record)
        custom_id = str(line) if given is NOT_GIVEN else given
        if finished(custom_id):
            return None
        request = self._prompts.request(self._values(record))
        if request is None:
            return None
        kept = {name: as_json(record[name]) for name in self._keep if name in record}
        returned = {"columns": as_json(kept)} if kept else None
        return InputRequest(line, custom_id, request, returned)

    def _id_of(self, record: dict[str, Any]) -> Any:
        for name in self._id_columns:
            if name in record:
                return id_in_column(name, record[name])
        if self._requests.id_column is not None:
            raise missing(self._requests.id_column, "every line needs an id in that column")
        return NOT_GIVEN

    def _values(self, record: dict[str, Any]) -> dict[str, str]:
        """Return the columns that the templates name, as texts."""
        values: dict[str, str] = {}
        for name in self._prompts.names:
            value = record.get(name)
            if value is None:
                place = name if name.isidentifier() else shown(name)
                hint = "fill it in (an empty text will do), or change the template"
                raise missing(place, hint, is_null=name in record)
            values[name] = value if type(value) is str else as_text(value)
        return values
