"""Retry requests that may succeed, hold them during an outage, and stop those that cannot succeed.

Three rules apply to each model of a batch separately:

1. A request with a failure that may pass (``failures.MAY_PASS``) is sent again after a wait, during
   which its slot makes other calls. The waits of a request double while all attempts fail; the more
   attempts get through, the less they grow. A deployment that the request has not tried is tried
   first, without a wait.
2. When nothing gets through any more, a gate closes: one call at a time checks if the provider is
   back, with exponential back-off; the others wait without being sent. This is a circuit breaker:
   Nygard, "Release It!", 2007.
3. When the account is at fault (a wrong key, no credit) three times in a row, or nothing has got
   through for ``max_wait``, the remaining requests of the model are not sent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from parallel_core.errors import (
    NotSentError,
    RequestTimeoutError,
    StreamInterruptedError,
    StreamStalledError,
    add_note,
)
from parallel_core.failures import Failure, classify

from .adaptive import AdaptiveConcurrency, AdaptiveLimit
from .call import Call, RetryLater
from .checks import checked_count, checked_number
from .engine import Engine
from .failover import Failover
from .progress import Waiting

_LONGEST_BACK_OFF = 60.0  # seconds, unless the provider asks for more
_JITTER = 0.25  # random share added to a wait, so that requests do not return all at once
# Failures in a row before the gate may close: fewer happen by chance.
_FEWEST_IN_A_ROW = 8
_WEIGHT = 1 / 32  # weight of the newest attempt in the share of failed attempts
_ACCOUNT_FAILURES_IN_A_ROW = 3
# Not retried: part of the answer may have been delivered, or the user has set this limit.
_NOT_AGAIN = (StreamInterruptedError, StreamStalledError, RequestTimeoutError)
_TIMEOUTS = 2  # attempts of a request that may time out: each may be billed


@dataclass(frozen=True)
class Retry:
    """Settings for sending failed requests again.

    Attributes:
        max_attempts: highest number of attempts of a request, at least 1. All deployments of a
            model together count as one attempt: a request that fails on one goes to the next at
            once.
        max_wait: seconds that a request may wait in total between its attempts. When nothing gets
            through for this long, the remaining requests of the model are not sent.

    Raises:
        TypeError, ValueError: a value is out of its range.
    """

    max_attempts: int = 8
    max_wait: float = 600.0

    def __post_init__(self) -> None:
        checked_count("Retry.max_attempts", self.max_attempts)
        checked_number("Retry.max_wait", self.max_wait)


class HoldingOrder(Protocol):
    """An order of requests that can hold back those of one model (:mod:`.fairness`)."""

    allowed: Callable[[Hashable], float] | None

    def make_room(self, key: Hashable) -> bool:
        """Let held requests of this model begin, as far as ``allowed`` permits.

        Return True if there are any.
        """
        ...


@dataclass(slots=True)
class _Attempts:
    """The attempts of a request that has failed."""

    model: str | None
    first_began: float
    first_failed: float
    sent: int = 0  # calls of the Router
    failed: int = 0  # attempts that failed on every deployment
    tried: set[str] = field(default_factory=set[str])  # deployments tried in this attempt
    timeouts: int = 0
    waited: float = 0.0
    reason: str = ""  # reason of the last failure
    due: float | None = None  # time of the next attempt; None while one is in flight


class _Gate:
    """A circuit breaker for the calls of one model.

    It has no clock: its methods report events and their times.
    """

    def __init__(self, concurrency: int, max_wait: float, *, closes: bool) -> None:
        self._concurrency = concurrency
        self._closes = closes
        self._max_wait = max_wait
        self._row = 0  # failures since the last success
        self._row_needed = 0
        self._fruitless = 0  # waits since the last success
        self.failing_since = math.inf  # time of the first failure since the last success
        self._limit: AdaptiveLimit | None = None  # None: the gate is open
        self._account_row = 0
        self._failing = 1.0  # share of attempts that failed: an exponential average
        self.in_flight = 0
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
        if self._limit is None or self.doomed is not None:
            return math.inf
        return 0 if self.holding_until is not None else self._limit.limit

    @property
    def paused_by_account(self) -> bool:
        """True if the account caused the last failure that came from a provider."""
        return self.cause is not None and classify(self.cause).kind == "account"

    @property
    def nothing_passes(self) -> bool:
        """True if nothing gets through at the moment, but requests are still to be sent."""
        if self.cause is None or self.doomed is not None:
            return False
        is_held = self.holding_until is not None or self._fruitless > 0
        return is_held or 0 < self._row_needed <= self._row

    @property
    def is_first_failure(self) -> bool:
        """True if exactly one call has failed since the last success."""
        return self._row == 1

    @property
    def draining(self) -> bool:
        """True if no call may begin until one in flight gets through or all have ended."""
        return self.holding_until == math.inf

    def got_through(self, began: float, now: float) -> None:
        """Note that the provider has answered a call, which still counts as in flight."""
        self._row = self._account_row = self._fruitless = 0
        self._failing -= _WEIGHT * self._failing
        self.failing_since = math.inf
        self.last_success = now
        self.cause = None
        if self._limit is not None:
            if self.draining:
                self._limit = self._limit_from(self.in_flight)
            self.holding_until = None
            self._limit.succeeded(began, now, self.in_flight)
            if self._limit.limit >= self._concurrency:
                self._limit = None

    def failed(self, failure: Failure, error: Exception, began: float, now: float) -> None:
        """Note a failure that may pass, or one of the account; the call is still in flight."""
        self._failing += _WEIGHT * (1 - self._failing)
        self.failing_since = min(self.failing_since, now)
        if failure.kind != "cooling_down":
            self.cause = error
        elif self.cause is None:  # a Router that pauses does not report the reason
            self.cause = self._may_have_cooled or error
        if failure.kind == "account":
            self._account_row += 1
            if self._account_row >= _ACCOUNT_FAILURES_IN_A_ROW:
                self.doomed = error
            return
        self._may_have_cooled = self.cause
        if now - self.failing_since >= self._max_wait:
            self.doomed = self.cause
            self.doomed_by_wait = _outage_too_long(now - self.failing_since, self._max_wait)
            return
        if not self._row:
            self._row_needed = max(_FEWEST_IN_A_ROW, self.in_flight)
        self._row += 1
        if self._limit is not None and not self.draining:
            self._limit.overloaded(began, now, self.in_flight - 1, 0.0)
        nothing_passes = self._row >= self._row_needed or failure.kind == "cooling_down"
        if nothing_passes and (failure.retry_after or 0.0) > self._max_wait:
            self.doomed = self.cause
            self.doomed_by_wait = asked_too_long(failure, self._max_wait)
            return
        if self._closes and nothing_passes and self.holding_until is None:
            self._limit = self._limit_from(1)
            self.holding_until = math.inf

    def hold(self, requested: float | None, now: float, jitter: float) -> float:
        """Let no call begin for a while, then one at a time; return the wait in seconds.

        Args:
            requested: seconds that the provider, or the Router, asks for.
            now: current time.
            jitter: number between 0 and 1.
        """
        wait = max(requested or 0.0, _back_off(self._fruitless)) * (1 + _JITTER * jitter)
        self._fruitless += 1
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


def _back_off(attempts: int, growth: float = 2.0) -> float:
    """Return the seconds to wait after this many earlier attempts: 1, 2, 4 and so on up to 60."""
    return min(growth ** min(attempts, 10), _LONGEST_BACK_OFF)


def _unknown_endpoint(model: str) -> None:
    return None


@dataclass(frozen=True)
class RouterTraits:
    """Facts about the Router, or the callable, that makes the calls of a batch.

    Attributes:
        is_router: requests are sent again, unless the batch has another ``retry``.
        server_errors: attempts of a request that may end in a plain 500: as many as the Router
            would make by itself.
        failover: finds another deployment; None if there is no Router.
        endpoint_of: returns the URL to which the calls of a model go; None if unknown.
    """

    is_router: bool = False
    server_errors: int = 1
    failover: Failover | None = None
    endpoint_of: Callable[[str], str | None] = _unknown_endpoint


NO_ROUTER = RouterTraits()


def _not_held(model: Hashable) -> None:
    return None


class Retrying:
    """The retries of one batch. Use it only in the thread of the batch.

    Args:
        settings: how often and for how long requests are sent again.
        concurrency: highest number of calls of the batch in flight.
        model_of: returns the model of an item; None if it has none.
        timeout_of: returns the seconds that an item may take in total; None without a timeout.
        order: holds requests back while their gate is closed; None if it cannot do so by model.
        adaptive: an adaptive limit holds calls back instead of a gate.
        dooms: stop the requests of a model that cannot succeed.
        router: facts about the Router that makes the calls.
        jitter: returns numbers between 0 and 1.

    Attributes:
        held_until: returns the time until which something other than a gate holds calls of a
            model; None while nothing does.
        end_hold: ends that hold, because no request of the model is sent any more.
    """

    def __init__(
        self,
        settings: Retry,
        *,
        concurrency: int,
        model_of: Callable[[Any], str | None],
        timeout_of: Callable[[Any], float | None],
        order: HoldingOrder | None = None,
        adaptive: bool = False,
        dooms: bool = True,
        router: RouterTraits = NO_ROUTER,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self._concurrency = concurrency
        self._model_of = model_of
        self._timeout_of = timeout_of
        self._order = order
        self._adaptive = adaptive
        self._dooms = dooms
        self._server_errors = router.server_errors
        self._failover = router.failover
        self._endpoint_of = router.endpoint_of
        self._jitter = jitter
        self.held_until: Callable[[Hashable], float | None] = _not_held
        self.end_hold: Callable[[Hashable], None] = _not_held
        self._gates: dict[Hashable, _Gate] = {}
        self._attempts: dict[int, _Attempts] = {}  # requests that have failed, by index
        self._engine: Engine
        if order is not None:
            order.allowed = self.allowed

    def begin(self, engine: Engine) -> None:
        self._engine = engine

    def end(self) -> None:
        self._gates.clear()  # they keep errors, and these keep objects of the calls
        self._attempts.clear()
        if self._failover is not None:
            self._failover.end()

    def allowed(self, model: Hashable) -> float:
        """Return the number of calls of a model that may be in flight."""
        gate = self._gates.get(model)
        return math.inf if gate is None else gate.allowed

    def waiting(self, now: float) -> tuple[Waiting, ...]:
        """Return the models of which no call gets through, or whose last requests wait."""
        waiting = dict[Hashable, list[_Attempts]]()
        for attempts in self._attempts.values():
            if attempts.due is not None:
                waiting.setdefault(attempts.model, []).append(attempts)
        found: list[Waiting] = []
        for model, gate in self._gates.items():
            of_model = waiting.get(model, [])
            if not gate.nothing_passes and (gate.in_flight or not of_model):
                continue
            if gate.cause is not None:
                since, reason = gate.failing_since, classify(gate.cause).reason
            else:  # other requests got through, and none is left
                first = min(of_model, key=lambda attempts: attempts.first_failed)
                since, reason = first.first_failed, first.reason
            until = self._next_try(model, gate, of_model)
            found.append(
                Waiting(
                    model=model if isinstance(model, str) else None,
                    endpoint=self._endpoint_of(model) if isinstance(model, str) else None,
                    reason=reason,
                    since=now - since,
                    next_try=None if until is None else max(0.0, until - now),
                )
            )
        return tuple(found)

    def _next_try(self, model: Hashable, gate: _Gate, waiting: Iterable[_Attempts]) -> float | None:
        """Return the time of the next attempt of a model; None while one is in flight."""
        held = self.held_until(model) if gate.holding_until is None else gate.holding_until
        if held is not None:
            return None if held == math.inf else held
        due = (attempts.due for attempts in waiting if attempts.due is not None)
        return None if gate.in_flight else min(due, default=None)

    def failed_deployments(self) -> dict[str, str]:
        """Return, by deployment id, why requests avoided a deployment."""
        return {} if self._failover is None else dict(self._failover.failed_deployments)

    def failed_attempts(self, index: int) -> int:
        """Return how often a request has failed so far."""
        attempts = self._attempts.get(index)
        return 0 if attempts is None else attempts.sent

    def wrap(self, call: Call) -> Call:
        """Wrap everything that belongs to one attempt."""

        async def attempt(index: int, item: Any) -> Any:
            model = self._model_of(item)
            gate = self._gates.get(model)
            if gate is None:
                longest = self._settings.max_wait if self._dooms else math.inf
                gate = self._gates[model] = _Gate(
                    self._concurrency, longest, closes=not self._adaptive
                )
            if gate.doomed is not None:
                self._attempts.pop(index, None)
                raise not_sent(index, model, gate.doomed, gate.doomed_by_wait)
            attempts = self._attempts.get(index)
            if gate.in_flight >= gate.allowed and gate.cause is not None:
                # This is not an attempt: the order could not hold the request back.
                until = gate.holding_until
                if until is None or gate.draining:
                    wait = 1.0
                else:
                    wait = max(1.0, until - self._engine.current_time())
                if attempts is not None:
                    attempts.due = self._engine.current_time() + wait
                raise RetryLater(not_sent(index, model, gate.cause), wait, counts=False)
            began = self._engine.current_time()
            if attempts is not None:
                attempts.due = None
            gate.in_flight += 1
            excluded = self._excluded(index, model, began)
            try:
                value = await call(index, self._without(item, excluded))
                self._attempts.pop(index, None)
                now = self._engine.current_time()
                gate.got_through(began, now)
                if self._failover is not None:
                    self._failover.got_through(model, value, excluded, began, now)
            except Exception as error:
                then = self._after(index, item, gate, error, began, excluded)
                if then is error:
                    raise
                raise then from then.__cause__
            finally:
                gate.in_flight -= 1
                if self._failover is not None:
                    self._failover.ended(index)
                if gate.doomed is not None:
                    self._stop(model)
                if gate.draining and not gate.in_flight:
                    self._hold(model, gate, None)
                self._recheck(model, gate)
            return value

        return attempt

    def _stop(self, model: str | None) -> None:
        """End all waits for a model whose requests are not sent any more."""
        self.end_hold(model)
        waiting = {index for index, one in self._attempts.items() if one.model == model}
        self._engine.bring_forward(waiting)

    def _after(
        self,
        index: int,
        item: Any,
        gate: _Gate,
        error: Exception,
        began: float,
        excluded: Set[str],
    ) -> Exception:
        """Return the exception of a failed attempt: its error, or a :class:`RetryLater`."""
        now = self._engine.current_time()
        failure = classify(error)
        attempts = self._attempts.pop(index, None) or _Attempts(self._model_of(item), began, now)
        attempts.sent += 1
        attempts.timeouts += failure.kind == "timeout"
        was_sent = failure.kind != "cooling_down"
        fails_over = self._can_fail_over(item, failure, error, attempts, now)
        if not was_sent and excluded and self._failover is not None:
            # The Router reports how long the other deployments pause. The excluded ones may be back
            # earlier, so the failure for which they were excluded decides.
            attempts.tried.clear()
            failure, error = self._failover.may_come_back(attempts.model) or (failure, error)
        if fails_over and failure.kind == "account":
            self._attempts[index] = attempts  # a failure of the deployment, not of the model
            return RetryLater(error, 0.0)
        attempts.failed += not fails_over
        if failure.kind == "account" and self._failover is not None:
            # One key is refused, and the other deployments are busy: they will answer later.
            failure, error = self._failover.may_come_back(attempts.model) or (failure, error)
        cause = error
        if failure.kind == "cooling_down" and gate.paused_by_account:
            # The Router only reports its pause; the reason for the pause decides.
            assert gate.cause is not None
            cause = gate.cause
            failure, error = classify(cause), not_sent(index, self._model_of(item), cause)
        if failure.may_pass or (failure.kind == "account" and self._dooms):
            gate.failed(failure, cause, began, now)
            if gate.draining and (gate.in_flight == 1 or failure.kind == "cooling_down"):
                self._hold(self._model_of(item), gate, failure.retry_after)
        elif failure.kind in ("request", "answer"):
            gate.got_through(began, now)
        if failure.kind == "cooling_down" and gate.doomed is not None:
            return not_sent(index, attempts.model, gate.doomed, gate.doomed_by_wait)
        wait: float | None = 0.0
        if not fails_over:
            wait = self._wait(item, failure, error, attempts, gate, began, now)
        if wait is None:
            return error
        attempts.waited += wait
        why = failure if failure.kind != "cooling_down" else classify(gate.cause or error)
        attempts.reason, attempts.due = why.reason, now + wait
        self._attempts[index] = attempts
        return RetryLater(error, wait, counts=was_sent)

    def _excluded(self, index: int, model: str | None, now: float) -> Set[str]:
        if self._failover is None:
            return frozenset()
        attempts = self._attempts.get(index)
        tried: Set[str] = frozenset() if attempts is None else attempts.tried
        return self._failover.excluded(model, tried, now, index)

    def _without(self, item: Any, deployments: Set[str]) -> Any:
        if self._failover is None or not deployments:
            return item
        return self._failover.without(item, deployments)

    def _can_fail_over(
        self, item: Any, failure: Failure, error: Exception, attempts: _Attempts, now: float
    ) -> bool:
        """Return True if another deployment of the model is left for a request that failed."""
        if self._failover is None:
            return False
        model = self._model_of(item)
        deployment = self._failover.failed(model, failure, error, now)
        if not deployment or isinstance(error, _NOT_AGAIN):
            return False
        attempts.tried.add(deployment)
        is_this_request = failure.kind in ("request", "answer") or (
            failure.kind == "unknown" and (failure.status_code or 0) < 500
        )
        if failure.kind == "timeout":
            is_this_request = attempts.timeouts >= _TIMEOUTS
        if not is_this_request and self._failover.has_untried(model, attempts.tried, now):
            return True
        attempts.tried.clear()
        return False

    def _wait(
        self,
        item: Any,
        failure: Failure,
        error: Exception,
        attempts: _Attempts,
        gate: _Gate,
        began: float,
        now: float,
    ) -> float | None:
        """Return the seconds until the next attempt; None if there is no next attempt."""
        if isinstance(error, _NOT_AGAIN):
            return None
        failed_by_itself = failure.kind == "unknown" and (failure.status_code or 0) >= 500
        most = self._settings.max_attempts
        if failed_by_itself:
            most = min(most, self._server_errors)
        if not (failure.may_pass or failed_by_itself) or attempts.failed >= most:
            return None
        # Do not pay twice for a server that hangs for all calls. A single call, for instance under
        # an adaptive limit that has fallen, says nothing about the others.
        hangs_for_all = gate.last_success < began and not gate.is_first_failure
        if failure.kind == "timeout" and (attempts.timeouts >= _TIMEOUTS or hangs_for_all):
            return None
        wait = max(failure.retry_after or 0.0, gate.back_off(attempts.failed - 1))
        if failure.retry_after is not None and attempts.failed == 1:
            wait = failure.retry_after
        longest = self._settings.max_wait - attempts.waited
        if wait > longest:
            add_note(error, f"not sent again: {_exceeds(wait, failure, attempts, self._settings)}")
            return None
        wait = min(wait * (1 + _JITTER * self._jitter()), longest)
        timeout = self._timeout_of(item)
        left = math.inf if timeout is None else attempts.first_began + timeout - now
        return wait if wait < left else None

    def _hold(self, model: Hashable, gate: _Gate, requested: float | None) -> None:
        wait = gate.hold(requested, self._engine.current_time(), self._jitter())
        until = gate.holding_until

        def release() -> None:
            if gate.holding_until == until:
                gate.holding_until = None
                self._recheck(model, gate)
                self._engine.recheck()  # for requests that are to be sent again

        self._engine.call_later(wait, release)

    def _recheck(self, model: Hashable, gate: _Gate) -> None:
        if self._order is None or gate.in_flight >= gate.allowed:
            return
        if self._order.make_room(model):
            self._engine.recheck()


def asked_too_long(failure: Failure, max_wait: float, waited: float = 0.0) -> str:
    """Return a text: the requested wait is longer than ``max_wait``, and what to do."""
    who = "the Router" if failure.kind == "cooling_down" else "the provider"
    after = f" after {waited:,.0f} s of waiting" if waited else ""
    return (
        f"{who} asks to wait {failure.retry_after:,.10g} s{after}, more than Retry.max_wait "
        f"({max_wait:,.10g} s; --max-outage of a run) allows: raise it"
    )


def _outage_too_long(seconds: float, max_wait: float) -> str:
    return (
        f"nothing got through for {seconds:,.0f} s, longer than Retry.max_wait "
        f"({max_wait:,.10g} s; --max-outage of a run) allows"
    )


def _exceeds(wait: float, failure: Failure, attempts: _Attempts, settings: Retry) -> str:
    if failure.retry_after == wait:
        return asked_too_long(failure, settings.max_wait, attempts.waited)
    return f"{wait:g} s more would exceed Retry.max_wait ({settings.max_wait:,.10g} s)"


def not_sent(index: int, model: str | None, cause: Exception, why: str = "") -> NotSentError:
    """Return the error of a request that is not sent because of the failures of others."""
    error = NotSentError(index, model, classify(cause).reason, why)
    error.__cause__ = cause
    return error
