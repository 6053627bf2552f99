"""The records of a run as sums, which grow with its failures and not with its calls."""

from __future__ import annotations

import heapq
import itertools
from bisect import insort
from collections import Counter, OrderedDict, defaultdict
from typing import NamedTuple

from parallel_core.journal import (
    CallStatistics,
    EndStatistics,
    LimitStatistics,
    ResultLine,
    RunStatistics,
    WaitStatistics,
)
from parallel_core.router import MOST_REASONS, OTHER_REASONS

from .call_times import CallTimes
from .contents import Body, body_of, failure_name, failure_of, finish_in
from .names import Names, shown_name
from .tallies import Tally

OK = -1  # number of a kind that means "no failure"
NO_FINISH = -1  # number of a finish reason that means "unknown"

_UNKNOWN_MODEL = "unknown"
_LATEST = 1e11  # seconds since the epoch; later times are invalid
_HIGHEST_LIMIT = 10**9
_MOST_MODELS = 1000
_MOST_KINDS = 100
_LONGEST_MESSAGE = 200  # characters
_MOST_USD = 1e12
_MOST_ATTEMPTS = 10**9
_MOST_FAILED = 64  # failed requests kept by id, of each kind
_MOST_SLOW = 10  # calls of each model
_MOST_WAITS = 1000
# Finished requests that are remembered: after a loss of power the statistics may have two calls of
# a request whose output has one answer. The second is close to that answer.
_MOST_FINISHED = 10_000


class State(NamedTuple):
    """The state of a request, shared by all that have the same.

    Attributes:
        model: number of the model.
        call: number of the kind with which its last call ended; None if the statistics have none.
        line: number of the kind in the output; None if the output has no line.
        finish: number of the finish reason of the answer.
        without_text: True for an answer without text.
    """

    model: int
    call: int | None
    line: int | None
    finish: int = NO_FINISH
    without_text: bool = False

    @property
    def outcome(self) -> int:
        """Number of the kind with which the request ended. The output decides."""
        if self.call is None or (self.line is not None and (self.line == OK) != (self.call == OK)):
            assert self.line is not None
            return self.line
        return self.call


class CallRecord(NamedTuple):
    """A call that is reported by its id.

    Attributes:
        custom_id: id of the request.
        model, kind: their numbers.
        started_at, seconds, attempts: as in ``CallReport``.
    """

    custom_id: str
    model: int
    kind: int
    started_at: float | None = None
    seconds: float | None = None
    attempts: int | None = None


