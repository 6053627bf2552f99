"""The adaptive limit of one endpoint. It grows while calls succeed and shrinks at rejections."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import msgspec

from .checks import checked_count, checked_number

# If each key waits by itself, all keys wait after this many round trips without any success.
FRUITLESS_ROUND_TRIPS = 2.0
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
        if self._round_trip is not None and silence > FRUITLESS_ROUND_TRIPS * self._round_trip:
            self._holding_until = max(self._holding_until or now, now + wait)

    def resume(self, now: float, in_flight: int) -> None:
        """End the wait: calls may begin again, but not all of them at once."""
        self._holding_until = None
        self._slow_start_until = self._limit
        self._set(max(in_flight + 1, self._limit / 2))
        self._slow_start_until = max(self._slow_start_until, self._limit)
        self._epoch = self._decreased_at = self._fruitless_since = now
        self._got_through = False

    def allow_another(self, in_flight: int) -> None:
        """Let one more call begin than are in flight, since these may hang."""
        self._set(in_flight + 1)

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._settings.minimum), self._settings.maximum)
