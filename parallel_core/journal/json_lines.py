"""Read and write lines of JSON whose texts no line reader changes or cuts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec

T = TypeVar("T")

# Valid in JSON unescaped, but `str.splitlines` and many line readers end a line at them.
_ENDS_OF_LINES = (
    ("\x85".encode(), b"\\u0085"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)
# Matches each escape of a document; the group is a lone surrogate (half a UTF-16 pair).
_ESCAPES = re.compile(
    rb"\\(?:u[dD][89aAbB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


def json_line(value: Any) -> bytes:
    """Encode a value as one line of JSON, without the newline.

    A reader gets every text back unchanged. Characters at which ``str.splitlines`` ends a line are
    escaped. So are lone surrogates (half a UTF-16 pair), which UTF-8 cannot encode.
    """
    try:
        document = msgspec.json.encode(value, enc_hook=_as_json)
    except UnicodeEncodeError:
        document = json.dumps(_plain(value), separators=(",", ":")).encode()
    return one_line(document)


def one_line(document: bytes) -> bytes:
    """Escape the characters in a line of JSON at which some readers end a line."""
    if not document.isascii():
        for character, escape in _ENDS_OF_LINES:
            document = document.replace(character, escape)
    return document


def read_json_line(decode: Callable[[bytes], T], line: bytes) -> T:
    """Decode a line with a msgspec decoder.

    msgspec refuses lone surrogates (half a UTF-16 pair), which :func:`json_line` writes. They are
    read as U+FFFD here; ``json.loads`` keeps them.

    Raises:
        msgspec.DecodeError: the line is not JSON of the decoder's type.
    """
    try:
        return decode(line)
    except msgspec.DecodeError:
        whole = _ESCAPES.sub(_replace_lone_surrogate, line)
        if whole == line:
            raise
        return decode(whole)


def _replace_lone_surrogate(escape: re.Match[bytes]) -> bytes:
    return escape[0] if escape[1] is None else b"\\ufffd"


def _as_json(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(cast("Mapping[str, Any]", value))
    return f"<{type(value).__qualname__}>"


def _plain(value: Any) -> Any:
    """Convert a value so that Python's ``json`` encodes it in the same way as msgspec."""
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