class Records:
    """Sums over the calls and the results of a run, which are added one by one.

    A request is remembered until it has an answer in the statistics and in the output. So the
    memory does not grow with the number of answers, if both files have them in the same order, as
    while a run goes on.

    Attributes:
        models, kinds, finishes: names of the models, of the kinds of failures, and of the finish
            reasons.
        tallies: sums over the calls, by the number of the model.
        requests: number of requests in each state.
        times: beginnings and ends of the calls.
        limits: limits of calls in flight: start time, limit, and True if it is a change.
        waits: waits by their time and the number of the model.
        begins: times at which the run began, or was resumed; sorted.
        expected: number of requests in the input; None if unknown.
        ending: how the last part ended; None if it has not.
        messages: messages of failures, by the number of the kind.
        failed: some failed requests of each kind, by the hash of their ids.
        slowest: the slowest calls of each model, as a heap.
        contradicted: True if statistics of a request came after its answer had been counted
            without. Then the files must be read again.
    """

    def __init__(self) -> None:
        self.models = Names(_MOST_MODELS, "other models")
        self.kinds = Names(_MOST_KINDS, "other failures")
        self.finishes = Names(MOST_REASONS, OTHER_REASONS)
        self.tallies: defaultdict[int, Tally] = defaultdict(Tally)
        self.requests = Counter[State]()
        self.times = CallTimes()
        self.limits: list[tuple[float, int, bool]] = []
        self.waits: OrderedDict[tuple[float, int], WaitStatistics] = OrderedDict()
        self.begins: list[float] = []
        self.expected: int | None = None
        self.ending: str | None = None
        self.messages: dict[int, str] = {}
        self.failed: defaultdict[int, dict[int, CallRecord]] = defaultdict(dict)
        self.slowest: defaultdict[int, list[tuple[float, int, CallRecord]]] = defaultdict(list)
        self.contradicted = False
        # By 64-bit hashes of ids: among a million, the chance that two are the same is 3e-8.
        self._open: dict[int, State] = {}
        self._finished: OrderedDict[int, State] = OrderedDict()
        self._states: dict[State, State] = {}
        self._order = itertools.count()

    @property
    def open_requests(self) -> int:
        """Number of requests that are not finished in both files."""
        return len(self._open)

    def has_call(self, custom_id: str) -> bool:
        """Return True if the statistics have a call of this request that is still remembered."""
        _, state = self._find(custom_id)
        return state is not None and state.call is not None

    # --- the statistics ---

    def add_statistics(self, record: RunStatistics) -> None:
        """Add a line of the statistics. Values that cannot be are ignored."""
        if isinstance(record, CallStatistics):
            self._add_call(record)
        elif not 0.0 < record.at < _LATEST:
            return
        elif isinstance(record, LimitStatistics):
            if 0 <= record.limit <= _HIGHEST_LIMIT:
                self.limits.append((record.at, record.limit, bool(record.reason)))
        elif isinstance(record, WaitStatistics):
            self._add_wait(record)
        elif isinstance(record, EndStatistics):
            self.ending = shown_name(record.ending)
        else:
            insort(self.begins, record.at)
            self.expected, self.ending = max(record.total, 0), None

    def _add_call(self, call: CallStatistics) -> None:
        model, kind = self.models.number(call.model), OK
        if not call.ok:
            name = call.failure_kind or call.error or "failed"
            kind = self.kinds.number(failure_name(name, call.status_code))
            if call.message:
                self.messages.setdefault(kind, shown_name(call.message, _LONGEST_MESSAGE))
        finish = NO_FINISH
        if call.finish_reason is not None:
            finish = self.finishes.number(call.finish_reason)
        found = self._count_call(call, model, kind)
        key, old = self._find(call.custom_id)
        if old is None:
            line = None
        else:
            line = old.line
            self.contradicted |= old.call is None and line == OK
        self._set(key, old, State(model, kind, line, finish, call.without_text), found)

    def _count_call(self, call: CallStatistics, model: int, kind: int) -> CallRecord:
        """Add a call to the sums of its model, and return its record."""
        tally = self.tallies[model]
        tally.prompt_tokens += max(call.prompt_tokens, 0)
        tally.completion_tokens += max(call.completion_tokens, 0)
        tally.cached_tokens += max(call.cached_tokens, 0)
        tally.reasoning_tokens += max(call.reasoning_tokens, 0)
        tally.estimated_calls += call.estimated
        cost = call.cost if call.cost is not None and 0.0 <= call.cost < _MOST_USD else None
        if cost is not None:
            tally.cost += cost
        elif call.ok or call.prompt_tokens or call.completion_tokens:
            tally.unpriced_calls += 1
        first_chunk = call.time_to_first_chunk
        if first_chunk is not None and 0.0 <= first_chunk < _LATEST:
            tally.first_chunks.add(first_chunk)
        if not 0.0 < call.started_at < _LATEST:  # nothing was sent
            return CallRecord(call.custom_id, model, kind)
        seconds = call.duration if 0.0 <= call.duration < _LATEST else 0.0
        attempts = call.attempts if 0 <= call.attempts <= _MOST_ATTEMPTS else 0
        tally.calls += 1
        tally.attempts += attempts
        (tally.latencies if kind == OK else tally.failed_latencies).add(seconds)
        self.times.add(call.started_at, seconds, None if kind == OK else kind, cost or 0.0)
        found = CallRecord(call.custom_id, model, kind, call.started_at, seconds, attempts)
        slowest = self.slowest[model]
        if len(slowest) < _MOST_SLOW:
            heapq.heappush(slowest, (seconds, next(self._order), found))
        elif seconds > slowest[0][0]:
            heapq.heapreplace(slowest, (seconds, next(self._order), found))
        return found

    def _add_wait(self, wait: WaitStatistics) -> None:
        key = wait.at, self.models.number(wait.model or _UNKNOWN_MODEL)
        if wait.seconds is not None and not 0.0 <= wait.seconds < _LATEST:
            return
        self.waits[key] = WaitStatistics(
            at=wait.at,
            model=None,
            reason=shown_name(wait.reason, _LONGEST_MESSAGE),
            seconds=wait.seconds,
        )
        if len(self.waits) > _MOST_WAITS:
            self.waits.popitem(last=False)

    # --- the output ---

    def add_line(self, result: ResultLine) -> None:
        """Add a line of the output or the error file."""
        key, old = self._find(result.custom_id)
        if result.ok:
            kind = OK
        elif old is not None and old.call not in (None, OK):
            kind = old.call  # the statistics have the better name
        else:
            kind = self.kinds.number(failure_of(result))
        if old is None or (old.call is None and kind == OK and old.line != OK):
            self._add_line_without_call(result, key, old, kind)
        elif old.line != OK:  # an answer takes precedence: the failure was before a retry
            state = State(old.model, old.call, kind, old.finish, old.without_text)
            record = None if kind == OK else CallRecord(result.custom_id, old.model, kind)
            self._set(key, old, state, record)

    def _add_line_without_call(
        self, result: ResultLine, key: int, old: State | None, kind: int
    ) -> None:
        body = body_of(result) if kind == OK else Body()
        model = self.models.number(body.model or _UNKNOWN_MODEL)
        finish, reason = finish_in(body), NO_FINISH
        if finish.reason is not None:
            reason = self.finishes.number(finish.reason)
        if kind == OK:
            tally = self.tallies[model]
            tally.unpriced_calls += 1
            if body.usage is not None:
                usage = body.usage
                tally.prompt_tokens += usage.prompt_tokens or 0
                tally.completion_tokens += usage.completion_tokens or 0
                if usage.prompt_tokens_details is not None:
                    tally.cached_tokens += usage.prompt_tokens_details.cached_tokens or 0
                if usage.completion_tokens_details is not None:
                    tally.reasoning_tokens += usage.completion_tokens_details.reasoning_tokens or 0
        state = State(model, None, kind, reason, finish.without_text)
        self._set(key, old, state, CallRecord(result.custom_id, model, kind))

    # --- requests ---

    def _find(self, custom_id: str) -> tuple[int, State | None]:
        """Return the key of a request, and its state if it has one."""
        key = hash(custom_id)
        return key, self._open.get(key) or self._finished.get(key)

    def _set(self, key: int, old: State | None, new: State, record: CallRecord | None) -> None:
        """Set the state of a request.

        The record is of the call or line that has changed it; None if that is an answer.
        """
        new = self._states.setdefault(new, new)
        outcome = new.outcome
        if old is not None:
            self.requests[old] -= 1
            before = old.outcome
            if before not in (OK, outcome):
                self.failed[before].pop(key, None)
        self.requests[new] += 1
        if outcome != OK and record is not None:
            self._note_failed(key, record._replace(kind=outcome))
        if new.call == new.line == OK:
            self._open.pop(key, None)
            self._finished[key] = new
            if len(self._finished) > _MOST_FINISHED:
                self._finished.popitem(last=False)
        else:
            self._finished.pop(key, None)
            self._open[key] = new

    def _note_failed(self, key: int, record: CallRecord) -> None:
        failed = self.failed[record.kind]
        known = failed.get(key)
        if known is None and len(failed) >= _MOST_FAILED:
            return
        if known is None or record.seconds is not None:  # a line of the output has no times
            failed[key] = record
