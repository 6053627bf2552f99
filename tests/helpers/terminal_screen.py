"""A terminal that shows what rich draws, and that wraps its lines anew when it gets narrower."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field

_PART = re.compile(r"\x1b\[[0-9;?]*([A-Za-z])|(.)", re.DOTALL)
_NUMBER = re.compile(r"\d+")


@dataclass
class _Row:
    letters: list[str] = field(default_factory=list[str])
    goes_on: bool = False  # the terminal has wrapped it: the next row is its rest


class TerminalScreen(io.StringIO):
    """A stream that is a terminal. Every letter takes one cell.

    Args:
        width: number of columns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self._rows = [_Row()]
        self._row = self._column = 0

    def isatty(self) -> bool:
        return True

    def text(self) -> list[str]:
        """Return the rows without the spaces at their ends, up to the last one with text."""
        rows = ["".join(row.letters).rstrip() for row in self._rows]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def resize(self, width: int) -> None:
        """Wrap the lines anew, and keep the cursor at its letter."""
        lines: list[list[str]] = [[]]
        cursor = 0, 0  # line, and letter in it
        for number, row in enumerate(self._rows):
            if number == self._row:
                cursor = len(lines) - 1, len(lines[-1]) + self._column
            lines[-1] += row.letters
            if not row.goes_on and number < len(self._rows) - 1:
                lines.append([])
        self.width = width
        self._rows = []
        for number, letters in enumerate(lines):
            begin = len(self._rows)
            for start in range(0, max(1, len(letters)), width):
                self._rows.append(_Row(letters[start : start + width], goes_on=True))
            self._rows[-1].goes_on = False
            if number == cursor[0]:
                down = min(cursor[1] // width, len(self._rows) - 1 - begin)
                self._row, self._column = begin + down, cursor[1] - down * width

    def write(self, text: str, /) -> int:
        for found in _PART.finditer(text):
            code, letter = found.groups()
            if code is not None:
                self._obey(code, found[0])
            elif letter == "\n":
                self._down()
            elif letter == "\r":
                self._column = 0
            else:
                self._put(letter)
        return super().write(text)

    def _obey(self, code: str, sequence: str) -> None:
        number = _NUMBER.search(sequence)
        if code == "A":
            self._row = max(0, self._row - (int(number[0]) if number else 1))
        elif code == "K":
            assert sequence == "\x1b[2K"
            self._rows[self._row] = _Row()
        else:
            assert code in "mhl", sequence  # colours, and the cursor

    def _down(self) -> None:
        self._row += 1
        self._column = 0
        if self._row == len(self._rows):
            self._rows.append(_Row())

    def _put(self, letter: str) -> None:
        if self._column == self.width:
            self._rows[self._row].goes_on = True
            self._down()
        letters = self._rows[self._row].letters
        letters += [" "] * (self._column + 1 - len(letters))
        letters[self._column] = letter
        self._column += 1
