"""Read the files of a run into columns: a million calls take at most some hundred MiB."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec

from parallel_core.journal import (
    NULL,
    BadLineError,
    CallStatistics,
    ResultLine,
    RunPaths,
    find_statistics,
    read_json_line,
    read_result_lines,
    read_statistics,
)
from parallel_core.router import MOST_REASONS, OTHER_REASONS, Finish, finish_of

from .model import ReportError

OK = -1  # number of a kind that means "no failure"
NO_FINISH = -1  # number of a finish reason that means "unknown"
UNKNOWN_MODEL = "unknown"
NO_NAME = "(none)"

_FAILURE, _ANSWER = 1, 2
_MOST_MODELS = 1000
_MOST_KINDS = 100
_ERROR_WITHOUT_NAME = "error"
_MOST_IDS = 64  # failed ids kept per kind; some of these requests may get an answer later
_LONGEST_NAME = 120  # characters
_LONGEST_MESSAGE = 200  # characters
_LATEST = 1e11  # seconds since the epoch; later times are invalid
_MOST_USD = 1e12
_HIGHEST_LIMIT = 10**9
_MOST_ATTEMPTS = 10**9
_UNKNOWN = math.nan


class Names:
    """Numbers of names, in the order in which they appear.

    Files are not trusted: unprintable characters are replaced, and all names beyond the limit share
    one name.

    Args:
        most: maximum number of names.
        others: name for all further ones.
    """

    def __init__(self, most: int, others: str) -> None:
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._most = most
        self._others = others

    def number(self, name: str) -> int:
        """Return the number of a name."""
        number = self._numbers.get(name)
        if number is None:
            full = len(self.names) >= self._most
            shown = self._others if full else shown_name(name) or NO_NAME
            if shown not in self._numbers:
                self._numbers[shown] = len(self.names)
                self.names.append(shown)
            number = self._numbers[shown]
            if not full:
                self._numbers[name] = number
        return number


@dataclass(slots=True)
class Tally:
    """Sums over the calls of one model."""

    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_calls: int = 0
    cost: float = 0.0
    unpriced_calls: int = 0
    first_chunks: array[float] = field(default_factory=lambda: array("d"))


class Records:
    """The calls of a run as columns, with one row per call, and sums that are built while reading.

    A row without statistics is a line of the output; its times and its cost are NaN.

    Attributes:
        models, kinds: names of the models, and of the kinds of failures.
        model, kind: numbers of the model and of the kind of each row; the kind is ``OK`` for a call
            with an answer.
        started, duration: seconds; NaN if unknown, or if nothing was sent.
        cost: USD; NaN if unknown.
        finishes: names of finish reasons.
        finish: number of the finish reason of each row; ``NO_FINISH`` if unknown.
        without_text: 1 for an answer without text.
        last: row of the last call of each request, by the hash of its id.
        outcome: kind of each request whose line in the output differs from its row, by row.
        tallies: sums, by the number of the model.
        limits: limits of calls in flight: start time, limit, and True if it is a change.
        messages: messages of failures, by the number of the kind.
        failed_ids: ids of some requests that failed at some time, by the number of the kind.
        notes: remarks for readers of the report.
    """

    def __init__(self) -> None:
        self.models = Names(_MOST_MODELS, "other models")
        self.kinds = Names(_MOST_KINDS, "other failures")
        self.model = array("i")
        self.kind = array("i")
        self.started = array("d")
        self.duration = array("d")
        self.cost = array("d")
        self.finishes = Names(MOST_REASONS, OTHER_REASONS)
        self.finish = array("b")
        self.without_text = bytearray()
        # 64-bit hashes: among a million ids, the chance that two have the same hash is 3e-8.
        self.last: dict[int, int] = {}
        self.outcome: dict[int, int] = {}
        self.tallies: dict[int, Tally] = {}
        self.limits: list[tuple[float, int, bool]] = []
        self.messages: dict[int, str] = {}
        self.failed_ids: defaultdict[int, list[str]] = defaultdict(list)
        self.notes: list[str] = []

    def add_call(self, call: CallStatistics) -> None:
        """Add a line of the statistics."""
        model = self.models.number(call.model)
        sent = 0.0 < call.started_at < _LATEST
        sane = 0.0 <= call.duration < _LATEST
        cost = call.cost if call.cost is not None and 0.0 <= call.cost < _MOST_USD else None
        self.last[hash(call.custom_id)] = len(self.model)
        self.model.append(model)
        kind = OK
        if not call.ok:
            name = call.failure_kind or call.error or "failed"
            kind = self.kinds.number(_kind(name, call.status_code))
            if call.message:
                self.messages.setdefault(kind, shown_name(call.message, _LONGEST_MESSAGE))
        self.kind.append(kind)
        self.started.append(call.started_at if sent else _UNKNOWN)
        self.duration.append((call.duration if sane else 0.0) if sent else _UNKNOWN)
        self.cost.append(_UNKNOWN if cost is None else cost)
        self._add_finish(Finish(call.finish_reason, call.without_text))
        tally = self._tally(model)
        tally.attempts += call.attempts if sent and 0 <= call.attempts <= _MOST_ATTEMPTS else 0
        tally.prompt_tokens += max(call.prompt_tokens, 0)
        tally.completion_tokens += max(call.completion_tokens, 0)
        tally.cached_tokens += max(call.cached_tokens, 0)
        tally.reasoning_tokens += max(call.reasoning_tokens, 0)
        tally.estimated_calls += call.estimated
        if cost is not None:
            tally.cost += cost
        elif call.ok or call.prompt_tokens or call.completion_tokens:
            tally.unpriced_calls += 1
        first_chunk = call.time_to_first_chunk
        if first_chunk is not None and 0.0 <= first_chunk < _LATEST:
            tally.first_chunks.append(first_chunk)

    def add_result_without_statistics(self, result: ResultLine) -> None:
        """Add a line of the output whose call has no statistics."""
        body = _body(result) if result.ok else _Body()
        model = self.models.number(body.model or UNKNOWN_MODEL)
        self.last[hash(result.custom_id)] = len(self.model)
        self.model.append(model)
        self.kind.append(self.kind_of(result))
        for column in (self.started, self.duration, self.cost):
            column.append(_UNKNOWN)
        self._add_finish(_finish_in(body))
        tally = self._tally(model)
        tally.unpriced_calls += result.ok
        if body.usage is not None:
            usage = body.usage
            tally.prompt_tokens += usage.prompt_tokens or 0
            tally.completion_tokens += usage.completion_tokens or 0
            if usage.prompt_tokens_details is not None:
                tally.cached_tokens += usage.prompt_tokens_details.cached_tokens or 0
            if usage.completion_tokens_details is not None:
                tally.reasoning_tokens += usage.completion_tokens_details.reasoning_tokens or 0

    def outcome_of(self, row: int) -> int:
        """Return the kind with which a request ended, by the row of its last call."""
        return self.outcome.get(row, self.kind[row])

    def note_failure(self, custom_id: str) -> None:
        """Keep the id of a request that failed, up to a limit per kind."""
        ids = self.failed_ids[self.outcome_of(self.last[hash(custom_id)])]
        if len(ids) < _MOST_IDS and custom_id not in ids:
            ids.append(custom_id)

    def kind_of(self, result: ResultLine) -> int:
        """Return the number of the failure kind of a line of the output."""
        return OK if result.ok else self.kinds.number(_kind_of_result(result))

    def _add_finish(self, finish: Finish) -> None:
        self.finish.append(
            NO_FINISH if finish.reason is None else self.finishes.number(finish.reason)
        )
        self.without_text.append(finish.without_text)

    def _tally(self, model: int) -> Tally:
        tally = self.tallies.get(model)
        if tally is None:
            tally = self.tallies[model] = Tally()
        return tally


def read_run(paths: RunPaths) -> Records:
    """Read the statistics of a run and its output.

    The output decides how a request ended; everything else comes from the statistics.

    Raises:
        ReportError: a file cannot be read, or is not the output of a run.
    """
    records = Records()
    if not paths.output.exists():
        raise ReportError(f"{paths.output} does not exist: name the output file of a run")
    _read_calls(find_statistics(paths), records)
    _read_results(paths, records)
    if not records.last:
        raise ReportError(f"{paths.output} has no results yet")
    return records


def _read_calls(path: Path, records: Records) -> None:
    try:
        for record in read_statistics(path):
            if isinstance(record, CallStatistics):
                records.add_call(record)
            elif 0.0 < record.at < _LATEST and 0 <= record.limit <= _HIGHEST_LIMIT:
                records.limits.append((record.at, record.limit, bool(record.reason)))
    except FileNotFoundError:
        records.notes.append(
            f"There is no {text_of(path.name)} beside the output: latency, cost and times are not "
            "known, and models have the names that the providers use."
        )
    except OSError as error:
        raise _unreadable(path, error) from None


def _read_results(paths: RunPaths, records: Records) -> None:
    measured = len(records.model)
    seen = bytearray(measured)  # by row: 0, `_FAILURE` or `_ANSWER`
    without_statistics = 0
    for path in (paths.output, paths.errors):
        if path is None:
            continue
        for result in _results(path, records.notes):
            row = records.last.get(hash(result.custom_id))
            if row is None or (row >= measured and result.ok and seen[row] == _FAILURE):
                without_statistics += row is None
                records.add_result_without_statistics(result)
                seen.append(_ANSWER if result.ok else _FAILURE)
            elif result.ok or seen[row] != _ANSWER:
                # An answer takes precedence: the failure is of an attempt before a retry.
                seen[row] = _ANSWER if result.ok else _FAILURE
                if result.ok != (records.outcome_of(row) == OK):
                    records.outcome[row] = records.kind_of(result)
            if not result.ok:
                records.note_failure(result.custom_id)
    if measured and without_statistics:
        records.notes.append(
            f"Results that are not in the statistics: {without_statistics:,}. Their latency, cost "
            "and times are not known."
        )
    lost = sum(
        row < measured and records.kind[row] == OK and not seen[row]
        for row in records.last.values()
    )
    if lost:
        records.notes.append(
            f"Answers that are in the statistics but not in the output: {lost:,}. The output is "
            "incomplete."
        )


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Body(msgspec.Struct):
    model: str | None = None
    usage: _Usage | None = None
    choices: msgspec.Raw = NULL


_BODY_DECODER = msgspec.json.Decoder(_Body)
_ANYTHING = msgspec.json.Decoder()
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _results(path: Path, notes: list[str]) -> Iterator[ResultLine]:
    holes = 0
    try:
        with path.open("rb") as lines:
            for found in read_result_lines(lines):
                if found.result is not None:
                    yield found.result
                elif found.what == "torn":
                    notes.append(
                        f"The last line of {text_of(path.name)} is incomplete and is not counted: "
                        "the run was interrupted while writing it, or is writing it now."
                    )
                holes += found.what == "hole"
    except BadLineError as error:
        hint = (
            ""
            if ":" in error.why
            else ": name an output file of parallel-core run, OpenAI's Batch API or vLLM"
        )
        raise ReportError(f"line {error.number} of {path} {error.why}{hint}") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if holes:
        notes.append(
            f"Lines of {text_of(path.name)} that a loss of power damaged: {holes:,}. They are "
            "not counted."
        )


def _unreadable(path: Path, error: OSError) -> ReportError:
    if isinstance(error, IsADirectoryError) or path.is_dir():
        return ReportError(f"{path} is a folder: name the output file of a run")
    return ReportError(f"{path} cannot be read: {error.strerror or type(error).__name__}")


def _body(result: ResultLine) -> _Body:
    assert result.response is not None
    try:
        return read_json_line(_BODY_DECODER.decode, bytes(result.response.body))
    except _UNREADABLE:  # not a chat completion, but an answer of another API
        return _Body()


def _finish_in(body: _Body) -> Finish:
    try:
        choices: object = read_json_line(_ANYTHING.decode, bytes(body.choices))
    except _UNREADABLE:
        choices = None
    return finish_of({"choices": choices})


def _kind_of_result(result: ResultLine) -> str:
    status = None if result.response is None else result.response.status_code
    found = _error_name(result.error)
    if found is None and bytes(result.error).startswith(b'"'):  # vLLM writes a text
        found = _ERROR_WITHOUT_NAME
    if found is None and result.response is not None:
        found = _error_name(result.response.body)
    return _kind(found or (_ERROR_WITHOUT_NAME if status is None else "HTTP"), status)


def _error_name(raw: msgspec.Raw) -> str | None:
    """Return the code or type of an error, in any of the shapes that servers use."""
    try:
        value: Any = read_json_line(_ANYTHING.decode, bytes(raw))
    except _UNREADABLE:
        return None
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, object]", value)
    inner = fields.get("error")
    if isinstance(inner, dict):
        fields = cast("dict[str, object]", inner)
    for name in ("code", "type"):
        text = fields.get(name)
        if isinstance(text, str) and text:
            return text
    return None


def _kind(name: str, status_code: int | None) -> str:
    return name if status_code is None else f"{name} ({status_code})"


def text_of(name: str) -> str:
    """Return a file name as valid text: it may have bytes that are not UTF-8."""
    return name.encode("utf-8", "replace").decode()


def shown_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """Shorten a name, and replace control characters, which a terminal would obey."""
    text = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    return text if len(text) <= longest else text[: longest - 1] + "…"
