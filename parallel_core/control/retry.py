"""Send again what may pass, hold what cannot get through, stop what is doomed.

Three rules, for each model of a batch by itself:

1. A request whose failure may pass (``failures.MAY_PASS``) is sent again after a wait, in which its
   slot makes other calls. The waits of a request double while all fail; the more attempts get
   through, the less they grow. A deployment that the request has not tried is tried first, without
   a wait.
2. When nothing gets through any more, a gate closes: one call at a time finds out whether the
   provider is back, with exponential back-off; the others wait without being sent. This is a
   circuit breaker: Nygard, "Release It!", 2007.
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
_JITTER = 0.25  # share of a wait that is added at random, so that not all come back at once
# Failures in a row after which the gate may close: fewer happen by chance.
_FEWEST_IN_A_ROW = 8
_WEIGHT = 1 / 32  # of the newest attempt in the share of attempts that fail
_ACCOUNT_FAILURES_IN_A_ROW = 3
# Some of the answer may have been handed out; or the user has set the limit.
_NOT_AGAIN = (StreamInterruptedError, StreamStalledError, RequestTimeoutError)
_TIMEOUTS = 2  # attempts of a request that may end in a timeout: each may be billed


@dataclass(frozen=True)
class Retry:
    """When a batch sends a request again.

    Attributes:
        max_attempts: how often a request is sent at most, at least 1. All deployments of a model
            together count as one attempt: a request that fails on one goes to the next at once.
        max_wait: seconds that a request may wait in all between its attempts. When nothing gets
            through for so long, the remaining requests of the model are not sent.

    Raises:
        TypeError, ValueError: a value is out of its range.
    """

    max_attempts: int = 8
    max_wait: float = 600.0

    def __post_init__(self) -> None:
        checked_count("Retry.max_attempts", self.max_attempts)
        checked_number("Retry.max_wait", self.max_wait)


class HoldingOrder(Protocol):
    """An order of requests that holds those of a model back (:mod:`.fairness`)."""

    allowed: Callable[[Hashable], float] | None

    def make_room(self, key: Hashable) -> bool:
        """Let requests of this model begin, as far as ``allowed`` lets them. Return True if there
        are some."""
        ...


@dataclass(slots=True)
class _Attempts:
    """What is known of a request that has failed."""

    model: str | None
    first_began: float
    first_failed: float
    sent: int = 0  # calls of the Router
    failed: int = 0  # attempts: in each, no deployment was left
    tried: set[str] = field(default_factory=set[str])  # deployments, in this attempt
    timeouts: int = 0
    waited: float = 0.0
    reason: str = ""  # of the last failure
    due: float | None = None  # when it is sent again; None while it is on its way


class _Gate:
    """Whether calls of one model may begin. It has no clock: it is told what happens, and when."""

    def __init__(self, concurrency: int, max_wait: float, *, closes: bool) -> None:
        self._concurrency = concurrency
        self._closes = closes
        self._max_wait = max_wait
        self._row = 0  # failures since the last success
        self._row_needed = 0
        self._fruitless = 0  # waits since the last success
        self.failing_since = math.inf  # the first failure since the last success
        self._limit: AdaptiveLimit | None = None  # None: the gate is open
        self._account_row = 0
        self._failing = 1.0  # share of the newest attempts that failed: an exponential average
        self.in_flight = 0
        self.last_success = -math.inf
        self.holding_until: float | None = None
        self.cause: Exception | None = None  # the last failure that a provider caused
        self._may_have_cooled: Exception | None = None  # the last one of all; no account's
        self.doomed: Exception | None = None  # why nothing is sent any more
        self.doomed_by_wait = ""  # which wait was too long; empty if the account is at fault

    @property
    def allowed(self) -> float:
        """Calls that may be in flight."""
        if self._limit is None or self.doomed is not None:
            return math.inf
        return 0 if self.holding_until is not None else self._limit.limit

    @property
    def paused_by_account(self) -> bool:
        """Whether the last failure that a provider caused was the account's."""
        return self.cause is not None and classify(self.cause).kind == "account"

    @property
    def nothing_passes(self) -> bool:
        """Whether nothing gets through any more, and more is to be sent."""
        if self.cause is None or self.doomed is not None:
            return False
        is_held = self.holding_until is not None or self._fruitless > 0
        return is_held or 0 < self._row_needed <= self._row

    @property
    def is_first_failure(self) -> bool:
        """Whether one call has failed since the last success."""
        return self._row == 1

    @property
    def draining(self) -> bool:
        """Whether no call may begin until one in flight gets through or all have ended."""
        return self.holding_until == math.inf

    def got_through(self, began: float, now: float) -> None:
        """Note that the provider has answered a call; it is still counted as in flight."""
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
        """Note that a call failed in a way that may pass, or by the account; it still counts as in
        flight."""
        self._failing += _WEIGHT * (1 - self._failing)
        self.failing_since = min(self.failing_since, now)
        if failure.kind != "cooling_down":
            self.cause = error
        elif self.cause is None:  # a Router that pauses does not say why
            self.cause = self._may_have_cooled or error
        if failure.kind == "account":
            self._account_row += 1
            if self._account_row >= _ACCOUNT_FAILURES_IN_A_ROW:
                self.doomed = error
            return
        self._may_have_cooled = self.cause
        if now - self.failing_since >= self._max_wait:
            self.doomed = self.cause
            self.doomed_by_wait = _away_too_long(now - self.failing_since, self._max_wait)
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

    def hold(self, told: float | None, now: float, jitter: float) -> float:
        """Let no call begin for a while, then one at a time; return the seconds.

        Args:
            told: seconds that the provider, or the Router, asks for.
            now: the time.
            jitter: between 0 and 1.
        """
        wait = max(told or 0.0, _back_off(self._fruitless)) * (1 + _JITTER * jitter)
        self._fruitless += 1
        self.holding_until = now + wait
        return wait

    def back_off(self, attempts: int) -> float:
        """Return the seconds for which a request waits that has failed so often before.

        Long waits relieve a provider that answers nobody. One that answers most needs none, and
        a batch would end long after its last first attempt.
        """
        return _back_off(attempts, 1 + self._failing)

    def _limit_from(self, calls: int) -> AdaptiveLimit:
        most = self._concurrency
        return AdaptiveLimit(AdaptiveConcurrency(initial=min(max(1, calls), most), maximum=most))


