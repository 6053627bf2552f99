"""Reader of JSON lines: lines of batches, and plain requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final, cast

import msgspec

from parallel_core.errors import InputFileError, InvalidRequestError
from parallel_core.files.endpoints import Endpoint, endpoint_of_line
from parallel_core.files.input_members import ColumnOptions, Members
from parallel_core.files.input_records import (
    InputColumn,
    InputProblem,
    InputRequest,
    LineError,
    kind_of,
    missing,
    not_utf8,
    text_rows,
)

from .batch_lines import EXAMPLE, NOT_GIVEN, body_of, checked_id

_BEGINNING_OF_ARRAY: Final = b"["
_ARRAY: Final = "an array over many lines instead of an object on each line"
_ARRAY_HINT: Final = "convert an array of requests to lines with: jq -c '.[]'"
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_SURROGATE: Final = "half a character: one of \\ud800 to \\udfff without the other half"
_SURROGATE_HINT: Final = "remove it: it is the rest of an emoji or the like, where a text was cut"


class JsonLines:
    """Reads JSON lines. A file may mix the formats.

    Args:
        model: model of the requests that name none.
        columns: options for members that are not parameters.
        endpoint: endpoint of the requests without a url; None: their members say it.
    """

    format = "jsonl"
    lines_are_ids = False

    def __init__(
        self, model: str | None, columns: ColumnOptions, endpoint: Endpoint | None = None
    ) -> None:
        self._endpoint = endpoint
        self._model = model
        self._model_was_needed = False
        self.names_lines = False
        self._options = columns
        self._members = Members(columns)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
        for number, (line, row) in enumerate(text_rows(stream)):
            yield line, row
            if not number and row.strip() == _BEGINNING_OF_ARRAY:
                return  # otherwise every further line would be reported too

    def meaning(self) -> list[str | None]:
        return [self._model if self._model_was_needed else None, *self._options.meaning()]

    def refuse_missing(self) -> None:
        self._members.refuse_missing()

    def undecided(self) -> list[InputColumn]:
        return self._members.undecided()

    def check(self, line: int, row: bytes) -> InputRequest | InputProblem:
        custom_id = str(line)
        try:
            record = self._record(row)
            given = record.pop("custom_id", NOT_GIVEN)
            if given is not NOT_GIVEN:
                custom_id = checked_id(given)
            body = body_of(record, given)
            endpoint = endpoint_of_line(record, body, self._endpoint)
            endpoint.refuse_other_shapes(body)
            if body.get("model") is None:
                if self._model is None:
                    raise missing("model", "give the line a model, or set one with --model")
                body["model"] = self._model
                self._model_was_needed = True
            self._members.sort(line, record, body, endpoint)
            self.names_lines |= given is NOT_GIVEN
            return InputRequest(line, custom_id, endpoint.request_of(line, body))
        except UnicodeDecodeError:
            return not_utf8(line)
        except LineError as error:
            return InputProblem(line, error.code, error.message, error.hint, custom_id)

    def request(
        self, line: int, row: bytes, finished: Callable[[str], bool]
    ) -> InputRequest | None:
        try:
            record = self._record(row)
        except (LineError, UnicodeDecodeError):
            raise _changed_line(line) from None
        custom_id = record.pop("custom_id", None) or str(line)
        if finished(custom_id):
            return None
        body: dict[str, Any] = record.get("body") or record
        try:
            endpoint = endpoint_of_line(record, body, self._endpoint)
            returned = self._members.split(record, body, endpoint)
            if body.get("model") is None:
                body["model"] = self._model
            return InputRequest(line, custom_id, endpoint.as_request(line, body), returned)
        except (LineError, InvalidRequestError):
            raise _changed_line(line) from None

    def _record(self, row: bytes) -> dict[str, Any]:
        try:
            record = self._decode(row)
        except (msgspec.DecodeError, RecursionError) as error:
            if row.strip() == _BEGINNING_OF_ARRAY:
                raise LineError("invalid_json_line", _ARRAY, _ARRAY_HINT) from None
            if _has_lone_surrogate(row):
                raise LineError("invalid_json_line", _LONE_SURROGATE, _SURROGATE_HINT) from None
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise LineError("invalid_json_line", f"not valid JSON: {reason}", EXAMPLE) from None
        if type(record) is not dict:
            kind = kind_of(record)
            hint = _ARRAY_HINT if type(record) is list else EXAMPLE
            raise LineError("invalid_json_line", f"{kind} instead of an object", hint)
        return cast("dict[str, Any]", record)


def _changed_line(line: int) -> InputFileError:
    return InputFileError(
        f"line {line} was a request when the file was checked, but is not one now: do not change "
        "the file during a run"
    )


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
