"""Adaptive concurrency: find out how many calls a provider can take at a time."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
import msgspec

from parallel_core.errors import RequestTimeoutError, StreamStalledError
from parallel_core.failures import Failure, classify

from .call import Call
from .checks import checked_count, checked_number
from .engine import Engine

# Curvature of the curve, in shares of the ceiling per cubed round trip.
_CURVATURE = 0.008
# The limit follows the curve for this many round trips beyond the ceiling. By then it has exceeded
# the ceiling by at least one call.
_ROUND_TRIPS_BEYOND = 2.5
# While no ceiling is known, the limit grows by two per returned call from this value on. Below it,
# a second rejection would be a large share of the calls.
_GROWS_BY_TWO = 16
_USUAL_LIMIT = 16  # the first limit
# Weight of one call's duration in the average round trip.
_NEWEST = 0.1
# A pause ends for all waiting calls at once. Jitter adds up to this share to it.
_JITTER = 0.25
_LONGEST_DELAY = 60.0  # seconds, if the provider does not say how long to wait
_MANY_ATTEMPTS = 10
_CHANGES_KEPT = 4096
# If each key waits by itself, all keys wait after this many round trips without any success.
_FRUITLESS_ROUND_TRIPS = 2.0
_KEYS_KEPT = 1024  # limits of keys without calls


@dataclass(frozen=True)
class AdaptiveConcurrency:
    """A concurrency that follows what the provider can take.

    The limit begins at ``initial`` and triples in each round trip (slow start; below 16 it doubles)
    until a call fails in a way that may pass (:func:`classify_failure`), for instance with a 429 or
    a timeout. Then it falls to the share ``decrease`` of the calls in flight, once per round trip,
    and recovers along the curve of CUBIC: quickly at first, slowly near the last ceiling, and
    beyond the ceiling if nothing is rejected there.

    A rejected request waits as long as the provider asks and is sent again (:class:`Retry`); its
    slot is free for other calls meanwhile. While no call gets through (a rate limit, not a limit of
    concurrency), all calls wait together until the longest wait that was asked for is over.

    With ``fair_by`` each key has its own limit, and waits by itself. Models share nothing. The keys
    of a function also share a common limit. It falls when calls of different keys, which otherwise
    get through, are rejected in the same round trip. All keys wait when no call of any key gets
    through.

    Sources: slow start and multiplicative decrease, Jacobson, "Congestion Avoidance and Control",
    SIGCOMM 1988; the curve, Ha, Rhee, Xu, "CUBIC: a new TCP-friendly high-speed TCP variant", ACM
    SIGOPS Operating Systems Review 42 (5), 2008, and RFC 9438, with round trips instead of seconds.

    Attributes:
        initial: first limit of calls in flight; None: 16, if minimum and maximum allow it.
        minimum: lowest limit of calls in flight.
        maximum: highest limit of calls in flight.
        decrease: share of the calls in flight that remains after a rejection, between 0 and 1.

    Raises:
        TypeError, ValueError: a value is out of its range.
    """

    initial: int | None = None
    minimum: int = 1
    maximum: int = 256
    decrease: float = 0.9

    def __post_init__(self) -> None:
        names = ["minimum", "maximum"]
        for name in names if self.initial is None else ["initial", *names]:
            checked_count(f"AdaptiveConcurrency.{name}", getattr(self, name))
        checked_number("AdaptiveConcurrency.decrease", self.decrease)
        if self.decrease >= 1:
            raise ValueError(
                f"AdaptiveConcurrency.decrease must be between 0 and 1, not {self.decrease!r}"
            )
        if not self.minimum <= self.first_limit <= self.maximum:
            raise ValueError(
                "AdaptiveConcurrency must have minimum <= initial <= maximum, not "
                f"minimum={self.minimum}, initial={self.initial}, maximum={self.maximum}"
            )

    @property
    def first_limit(self) -> int:
        """Number of calls that may be in flight at the beginning."""
        if self.initial is None:
            return min(max(_USUAL_LIMIT, self.minimum), self.maximum)
        return self.initial


class LimitChange(msgspec.Struct, frozen=True):
    """A change of an adaptive limit.

    Attributes:
        elapsed: seconds since the beginning of the batch.
        limit: calls that may be in flight from now on; 0 while all wait.
        in_flight: calls in flight.
        rejected: calls rejected for overload so far.
        key: the key of ``fair_by`` to which the limit and both counts apply; None: the whole batch.
    """

    elapsed: float
    limit: int
    in_flight: int
    rejected: int
    key: Hashable = None


class AdaptiveLimit:
    """The algorithm, without a clock and without calls: its methods report events and their times.

    Every time is in seconds, on any monotonic clock.

    Args:
        patient: make calls wait only after a whole round trip in which none got through.
    """

    def __init__(self, settings: AdaptiveConcurrency, *, patient: bool = False) -> None:
        self._settings = settings
        self._patient = patient
        self._limit = float(settings.first_limit)
        self._ceiling = math.inf  # calls in flight at the last rejection
        self._slow_start_until = math.inf
        self._round_trip: float | None = None  # seconds, smoothed
        self._epoch = 0.0  # start of the curve
        self._decreased_at = -math.inf
        self._got_through = True  # a call begun after `_fruitless_since` has succeeded
        self._fruitless_since = -math.inf
        self._holding_until: float | None = None
        self._last_success = -math.inf

    @property
    def limit(self) -> int:
        """Number of calls that may be in flight."""
        return int(self._limit)

    @property
    def round_trip(self) -> float | None:
        """Seconds that a call takes, smoothed; None before the first call has returned."""
        return self._round_trip

    @property
    def got_through(self) -> bool:
        """True if a call that began after the last decrease of the limit has succeeded."""
        return self._got_through

    @property
    def holding_until(self) -> float | None:
        """Time at which calls may begin again; None while they may begin."""
        return self._holding_until

    def succeeded(self, began: float, now: float, in_flight: int) -> None:
        """Note that a call has returned. ``in_flight``: calls in flight, this one included."""
        duration = now - began
        self._last_success = now
        if self._round_trip is None:
            self._round_trip = duration
        else:
            self._round_trip += _NEWEST * (duration - self._round_trip)
        if self._patient or began >= self._fruitless_since:
            self._got_through = True
        if in_flight < self.limit:
            # The limit did not hold calls back, so this says nothing about a higher limit.
            self._epoch = max(self._epoch, now - self._back_at_ceiling * self._round_trip)
        elif self._limit < self._slow_start_until:
            fast = self._slow_start_until == math.inf and self._limit >= _GROWS_BY_TWO
            self._set(self._limit + (2 if fast else 1))
        else:
            self._follow_curve(now)

    def _follow_curve(self, now: float) -> None:
        round_trips = (now - self._epoch) / max(self._round_trip or 0.0, 1e-9)
        beyond = round_trips - self._back_at_ceiling
        if beyond > _ROUND_TRIPS_BEYOND:
            self._slow_start_until = math.inf  # nothing was rejected: look for the new ceiling
            return
        # Grow by at most one per call: a single rejection is enough to find the ceiling.
        curve = self._ceiling * (1 + _CURVATURE * beyond**3)
        self._set(max(self._limit, min(curve, self._limit + 1)))

    @property
    def _back_at_ceiling(self) -> float:
        """Number of round trips from a decrease back to the ceiling."""
        if self._ceiling == math.inf:
            return 0.0
        return math.cbrt((1 - self._settings.decrease) / _CURVATURE)

    def overloaded(self, began: float, now: float, in_flight: int, wait: float) -> None:
        """Note that a call was rejected.

        Args:
            began: time at which the call began.
            now: time of the rejection.
            in_flight: calls in flight, without this one.
            wait: seconds after which the request may be sent again.
        """
        if self._holding_until is not None:
            self._holding_until = max(self._holding_until, now + wait)
        if began < self._decreased_at:
            return  # same round trip as the last decrease: nothing new
        if self._nothing_gets_through(now) and self._holding_until is None:
            self._holding_until = now + wait
        self._decrease(now, in_flight)

    def _nothing_gets_through(self, now: float) -> bool:
        if self._got_through or not self._patient:
            return not self._got_through
        round_trip = 1.0 if self._round_trip is None else self._round_trip
        return now - self._fruitless_since >= round_trip

    def _decrease(self, now: float, in_flight: int) -> None:
        self._ceiling = float(max(1, min(in_flight, self.limit)))
        self._set(self._ceiling * self._settings.decrease)
        self._slow_start_until = 0.0
        self._epoch = self._decreased_at = now
        if self._got_through:
            self._fruitless_since = now
        self._got_through = False

    def hold_if_fruitless(self, now: float, wait: float) -> None:
        """Make all calls wait if none has succeeded for some round trips."""
        silence = now - self._last_success
        if self._round_trip is not None and silence > _FRUITLESS_ROUND_TRIPS * self._round_trip:
            self._holding_until = max(self._holding_until or now, now + wait)

    def resume(self, now: float, in_flight: int) -> None:
        """End the wait: calls may begin again, but not all of them at once."""
        self._holding_until = None
        self._slow_start_until = self._limit
        self._set(max(in_flight + 1, self._limit / 2))
        self._slow_start_until = max(self._slow_start_until, self._limit)
        self._epoch = self._decreased_at = self._fruitless_since = now
        self._got_through = False

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._settings.minimum), self._settings.maximum)


class KeyedOrder(Protocol):
    """An order of requests that can hold back those of one key (:class:`.fairness.FairQueue`)."""

    def key_of(self, index: int) -> Hashable:
        """Return the key of a request that is in flight."""
        ...

    def make_room(self, key: Hashable) -> bool:
        """Note that more calls of this key may begin than at the last check."""
        ...


class _Scope:
    """The limit of a key or of the whole batch, and its counts."""

    __slots__ = ("cancel", "in_flight", "key", "limit", "recorded", "rejected")

    def __init__(
        self, key: Hashable, settings: AdaptiveConcurrency, *, patient: bool = False
    ) -> None:
        self.key = key
        self.limit = AdaptiveLimit(settings, patient=patient)
        self.recorded = -1
        self.in_flight = 0
        self.rejected = 0
        self.cancel: Callable[[], None] = lambda: None

    @property
    def allowed(self) -> int:
        """Number of calls that may be in flight; 0 while all wait."""
        return 0 if self.limit.holding_until is not None else self.limit.limit

    @property
    def idle(self) -> bool:
        return not self.in_flight and self.limit.holding_until is None


class Adaptation:
    """The adaptive limits of one batch: they follow the outcome of its calls.

    The limit of the whole batch becomes the limit of the engine. The order of requests enforces
    the limit of each key: it asks :meth:`allowed`.

    Args:
        settings: settings of each limit.
        keyed: the order of requests, if each key is to have a limit. Keys that overload the same
            provider find their shares as TCP connections do, but each takes at least one call.
            Therefore a common limit falls when calls of different keys are rejected in one round
            trip.
        apart: the keys share nothing; there is no common limit.
        failed_attempts: returns how often a request has failed so far, by its index.
        jitter: returns numbers between 0 and 1.
    """

    def __init__(
        self,
        settings: AdaptiveConcurrency,
        keyed: KeyedOrder | None = None,
        *,
        apart: bool = False,
        failed_attempts: Callable[[int], int] = lambda _: 0,
        jitter: Callable[[], float] = random.random,
    ):
        self._settings = settings
        self._keyed = keyed
        self._jitter = jitter
        # Keys with their own limits wait by themselves, so the whole batch can wait later.
        self._whole = None if apart else _Scope(None, settings, patient=keyed is not None)
        self._of_key: dict[Hashable, _Scope] = {}
        self._sweep_at = _KEYS_KEPT
        self._last_rejected: tuple[Hashable, float] = (None, -math.inf)  # key and time
        self._failed_attempts = failed_attempts
        self._began = 0.0
        self._engine: Engine
        self._changes: list[LimitChange] = []
        self._keep_every = 1
        self._skipped = 0

    @property
    def first_limit(self) -> int:
        """Number of calls of the batch that may be in flight at the beginning."""
        return self._settings.maximum if self._whole is None else self._settings.first_limit

    @property
    def changes(self) -> list[LimitChange]:
        """Return the changes of the limits; only some of them if there were very many."""
        return list(self._changes)

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        self._began = engine.current_time()
        if self._whole is not None:
            self._record(self._whole)

    def end(self) -> None:
        for scope in self._of_key.values():
            self._record(scope)
        if self._whole is not None:
            self._record(self._whole)

    def allowed(self, key: Hashable) -> int:
        """Return the number of calls of this key that may be in flight."""
        scope = self._of_key.get(key)
        return self._settings.first_limit if scope is None else scope.allowed

    def held_until(self, model: Hashable) -> float | None:
        """Return the time at which calls of this model may begin again; None while they may."""
        scope = self._scope_of(model)
        return None if scope is None else scope.limit.holding_until

    def end_hold(self, model: Hashable) -> None:
        """End the wait of a model whose requests are not sent any more.

        If models share one limit, requests of the other models may begin before the wait is over,
        one or a few at a time.
        """
        scope = self._scope_of(model)
        if scope is not None and scope.limit.holding_until is not None:
            scope.cancel()
            self._resume(scope)

    def _scope_of(self, model: Hashable) -> _Scope | None:
        return self._of_key.get(model) if self._whole is None else self._whole

    def _scopes_of(self, index: int) -> list[_Scope]:
        """Return the limits that a call counts against."""
        scopes = [] if self._whole is None else [self._whole]
        if self._keyed is not None:
            key = self._keyed.key_of(index)
            scope = self._of_key.get(key)
            if scope is None:
                if len(self._of_key) >= self._sweep_at:  # drop idle keys: their number is unbounded
                    self._of_key = {k: kept for k, kept in self._of_key.items() if not kept.idle}
                    self._sweep_at = max(_KEYS_KEPT, 2 * len(self._of_key))
                scope = self._of_key[key] = _Scope(key, self._settings)
            scopes.append(scope)
        return scopes

    def watch(self, call: Call) -> Call:
        """Wrap the call itself, to watch each attempt."""

        async def watched(index: int, item: Any) -> Any:
            scopes = self._scopes_of(index)
            began = anyio.current_time()
            for scope in scopes:
                scope.in_flight += 1
            overloaded: float | None = None
            returned = False
            try:
                value = await call(index, item)
                returned = True
            except Exception as error:
                failure = classify(error)
                if failure.may_pass and not isinstance(error, RequestTimeoutError):
                    overloaded = self._delay(index, failure)
                raise
            finally:
                if returned:
                    now = anyio.current_time()
                    for scope in scopes:
                        in_flight = scope.in_flight
                        if scope is not scopes[-1]:  # one key may use half of this limit
                            in_flight = max(in_flight, 2 * scopes[-1].in_flight)
                        scope.limit.succeeded(began, now, in_flight)
                for scope in scopes:
                    scope.in_flight -= 1
                    if returned:
                        self._apply(scope)
                if overloaded is not None:
                    self._overloaded(scopes, began, overloaded)
            return value

        return watched

    def watch_timeouts(self, call: Call) -> Call:
        """Wrap a call with its timeout, which :meth:`watch` does not see."""

        async def watched(index: int, item: Any) -> Any:
            began = anyio.current_time()
            try:
                return await call(index, item)
            except StreamStalledError:  # `watch` has seen it
                raise
            except RequestTimeoutError:
                self._overloaded(self._scopes_of(index), began, 0.0)
                raise

        return watched

    def _delay(self, index: int, failure: Failure) -> float:
        longer = 2.0 ** min(self._failed_attempts(index), _MANY_ATTEMPTS)
        wait = failure.retry_after
        if wait is None:
            wait = min(longer, _LONGEST_DELAY)
        # A provider that keeps asking for no wait would use up all attempts within moments.
        wait = max(wait, min(longer - 1, _LONGEST_DELAY))
        return wait * (1 + _JITTER * self._jitter())

    def _overloaded(self, scopes: list[_Scope], began: float, wait: float) -> None:
        now = anyio.current_time()
        matters_to_all = self._keyed is None or self._matters_to_all(scopes[-1], now)
        for scope in scopes:
            scope.rejected += 1
            held = scope.limit.holding_until
            if scope is not self._whole or matters_to_all:
                scope.limit.overloaded(began, now, scope.in_flight, wait)
            elif not any(s.in_flight and s.limit.got_through for s in self._of_key.values()):
                scope.limit.hold_if_fruitless(now, wait)
            self._follow(scope, held, now)

    def _matters_to_all(self, scope: _Scope, now: float) -> bool:
        """Return True if the keys may have been rejected for a capacity that they share.

        That is so if another key was rejected in the same round trip. It is not so if no call of
        this key gets through, whatever the other keys do.
        """
        if self._whole is None or not scope.limit.got_through:
            return False
        key, at = self._last_rejected
        self._last_rejected = (scope.key, now)
        round_trip = self._whole.limit.round_trip
        return key != scope.key and (round_trip is None or now - at <= round_trip)

    def _follow(self, scope: _Scope, held: float | None, now: float) -> None:
        """Apply a limit after a rejection; ``held``: its ``holding_until`` before that."""
        until = scope.limit.holding_until
        if until is not None and until != held:
            if scope is self._whole:
                self._engine.pause_calls()
            scope.cancel()
            scope.cancel = self._engine.call_later(
                until - now, functools.partial(self._resume, scope)
            )
        self._apply(scope)

    def _resume(self, scope: _Scope) -> None:
        scope.limit.resume(self._engine.current_time(), scope.in_flight)
        self._apply(scope)
        if scope is self._whole:
            self._engine.resume_calls()
        else:
            assert self._keyed is not None
            self._keyed.make_room(scope.key)
            self._engine.recheck()

    def _apply(self, scope: _Scope) -> None:
        limit = scope.limit.limit
        if scope is self._whole and limit != self._engine.limit:
            self._engine.set_limit(limit)
        if scope.allowed != scope.recorded:
            self._record(scope)

    def _record(self, scope: _Scope) -> None:
        scope.recorded = scope.allowed
        self._skipped += 1
        if self._skipped < self._keep_every:
            return
        self._skipped = 0
        self._changes.append(
            LimitChange(
                self._engine.current_time() - self._began,
                scope.allowed,
                scope.in_flight,
                scope.rejected,
                scope.key,
            )
        )
        if len(self._changes) >= _CHANGES_KEPT:
            del self._changes[1::2]
            self._keep_every *= 2
