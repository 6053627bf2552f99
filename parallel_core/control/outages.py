"""Failing endpoints: who waits for them, until when, and what ends the wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from parallel_core.failures import Failure, classify

from .adaptive_limit import AdaptiveConcurrency, AdaptiveLimit
from .progress import Delay, Waiting

_LONGEST_BACK_OFF = 60.0  # seconds, unless the provider asks for more
# Seconds to wait for the end of calls in flight: one that hangs must not hold all others.
PATIENCE = 60.0
JITTER = 0.25  # random share added to a wait, so that requests do not return all at once
# Failures in a row before the gate may close: fewer happen by chance.
_FEWEST_IN_A_ROW = 8
_WEIGHT = 1 / 32  # weight of the newest attempt in the share of failed attempts
_ACCOUNT_FAILURES_IN_A_ROW = 3


@dataclass(slots=True)
class Attempts:
    """The attempts of a request that has failed."""

    model: str | None
    first_failed: float
    sent: int = 0  # calls of the Router
    pauses: int = 0  # of these, calls that the Router did not send: all deployments pause
    failed: int = 0  # attempts that failed on every deployment
    tried: set[str] = field(default_factory=set[str])  # deployments tried in this attempt
    timeouts: int = 0
    waited: float = 0.0
    reason: str = ""  # reason of the last failure
    due: float | None = None  # time of the next attempt; None while one is in flight


class Gate:
    """A circuit breaker for the calls of one model.

    It has no clock: its methods report events and their times.
    """

    def __init__(self, concurrency: int, max_wait: float, *, closes: bool) -> None:
        self._concurrency = concurrency
        self._closes = closes
        self._max_wait = max_wait
        self._row = 0  # failures since the last success
        self.timeouts = 0  # of these, calls that timed out
        self._row_needed = 0
        self._fruitless = 0  # waits since the last success
        # Time of the first failure since the last success; later by the times without requests.
        self.failing_since = math.inf
        self._idle_since = -math.inf  # time at which the last call ended
        self._limit: AdaptiveLimit | None = None  # None: the gate is open
        self._account_row = 0
        self._account_error: Exception | None = None  # the last failure of the account
        self._account_failing_since = math.inf
        self._permits = 0  # calls that may begin although the account is suspected
        self._failing = 1.0  # share of attempts that failed: an exponential average
        self.in_flight = 0
        self._left_behind = 0  # of these, calls whose end the gate does not wait for
        self._left_at = -math.inf  # they began before this time
        self.waits_since = -math.inf  # time of the last success, or change of what it waits for
        self.is_watched = False  # a timer looks whether it waits for too long
        self.last_success = -math.inf
        self.holding_until: float | None = None
        self.cause: Exception | None = None  # the last failure that a provider caused
        # The last failure that was not the account's: a likely reason for a pause of the Router.
        self._may_have_cooled: Exception | None = None
        self.doomed: Exception | None = None  # why nothing is sent any more
        self.doomed_by_wait = ""  # the wait that was too long; empty if the account is at fault

    @property
    def allowed(self) -> float:
        """Number of calls that may be in flight."""
        if self.doomed is not None:
            return math.inf
        if self.is_suspected:
            return self.in_flight + self._permits if self._permits else 0
        if self._limit is None:
            return math.inf
        return 0 if self.holding_until is not None else self._limit.limit + self._left_behind

    @property
    def waited_for(self) -> int:
        """Number of calls in flight without those that were left behind."""
        return self.in_flight - self._left_behind

    def others(self, began: float) -> int:
        """Return :attr:`waited_for` without a call in flight that began then."""
        return self.waited_for - (began >= self._left_at)

    @property
    def is_suspected(self) -> bool:
        """True if the account seems to be at fault, and calls in flight may still show otherwise.

        A refusal comes within milliseconds, an answer takes seconds.
        """
        return self.doomed is None and self._account_row >= _ACCOUNT_FAILURES_IN_A_ROW

    @property
    def paused_by_account(self) -> bool:
        """True if the account caused the last failure that came from a provider."""
        return self.cause is not None and classify(self.cause).kind == "account"

    @property
    def nothing_passes(self) -> bool:
        """True if nothing gets through at the moment, but requests are still to be sent."""
        if self.cause is None or self.doomed is not None:
            return False
        is_held = self.is_suspected or self.holding_until is not None or self._fruitless > 0
        return is_held or 0 < self._row_needed <= self._row

    @property
    def is_limited(self) -> bool:
        """True if fewer calls may begin than usual: their end says how many more may."""
        return self.doomed is None and (self._limit is not None or self.is_suspected)

    @property
    def draining(self) -> bool:
        """True if no call may begin until one in flight gets through or all have ended."""
        return self.holding_until == math.inf

    def got_through(self, began: float, now: float) -> None:
        """Note that the provider has answered a call, which still counts as in flight."""
        if self.is_suspected and began < self._account_failing_since:
            # The key may have been revoked since then: one more call finds out.
            self._permits += 1
        else:
            self._account_row = self._permits = 0
        self._row = self.timeouts = self._fruitless = 0
        self._failing -= _WEIGHT * self._failing
        self.failing_since = math.inf
        self.last_success = now
        self.waits_since = now
        self.cause = self._account_error if self.is_suspected else None
        if self._limit is not None:
            if self.draining:
                self._limit = self._limit_from(self.in_flight)
            self.holding_until = None
            self._limit.succeeded(began, now, self.in_flight)
            if self._limit.limit >= self._concurrency:
                self._limit = None

    def failed(self, failure: Failure, error: Exception, began: float, now: float) -> None:
        """Note a failure that may pass, or one of the account; the call is still in flight."""
        others = self.others(began)
        self._failing += _WEIGHT * (1 - self._failing)
        self.failing_since = min(self.failing_since, now)
        if failure.kind != "cooling_down":
            self.cause = error
        elif self.cause is None:  # a Router that pauses does not report the reason
            self.cause = self._may_have_cooled or error
        if failure.kind == "account":
            if not self._account_row:
                self._account_failing_since = now
            self._account_row += 1
            self._account_error = error
            self._permits = 0
            if self._account_row == _ACCOUNT_FAILURES_IN_A_ROW:
                self.waits_since = now
            if self.is_suspected and not others:
                self.blame_account()
            return
        if self.is_suspected and not others:
            self.blame_account()
            return
        self._may_have_cooled = self.cause
        if not self._row:
            self._row_needed = max(_FEWEST_IN_A_ROW, self.in_flight)
        self._row += 1
        self.timeouts += failure.kind == "timeout"
        if self._limit is not None and not self.draining:
            self._limit.overloaded(began, now, self.in_flight - 1, 0.0)
        nothing_passes = self._row >= self._row_needed or failure.kind == "cooling_down"
        if nothing_passes and now - self.failing_since >= self._max_wait:
            self.doomed = self.cause
            self.doomed_by_wait = outage_too_long(now - self.failing_since, self._max_wait)
            return
        if nothing_passes and (failure.retry_after or 0.0) > self._max_wait:
            self.doomed = self.cause
            self.doomed_by_wait = asked_too_long(failure, self._max_wait)
            return
        if self._closes and nothing_passes and self.holding_until is None:
            self._limit = self._limit_from(1)
            self.holding_until = math.inf
            self.waits_since = now

    def begins(self, now: float, *, none_waits: bool) -> None:
        """Note that a call begins. ``none_waits``: no request waits to be sent again."""
        if none_waits and not self.in_flight and self._limit is None:
            self.failing_since += now - self._idle_since
        self.in_flight += 1
        self._permits -= self._permits > 0

    def ended(self, began: float, now: float) -> None:
        """Note that a call that began then is no longer in flight."""
        self.in_flight -= 1
        self._idle_since = now
        self._left_behind -= began < self._left_at
        if self.is_suspected and not self.waited_for and not self._permits:
            self.blame_account()

    def blame_account(self) -> None:
        """Stop the model: no call has shown that the account works."""
        self.doomed = self._account_error

    def leave_behind(self, now: float) -> None:
        """Do not wait for the calls in flight any more. One may hang until its timeout."""
        self._left_behind = self.in_flight
        self._left_at = self.waits_since = now

    def hold(self, requested: float | None, now: float, jitter: float) -> float:
        """Let no call begin for a while, then one at a time; return the wait in seconds.

        Args:
            requested: seconds that the provider, or the Router, asks for.
            now: current time.
            jitter: number between 0 and 1.
        """
        wait = max(requested or 0.0, _back_off(self._fruitless)) * (1 + JITTER * jitter)
        self._fruitless += 1
        self.waits_since = now
        self.holding_until = now + wait
        return wait

    def back_off(self, attempts: int) -> float:
        """Return the wait in seconds of a request that has failed this often before.

        Long waits relieve a provider that answers no request. A provider that answers most requests
        does not need them, and they would end the batch long after its last first attempt.
        """
        return _back_off(attempts, 1 + self._failing)

    def _limit_from(self, calls: int) -> AdaptiveLimit:
        most = self._concurrency
        return AdaptiveLimit(AdaptiveConcurrency(initial=min(max(1, calls), most), maximum=most))


def waiting_models(
    gates: Mapping[Hashable, Gate],
    failed_requests: Iterable[Attempts],
    held_until: Callable[[Hashable], float | None],
    endpoint_of: Callable[[str], str | None],
    now: float,
) -> tuple[Waiting, ...]:
    """Return the models of which no call gets through, or whose last requests wait.

    Args:
        gates: the gate of each model.
        failed_requests: the attempts of the requests that have failed.
        held_until: returns the time until which something other than a gate holds calls of a
            model; None while nothing does.
        endpoint_of: returns the URL to which the calls of a model go; None if unknown.
        now: current time.
    """
    waiting = dict[Hashable, list[Attempts]]()
    for attempts in failed_requests:
        if attempts.due is not None:
            waiting.setdefault(attempts.model, []).append(attempts)
    found: list[Waiting] = []
    for model, gate in gates.items():
        of_model = waiting.get(model, [])
        if not gate.nothing_passes and (gate.in_flight or not of_model):
            continue
        if gate.cause is not None:
            since, reason = gate.failing_since, classify(gate.cause).reason
        else:  # other requests got through, and none is left
            first = min(of_model, key=lambda attempts: attempts.first_failed)
            since, reason = first.first_failed, first.reason
        until = _next_try(gate, of_model, held_until(model))
        name = model if isinstance(model, str) else None
        endpoint = None if name is None else endpoint_of(name)
        next_try = None if until is None else max(0.0, until - now)
        found.append(Waiting(name, endpoint, reason, now - since, next_try))
    return tuple(found)


def delays_of(failed_requests: Iterable[Attempts], now: float) -> list[Delay]:
    """Return the requests that are to be sent again, by the reason of their last failure.

    The most frequent reason is first.
    """
    due = dict[str, list[float]]()
    for attempts in failed_requests:
        if attempts.due is not None:
            due.setdefault(attempts.reason, []).append(attempts.due)
    return [
        Delay("retry", len(times), reason, max(0.0, min(times) - now))
        for reason, times in sorted(due.items(), key=lambda one: -len(one[1]))
    ]


def _next_try(gate: Gate, waiting: Iterable[Attempts], held_until: float | None) -> float | None:
    """Return the time of the next attempt of a model; None while one is in flight."""
    held = held_until if gate.holding_until is None else gate.holding_until
    if held is not None:
        return None if held == math.inf else held
    due = (attempts.due for attempts in waiting if attempts.due is not None)
    return None if gate.in_flight else min(due, default=None)


def _back_off(attempts: int, growth: float = 2.0) -> float:
    """Return the seconds to wait after this many earlier attempts: 1, 2, 4 and so on up to 60."""
    return min(growth ** min(attempts, 10), _LONGEST_BACK_OFF)


def unknown_endpoint(model: str) -> None:
    return None


def asked_too_long(failure: Failure, max_wait: float, waited: float = 0.0) -> str:
    """Return a text: the requested wait is longer than ``max_wait``, and what to do."""
    who = "the Router" if failure.kind == "cooling_down" else "the provider"
    after = f" after {waited:,.0f} s of waiting" if waited else ""
    return (
        f"{who} asks to wait {failure.retry_after:,.10g} s{after}, more than Retry.max_wait "
        f"({max_wait:,.10g} s; --max-outage of a run) allows: raise it"
    )


def outage_too_long(seconds: float, max_wait: float) -> str:
    return (
        f"nothing got through for {seconds:,.0f} s, longer than Retry.max_wait "
        f"({max_wait:,.10g} s; --max-outage of a run) allows: send again when the server is back, "
        "or raise it"
    )


def exceeds_patience(wait: float, failure: Failure, attempts: Attempts, max_wait: float) -> str:
    if failure.retry_after == wait:
        return asked_too_long(failure, max_wait, attempts.waited)
    return f"{wait:g} s more would exceed Retry.max_wait ({max_wait:,.10g} s): raise it"
