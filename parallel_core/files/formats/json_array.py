"""Reader of a JSON array of requests, of any size."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO, Final, NamedTuple

from parallel_core.errors import InputFileError
from parallel_core.files.input_records import InputProblem, InputRequest, RecordUnit
from parallel_core.files.line_limits import too_long

from .json_lines import JsonLines
from .json_rows import JsonRows

_READ: Final = 1 << 16  # bytes
_MARK_AND_BRACKET: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[")
# Each expression matches as far as no decision is needed. The quantifiers are possessive: what has
# matched is never tried again.
_BETWEEN: Final = re.compile(rb'[^][{}",]*+')  # outside of strings, not inside of an element
_INSIDE: Final = re.compile(rb'(?:[^][{}"]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_IN_STRING: Final = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)  # without its quotes
_MOST_DEPTH: Final = 6  # of an element that one expression matches, which most are
_BLANKS: Final = re.compile(rb"\s*+")
_OPENING: Final = frozenset(b"[{")
_QUOTE: Final = ord('"')
_COMMA: Final = ord(",")
_END: Final = ord("]")


def _whole_element() -> re.Pattern[bytes]:
    """Return an expression for an object or array and the blanks around it."""
    plain, string = rb'[^][{}"]++', rb'"(?:[^"\\]++|\\.)*+"'
    inner = rb"(?:%b|%b)*+" % (plain, string)
    for _ in range(_MOST_DEPTH - 1):
        inner = rb"(?:%b|%b|[\[{]%b[]}])*+" % (plain, string, inner)
    return re.compile(rb"\s*+[\[{]%b[]}]\s*+(?=[],])" % inner, re.DOTALL)


_WHOLE: Final = _whole_element()


class Element(NamedTuple):
    """One element of an array.

    Attributes:
        text: its JSON; None if it is longer than the limit.
        line: number of the line where it begins, from 1.
    """

    text: bytes | None
    line: int


class JsonArray(JsonLines):
    """Reads a JSON array of what JSON lines hold. Elements are numbered from 1."""

    format = "json"
    unit: RecordUnit = "element"

    def rows(self, stream: BinaryIO) -> Iterator[tuple[int, Element]]:
        yield from enumerate(elements_of(stream, self._longest), 1)

    def check(self, line: int, row: Element) -> InputRequest | InputProblem:
        if row.text is None:
            return too_long(line, self._longest)
        return super().check(line, row.text)

    def place_of(self, line: int, row: Element) -> str:
        return f"element {line} (line {row.line})"

    def request(
        self, line: int, row: Element, finished: Callable[[str], bool]
    ) -> InputRequest | None:
        assert row.text is not None
        return super().request(line, row.text, finished)


class JsonArrayRows(JsonArray, JsonRows):
    """Reads a JSON array of rows of data: a template makes the prompts."""


def elements_of(stream: BinaryIO, longest: int) -> Iterator[Element]:
    """Yield the elements of a JSON array, without decoding them.

    Raises:
        InputFileError: the array has no end, an element is missing, or something follows the array.
    """
    return _Splitter(stream, longest).elements()


class _Splitter:
    """Finds the ends of the elements of an array.

    Only brackets, quotes and commas matter for that. Whether an element is valid is seen when it is
    decoded.
    """

    def __init__(self, stream: BinaryIO, longest: int) -> None:
        self._stream = stream
        self._longest = longest
        self._text = bytearray()  # from the beginning of the element, unless that is too long
        self._scanned: int = 0  # bytes of it
        self._line = 1  # where the text begins
        self._depth = 0  # brackets that are open
        self._is_in_string = False
        self._dropped: int | None = None  # the line of an element that is too long

    def elements(self) -> Iterator[Element]:
        """Yield the elements."""
        self._begin()
        is_first = True
        while True:
            mark = self._find_end()
            if self._scanned > self._longest:
                self._drop()
            element = self._element()
            if element.text != b"":
                yield element
            elif not (is_first and mark == _END):
                raise InputFileError(
                    f"the array has a comma too many in line {element.line}: no element is there"
                )
            del element  # a long one must not stay in memory while the next is read
            self._take(self._scanned + 1)
            self._dropped = None
            if mark == _END:
                break
            is_first = False
        self._refuse_rest()

    def _element(self) -> Element:
        """Return the element that has just been scanned."""
        if self._dropped is not None:
            return Element(None, self._dropped)
        start, line = self._start()
        return Element(bytes(memoryview(self._text)[start : self._scanned]), line)

    def _start(self) -> tuple[int, int]:
        """Return the position and the line where the element begins."""
        start = _end(_BLANKS, self._text, 0, self._scanned)
        return start, self._line + self._text.count(b"\n", 0, start)

    def _drop(self) -> None:
        """Forget what was scanned of an element that is too long."""
        if self._dropped is None:
            self._dropped = self._start()[1]
        self._take(self._scanned)

    def _begin(self) -> None:
        while not (found := _MARK_AND_BRACKET.match(self._text)):
            if not self._more():
                raise InputFileError("there is no array in the file")
        self._take(found.end())

    def _find_end(self) -> int:
        """Scan to the end of the element, and return the byte there: a comma or a bracket."""
        if found := _WHOLE.match(self._text):
            self._scanned = end = found.end()
            return self._text[end]
        while True:
            text, position = self._text, self._scanned
            if self._is_in_string:
                position = _end(_IN_STRING, text, position)
                if position < len(text) and text[position] == _QUOTE:
                    self._is_in_string = False
                    position += 1
                self._scanned = position
                if self._is_in_string:
                    self._need_more()
                continue
            position = _end(_INSIDE if self._depth else _BETWEEN, text, position)
            self._scanned = position
            if position == len(text):
                self._need_more()
                continue
            mark = text[position]
            if not self._depth and mark in (_COMMA, _END):
                return mark
            if mark == _QUOTE:
                self._is_in_string = True
            elif mark in _OPENING:
                self._depth += 1
            else:
                self._depth = max(0, self._depth - 1)
            self._scanned = position + 1

    def _need_more(self) -> None:
        if self._scanned > self._longest or self._dropped is not None:
            self._drop()
        if not self._more():
            raise InputFileError(
                "the array has no end: the file was cut off, or a bracket or a quote is missing, "
                f"in or after line {self._dropped or self._start()[1]}"
            )

    def _more(self) -> bool:
        block = self._stream.read(_READ)
        self._text += block
        return bool(block)

    def _take(self, size: int) -> None:
        self._line += self._text.count(b"\n", 0, size)
        del self._text[:size]
        self._scanned = 0

    def _refuse_rest(self) -> None:
        while True:
            rest = self._text.lstrip()
            if rest:
                line = self._line + self._text.count(b"\n", 0, len(self._text) - len(rest))
                raise InputFileError(
                    f"something follows the array, in line {line}: a file holds one array of "
                    "requests, or an object on each line"
                )
            self._take(len(self._text))
            if not self._more():
                return


def _end(
    expression: re.Pattern[bytes], text: bytearray, position: int, limit: int = sys.maxsize
) -> int:
    found = expression.match(text, position, limit)
    assert found is not None  # it matches nothing, too
    return found.end()
