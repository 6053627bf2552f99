"""The records of a run as columns: a million calls take at most some hundred MiB."""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from parallel_core.journal import CallStatistics, ResultLine
from parallel_core.router import MOST_REASONS, OTHER_REASONS, Finish

from .contents import Body, body_of, failure_name, failure_of, finish_in

OK = -1  # number of a kind that means "no failure"
NO_FINISH = -1  # number of a finish reason that means "unknown"
UNKNOWN_MODEL = "unknown"
NO_NAME = "(none)"
LATEST = 1e11  # seconds since the epoch; later times are invalid
HIGHEST_LIMIT = 10**9

_MOST_MODELS = 1000
_MOST_KINDS = 100
_MOST_IDS = 64  # failed ids kept per kind; some of these requests may get an answer later
_LONGEST_NAME = 120  # characters
_LONGEST_MESSAGE = 200  # characters
_MOST_USD = 1e12
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
    """Sums over the requests and calls of one model.

    Attributes:
        outcomes: number of requests by the number of the kind with which they ended.
        finishes: number of answers by finish reason.
        without_text: number of answers without text.
        calls: number of calls whose time was measured.
        latencies: durations of those with an answer, in seconds.
        first_chunks: seconds to the first chunk.
    """

    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_calls: int = 0
    cost: float = 0.0
    unpriced_calls: int = 0
    first_chunks: array[float] = field(default_factory=lambda: array("d"))
    # The summary adds these, when all files are read.
    outcomes: Counter[int] = field(default_factory=Counter[int])
    finishes: Counter[str] = field(default_factory=Counter[str])
    without_text: int = 0
    calls: int = 0
    latencies: array[float] = field(default_factory=lambda: array("d"))

    def add(self, other: Tally) -> None:
        """Add the sums of another tally."""
        for name in self.__slots__:
            value: Any = getattr(self, name)
            value += getattr(other, name)
            setattr(self, name, value)


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
        sent = 0.0 < call.started_at < LATEST
        sane = 0.0 <= call.duration < LATEST
        cost = call.cost if call.cost is not None and 0.0 <= call.cost < _MOST_USD else None
        self.last[hash(call.custom_id)] = len(self.model)
        self.model.append(model)
        kind = OK
        if not call.ok:
            name = call.failure_kind or call.error or "failed"
            kind = self.kinds.number(failure_name(name, call.status_code))
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
        if first_chunk is not None and 0.0 <= first_chunk < LATEST:
            tally.first_chunks.append(first_chunk)

    def add_result_without_statistics(self, result: ResultLine) -> None:
        """Add a line of the output whose call has no statistics."""
        body = body_of(result) if result.ok else Body()
        model = self.models.number(body.model or UNKNOWN_MODEL)
        self.last[hash(result.custom_id)] = len(self.model)
        self.model.append(model)
        self.kind.append(self.kind_of(result))
        for column in (self.started, self.duration, self.cost):
            column.append(_UNKNOWN)
        self._add_finish(finish_in(body))
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
        return OK if result.ok else self.kinds.number(failure_of(result))

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


def shown_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """Shorten a name, and replace control characters, which a terminal would obey."""
    text = "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name
    )
    return text if len(text) <= longest else text[: longest - 1] + "…"
