"""Types for the contents of an input file in any format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, Final, Literal, Protocol, TypeAlias

import msgspec

from parallel_core.types import CHAT, RouterParallelRequest

RecordUnit: TypeAlias = Literal["line", "element", "row"]
"""Names of what the numbers of requests count."""

_LONGEST_SHOWN: Final = 60  # characters
_JSON_TYPES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


class InputRequest(msgspec.Struct, frozen=True):
    """One request of a file.

    Attributes:
        line: number of the line where it begins, from 1. In a JSON array, number of the element;
            in Parquet and Arrow, number of the row.
        custom_id: its id in the output; the line number if the file gives none.
        request: the request to send.
        returned: members of its line that are copied to the result line: ``metadata`` and
            ``columns``, as JSON. None if there are none.
    """

    line: int
    custom_id: str
    request: RouterParallelRequest
    returned: Mapping[str, msgspec.Raw] | None = None


class InputProblem(msgspec.Struct, frozen=True):
    """A line that is not a valid request.

    Attributes:
        line: its number, as in :class:`InputRequest`.
        code: short reason, for instance ``invalid_json_line``.
        message: what is wrong. It quotes no prompt.
        hint: what to do.
        custom_id: id of the line in the output: the id that the file gives, or the line number. It
            has an ending if another line already has that id.
        place: where it is, if that is no line of its own: ``element 3 (line 17)``, ``row 5``.
    """

    line: int
    code: str
    message: str
    hint: str
    custom_id: str | None
    place: str = ""

    @property
    def where(self) -> str:
        """The place for messages: ``line 17`` if it has no other name."""
        return self.place or f"line {self.line}"


class LineError(Exception):
    """A line is not a valid request."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint


class InputColumn(msgspec.Struct, frozen=True):
    """A member of plain lines that is not a parameter and that no option covers.

    Attributes:
        name: name of the member.
        lines: number of lines that have it.
        first_line: number of the first of these lines.
        operation: operation of that line.
    """

    name: str
    lines: int
    first_line: int
    operation: str = CHAT


class InputSummary(msgspec.Struct, frozen=True):
    """Summary of a file.

    Attributes:
        requests: number of requests that can be sent.
        problems: the first bad lines, at most 20; :meth:`InputFile.problems` returns all of them.
        bad_lines: number of bad lines.
        models: number of requests by model.
        fingerprint: 32 hexadecimal digits: the same for the same requests (ids, models, messages
            and parameters that may change an answer), in any order and form.
        format: ``jsonl``, ``json`` (an array), ``csv``, ``text``, ``parquet`` or ``arrow``.
        columns: members of plain lines for which ``keep``, ``drop_columns`` or ``send_columns`` is
            needed. Nothing can be sent while there are any.
        named_by_line: True if some requests have no id in the file; their id is the line number.
        unit: what the numbers of requests count: ``line``, ``element`` or ``row``.
        operations: number of requests by operation, the Router's method that serves them.
    """

    requests: int
    problems: list[InputProblem]
    bad_lines: int
    models: dict[str, int]
    fingerprint: str
    format: str
    columns: list[InputColumn] = []
    named_by_line: bool = False
    unit: RecordUnit = "line"
    operations: dict[str, int] = {}


class RecordReader(Protocol):
    """Reader of one format.

    Only the same reader understands the rows of ``rows``. Rows are a separate step, so that a line
    known to be bad or finished costs no more than reading it.
    """

    format: str
    unit: RecordUnit

    @property
    def lines_are_ids(self) -> bool:
        """True if ids are line numbers, so that two lines never have the same id."""
        ...

    @property
    def names_lines(self) -> bool:
        """True if the id of some record is its line number. Known after a check."""
        ...

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
        """Yield each record that is not blank, with the number of the line where it begins.

        Raises:
            InputFileError: the file as a whole cannot be used.
        """
        ...

    def check(self, line: int, row: Any) -> InputRequest | InputProblem:
        """Check a record; return its request, or its problem."""
        ...

    def request(self, line: int, row: Any, finished: Callable[[str], bool]) -> InputRequest | None:
        """Return the request of a record that passed ``check``; None if it is finished."""
        ...

    def place_of(self, line: int, row: Any) -> str:
        """Return where a record is, for messages; empty if that is a line of its own."""
        ...

    def refuse_missing(self) -> None:
        """Check that every column to keep was in some record.

        Raises:
            InputFileError: no record had a column; the message names it.
        """
        ...

    def undecided(self) -> list[InputColumn]:
        """Return the columns that no option covers. Known after a check."""
        ...

    def meaning(self) -> list[str | None]:
        """Return the options that affect the requests, besides the format. Known after a check."""
        ...


def shown(name: str) -> str:
    """Quote a name for a message: short, and safe in a terminal."""
    return repr(name if len(name) <= _LONGEST_SHOWN else name[:_LONGEST_SHOWN] + "…")


def not_utf8(line: int) -> InputProblem:
    """Return the problem of a line that is not UTF-8."""
    return InputProblem(
        line,
        "invalid_encoding",
        "not valid UTF-8",
        "save the file as UTF-8, for instance with: iconv -f WINDOWS-1252 -t UTF-8",
        str(line),
    )


def kind_of(value: object) -> str:
    """Return the type of a JSON value, for a message."""
    return _JSON_TYPES[type(value)]


def missing(name: str, hint: str, *, is_null: bool = False) -> LineError:
    """Return the error of a line without a member that it must have, or with null there."""
    problem = f"{name} is {'null' if is_null else 'missing'}"
    return LineError("missing_required_parameter", problem, hint)
