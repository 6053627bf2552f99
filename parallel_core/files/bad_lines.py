"""Bad lines of a file: which they are, and the ids that they get in the output.

A bad line costs 9 bytes of memory, since every line of a file may be bad. The problem of a line is
found again by another reading.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias, cast

import msgspec

from parallel_core.journal import id_key

from .input_records import InputProblem, InputRequest, RecordReader, RecordUnit, shown

Rows: TypeAlias = Iterator[tuple[int, Any]]
"""Records of a file, each with the number of the line where it begins."""

_MOST_DIGITS: Final = 18  # of a line number


class BadLines:
    """The bad lines of a file. A line with the id of an earlier line is one of them.

    Its use: :meth:`add` and :meth:`accepts` at the first reading of the file, then
    :meth:`make_unique` once, then the other methods.
    """

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._endings = array("Q")  # for each, how often "#line-N" is added to its id
        self._ids: set[int] = set()  # digests of the ids in the output, until they are unique
        self._repeated: set[int] = set()  # digests of ids that several lines have

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, line: int) -> None:
        """Add a bad line. Lines are added in file order."""
        self._numbers.append(line)

    def accepts(self, line: int, key: bytes) -> bool:
        """Note the key of a line's id. If an earlier line has it, add the line; return False."""
        digest, known = int.from_bytes(key), len(self._ids)
        self._ids.add(digest)
        if len(self._ids) > known:
            return True
        self._repeated.add(digest)
        self.add(line)
        return False

    def without(self, rows: Rows) -> Rows:
        """Yield the rows that are no bad lines."""
        bad_lines = iter(self._numbers)
        next_bad = next(bad_lines, 0)
        for line, row in rows:
            if line == next_bad:
                next_bad = next(bad_lines, 0)
            else:
                yield line, row
            del row  # a long line must not stay in memory while the next is read

    def found(self, reader: RecordReader, rows: Rows) -> Iterator[InputProblem]:
        """Yield the problem of each bad line, with the id that the file gives it."""
        first_lines: dict[int, int] = {}  # the first line of each repeated id
        bad_lines = iter(self._numbers)
        next_bad = next(bad_lines, 0)
        for line, row in rows:
            is_bad = line == next_bad
            if is_bad or self._repeated:
                found = reader.check(line, row)
                if type(found) is not InputRequest:
                    if is_bad:
                        yield _placed(cast("InputProblem", found), reader, row)
                elif is_bad:
                    first = first_lines.get(_digest(found.custom_id))
                    yield _placed(_duplicate(found, reader.unit, first), reader, row)
                elif (digest := _digest(found.custom_id)) in self._repeated:
                    first_lines.setdefault(digest, line)
            if is_bad and (next_bad := next(bad_lines, 0)) == 0:
                break

    def make_unique(self, problems: Iterable[InputProblem], keep: int) -> list[InputProblem]:
        """Make the id of each bad line unique in the output. Return the first ``keep`` problems."""
        first: list[InputProblem] = []
        for problem in problems:
            endings = self._endings_needed(problem)
            self._endings.append(endings)
            if len(first) < keep:
                first.append(_named(problem, endings))
        self._ids = set()
        return first

    def named(self, problems: Iterable[InputProblem]) -> Iterator[InputProblem]:
        """Yield the problems with their ids in the output."""
        return map(_named, problems, self._endings)

    def _endings_needed(self, problem: InputProblem) -> int:
        endings = 0
        while True:
            name = str(_named(problem, endings).custom_id)
            if name == str(problem.line):
                if _digest(name) not in self._ids:
                    return endings  # no need to add it to the ids: `_is_bad_line` finds it
            elif (digest := _digest(name)) not in self._ids and not self._is_bad_line(name):
                self._ids.add(digest)
                return endings
            endings += 1

    def _is_bad_line(self, name: str) -> bool:
        """Return True if an id is the number of a bad line, which may have no other id."""
        if not name.isdecimal() or len(name) > _MOST_DIGITS:
            return False
        number = int(name)
        place = bisect_left(self._numbers, number)
        return place < len(self._numbers) and self._numbers[place] == number


def _digest(custom_id: str) -> int:
    # 128 bits: among a billion ids, the chance that two have the same digest is 1e-21.
    return int.from_bytes(id_key(custom_id))


def _duplicate(found: InputRequest, unit: RecordUnit, line: int | None) -> InputProblem:
    earlier = f"an earlier {unit}" if line is None else f"{unit} {line}"
    return InputProblem(
        found.line,
        "duplicate_custom_id",
        f"the custom_id {shown(found.custom_id)} is already used by {earlier}",
        f"give each {unit} a different custom_id (a {unit} without one gets its number)",
        found.custom_id,
    )


def _placed(problem: InputProblem, reader: RecordReader, row: Any) -> InputProblem:
    place = reader.place_of(problem.line, row)
    return msgspec.structs.replace(problem, place=place) if place else problem


def _named(problem: InputProblem, endings: int) -> InputProblem:
    given = problem.custom_id or str(problem.line)
    name = given + f"#line-{problem.line}" * endings
    if name == problem.custom_id:
        return problem
    return msgspec.structs.replace(problem, custom_id=name)