def _back_off(attempts: int, growth: float = 2.0) -> float:
    """Return the seconds to wait after so many attempts before: 1, 2, 4 and so on up to 60."""
    return min(growth ** min(attempts, 10), _LONGEST_BACK_OFF)


def _is_not_known(model: str) -> None:
    return None


@dataclass(frozen=True)
class RouterTraits:
    """What is known of the Router, or of the callable, that makes the calls of a batch.

    Attributes:
        is_router: requests are sent again unless the batch is told otherwise.
        server_errors: attempts of a request that may end in a plain 500: as many as the Router
            would make by itself.
        failover: finds another deployment; None if there is no Router.
        endpoint_of: returns where the calls of a model go; None if that is not known.
    """

    is_router: bool = False
    server_errors: int = 1
    failover: Failover | None = None
    endpoint_of: Callable[[str], str | None] = _is_not_known


NO_ROUTER = RouterTraits()


def _is_not_held(model: Hashable) -> None:
    return None


class Retrying:
    """Sends the requests of one batch again. All of it belongs to the thread of the batch.

    Args:
        settings: how often, and how long.
        concurrency: calls of the batch in flight at most.
        model_of: returns the model of an item; None for what has none.
        timeout_of: returns the seconds that an item may take in all; None without a timeout.
        order: keeps requests back while their gate is closed; None if it cannot by model.
        adaptive: the limit is adaptive, and holds calls back instead of a gate.
        dooms: stop the requests of a model that cannot succeed.
        router: of the Router that makes the calls.
        jitter: returns numbers between 0 and 1.

    Attributes:
        held_until: returns when calls of a model may begin again, if something else than a gate
            holds them; None while they may.
        let_go: ends that hold, for nothing of the model is sent any more.
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
        self.held_until: Callable[[Hashable], float | None] = _is_not_held
        self.let_go: Callable[[Hashable], None] = _is_not_held
        self._gates: dict[Hashable, _Gate] = {}
        self._attempts: dict[int, _Attempts] = {}  # of requests that have failed, by index
        self._engine: Engine
        if order is not None:
            order.allowed = self.allowed

    def begin(self, engine: Engine) -> None:
        self._engine = engine

    def end(self) -> None:
        self._gates.clear()  # they keep errors, whose tracebacks keep what calls had
        self._attempts.clear()
        if self._failover is not None:
            self._failover.end()

    def allowed(self, model: Hashable) -> float:
        """Return the calls of a model that may be in flight."""
        gate = self._gates.get(model)
        return math.inf if gate is None else gate.allowed

    def waiting(self, now: float) -> tuple[Waiting, ...]:
        """Return the models of which nothing gets through, or whose last requests wait."""
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
        """Return when a request of a model is sent again; None while one is on its way."""
        held = self.held_until(model) if gate.holding_until is None else gate.holding_until
        if held is not None:
            return None if held == math.inf else held
        due = (attempts.due for attempts in waiting if attempts.due is not None)
        return None if gate.in_flight else min(due, default=None)

    def failed_deployments(self) -> dict[str, str]:
        """Return why requests were sent past a deployment, by its id."""
        return {} if self._failover is None else dict(self._failover.failed_deployments)

    def failed_attempts(self, index: int) -> int:
        """Return how often a request has failed so far."""
        attempts = self._attempts.get(index)
        return 0 if attempts is None else attempts.sent

    def wrap(self, call: Call) -> Call:
        """Put this around all that one attempt consists of."""

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
                # Not an attempt: the order could not hold the request back.
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
            passed_over = self._passed_over(index, model, began)
            try:
                value = await call(index, self._without(item, passed_over))
                self._attempts.pop(index, None)
                now = self._engine.current_time()
                gate.got_through(began, now)
                if self._failover is not None:
                    self._failover.got_through(model, value, passed_over, began, now)
            except Exception as error:
                then = self._after(index, item, gate, error, began, passed_over)
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
                self._look_again(model, gate)
            return value

        return attempt

    def _stop(self, model: str | None) -> None:
        """Let nothing wait for a model whose requests are not sent any more."""
        self.let_go(model)
        waiting = {index for index, one in self._attempts.items() if one.model == model}
        self._engine.bring_forward(waiting)

    def _after(
        self,
        index: int,
        item: Any,
        gate: _Gate,
        error: Exception,
        began: float,
        passed_over: Set[str],
    ) -> Exception:
        """Return what a failed attempt raises: its error, or the order to try again later."""
        now = self._engine.current_time()
        failure = classify(error)
        attempts = self._attempts.pop(index, None) or _Attempts(self._model_of(item), began, now)
        attempts.sent += 1
        attempts.timeouts += failure.kind == "timeout"
        was_sent = failure.kind != "cooling_down"
        elsewhere = self._goes_elsewhere(item, failure, error, attempts, now)
        if not was_sent and passed_over and self._failover is not None:
            # The Router says how long the others pause. Those that it was not to ask may be back
            # before that: what counts is why they were passed over.
            attempts.tried.clear()
            failure, error = self._failover.may_come_back(attempts.model) or (failure, error)
        if elsewhere and failure.kind == "account":
            self._attempts[index] = attempts  # it is the deployment's, and none of the model
            return RetryLater(error, 0.0)
        attempts.failed += not elsewhere
        if failure.kind == "account" and self._failover is not None:
            # One key is refused, and the others are busy: they will answer.
            failure, error = self._failover.may_come_back(attempts.model) or (failure, error)
        cause = error
        if failure.kind == "cooling_down" and gate.paused_by_account:
            # The Router only says that it pauses; why it does is what matters.
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
        if not elsewhere:
            wait = self._wait(item, failure, error, attempts, gate, began, now)
        if wait is None:
            return error
        attempts.waited += wait
        why = failure if failure.kind != "cooling_down" else classify(gate.cause or error)
        attempts.reason, attempts.due = why.reason, now + wait
        self._attempts[index] = attempts
        return RetryLater(error, wait, counts=was_sent)

    def _passed_over(self, index: int, model: str | None, now: float) -> Set[str]:
        if self._failover is None:
            return frozenset()
        attempts = self._attempts.get(index)
        tried: Set[str] = frozenset() if attempts is None else attempts.tried
        return self._failover.passed_over(model, tried, now, index)

    def _without(self, item: Any, deployments: Set[str]) -> Any:
        if self._failover is None or not deployments:
            return item
        return self._failover.without(item, deployments)

    def _goes_elsewhere(
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
        if not is_this_request and self._failover.is_one_left(model, attempts.tried, now):
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
        """Return the seconds until the next attempt; None if there is none."""
        if isinstance(error, _NOT_AGAIN):
            return None
        failed_by_itself = failure.kind == "unknown" and (failure.status_code or 0) >= 500
        most = self._settings.max_attempts
        if failed_by_itself:
            most = min(most, self._server_errors)
        if not (failure.may_pass or failed_by_itself) or attempts.failed >= most:
            return None
        # A server that hangs for all is not paid for twice. One call alone, as under an adaptive
        # limit that has fallen, says nothing of the others.
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

    def _hold(self, model: Hashable, gate: _Gate, told: float | None) -> None:
        wait = gate.hold(told, self._engine.current_time(), self._jitter())
        until = gate.holding_until

        def release() -> None:
            if gate.holding_until == until:
                gate.holding_until = None
                self._look_again(model, gate)
                self._engine.recheck()  # for those that have been sent before

        self._engine.call_later(wait, release)

    def _look_again(self, model: Hashable, gate: _Gate) -> None:
        if self._order is None or gate.in_flight >= gate.allowed:
            return
        if self._order.make_room(model):
            self._engine.recheck()


def asked_too_long(failure: Failure, max_wait: float, waited: float = 0.0) -> str:
    """Say that ``max_wait`` is shorter than what is asked for, and what to do."""
    who = "the Router" if failure.kind == "cooling_down" else "the provider"
    after = f" after {waited:,.0f} s of waiting" if waited else ""
    return (
        f"{who} asks to wait {failure.retry_after:,.10g} s{after}, more than Retry.max_wait "
        f"({max_wait:,.10g} s; --max-outage of a run) allows: raise it"
    )


def _away_too_long(seconds: float, max_wait: float) -> str:
    return (
        f"nothing got through for {seconds:,.0f} s, longer than Retry.max_wait "
        f"({max_wait:,.10g} s; --max-outage of a run) allows"
    )


def _exceeds(wait: float, failure: Failure, attempts: _Attempts, settings: Retry) -> str:
    if failure.retry_after == wait:
        return asked_too_long(failure, settings.max_wait, attempts.waited)
    return f"{wait:g} s more would exceed Retry.max_wait ({settings.max_wait:,.10g} s)"


def not_sent(index: int, model: str | None, cause: Exception, why: str = "") -> NotSentError:
    """Return the error of a request that is not sent because of what others have met."""
    error = NotSentError(index, model, classify(cause).reason, why)
    error.__cause__ = cause
    return error
