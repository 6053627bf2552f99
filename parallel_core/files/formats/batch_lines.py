"""Lines of a batch file of OpenAI or Mistral: an id, an endpoint and a body."""

from __future__ import annotations

from typing import Any, Final, cast

from parallel_core.files.input_records import LineError, kind_of, missing, shown

EXAMPLE: Final = (
    'write one JSON object per line: {"custom_id": "1", "body": {"model": "…", "messages": […]}}'
)
NOT_GIVEN: Final[Any] = object()


def checked_id(custom_id: object) -> str:
    """Return the ``custom_id`` of a line.

    Raises:
        LineError: it is empty, or not a string.
    """
    if type(custom_id) is str and custom_id:
        return custom_id
    if custom_id == "":
        raise LineError(
            "missing_required_parameter",
            "custom_id is empty",
            "give each line a different custom_id",
        )
    kind = kind_of(custom_id)
    hint = "write it as a string"
    if type(custom_id) is int:
        hint += f', in quotes: "custom_id": "{str(custom_id)[:20]}"'
    raise LineError("invalid_type", f"custom_id must be a string, not {kind}", hint)


def body_of(record: dict[str, Any], custom_id: Any) -> dict[str, Any]:
    """Return the object to send: the body of a batch line, or the line itself.

    Raises:
        LineError: the line is a batch line, and not a valid one.
    """
    body = record.get("body", NOT_GIVEN)
    if body is NOT_GIVEN:
        if "url" in record or "method" in record:
            raise missing("body", "put model and messages into the body of the line")
        return record
    method = record.get("method", "POST")
    if type(method) is not str or method.upper() != "POST":
        raise LineError(
            "invalid_method",
            f"method {shown(method)} instead of POST"
            if type(method) is str
            else f"method must be a string, not {kind_of(method)}",
            'write "method": "POST", or leave it out',
        )
    if type(body) is not dict:
        kind = kind_of(cast("object", body))
        raise LineError("invalid_type", f"body must be an object, not {kind}", EXAMPLE)
    if custom_id is NOT_GIVEN:
        raise missing("custom_id", "give each line a different custom_id")
    return cast("dict[str, Any]", body)
