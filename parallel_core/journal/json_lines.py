"""Lines of JSON, written so that no reader changes or cuts a text in them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec

T = TypeVar("T")

# Valid in JSON as they are, but `str.splitlines` and many readers of lines end a line at them.
_ENDS_OF_LINES = (
    ("\x85".encode(), b"\\u0085"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
# The escapes of a document from left to right; the group is half a pair of UTF-16.
_ESCAPES = re.compile(
    rb"\\(?:u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def json_line(value: Any) -> bytes:
    """Encode a value as one line of JSON, without its end.

    A reader gets back each text as it was. Characters at which ``str.splitlines`` ends a line are
    escaped, and so is half a pair of UTF-16, which UTF-8 does not have.
    """
    try:
        document = msgspec.json.encode(value, enc_hook=_as_json)
    except UnicodeEncodeError:
        document = json.dumps(_plain(value), separators=(",", ":")).encode()
    return one_line(document)


def one_line(document: bytes) -> bytes:
    """Escape what ends a line for some readers, in a line of JSON."""
    if not document.isascii():
        for character, escape in _ENDS_OF_LINES:
            document = document.replace(character, escape)
    return document


def read_json_line(decode: Callable[[bytes], T], line: bytes) -> T:
    """Decode a line with a decoder of msgspec.

    msgspec refuses half a pair of UTF-16, which :func:`json_line` writes. It is read as U+FFFD
    here; ``json.loads`` reads it as it is.

    Raises:
        msgspec.DecodeError: the line is no such JSON.
    """
    try:
        return decode(line)
    except msgspec.DecodeError:
        whole = _ESCAPES.sub(_without_half, line)
        if whole == line:
            raise
        return decode(whole)


def _without_half(escape: re.Match[bytes]) -> bytes:
    return escape[0] if escape[1] is None else b"\\ufffd"


def _as_json(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    return f"<{type(value).__qualname__}>"


def _plain(value: Any) -> Any:
    """What the encoder of Python's library writes as msgspec does."""
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value)
        return {str(name): _plain(member) for name, member in members.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in cast("Sequence[Any]", value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return msgspec.to_builtins(value, enc_hook=_as_json)
