"""A file of results as a table: one row per result, with the same columns and types for each.

The file is read twice: once for the names and types of its columns, once for the rows.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TypeAlias, cast

from parallel_core.journal import (
    CallStatistics,
    RunPaths,
    find_statistics,
    json_line,
    read_statistics,
)
from parallel_core.types import RouterParallelRequest

from .batch_input import InputFile
from .file_results import (
    FileResult,
    found_lines,
    list_or_empty,
    open_results,
    result_of,
    text_of_content,
)

ColumnKind: TypeAlias = Literal["text", "count", "number", "truth", "vector", "json"]
"""Type of a column. ``json``: values of several types, or objects, which a table has as JSON."""

_ANSWER, _PROMPT, _COST = "answer", "prompt", "cost"
_OWN: Final[Mapping[str, ColumnKind]] = {
    "id": "text",
    "ok": "truth",
    _PROMPT: "text",
    "messages": "json",
    _ANSWER: "text",
    "finish_reason": "text",
    "model": "text",
    "prompt_tokens": "count",
    "completion_tokens": "count",
    "total_tokens": "count",
    _COST: "number",
    "status_code": "count",
    "error": "text",
    "error_code": "text",
    "failure_kind": "text",
}
_USUAL: Final = ("id", _PROMPT, _ANSWER, "finish_reason", "model", "prompt_tokens")
_USUAL_END: Final = ("completion_tokens", _COST, "error")
_FROM_INPUT: Final = (_PROMPT, "messages")
_MOST_COLUMNS: Final = 1000
_LARGEST_COUNT: Final = 1 << 63
_KINDS: Final[Mapping[type, ColumnKind]] = {
    str: "text",
    bool: "truth",
    int: "count",
    float: "number",
}


class Column(NamedTuple):
    """A column of a table."""

    name: str
    kind: ColumnKind


class ResultTable:
    """A file of results as a table.

    Columns are ``id``, ``answer``, ``error`` and others of the results; ``prompt`` and ``messages``
    of the requests; and those that the results return: a member of ``columns`` by its name, a
    member of ``metadata`` as ``metadata.NAME``. If one is named like a column of the results, it is
    ``columns.NAME``.

    With a file of requests, rows are in its order, and a request has one row; results of requests
    that it does not have come last, without a prompt. Otherwise each line of the file is a row.

    Of each result it keeps the cost and, with a file of requests, the place in the file: 14 MiB for
    100,000 results, and 70 MiB with the requests, which include the check of that file.

    Args:
        path: the file of results.
        columns: names of the columns, in order; None: the usual ones, and all that are returned.
        requests: the file of requests.

    Attributes:
        columns: the columns.
        has_costs: True if there is a file of statistics, which has the costs.
        without_request: number of results, after all rows are read, whose request is not in the
            file of requests.

    Raises:
        OSError: a file cannot be read.
        ValueError: a column is unknown or given twice, a line is not a result, or ``requests`` is
            invalid.
    """

    def __init__(
        self,
        path: Path | str,
        columns: Sequence[str] | None = None,
        requests: InputFile | None = None,
    ) -> None:
        self._path = Path(path)
        self._requests = requests
        self.without_request = 0
        statistics = find_statistics(RunPaths.of(self._path))
        self.has_costs = statistics.exists()
        if columns is not None and not columns:
            raise ValueError("columns has no names: give at least one")
        returned = _ReturnedColumns()
        answers: set[ColumnKind] = set()
        self._offsets: dict[int, int] = {}  # of answers; those of failures are inverted
        self._read_first(returned, answers)
        self._kinds: dict[str, ColumnKind] = {**_OWN, **returned.kinds()}
        self._kinds[_ANSWER] = next(iter(answers)) if len(answers) == 1 else "json"
        if not answers:
            self._kinds[_ANSWER] = "text"
        self.columns = [Column(name, self._kinds[name]) for name in self._chosen(columns, returned)]
        names = [column.name for column in self.columns]
        self._costs = _costs(statistics) if self.has_costs and _COST in names else {}
        self._readers = [self._reader(name, returned.places) for name in names]

    def _read_first(self, returned: _ReturnedColumns, answers: set[ColumnKind]) -> None:
        """Find the columns that are returned, the kinds of answers, and where results are."""
        with open_results(self._path) as stream:
            for found in found_lines(stream, self._path):
                result = result_of(found)
                returned.add(result)
                if result.ok and (answer := _answer_of(result)) is not None:
                    answers.add(_kind_of_answer(answer))
                if self._requests is not None:
                    key = hash(result.custom_id)
                    # Zero bytes after the last line are no part of it.
                    offset = found.end - len(found.line.rstrip(b"\0"))
                    # The first answer takes precedence, then the last failure.
                    if self._offsets.get(key, -1) < 0:
                        self._offsets[key] = offset if result.ok else ~offset

    def _chosen(self, columns: Sequence[str] | None, returned: _ReturnedColumns) -> list[str]:
        if columns is None:
            usual = [*_USUAL, *_USUAL_END]
            names = [name for name in usual if name != _PROMPT or self._requests is not None]
            return [*names, *returned.places]
        for number, name in enumerate(columns):
            if name in columns[:number]:
                raise ValueError(f"the column {name!r} is given twice: give each column once")
            if name not in self._kinds:
                raise ValueError(
                    f"there is no column {name!r}; there are: {', '.join(self._kinds)}"
                )
            if name in _FROM_INPUT and self._requests is None:
                raise ValueError(
                    f"the column {name!r} needs the file of requests: give it with --input "
                    "(requests)"
                )
        return list(columns)

    def rows(self) -> Iterator[list[Any]]:
        """Yield the values of each row, in the order of the columns. Call it once.

        Raises:
            OSError, ValueError: as when the table was made.
        """
        if self._requests is None:
            with open_results(self._path) as stream:
                for found in found_lines(stream, self._path):
                    yield self._row(result_of(found), None)
            return
        left = self._offsets
        with self._seekable() as stream:
            for request in self._requests.requests():
                offset = left.pop(hash(request.custom_id), None)
                if offset is not None:
                    yield self._row(self._result_at(stream, offset), request.request)
            self.without_request = len(left)
            for offset in sorted(map(_place, left.values())):
                yield self._row(self._result_at(stream, offset), None)

    def _row(self, result: FileResult, request: RouterParallelRequest | None) -> list[Any]:
        return [read(result, request) for read in self._readers]

    @contextlib.contextmanager
    def _seekable(self) -> Generator[BinaryIO]:
        with open_results(self._path) as stream:
            if not stream.seekable():
                with tempfile.TemporaryFile() as unpacked:
                    shutil.copyfileobj(stream, unpacked)
                    yield cast("BinaryIO", unpacked)
                return
        with self._path.open("rb") as stream:  # a large buffer would be filled for each line
            yield stream

    def _result_at(self, stream: BinaryIO, offset: int) -> FileResult:
        stream.seek(_place(offset))
        return next(map(result_of, found_lines(_one(stream), self._path)))

    def _reader(self, name: str, places: Mapping[str, tuple[str, str]]) -> _Reader:
        """Return the function that reads a column."""
        if name in places:
            member, key = places[name]
            if member == "columns":
                return lambda result, _: (result.columns or {}).get(key)
            return lambda result, _: (result.metadata or {}).get(key)
        if name == _PROMPT:
            return lambda _, request: None if request is None else prompt_of(request)
        if name == "messages":
            return lambda _, request: None if request is None else list(request.messages)
        if name == _ANSWER:
            return lambda result, _: _answer_of(result)
        if name == _COST:
            return lambda result, _: self._costs.get(hash(result.custom_id))
        if name == "error":
            return lambda result, _: None if result.ok else _error_of(result)
        field = "custom_id" if name == "id" else name
        return lambda result, _: getattr(result, field)


_Reader: TypeAlias = Callable[[FileResult, RouterParallelRequest | None], Any]


class _ReturnedColumns:
    """The columns that results return, with their kinds.

    Attributes:
        places: by name of the column, the member of the result and its member.
    """

    def __init__(self) -> None:
        self.places: dict[str, tuple[str, str]] = {}
        self._found: dict[tuple[str, str], set[ColumnKind]] = {}

    def add(self, result: FileResult) -> None:
        for member, values in (("columns", result.columns), ("metadata", result.metadata)):
            for key, value in (values or {}).items():
                place = member, key
                kinds = self._found.get(place)
                if kinds is None:
                    kinds = self._add_place(place)
                if value is not None:
                    kinds.add(_kind_of(value))

    def _add_place(self, place: tuple[str, str]) -> set[ColumnKind]:
        if len(self._found) == _MOST_COLUMNS:
            raise ValueError(
                f"the results return more than {_MOST_COLUMNS:,} columns, and a table has a column "
                "for each member of `columns` and `metadata`"
            )
        member, key = place
        prefixed = member == "metadata" or key in _OWN
        self.places[f"{member}.{key}" if prefixed else key] = place
        return self._found.setdefault(place, set())

    def kinds(self) -> dict[str, ColumnKind]:
        return {name: _common(self._found[place]) for name, place in self.places.items()}


def _common(kinds: set[ColumnKind]) -> ColumnKind:
    """Return the kind of a column with values of these kinds."""
    if not kinds:
        return "text"
    if kinds == {"count", "number"}:
        return "number"
    return next(iter(kinds)) if len(kinds) == 1 else "json"


def _kind_of(value: Any) -> ColumnKind:
    if type(value) is int and not -_LARGEST_COUNT <= value < _LARGEST_COUNT:
        return "json"
    return _KINDS.get(value.__class__, "json")


def _kind_of_answer(answer: Any) -> ColumnKind:
    if isinstance(answer, str):
        return "text"
    return "json" if answer and isinstance(answer[0], list) else "vector"


def _answer_of(result: FileResult) -> Any:
    """Return the text of an answer, or the vector of an embedding; several vectors as a list."""
    vectors = result.vectors
    if vectors is None:
        return result.text
    return vectors[0] if len(vectors) == 1 else vectors


def _error_of(result: FileResult) -> str:
    return result.error_message or result.error_code or f"HTTP status {result.status_code}"


def _costs(path: Path) -> dict[int, float]:
    """Return what all calls of each request have cost, where that is known."""
    costs: dict[int, float] = {}
    for record in read_statistics(path):
        if isinstance(record, CallStatistics) and record.cost is not None:
            key = hash(record.custom_id)
            costs[key] = costs.get(key, 0.0) + record.cost
    return costs


def _place(offset: int) -> int:
    return offset if offset >= 0 else ~offset


def _one(stream: BinaryIO) -> Iterator[bytes]:
    yield stream.readline()


def prompt_of(request: RouterParallelRequest) -> str | None:
    """Return the text that a request asks with: of its last user message, or its input or prompt.

    What is not text is returned as JSON.
    """
    if request.messages:
        return _last_question(request.messages)
    arguments = request.kwargs or {}
    for name in ("input", "prompt", "query"):
        value = arguments.get(name)
        if isinstance(value, str):
            return value
        if items := list_or_empty(value):
            if len(items) == 1 and isinstance(items[0], str):
                return items[0]
            return _last_question(items) or json_text(items)
    return None


def _last_question(messages: Iterable[Any]) -> str | None:
    found: str | None = None
    for message in messages:
        if isinstance(message, Mapping):
            fields = cast("Mapping[str, Any]", message)
            if fields.get("role") == "user":
                content = fields.get("content")
                text = text_of_content(content)
                found = json_text(content) if text is None else text
    return found


def json_text(value: Any) -> str:
    """Return a value as JSON."""
    return json_line(value).decode()


def tabular(kind: ColumnKind, value: Any) -> Any:
    """Return a value as the type of its column has it."""
    if kind == "json":
        return value if value is None or isinstance(value, str) else json_text(value)
    return float(value) if kind == "number" and value is not None else value
