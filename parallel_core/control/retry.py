"""Retry requests that may succeed, hold them during an outage, and stop those that cannot succeed.

Three rules apply to each model of a batch separately:

1. A request with a failure that may pass (``failures.MAY_PASS``) is sent again after a wait, during
   which its slot is free for other calls. The waits of a request double while all attempts fail;
   the more attempts get through, the less they grow. A deployment that the request has not tried is
   tried first, without a wait.
2. When nothing gets through any more, a gate closes: one call at a time checks if the provider is
   back, with exponential back-off; the others wait without being sent. This is a circuit breaker:
   Nygard, "Release It!", 2007.
3. When the account is at fault (a wrong key, no credit) three times in a row, or nothing has got
   through for ``max_wait``, the remaining requests of the model are not sent.

Rules 2 and 3 wait for the calls in flight, but for a minute at most: a call may hang.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Set
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

from .call import Call, RetryLater
from .checks import checked_count, checked_number
from .failover import Failover
from .outages import (
    JITTER,
    PATIENCE,
    Attempts,
    Gate,
    delays_of,
    exceeds_patience,
    unknown_endpoint,
    waiting_models,
)
from .progress import Delay, Waiting
from .protocols import Engine

# Not retried: part of the answer may have been delivered, or the user has set this limit.
_NOT_AGAIN = (StreamInterruptedError, StreamStalledError, RequestTimeoutError)
_TIMEOUTS = 2  # attempts of a request that may time out: each may be billed
_AT_ONCE = 0.001  # seconds: the clock may be that much behind a timer
_WHILE_SUSPECTED = 5.0  # seconds from one look at the gate to the next, without an order by model


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


@dataclass(frozen=True)
class RouterTraits:
    """Facts about the Router, or the callable, that makes the calls of a batch.

    Attributes:
        is_router: requests are sent again, unless the batch has another ``retry``.
        server_errors: attempts of a request that may end in a plain 500: as many as the Router
            would make by itself.
        failover: finds another deployment.
        endpoint_of: returns the URL to which the calls of a model go; None if unknown.
    """

    is_router: bool = False
    server_errors: int = 1
    failover: Failover = field(default_factory=Failover)
    endpoint_of: Callable[[str], str | None] = unknown_endpoint


@dataclass(slots=True)
class _FailedAttempt:
    """An attempt that has failed.

    Attributes:
        attempts: the attempts of its request.
        error, failure: the failure that decides what happens to the request.
    """

    item: Any
    attempts: Attempts
    began: float
    now: float
    error: Exception
    failure: Failure

    def blame(self, other: tuple[Failure, Exception] | None) -> None:
        """Let another failure decide, if there is one."""
        if other is not None:
            self.failure, self.error = other


def _not_held(model: Hashable) -> None:
    return None


class Retrying:
    """The retries of one batch. Use it only in the thread of the batch.

    Args:
        settings: how often and for how long requests are sent again.
        concurrency: highest number of calls of the batch in flight.
        model_of: returns the model of an item; None if it has none.
        timeout_of: returns the timeout of an item in seconds; None without one.
        order: holds requests back while their gate is closed; None if it cannot do so by model.
        adaptive: an adaptive limit holds calls back instead of a gate.
        dooms: stop the requests of a model that cannot succeed.
        router: facts about the Router that makes the calls; None if there is none.
        jitter: returns numbers between 0 and 1.

    Attributes:
        held_until: returns the time until which something other than a gate holds calls of a
            model; None while nothing does.
        end_hold: ends that hold, because no request of the model is sent any more.
        max_wait: seconds that a request may wait in total.
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
        router: RouterTraits | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._settings = settings
        self.max_wait = settings.max_wait
        self._concurrency = concurrency
        self._model_of = model_of
        self._timeout_of = timeout_of
        self._order = order
        self._adaptive = adaptive
        self._dooms = dooms
        router = router or RouterTraits()
        self._server_errors = router.server_errors
        self._failover = router.failover
        self._endpoint_of = router.endpoint_of
        self._jitter = jitter
        self.held_until: Callable[[Hashable], float | None] = _not_held
        self.end_hold: Callable[[Hashable], None] = _not_held
        self._gates: dict[Hashable, Gate] = {}
        self._attempts: dict[int, Attempts] = {}  # requests that have failed, by index
        self._engine: Engine
        if order is not None:
            order.allowed = self.allowed

    def begin(self, engine: Engine) -> None:
        self._engine = engine

    def end(self) -> None:
        self._gates.clear()  # they keep errors, and these keep objects of the calls
        self._attempts.clear()
        self._failover.end()

    def allowed(self, model: Hashable) -> float:
        """Return the number of calls of a model that may be in flight."""
        gate = self._gates.get(model)
        return math.inf if gate is None else gate.allowed

    def waiting(self, now: float) -> tuple[Waiting, ...]:
        """Return the models of which no call gets through, or whose last requests wait."""
        attempts = self._attempts.values()
        return waiting_models(self._gates, attempts, self.held_until, self._endpoint_of, now)

    def delays(self, now: float) -> list[Delay]:
        """Return the failed requests that are to be sent again, while their model answers others.

        Those of the models that :meth:`waiting` names are not among them.
        """
        held = {
            model
            for model, gate in self._gates.items()
            if gate.nothing_passes or not gate.in_flight
        }
        return delays_of(
            (attempts for attempts in self._attempts.values() if attempts.model not in held), now
        )

    def failed_deployments(self) -> dict[str, str]:
        """Return, by deployment id, why requests avoided a deployment."""
        return dict(self._failover.failed_deployments)

    def failed_attempts(self, index: int) -> int:
        """Return how often a request has failed so far."""
        attempts = self._attempts.get(index)
        return 0 if attempts is None else attempts.sent

    def wrap(self, call: Call) -> Call:
        """Wrap everything that belongs to one attempt."""

        async def attempt(index: int, item: Any) -> Any:
            model = self._model_of(item)
            gate = self._gate_of(model)
            self._check_gate(index, model, gate)
            began = self._engine.current_time()
            tried: Set[str] = frozenset()
            attempts = self._attempts.get(index)
            if attempts is not None:
                attempts.due, tried = None, attempts.tried
            gate.begins(began, none_waits=self._is_idle(model, gate))
            excluded = self._failover.excluded(model, tried, began, index)
            try:
                sent = self._failover.without(item, excluded) if excluded else item
                value = await call(index, sent)
                self._attempts.pop(index, None)
                now = self._engine.current_time()
                self._got_through(model, gate, began, now)
                self._failover.got_through(model, value, excluded, began, now)
            except Exception as error:  # noqa: BLE001 - it is raised again, or another in its place
                then = self._after(index, item, gate, error, began, bool(excluded))
                try:
                    if then is error:
                        raise
                    raise then from then.__cause__
                finally:
                    del then  # no reference cycle through the traceback
            finally:
                self._attempt_ended(index, model, gate, began)
            return value

        return attempt

    def _gate_of(self, model: str | None) -> Gate:
        gate = self._gates.get(model)
        if gate is None:
            longest = self._settings.max_wait if self._dooms else math.inf
            gate = self._gates[model] = Gate(self._concurrency, longest, closes=not self._adaptive)
        return gate

    def _check_gate(self, index: int, model: str | None, gate: Gate) -> None:
        """Raise an exception if the gate of its model lets no request through."""
        if gate.doomed is not None:
            earlier = self._attempts.pop(index, None)
            raise not_sent(index, model, gate.doomed, gate.doomed_by_wait, earlier)
        if gate.in_flight < gate.allowed or gate.cause is None:
            return
        # This is not an attempt: the order could not hold the request back.
        now, until = self._engine.current_time(), gate.holding_until
        wait = 1.0 if until is None or gate.draining else max(1.0, until - now)
        if gate.is_suspected:
            wait = _WHILE_SUSPECTED
        attempts = self._attempts.get(index)
        if attempts is not None:
            attempts.due = now + wait
        raise RetryLater(not_sent(index, model, gate.cause), wait, counts=False)

    def _attempt_ended(self, index: int, model: str | None, gate: Gate, began: float) -> None:
        gate.ended(began, self._engine.current_time())
        self._failover.ended(index)
        if gate.doomed is not None:
            self._stop(model)
        if gate.draining and not gate.waited_for:
            self._hold(model, gate, None)
        self._recheck(model, gate)

    def _stop(self, model: Hashable) -> None:
        """End all waits for a model whose requests are not sent any more."""
        self.end_hold(model)
        waiting = {index for index, one in self._attempts.items() if one.model == model}
        self._engine.bring_forward(waiting)

    def _after(
        self, index: int, item: Any, gate: Gate, error: Exception, began: float, excluding: bool
    ) -> Exception:
        """Return the exception of a failed attempt: its error, or a :class:`RetryLater`.

        ``excluding``: the Router was not free to choose a deployment.
        """
        now, model = self._engine.current_time(), self._model_of(item)
        attempts = self._attempts.pop(index, None) or Attempts(model, now)
        failed = _FailedAttempt(item, attempts, began, now, error, classify(error))
        attempts.sent += 1
        attempts.pauses += failed.failure.kind == "cooling_down"
        attempts.timeouts += failed.failure.kind == "timeout"
        was_sent = failed.failure.kind != "cooling_down"
        fails_over = self._can_fail_over(failed)
        if not was_sent and excluding:
            # The Router reports how long the other deployments pause. The excluded ones may be back
            # earlier, so the failure for which they were excluded decides.
            attempts.tried.clear()
            failed.blame(self._failover.may_come_back(model))
        if fails_over and failed.failure.kind == "account":
            self._attempts[index] = attempts  # a failure of the deployment, not of the model
            return RetryLater(failed.error, 0.0)
        attempts.failed += not fails_over
        if failed.failure.kind == "account":
            # One key is refused, and the other deployments are busy: they will answer later.
            failed.blame(self._failover.may_come_back(model))
        cause = failed.error
        if failed.failure.kind == "cooling_down" and gate.paused_by_account:
            # The Router only reports its pause; the reason for the pause decides.
            assert gate.cause is not None
            cause = gate.cause
            failed.blame((classify(cause), not_sent(index, model, cause)))
        self._count_failure(failed, cause, gate)
        if failed.failure.kind == "cooling_down" and gate.doomed is not None:
            return not_sent(index, model, gate.doomed, gate.doomed_by_wait, attempts)
        wait = 0.0 if fails_over else self._wait(failed, gate)
        if wait is None:
            return failed.error
        if gate.doomed is not None:
            wait = 0.0  # it is not sent again
        attempts.waited += wait
        is_pause = failed.failure.kind == "cooling_down"
        why = classify(gate.cause or failed.error) if is_pause else failed.failure
        attempts.reason, attempts.due = why.reason, now + wait
        self._attempts[index] = attempts
        return RetryLater(failed.error, wait, counts=was_sent)

    def _count_failure(self, failed: _FailedAttempt, cause: Exception, gate: Gate) -> None:
        """Report a failure to the gate of its model."""
        failure = failed.failure
        if failure.may_pass or (failure.kind == "account" and self._dooms):
            model = failed.attempts.model
            gate.failed(failure, cause, failed.began, failed.now)
            is_last = not gate.others(failed.began)
            if gate.draining and (is_last or failure.kind == "cooling_down"):
                self._hold(model, gate, failure.retry_after)
            self._watch(model, gate)
        elif failure.kind in ("request", "answer"):
            self._got_through(failed.attempts.model, gate, failed.began, failed.now)

    def _got_through(self, model: Hashable, gate: Gate, began: float, now: float) -> None:
        gate.got_through(began, now)
        self._watch(model, gate)

    def _is_idle(self, model: str | None, gate: Gate) -> bool:
        """Return True if nothing of a model was in flight or waited until now."""
        if self._adaptive or gate.in_flight or gate.failing_since == math.inf:
            return False
        return all(one.model != model for one in self._attempts.values())

    def _can_fail_over(self, failed: _FailedAttempt) -> bool:
        """Return True if another deployment of the model is left for a request that failed."""
        failure, attempts = failed.failure, failed.attempts
        deployment = self._failover.failed(attempts.model, failure, failed.error, failed.now)
        if not deployment or isinstance(failed.error, _NOT_AGAIN):
            return False
        attempts.tried.add(deployment)
        is_this_request = failure.kind in ("request", "answer") or (
            failure.kind == "unknown" and (failure.status_code or 0) < 500
        )
        if failure.kind == "timeout":
            is_this_request = attempts.timeouts >= _TIMEOUTS
        if not is_this_request and self._failover.has_untried(
            attempts.model, attempts.tried, failed.now
        ):
            return True
        attempts.tried.clear()
        return False

    def _wait(self, failed: _FailedAttempt, gate: Gate) -> float | None:
        """Return the seconds until the next attempt; None if there is no next attempt."""
        failure, attempts, max_wait = failed.failure, failed.attempts, self._settings.max_wait
        if isinstance(failed.error, _NOT_AGAIN):
            return None
        failed_by_itself = failure.kind == "unknown" and (failure.status_code or 0) >= 500
        most = self._settings.max_attempts
        if failed_by_itself:
            most = min(most, self._server_errors)
        if not (failure.may_pass or failed_by_itself) or attempts.failed >= most:
            return None
        # Do not pay twice for a server that hangs for all calls. A single one says nothing about
        # the others, and neither do those that were refused or could not connect.
        hangs_for_all = gate.last_success < failed.began and gate.timeouts > 1
        if failure.kind == "timeout" and (attempts.timeouts >= _TIMEOUTS or hangs_for_all):
            return None
        wait = max(failure.retry_after or 0.0, gate.back_off(attempts.failed - 1))
        if failure.retry_after is not None and attempts.failed == 1:
            wait = failure.retry_after
        longest = max_wait - attempts.waited
        if wait > longest:
            reason = exceeds_patience(wait, failure, attempts, max_wait)
            add_note(failed.error, f"not sent again: {reason}")
            return None
        wait = min(wait * (1 + JITTER * self._jitter()), longest)
        timeout = self._timeout_of(failed.item)
        # Not the time since the first attempt: it may have waited for a rate limit or a budget.
        return wait if timeout is None or attempts.waited + wait < timeout else None

    def _hold(self, model: Hashable, gate: Gate, requested: float | None) -> None:
        wait = gate.hold(requested, self._engine.current_time(), self._jitter())
        until = gate.holding_until

        def release() -> None:
            if gate.holding_until == until:
                gate.holding_until = None
                self._try_another(model, gate)

        self._engine.call_later(wait, release)

    def _try_another(self, model: Hashable, gate: Gate) -> None:
        """Let another call begin, whatever becomes of those in flight."""
        gate.leave_behind(self._engine.current_time())
        self._recheck(model, gate)
        self._engine.recheck()  # for requests that are to be sent again
        self._watch(model, gate)

    def _watch(self, model: Hashable, gate: Gate, seconds: float = PATIENCE) -> None:
        """After a while, go on without the end of the calls that the gate waits for."""

        def look() -> None:
            gate.is_watched = False
            left = gate.waits_since + PATIENCE - self._engine.current_time()
            if left <= _AT_ONCE and gate.is_limited:
                self._lose_patience(model, gate)
            self._watch(model, gate, left if left > _AT_ONCE else PATIENCE)

        if gate.is_limited and not gate.is_watched:
            gate.is_watched = True
            self._engine.call_later(seconds, look)

    def _lose_patience(self, model: Hashable, gate: Gate) -> None:
        if gate.is_suspected:
            gate.blame_account()
            self._stop(model)
            self._recheck(model, gate)
        elif gate.draining:
            gate.leave_behind(self._engine.current_time())
            self._hold(model, gate, None)
        elif gate.holding_until is None:
            self._try_another(model, gate)

    def _recheck(self, model: Hashable, gate: Gate) -> None:
        if self._order is None or gate.in_flight >= gate.allowed:
            return
        if self._order.make_room(model):
            self._engine.recheck()


def not_sent(
    index: int,
    model: str | None,
    cause: Exception,
    too_long: str = "",
    attempts: Attempts | None = None,
) -> NotSentError:
    """Return the error of a request that is not sent (again) because of the failures of others."""
    sent = 0 if attempts is None else attempts.sent - attempts.pauses
    error = NotSentError(index, model, classify(cause).reason, too_long, sent)
    error.__cause__ = cause
    return error
