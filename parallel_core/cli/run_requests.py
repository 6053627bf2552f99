"""Options of ``parallel-core run`` for what all requests have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import typer

_FILE: Final = "@"  # before the name of a file that has the value


def parameters(given: Sequence[str] | None) -> dict[str, Any]:
    """Return the parameters that ``--param NAME=VALUE`` gives.

    A value is JSON where it is valid JSON, and else a text. ``@FILE`` is the JSON in a file.

    Raises:
        typer.BadParameter: one has no name or value, is given twice, or its file has no JSON.
    """
    found: dict[str, Any] = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"--param takes NAME=VALUE, not {word!r}")
        if name in found:
            raise typer.BadParameter(f"--param gives {name} twice")
        found[name] = _value(name, value)
    return found


def _value(name: str, text: str) -> Any:
    if not text.startswith(_FILE):
        try:
            return _json(text)
        except ValueError:
            return text
    path = text.removeprefix(_FILE)
    content = _content(f"--param {name}", path)
    try:
        return _json(content)
    except ValueError as error:
        raise typer.BadParameter(f"--param {name}: {path} is not JSON: {error}") from None


def _json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def system_message(given: str | None) -> str | None:
    """Return the text of ``--system``: the one given, or that of ``@FILE``.

    Raises:
        typer.BadParameter: the file cannot be read.
    """
    if given is None or not given.startswith(_FILE):
        return given
    return _content("--system", given.removeprefix(_FILE))


def _content(option: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise typer.BadParameter(f"{option}: cannot read {path}: {reason}") from None
