"""Adaptive concurrency: find out how many calls at a time a provider can take."""

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

# The curve, in shares of the ceiling per cubed round trip, and for how many round trips it is
# followed beyond the ceiling: it has been above by a call or more then.
_CURVATURE = 0.008
_ROUND_TRIPS_BEYOND = 2.5
# From this limit on it grows by two for each call that returns, where no ceiling is known. Below, a
# second rejection would be a large share of the calls.
_GROWS_BY_TWO = 16
_USUAL_LIMIT = 16  # to begin with
# Weight of one call's duration in the round trip.
_NEWEST = 0.1
# A pause is over for all waiting calls at once; the jitter of one is of this share.
_JITTER = 0.25
_LONGEST_DELAY = 60.0  # seconds, where the provider does not say how long to wait
_MANY_ATTEMPTS = 10
_CHANGES_KEPT = 4096
# Where each key waits by itself, all wait after so many round trips without any success.
_FRUITLESS_ROUND_TRIPS = 2.0
_KEYS_KEPT = 1024  # limits of keys without calls


@dataclass(frozen=True)
class AdaptiveConcurrency:
    """A concurrency that follows what the provider can take.

    It begins with ``initial`` calls at a time and triples in each round trip (slow start; below 16
    it doubles) until a call fails in a way that may pass (:func:`classify_failure`), a 429 or a
    timeout for instance. Then it goes down to ``decrease`` of what was in flight, once for each
    round trip, and comes back along the curve of CUBIC: quickly at first, slowly near the last
    ceiling, and beyond it when nothing is rejected there.

    A rejected request waits as long as the provider asks and is sent again (:class:`Retry`); its
    slot is free for other calls meanwhile. While no call gets through any more (a rate limit and
    not a limit of concurrency), all calls wait together until the latest told wait is over.

    With ``fair_by`` each key has a limit of its own, and waits by itself. Models share nothing;
    for the keys of a function there is a limit for all of them, too, which goes down where calls of
    different keys that do get through are rejected at a time; and all wait where nothing gets
    through of any.

    Sources: slow start and multiplicative decrease, Jacobson, "Congestion Avoidance and Control",
    SIGCOMM 1988; the curve, Ha, Rhee, Xu, "CUBIC: a new TCP-friendly high-speed TCP variant", ACM
    SIGOPS Operating Systems Review 42 (5), 2008, and RFC 9438, with round trips instead of seconds.

    Attributes:
        initial: calls in flight at the beginning; None: 16, if minimum and maximum allow it.
        minimum: calls in flight at least.
        maximum: calls in flight at most.
        decrease: share of the calls in flight that is left after a rejection, between 0 and 1.

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
        """Calls in flight at the beginning."""
        if self.initial is None:
            return min(max(_USUAL_LIMIT, self.minimum), self.maximum)
        return self.initial


class LimitChange(msgspec.Struct, frozen=True):
    """A moment in the life of an adaptive limit.

    Attributes:
        elapsed: seconds since the beginning of the batch.
        limit: calls that may be in flight from now on; 0 while all wait.
        in_flight: calls in flight.
        rejected: calls rejected for overload so far.
        key: the key of ``fair_by`` that the limit, and the two counts, are of; None: all.
    """

    elapsed: float
    limit: int
    in_flight: int
    rejected: int
    key: Hashable = None


class AdaptiveLimit:
    """The algorithm, without a clock and without calls: it is told what happens, and when.

    Every time is in seconds, on any clock that does not go back.

    Args:
        patient: have calls wait only when none has got through for a round trip.
    """

    def __init__(self, settings: AdaptiveConcurrency, *, patient: bool = False) -> None:
        self._settings = settings
        self._patient = patient
        self._limit = float(settings.first_limit)
        self._ceiling = math.inf  # what was in flight when a call was last rejected
        self._slow_start_until = math.inf
        self._round_trip: float | None = None  # seconds, smoothed
        self._epoch = 0.0  # of the curve
        self._decreased_at = -math.inf
        self._got_through = True  # a call begun since then has succeeded:
        self._fruitless_since = -math.inf
        self._holding_until: float | None = None
        self._last_success = -math.inf

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return int(self._limit)

    @property
    def round_trip(self) -> float | None:
        """Seconds that a call takes, smoothed; None before one has returned."""
        return self._round_trip

    @property
    def got_through(self) -> bool:
        """Whether a call has succeeded that began after the limit was last turned down."""
        return self._got_through

    @property
    def holding_until(self) -> float | None:
        """When calls may begin again; None while they may."""
        return self._holding_until

    def succeeded(self, began: float, now: float, in_flight: int) -> None:
        """A call has returned. ``in_flight``: how many there were, this one included."""
        duration = now - began
        self._last_success = now
        if self._round_trip is None:
            self._round_trip = duration
        else:
            self._round_trip += _NEWEST * (duration - self._round_trip)
        if self._patient or began >= self._fruitless_since:
            self._got_through = True
        if in_flight < self.limit:
            # The limit is not what holds calls back: nothing is known of a higher one.
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
            self._slow_start_until = math.inf  # nobody is up here: look for the new ceiling
            return
        # Not by more than one at a time: one rejection tells as much as ten do.
        curve = self._ceiling * (1 + _CURVATURE * beyond**3)
        self._set(max(self._limit, min(curve, self._limit + 1)))

    @property
    def _back_at_ceiling(self) -> float:
        """Round trips from a decrease to the ceiling."""
        if self._ceiling == math.inf:
            return 0.0
        return math.cbrt((1 - self._settings.decrease) / _CURVATURE)

    def overloaded(self, began: float, now: float, in_flight: int, wait: float) -> None:
        """A call was rejected.

        Args:
            began: when it began.
            now: when it was rejected.
            in_flight: calls in flight, without this one.
            wait: seconds after which it may be sent again.
        """
        if self._holding_until is not None:
            self._holding_until = max(self._holding_until, now + wait)
        if began < self._decreased_at:
            return  # of the same round trip as the last decrease: it tells nothing new
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
        """Have all calls wait if none has succeeded for some round trips."""
        silence = now - self._last_success
        if self._round_trip is not None and silence > _FRUITLESS_ROUND_TRIPS * self._round_trip:
            self._holding_until = max(self._holding_until or now, now + wait)

    def go_on(self, now: float, in_flight: int) -> None:
        """The wait is over: calls may begin again, but not all of them at once."""
        self._holding_until = None
        self._slow_start_until = self._limit
        self._set(max(in_flight + 1, self._limit / 2))
        self._slow_start_until = max(self._slow_start_until, self._limit)
        self._epoch = self._decreased_at = self._fruitless_since = now
        self._got_through = False

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._settings.minimum), self._settings.maximum)


class KeyedOrder(Protocol):
    """An order of requests that can keep back those of one key (:class:`.fairness.FairQueue`)."""

    def key_of(self, index: int) -> Hashable:
        """The key of a request that is in flight."""
        ...

    def make_room(self, key: Hashable) -> bool:
        """More calls of this key may begin than when it was last asked."""
        ...


class _Scope:
    """What one limit is for: a key, or the whole batch."""

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
        """Calls that may be in flight; 0 while all wait."""
        return 0 if self.limit.holding_until is not None else self.limit.limit

    @property
    def idle(self) -> bool:
        return not self.in_flight and self.limit.holding_until is None


class Adaptation:
    """The adaptive limits of one batch: watches its calls.

    The limit of the whole batch is set as that of the engine. A limit for each key is enforced by
    the order in which requests begin, which asks :meth:`allowed`.

    Args:
        settings: of each limit.
        keyed: the order, if each key is to have a limit. Keys that share what they overload find
            their shares as the connections of TCP do, but each takes one call at least. So a limit
            for all goes down where calls of different keys are rejected in one round trip.
        apart: the keys share nothing; there is no limit for all.
        failed_attempts: returns how often a request has failed so far, by its index.
        jitter: gives numbers between 0 and 1.
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
        # With limits of keys, which wait by themselves, all need not wait so soon.
        self._whole = None if apart else _Scope(None, settings, patient=keyed is not None)
        self._of_key: dict[Hashable, _Scope] = {}
        self._sweep_at = _KEYS_KEPT
        self._last_rejected: tuple[Hashable, float] = (None, -math.inf)  # key, and when
        self._failed_attempts = failed_attempts
        self._began = 0.0
        self._engine: Engine
        self._changes: list[LimitChange] = []
        self._keep_every = 1
        self._skipped = 0

    @property
    def first_limit(self) -> int:
        """Calls of the batch that may be in flight at the beginning."""
        return self._settings.maximum if self._whole is None else self._settings.first_limit

    @property
    def changes(self) -> list[LimitChange]:
        """How the limits went; where they changed very often, not each change."""
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
        """Calls of this key that may be in flight."""
        scope = self._of_key.get(key)
        return self._settings.first_limit if scope is None else scope.allowed

    def held_until(self, model: Hashable) -> float | None:
        """Return when calls of this model may begin again; None while they may."""
        scope = self._scope_of(model)
        return None if scope is None else scope.limit.holding_until

    def let_go(self, model: Hashable) -> None:
        """End the wait of a model whose requests are not sent any more.

        Where models share one limit, the others may begin before the wait is over, one or a few at
        a time.
        """
        scope = self._scope_of(model)
        if scope is not None and scope.limit.holding_until is not None:
            scope.cancel()
            self._go_on(scope)

    def _scope_of(self, model: Hashable) -> _Scope | None:
        return self._of_key.get(model) if self._whole is None else self._whole

    def _scopes_of(self, index: int) -> list[_Scope]:
        """The limits that a call counts for."""
        scopes = [] if self._whole is None else [self._whole]
        if self._keyed is not None:
            key = self._keyed.key_of(index)
            scope = self._of_key.get(key)
            if scope is None:
                if len(self._of_key) >= self._sweep_at:  # of keys without end, some are forgotten
                    self._of_key = {k: kept for k, kept in self._of_key.items() if not kept.idle}
                    self._sweep_at = max(_KEYS_KEPT, 2 * len(self._of_key))
                scope = self._of_key[key] = _Scope(key, self._settings)
            scopes.append(scope)
        return scopes

    def watch(self, call: Call) -> Call:
        """Watch each attempt: this is put around the call itself."""

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
                        if scope is not scopes[-1]:  # a key is held back by half of this limit
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
        """Watch for our own timeouts, which are further out than what :meth:`watch` sees."""

        async def watched(index: int, item: Any) -> Any:
            began = anyio.current_time()
            try:
                return await call(index, item)
            except StreamStalledError:  # which `watch` has seen
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
        # A provider that says "at once" again and again would have used up all attempts in no time.
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
        """Whether the rejection of a call of this key may be for what it shares with others.

        Not where nothing of the key gets through, whatever the others do; and only together with
        the rejection of another key, in the same round trip.
        """
        if self._whole is None or not scope.limit.got_through:
            return False
        key, at = self._last_rejected
        self._last_rejected = (scope.key, now)
        round_trip = self._whole.limit.round_trip
        return key != scope.key and (round_trip is None or now - at <= round_trip)

    def _follow(self, scope: _Scope, held: float | None, now: float) -> None:
        """Do what a limit says after a rejection; ``held``: until when calls had to wait before."""
        until = scope.limit.holding_until
        if until is not None and until != held:
            if scope is self._whole:
                self._engine.pause_calls()
            scope.cancel()
            scope.cancel = self._engine.call_later(
                until - now, functools.partial(self._go_on, scope)
            )
        self._apply(scope)

    def _go_on(self, scope: _Scope) -> None:
        scope.limit.go_on(self._engine.current_time(), scope.in_flight)
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
