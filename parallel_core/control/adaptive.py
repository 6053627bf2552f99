"""Adaptive concurrency: find out how many calls a provider can take at a time."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import anyio

from parallel_core.errors import RequestTimeoutError, StreamStalledError
from parallel_core.failures import Failure, classify

from .adaptive_limit import AdaptiveConcurrency, AdaptiveLimit, LimitChange
from .call import Call
from .outages import PATIENCE
from .progress import Delay
from .protocols import Engine

# A pause ends for all waiting calls at once. Jitter adds up to this share to it.
_JITTER = 0.25
_LONGEST_DELAY = 60.0  # seconds, if the provider does not say how long to wait
_MANY_ATTEMPTS = 10
_CHANGES_KEPT = 4096
_KEYS_KEPT = 1024  # limits of keys without calls


class KeyedOrder(Protocol):
    """An order of requests that can hold back those of one key (:class:`.fairness.FairQueue`)."""

    def key_of(self, index: int) -> Hashable:
        """Return the key of a request that is in flight."""
        ...

    def make_room(self, key: Hashable) -> bool:
        """Note that more calls of this key may begin than at the last check."""
        ...


class _KeyLimit:
    """The limit of a key, or of the whole batch (``key`` is None), and its counts."""

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
        longest_wait: seconds; a request that is asked to wait longer is not sent again, so that no
            call waits for it.
        jitter: returns numbers between 0 and 1.
    """

    def __init__(
        self,
        settings: AdaptiveConcurrency,
        keyed: KeyedOrder | None = None,
        *,
        apart: bool = False,
        failed_attempts: Callable[[int], int] = lambda _: 0,
        longest_wait: float = math.inf,
        jitter: Callable[[], float] = random.random,
    ):
        self._settings = settings
        self._keyed = keyed
        self._jitter = jitter
        # Keys with their own limits wait by themselves, so the whole batch can wait later.
        self._whole = None if apart else _KeyLimit(None, settings, patient=keyed is not None)
        self._of_key: dict[Hashable, _KeyLimit] = {}
        self._sweep_at = _KEYS_KEPT
        self._last_rejected: tuple[Hashable, float] = (None, -math.inf)  # key and time
        self._failed_attempts = failed_attempts
        self._longest_wait = longest_wait
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
        for key_limit in self._of_key.values():
            self._record(key_limit)
        if self._whole is not None:
            self._record(self._whole)

    def allowed(self, key: Hashable) -> int:
        """Return the number of calls of this key that may be in flight."""
        key_limit = self._of_key.get(key)
        return self._settings.first_limit if key_limit is None else key_limit.allowed

    def held_until(self, model: Hashable) -> float | None:
        """Return the time at which calls of this model may begin again; None while they may."""
        key_limit = self._limit_of(model)
        return None if key_limit is None else key_limit.limit.holding_until

    def delays(self, now: float) -> list[Delay]:
        """Return the wait of the whole batch for an overloaded provider, if there is one."""
        until = None if self._whole is None else self._whole.limit.holding_until
        return [] if until is None else [Delay("overload", 0, next_try=max(0.0, until - now))]

    def end_hold(self, model: Hashable) -> None:
        """End the wait of a model whose requests are not sent any more.

        If models share one limit, requests of the other models may begin before the wait is over,
        one or a few at a time.
        """
        key_limit = self._limit_of(model)
        if key_limit is not None and key_limit.limit.holding_until is not None:
            key_limit.cancel()
            self._resume(key_limit)

    def _limit_of(self, model: Hashable) -> _KeyLimit | None:
        return self._of_key.get(model) if self._whole is None else self._whole

    def _limits_of(self, index: int) -> list[_KeyLimit]:
        """Return the limits that a call counts against."""
        key_limits = [] if self._whole is None else [self._whole]
        if self._keyed is not None:
            key = self._keyed.key_of(index)
            key_limit = self._of_key.get(key)
            if key_limit is None:
                if len(self._of_key) >= self._sweep_at:  # drop idle keys: their number is unbounded
                    self._of_key = {k: kept for k, kept in self._of_key.items() if not kept.idle}
                    self._sweep_at = max(_KEYS_KEPT, 2 * len(self._of_key))
                key_limit = self._of_key[key] = _KeyLimit(key, self._settings)
            key_limits.append(key_limit)
        return key_limits

    def watch(self, call: Call) -> Call:
        """Wrap the call itself, to watch each attempt."""

        async def watched(index: int, item: Any) -> Any:
            key_limits = self._limits_of(index)
            began = anyio.current_time()
            for key_limit in key_limits:
                key_limit.in_flight += 1
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
                    for key_limit in key_limits:
                        in_flight = key_limit.in_flight
                        if key_limit is not key_limits[-1]:  # one key may use half of this limit
                            in_flight = max(in_flight, 2 * key_limits[-1].in_flight)
                        key_limit.limit.succeeded(began, now, in_flight)
                for key_limit in key_limits:
                    key_limit.in_flight -= 1
                    if returned:
                        self._apply(key_limit)
                if overloaded is not None:
                    self._overloaded(key_limits, began, overloaded)
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
                self._overloaded(self._limits_of(index), began, 0.0)
                raise

        return watched

    def _delay(self, index: int, failure: Failure) -> float:
        longer = 2.0 ** min(self._failed_attempts(index), _MANY_ATTEMPTS)
        wait = failure.retry_after
        if wait is not None and wait > self._longest_wait:
            return 0.0
        if wait is None:
            wait = min(longer, _LONGEST_DELAY)
        # A provider that keeps asking for no wait would use up all attempts within moments.
        wait = max(wait, min(longer - 1, _LONGEST_DELAY))
        return wait * (1 + _JITTER * self._jitter())

    def _overloaded(self, key_limits: list[_KeyLimit], began: float, wait: float) -> None:
        now = anyio.current_time()
        matters_to_all = self._keyed is None or self._matters_to_all(key_limits[-1], now)
        for key_limit in key_limits:
            key_limit.rejected += 1
            held = key_limit.limit.holding_until
            if key_limit is not self._whole or matters_to_all:
                key_limit.limit.overloaded(began, now, key_limit.in_flight, wait)
            elif not any(s.in_flight and s.limit.got_through for s in self._of_key.values()):
                key_limit.limit.hold_if_fruitless(now, wait)
            self._follow(key_limit, held, now)

    def _matters_to_all(self, key_limit: _KeyLimit, now: float) -> bool:
        """Return True if the keys may have been rejected for a capacity that they share.

        That is so if another key was rejected in the same round trip. It is not so if no call of
        this key gets through, whatever the other keys do.
        """
        if self._whole is None or not key_limit.limit.got_through:
            return False
        key, at = self._last_rejected
        self._last_rejected = (key_limit.key, now)
        round_trip = self._whole.limit.round_trip
        return key != key_limit.key and (round_trip is None or now - at <= round_trip)

    def _follow(self, key_limit: _KeyLimit, held: float | None, now: float) -> None:
        """Apply a limit after a rejection; ``held``: its ``holding_until`` before that."""
        until = key_limit.limit.holding_until
        if until is not None and until != held:
            if key_limit is self._whole:
                self._engine.pause_calls()
            key_limit.cancel()
            key_limit.cancel = self._engine.call_later(
                until - now, functools.partial(self._resume, key_limit)
            )
        self._apply(key_limit)

    def _resume(self, key_limit: _KeyLimit) -> None:
        key_limit.limit.resume(self._engine.current_time(), key_limit.in_flight)
        self._apply(key_limit)
        if key_limit is self._whole:
            self._engine.resume_calls()
        else:
            self._make_room(key_limit)
        self._lose_patience(key_limit)

    def _make_room(self, key_limit: _KeyLimit) -> None:
        assert self._keyed is not None
        self._keyed.make_room(key_limit.key)
        self._engine.recheck()

    def _lose_patience(self, key_limit: _KeyLimit) -> None:
        """After a while, let another call begin: those in flight may hang until their timeout."""

        def go_on() -> None:
            is_kept = key_limit in (self._whole, self._of_key.get(key_limit.key))
            if key_limit.limit.got_through or not is_kept:
                return
            if key_limit.in_flight >= key_limit.limit.limit:
                key_limit.limit.allow_another(key_limit.in_flight)
                self._apply(key_limit)
                if key_limit is not self._whole:
                    self._make_room(key_limit)
            self._lose_patience(key_limit)

        key_limit.cancel = self._engine.call_later(PATIENCE, go_on)

    def _apply(self, key_limit: _KeyLimit) -> None:
        limit = key_limit.limit.limit
        if key_limit is self._whole and limit != self._engine.limit:
            self._engine.set_limit(limit)
        if key_limit.allowed != key_limit.recorded:
            self._record(key_limit)

    def _record(self, key_limit: _KeyLimit) -> None:
        key_limit.recorded = key_limit.allowed
        self._skipped += 1
        if self._skipped < self._keep_every:
            return
        self._skipped = 0
        self._changes.append(
            LimitChange(
                self._engine.current_time() - self._began,
                key_limit.allowed,
                key_limit.in_flight,
                key_limit.rejected,
                key_limit.key,
            )
        )
        if len(self._changes) >= _CHANGES_KEPT:
            del self._changes[1::2]
            self._keep_every *= 2
