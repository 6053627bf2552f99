"""The requests of a file that a run sends: those that are named, and those of one shard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from parallel_core.errors import InputFileError
from parallel_core.files import InputFile, InputProblem
from parallel_core.journal import id_digest

STANDARD_INPUT: Final = "-"
_NAMED: Final = 5  # unknown ids in a message
_LONGEST_SHOWN: Final = 60  # characters
_UTF8_MARK: Final = b"\xef\xbb\xbf"


class SelectedPart(NamedTuple):
    """Numbers of requests, and of invalid lines, that a selection has."""

    requests: int
    bad_lines: int


class RunSelection:
    """A part of the requests of a file.

    A request is in shard ``i`` of ``n`` if its digest, divided by ``n``, leaves ``i - 1``. The
    digest depends on the id alone, and the rule is the same in all versions. The page
    ``docs/scale.md`` describes it.

    Args:
        only: ids of the requests; None selects all.
        shard: number of the shard, from 1, and number of shards; None selects all.

    Raises:
        TypeError, ValueError: the shard is not a pair of such numbers, or there is no id.
    """

    def __init__(self, only: Iterable[object] | None, shard: tuple[int, int] | None) -> None:
        self._only = None if only is None else frozenset(map(_checked_id, only))
        if self._only is not None and not self._only:
            raise ValueError("only has no ids: nothing would be sent")
        self._shard = None if shard is None else checked_shard(shard)

    def __contains__(self, custom_id: str) -> bool:
        if self._only is not None and custom_id not in self._only:
            return False
        if self._shard is None:
            return True
        number, shards = self._shard
        return id_digest(custom_id) % shards == number - 1

    def part_of(
        self, source: InputFile, problem_id: Callable[[InputProblem], str] | None = None
    ) -> SelectedPart:
        """Count what is selected. This reads the file again.

        Args:
            source: the file.
            problem_id: returns the id of an invalid line; None if these lines do not count.

        Raises:
            InputFileError: the file does not have an id of ``only``; the message names it.
        """
        missing = set(self._only or ())
        requests = bad_lines = 0
        for name in source.names():
            missing.discard(name)
            requests += name in self
        if problem_id is not None:
            for problem in source.problems():
                name = problem_id(problem)
                missing.discard(name)
                bad_lines += name in self
        if missing:
            raise InputFileError(f"{source.path}: {_describe_missing(missing)}")
        return SelectedPart(requests, bad_lines)


def _checked_id(custom_id: object) -> str:
    if not isinstance(custom_id, str):
        kind = type(custom_id).__qualname__
        raise TypeError(f"only must have ids, which are strings, not {kind}")
    return custom_id


def checked_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """Return the number of a shard and the number of shards. Raises TypeError, ValueError."""
    values = tuple(shard)
    if len(values) != 2 or not all(type(value) is int for value in values):
        raise TypeError(f"shard must be a pair of whole numbers, such as (3, 8), not {shard!r}")
    if not 1 <= values[0] <= values[1]:
        raise ValueError(
            f"shard must be its number, from 1 on, and the number of shards, not {shard!r}"
        )
    return values


def selection_of(
    only: Iterable[str] | Path | str | None, shard: tuple[int, int] | None
) -> RunSelection | None:
    """Return what a run selects; None if that is all. A path is that of a file of ids.

    Raises:
        InputFileError: the file of ids cannot be read, or has none.
        TypeError, ValueError: as in :class:`RunSelection`.
    """
    if only is None and shard is None:
        return None
    return RunSelection(read_ids(only) if isinstance(only, str | Path) else only, shard)


def read_ids(path: Path | str) -> frozenset[str]:
    """Read a file with one id per line; ``-`` is standard input. Blank lines are skipped.

    Raises:
        InputFileError: it cannot be read, is not UTF-8, or has no id.
    """
    if str(path) == STANDARD_INPUT:
        return _ids_in(sys.stdin.buffer, "standard input")
    try:
        with Path(path).open("rb") as stream:
            return _ids_in(stream, str(path))
    except OSError as error:
        raise InputFileError(
            f"{path}: the ids to send cannot be read: {error.strerror or error}"
        ) from error


def _ids_in(stream: BinaryIO, name: str) -> frozenset[str]:
    ids = set[str]()
    for number, line in enumerate(stream, 1):
        text = line.removeprefix(_UTF8_MARK) if number == 1 else line
        text = text.removesuffix(b"\n").removesuffix(b"\r")
        if text and not text.isspace():
            try:
                ids.add(text.decode())
            except UnicodeDecodeError:
                raise InputFileError(f"{name}: line {number} is not valid UTF-8") from None
    if not ids:
        raise InputFileError(f"{name}: there is no id to send")
    return frozenset(ids)


def _describe_missing(missing: set[str]) -> str:
    few = sorted(missing)[:_NAMED]
    names = ", ".join(
        repr(name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}…") for name in few
    )
    more = f" and {len(missing) - len(few):,} more" if len(missing) > len(few) else ""
    return (
        f"the file has no request with the id {names}{more}; correct the ids to send (a request "
        "without an id has its line number)"
    )
