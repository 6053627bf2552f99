"""Reader of JSON lines: lines of batches, and plain requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, cast

import msgspec

from parallel_core.errors import InputFileError, InvalidRequestError
from parallel_core.files.endpoints import CHAT_COMPLETIONS, Endpoint, endpoint_of_line
from parallel_core.files.input_members import ColumnOptions, Members
from parallel_core.files.input_records import (
    InputColumn,
    InputProblem,
    InputRequest,
    LineError,
    RecordUnit,
    kind_of,
    missing,
    not_utf8,
)
from parallel_core.files.line_limits import text_rows

from .batch_lines import EXAMPLE, NOT_GIVEN, body_of
from .line_ids import checked_line_id, take_id, written_id
from .provider_lines import translated_body
from .request_options import RequestOptions

_BEGINNING_OF_OBJECT: Final = b"{"
_CUT_OBJECT: Final = "the object does not end in this line"
_OBJECT_OVER_LINES: Final = (
    "the file is a JSON object over many lines: write each request on one line, for instance with "
    "jq -c . FILE, or all of them as an array"
)
_CUT_HINT: Final = "write each object on one line, or all as an array: jq -c . FILE writes lines"
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_SURROGATE: Final = "half a character: one of \\ud800 to \\udfff without the other half"
_SURROGATE_HINT: Final = "remove it: it is the rest of an emoji or the like, where a text was cut"


class JsonLines:
    """Reads JSON lines. A file may mix the formats.

    Args:
        model: model of the requests that name none.
        columns: options for members that are not parameters.
        options: what the requests have in common.
        longest: bytes of the longest line that is read.
    """

    format = "jsonl"
    unit: RecordUnit = "line"
    lines_are_ids = False

    def __init__(
        self, model: str | None, columns: ColumnOptions, options: RequestOptions, longest: int
    ) -> None:
        self._model = model
        self._requests = options
        self._longest = longest
        self._model_was_needed = False
        self.names_lines = False
        self._options = columns
        self._members = Members(columns)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
        count, is_cut = 0, False
        for line, row in text_rows(stream, self._longest):
            if count < 2 and type(row) is bytes:
                if is_cut and row.lstrip().startswith(b'"'):
                    raise InputFileError(_OBJECT_OVER_LINES)  # or each line would be reported
                is_cut = row.strip() == _BEGINNING_OF_OBJECT
            count += 1  # noqa: SIM113 - enumerate would keep the row
            yield line, row
            del row  # a long line must not stay in memory while the next is read

    def place_of(self, line: int, row: Any) -> str:
        return ""

    def meaning(self) -> list[str | None]:
        model = self._model if self._model_was_needed else None
        return [model, *self._options.meaning(), *self._requests.meaning()]

    def refuse_missing(self) -> None:
        self._members.refuse_missing()

    def undecided(self) -> list[InputColumn]:
        return self._members.undecided()

    def check(self, line: int, row: Any) -> InputRequest | InputProblem:
        if type(row) is InputProblem:
            return row
        custom_id = str(line)
        try:
            record = self._record(row)
            id_column = self._requests.id_column
            given = take_id(record, id_column)
            if given is not NOT_GIVEN or id_column is not None:
                custom_id = checked_line_id(given, id_column)
            body, endpoint = self._asked(record, given)
            endpoint.refuse_other_shapes(body)
            if self._requests.override_model is not None:
                body["model"] = self._requests.override_model
            if body.get("model") is None:
                if self._model is None:
                    raise missing("model", "give the line a model, or set one with --model")
                body["model"] = self._model
                self._model_was_needed = True
            self._members.sort(line, record, body, endpoint)
            self._fill(body, endpoint)
            self.names_lines |= given is NOT_GIVEN
            return InputRequest(line, custom_id, endpoint.request_of(line, body))
        except UnicodeDecodeError:
            return not_utf8(line)
        except LineError as error:
            return InputProblem(line, error.code, error.message, error.hint, custom_id)

    def request(self, line: int, row: Any, finished: Callable[[str], bool]) -> InputRequest | None:
        try:
            record = self._record(row)
        except (LineError, UnicodeDecodeError):
            raise _changed_line(line) from None
        given = take_id(record, self._requests.id_column)
        custom_id = written_id(given, line)
        if finished(custom_id):
            return None
        try:
            body, endpoint = self._asked(record, given)
            returned = self._members.split(record, body, endpoint)
            self._fill(body, endpoint)
            if self._requests.override_model is not None:
                body["model"] = self._requests.override_model
            elif body.get("model") is None:
                body["model"] = self._model
            return InputRequest(line, custom_id, endpoint.as_request(line, body), returned)
        except (LineError, InvalidRequestError):
            raise _changed_line(line) from None

    def _asked(self, record: dict[str, Any], given: Any) -> tuple[dict[str, Any], Endpoint]:
        """Return the body of a line, and the endpoint that it is for.

        Raises:
            LineError: the line is a batch line, and not a valid one.
        """
        translated = translated_body(record, given)
        if translated is not None:
            return translated, CHAT_COMPLETIONS
        body = body_of(record, given)
        return body, endpoint_of_line(record, body, self._requests.endpoint)

    def _fill(self, body: dict[str, Any], endpoint: Endpoint) -> None:
        """Put the common parameters into a body, and check it where they might clash.

        Raises:
            LineError: ``extra_body`` has one of them, too.
        """
        if self._requests.parameters:
            self._requests.parameters.fill(body)
            self._members.look_inside(body, endpoint)

    def _record(self, row: bytes) -> dict[str, Any]:
        try:
            record = self._decode(row)
        except (msgspec.DecodeError, RecursionError) as error:
            # msgspec reports a lone surrogate near the end as an input that is cut.
            if _has_lone_surrogate(row):
                raise LineError("invalid_json_line", _LONE_SURROGATE, _SURROGATE_HINT) from None
            if row.lstrip().startswith(_BEGINNING_OF_OBJECT) and _is_cut(error):
                raise LineError("invalid_json_line", _CUT_OBJECT, _CUT_HINT) from None
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise LineError("invalid_json_line", f"not valid JSON: {reason}", EXAMPLE) from None
        if type(record) is not dict:
            problem = f"{kind_of(record)} instead of an object"
            raise LineError("invalid_json_line", problem, EXAMPLE)
        return cast("dict[str, Any]", record)


def _changed_line(line: int) -> InputFileError:
    return InputFileError(
        f"line {line} was a request when the file was checked, but is not one now: do not change "
        "the file during a run"
    )


def _is_cut(error: Exception) -> bool:
    return str(error) == "Input data was truncated"


def _has_lone_surrogate(row: bytes) -> bool:
    """Return True if a line is invalid only for a lone surrogate (half a UTF-16 pair).

    msgspec refuses it, and Python's ``json`` accepts it.
    """
    if _ESCAPED_SURROGATE.search(row) is None:
        return False
    try:
        json.loads(row)
    except (ValueError, RecursionError):
        return False
    return True
