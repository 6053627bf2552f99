"""Ids of lines of JSON."""

from __future__ import annotations

from typing import Any

from parallel_core.files.input_records import LineError, kind_of, missing

from .batch_lines import NOT_GIVEN, checked_id
from .provider_lines import is_gemini_line


def take_id(record: dict[str, Any], id_column: str | None) -> Any:
    """Remove the id from a line and return it; ``NOT_GIVEN`` if the line has none.

    The id column takes precedence. A line of Gemini's batches has a ``key``.
    """
    if id_column is not None and id_column in record:
        return record.pop(id_column)
    if "custom_id" not in record and "key" in record and is_gemini_line(record):
        return record.pop("key")
    return record.pop("custom_id", NOT_GIVEN)


def checked_line_id(given: Any, id_column: str | None) -> str:
    """Return the id of a line.

    Raises:
        LineError: it is no id; or there is none, and a column was named for it.
    """
    if id_column is None:
        return checked_id(given)
    if given is NOT_GIVEN or given is None or given == "":
        raise missing(id_column, "every line needs an id in the column of --id-column")
    return id_in_column(id_column, given)


def id_in_column(name: str, given: Any) -> str:
    """Return the id in a column of data, where it may be a whole number.

    Raises:
        LineError: it is something else.
    """
    if type(given) is str and given:
        return given
    if type(given) is int:
        return str(given)
    kind = "empty" if given == "" else kind_of(given)
    raise LineError(
        "invalid_type", f"{name} must be a string or a whole number, not {kind}", "give it an id"
    )


def written_id(given: Any, line: int) -> str:
    """Return the id of a line that was checked: the one it has, or the number of the line."""
    return str(line) if given is NOT_GIVEN or given is None else str(given)
