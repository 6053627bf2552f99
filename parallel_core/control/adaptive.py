"""Adaptive concurrency: find out how many calls at a time a provider can take."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec

from parallel_core.errors import RequestTimeoutError

from ._call import Call, TryAgainLater
from ._checks import checked_count, checked_number
from ._engine import Engine
from ._overload import is_overload, retry_after

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
_CHANGES_KEPT = 4096


@dataclass(frozen=True)
class AdaptiveConcurrency:
    """A concurrency that follows what the provider can take.

    It begins with ``initial`` calls at a time and triples in each round trip (slow start; below 16
    it doubles) until a call is rejected for overload: 429, 503, 529, a timeout, or all deployments
    of a Router cooling down. Then it goes down to ``decrease`` of what was in flight, once for each
    round trip, and comes back along the curve of CUBIC: quickly at first, slowly near the last
    ceiling, and beyond it when nothing is rejected there.

    A rejected request waits as long as the provider asks (Retry-After) and is sent again; its slot
    makes other calls meanwhile. While no call gets through any more (a rate limit and not a limit
    of concurrency), all calls wait together until the latest Retry-After is over.

    Sources: slow start and multiplicative decrease, Jacobson, "Congestion Avoidance and Control",
    SIGCOMM 1988; the curve, Ha, Rhee, Xu, "CUBIC: a new TCP-friendly high-speed TCP variant", ACM
    SIGOPS Operating Systems Review 42 (5), 2008, and RFC 9438, with round trips instead of seconds.

    Attributes:
        initial: calls in flight at the beginning; None: 16, if minimum and maximum allow it.
        minimum: calls in flight at least.
        maximum: calls in flight at most.
        decrease: share of the calls in flight that is left after a rejection, between 0 and 1.
        max_attempts: how often a request is sent at most, while it is rejected for overload.

    Raises:
        TypeError, ValueError: a value is out of its range.
    """

    initial: int | None = None
    minimum: int = 1
    maximum: int = 256
    decrease: float = 0.9
    max_attempts: int = 8

    def __post_init__(self) -> None:
        names = ["minimum", "maximum", "max_attempts"]
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
    """

    elapsed: float
    limit: int
    in_flight: int
    rejected: int


class AdaptiveLimit:
    """The algorithm, without a clock and without calls: it is told what happens, and when.

    Every time is in seconds, on any clock that does not go back.
    """

    def __init__(self, settings: AdaptiveConcurrency) -> None:
        self._settings = settings
        self._limit = float(settings.first_limit)
        self._ceiling = math.inf  # what was in flight when a call was last rejected
        self._slow_start_until = math.inf
        self._round_trip: float | None = None  # seconds, smoothed
        self._epoch = 0.0  # of the curve
        self._decreased_at = -math.inf
        self._got_through = True  # a call begun since the last decrease has succeeded
        self._holding_until: float | None = None

    @property
    def limit(self) -> int:
        """Calls that may be in flight."""
        return int(self._limit)

    @property
    def holding_until(self) -> float | None:
        """When calls may begin again; None while they may."""
        return self._holding_until

    def succeeded(self, began: float, now: float, in_flight: int) -> None:
        """A call has returned. ``in_flight``: how many there were, this one included."""
        duration = now - began
        if self._round_trip is None:
            self._round_trip = duration
        else:
            self._round_trip += _NEWEST * (duration - self._round_trip)
        if began >= self._decreased_at:
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
        if not self._got_through and self._holding_until is None:
            self._holding_until = now + wait
        self._decrease(now, in_flight)

    def _decrease(self, now: float, in_flight: int) -> None:
        self._ceiling = float(max(1, min(in_flight, self.limit)))
        self._set(self._ceiling * self._settings.decrease)
        self._slow_start_until = 0.0
        self._epoch = self._decreased_at = now
        self._got_through = False

    def go_on(self, now: float, in_flight: int) -> None:
        """The wait is over: calls may begin again, but not all of them at once."""
        self._holding_until = None
        self._slow_start_until = self._limit
        self._set(max(in_flight + 1, self._limit / 2))
        self._slow_start_until = max(self._slow_start_until, self._limit)
        self._epoch = self._decreased_at = now
        self._got_through = False

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._settings.minimum), self._settings.maximum)


