"""Texts of others, safe for a terminal."""

from __future__ import annotations

from typing import Final

_HARMLESS: Final = "\n\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}"


def printable(text: str) -> str:
    """Escape control characters, and characters that change the direction of the text.

    A terminal would obey them, and names of models, ids, file names and errors of providers come
    from others. Line feeds are kept.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in _HARMLESS else _escaped(letter)
        for letter in text
    )


def printable_name(name: object) -> str:
    """Escape a name like :func:`printable`, and also its line feeds."""
    return printable(str(name)).replace("\n", "\\n")


def _escaped(letter: str) -> str:
    if letter <= "\x7f":
        return repr(letter)[1:-1]
    return letter.encode("ascii", "backslashreplace").decode()