class Adaptation:
    """The adaptive limit of one batch: watches its calls, and sets the limit of the engine."""

    def __init__(self, settings: AdaptiveConcurrency, jitter: Callable[[], float] = random.random):
        self._settings = settings
        self._jitter = jitter
        self._limit = AdaptiveLimit(settings)
        self._attempts: dict[int, int] = {}  # of requests that were rejected, by index
        self._in_flight = 0
        self._rejected = 0
        self._began = 0.0
        self._engine: Engine
        self._take_back: Callable[[], None] = lambda: None
        self._changes: list[LimitChange] = []
        self._keep_every = 1
        self._skipped = 0

    @property
    def changes(self) -> list[LimitChange]:
        """How the limit went; where it changed very often, not each change."""
        return list(self._changes)

    def begin(self, engine: Engine) -> None:
        self._engine = engine
        self._began = engine.current_time()
        self._record()

    def end(self) -> None:
        self._record()

    def watch(self, call: Call) -> Call:
        """Watch each attempt: this is put around the call itself."""

        async def watched(index: int, item: Any) -> Any:
            began = anyio.current_time()
            self._in_flight += 1
            try:
                value = await call(index, item)
            except Exception as error:
                self._in_flight -= 1
                if is_overload(error):
                    self._overloaded(began, self._delay(index, error))
                raise
            except BaseException:
                self._in_flight -= 1
                raise
            self._limit.succeeded(began, anyio.current_time(), self._in_flight)
            self._in_flight -= 1
            self._apply()
            return value

        return watched

    def retry(self, call: Call) -> Call:
        """Have a rejected request sent again: this is put around all that one attempt consists
        of."""

        async def retried(index: int, item: Any) -> Any:
            began = anyio.current_time()
            try:
                value = await call(index, item)
            except RequestTimeoutError:
                # The user has said how long a request may take; it is not sent again.
                self._attempts.pop(index, None)
                self._overloaded(began, 0.0)
                raise
            except Exception as error:
                attempts = self._attempts.get(index, 0) + 1
                if not is_overload(error) or attempts >= self._settings.max_attempts:
                    self._attempts.pop(index, None)
                    raise
                delay = self._delay(index, error)
                self._attempts[index] = attempts
                raise TryAgainLater(error, delay) from None
            self._attempts.pop(index, None)
            return value

        return retried

    def _delay(self, index: int, error: Exception) -> float:
        attempts = self._attempts.get(index, 0)
        wait = retry_after(error)
        if wait is None:
            wait = min(2.0**attempts, _LONGEST_DELAY)
        # A provider that says "at once" again and again would have used up all attempts in no time.
        wait = max(wait, min(2.0**attempts - 1, _LONGEST_DELAY))
        return wait * (1 + _JITTER * self._jitter())

    def _overloaded(self, began: float, wait: float) -> None:
        self._rejected += 1
        now = anyio.current_time()
        held = self._limit.holding_until
        self._limit.overloaded(began, now, self._in_flight, wait)
        until = self._limit.holding_until
        if until is not None and until != held:
            self._engine.hold()
            self._record()
            self._take_back()
            self._take_back = self._engine.call_later(until - now, self._go_on)
        self._apply()

    def _go_on(self) -> None:
        self._limit.go_on(self._engine.current_time(), self._in_flight)
        self._engine.set_limit(self._limit.limit)
        self._record()
        self._engine.go_on()

    def _apply(self) -> None:
        if self._limit.limit != self._engine.limit:
            self._engine.set_limit(self._limit.limit)
            self._record()

    def _record(self) -> None:
        self._skipped += 1
        if self._skipped < self._keep_every:
            return
        self._skipped = 0
        now = self._engine.current_time()
        limit = 0 if self._limit.holding_until is not None else self._limit.limit
        self._changes.append(LimitChange(now - self._began, limit, self._in_flight, self._rejected))
        if len(self._changes) >= _CHANGES_KEPT:
            del self._changes[1::2]
            self._keep_every *= 2
