"""Limits of requests and tokens per minute: a call waits for its turn, and is never rejected."""

from __future__ import annotations

import bisect
import copy
import functools
import math
import time
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, cast

import anyio

from parallel_core.event_loops import EventLoop, current_event_loop, current_event_loop_if_any

from .checks import checked_count, checked_number
from .router_rates import rates_of
from .turns import SerialLock, Turn, WakeQueue

MINUTE = 60.0  # seconds
# A turn expires if its request does not begin within this many seconds because its loop is blocked.
# Otherwise requests with successive turns would begin together when the loop resumes.
_LATE = 1.0


class _Bucket:
    """A token bucket: it fills at a constant rate up to its size. Its level may be negative."""

    def __init__(self, per_minute: float, size: float) -> None:
        self.per_minute = per_minute
        self.size = size
        self.level = size

    def fill(self, seconds: float) -> None:
        self.level = min(self.size, self.level + seconds * self.per_minute / MINUTE)

    def seconds_until(self, amount: float) -> float:
        """Return the wait for an amount. An amount above the size waits for a full bucket."""
        missing = min(amount, self.size) - self.level
        return max(0.0, missing * MINUTE / self.per_minute)


class _RateTurn(Turn):
    """A request that waits for its turn."""

    __slots__ = ("given_at", "number", "tokens")

    def __init__(self, loop: EventLoop, number: int, tokens: int) -> None:
        super().__init__(loop)
        self.number = number  # order of arrival
        self.tokens = tokens
        self.given_at: float | None = None


class RateLimit:
    """A limit of requests per minute, of tokens per minute, or of both.

    Calls wait for their turn, first come, first served. In any 60 seconds at most the limit plus
    ``burst`` requests begin. Tokens are estimated before a call and corrected by its usage. A call
    with more tokens than the burst of tokens begins when the whole burst is free.

    One object may be used by several batches at the same time, also in several threads, and in a
    mapping for several models that share it. A copy, also one in another process, keeps its own
    count.

    The algorithm is the token bucket: Turner, "New directions in communications", IEEE
    Communications Magazine 24 (10), 1986; RFC 2697.

    Attributes:
        requests_per_minute: requests that may begin in 60 s; None: any number.
        tokens_per_minute: tokens of these requests and their answers; None: any number.
        burst: requests that may begin at once after a time without any. Default: the requests of
            one second, but at least 1. The burst of tokens is the same share of a minute.

    Raises:
        TypeError, ValueError: a value is out of its range, or no limit is given.
    """

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        burst: int | None = None,
    ) -> None:
        if requests_per_minute is None and tokens_per_minute is None:
            raise ValueError("RateLimit needs requests_per_minute, tokens_per_minute or both")
        for name, value in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if value is not None:
                checked_number(f"RateLimit.{name}", value)
        if burst is not None:
            burst = checked_count("RateLimit.burst", burst)
            if requests_per_minute is None:
                raise ValueError(
                    "RateLimit.burst is a number of requests and needs requests_per_minute"
                )
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        share = 1 / MINUTE
        self.burst = burst
        if requests_per_minute is not None:
            self.burst = burst or max(1, int(requests_per_minute / MINUTE))
            share = self.burst / requests_per_minute
        self._requests = (
            None
            if requests_per_minute is None or self.burst is None
            else _Bucket(requests_per_minute, self.burst)
        )
        self._tokens = (
            None
            if tokens_per_minute is None
            else _Bucket(tokens_per_minute, max(1.0, tokens_per_minute * share))
        )
        # Time up to which the buckets are filled, on the clock of the first loop. The clock of each
        # other loop differs from it by a constant. `_seen_at` is the same moment on a clock that
        # runs without a loop; None before the first use.
        self._now = 0.0
        self._seen_at: float | None = None
        self._begin()

    def _begin(self) -> None:
        self._serial = SerialLock()
        self._differences: weakref.WeakKeyDictionary[EventLoop, float] = weakref.WeakKeyDictionary()
        # The waiting requests, by loop. The first request of each loop has a timer on that loop, so
        # that no request depends on a blocked loop.
        self._lines: dict[EventLoop, deque[_RateTurn]] = {}
        self._arrivals = 0
        self._wake_queue = WakeQueue()

    def __getstate__(self) -> dict[str, Any]:
        state = self._serial.run(self.__dict__.copy)
        for name in ("_serial", "_differences", "_lines", "_arrivals", "_wake_queue"):
            del state[name]
        for name in ("_requests", "_tokens"):
            state[name] = copy.copy(state[name])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._seen_at is not None:
            self._seen_at = time.monotonic()  # the other process may have another clock
        self._begin()

    @classmethod
    def from_router(cls, router: object, models: Iterable[str] = ()) -> dict[str, RateLimit]:
        """Return rate limits made from the ``rpm`` and ``tpm`` of a Router's deployments.

        Pass the result as ``rate_limit`` of a batch: its calls then wait instead of being rejected
        by the Router or the provider. The current ``rpm`` and ``tpm`` are read from each deployment
        itself, from its ``litellm_params`` or from its ``model_info``.

        - The limit of a model is the sum over its deployments. If one of them has no ``rpm``, the
          model has no limit of requests; the same for ``tpm``. A rate of 0 adds nothing to the sum.
        - An alias shares the limit of its model. The names in ``models`` that a pattern
          (``openai/*``) serves share the limit of the pattern.
        - A call counts for the model that its request names, even if a fallback of the Router
          answers it. Retries inside the Router are not counted; those of the batch are.

        Args:
            router: a ``litellm.Router``, or a ``ParallelRouter``.
            models: further names that requests will use, besides those of the Router.

        Returns:
            The limits by model, without the models that have none.

        Raises:
            TypeError: ``router`` is not a Router.
            ValueError: an ``rpm`` or ``tpm`` is not a number, or is below 0.
        """
        limits: dict[str, RateLimit] = {}
        for group in rates_of(router, models):
            if rates := group.rates:
                limit = cls(
                    requests_per_minute=rates.get("rpm"), tokens_per_minute=rates.get("tpm")
                )
                limits |= dict.fromkeys(group.models, limit)
        return limits

    async def acquire(self, tokens: int) -> None:
        """Wait until a request with this many tokens may begin, and count it."""
        turn = self._serial.run(self._take_or_queue, tokens)
        if turn is None:
            return
        try:
            while (wait := self._serial.run(self._time_to_wait, turn)) is not None:
                with anyio.move_on_after(wait):
                    await turn.wait()
        except BaseException:
            self._serial.run_soon(functools.partial(self._leave, turn))
            raise

    def correct(self, estimated: int, actual: int) -> None:
        """Replace the estimated tokens of a call by the actual ones.

        The difference counts from now on.
        """
        self._serial.run_soon(functools.partial(self._count, 0, actual - estimated))

    def release(self, tokens: int) -> None:
        """Undo the count of a call that was not sent."""
        self._serial.run_soon(functools.partial(self._count, -1, -tokens))

    # --- the methods below run inside `_serial` ---

    def _take_or_queue(self, tokens: int) -> _RateTurn | None:
        loop = current_event_loop()
        if loop not in self._differences:
            self._add_clock(loop)
        self._fill(loop)
        if not self._lines and self._seconds_until(tokens) <= 0:
            self._take(1, tokens)
            return None
        turn = _RateTurn(loop, self._arrivals, tokens)
        self._arrivals += 1
        self._lines.setdefault(loop, deque()).append(turn)
        return turn

    def _time_to_wait(self, turn: _RateTurn) -> float | None:
        """Return the seconds that the caller must wait unless it is woken; None at its turn."""
        self._fill(turn.loop)
        if turn.given_at is not None:
            self._wake_queue.resumed(turn)
            if self._now - turn.given_at <= _LATE:
                return None
            turn.given_at = None
            bisect.insort(
                self._lines.setdefault(turn.loop, deque()), turn, key=lambda other: other.number
            )
        turn.rearm()
        wait = self._serve()
        if turn.given_at is not None:
            self._wake_queue.resumed(turn)
            return None
        if self._lines[turn.loop][0] is not turn:
            return math.inf
        # Wait long enough for the clock to change despite the rounding of large floats.
        return max(wait, 1e-12 * max(self._now, anyio.current_time()))

    def _serve(self) -> float:
        """Give turns to the waiting requests in their order. Return seconds until the next turn.

        Any loop that is awake does this for all loops, so that no request depends on a blocked
        thread.
        """
        shorter: set[EventLoop] = set()
        wait = math.inf
        while self._lines:
            turn = self._first()
            wait = self._seconds_until(turn.tokens)
            if wait > 0:
                break
            self._remove(turn)
            shorter.add(turn.loop)
            turn.given_at = self._now
            if self._wake_queue.wake(turn):
                self._take(1, turn.tokens)
            else:  # its loop is closed
                turn.given_at = None
        for loop in shorter.intersection(self._lines):
            self._lines[loop][0].wake()  # it needs a timer now
        return wait

    def _first(self) -> _RateTurn:
        lines = self._lines.values()
        if len(lines) == 1:
            return next(iter(lines))[0]
        return min((line[0] for line in lines), key=lambda turn: turn.number)

    def _remove(self, turn: _RateTurn) -> None:
        line = self._lines[turn.loop]
        line.remove(turn)
        if not line:
            del self._lines[turn.loop]

    def _leave(self, turn: _RateTurn) -> None:
        """Remove a caller that was cancelled, possibly after it had been given its turn."""
        if turn.given_at is not None:
            self._wake_queue.resumed(turn)
            self._count(-1, -turn.tokens)
        elif turn in self._lines.get(turn.loop, ()):
            self._remove(turn)
            self._serve_earlier()
            if turn.loop in self._lines:
                self._lines[turn.loop][0].wake()  # it may need a timer now

    def _count(self, requests: int, tokens: int) -> None:
        loop = current_event_loop_if_any()
        if loop is not None:
            self._fill(loop)  # first: earlier time must not refill what is taken now
        self._take(requests, tokens)
        if requests < 0 or tokens < 0:
            self._serve_earlier()

    def _serve_earlier(self) -> None:
        """Give turns that may come earlier than their timers."""
        self._serve()
        if self._lines:
            self._first().wake()

    def _seconds_until(self, tokens: int) -> float:
        wait = max(
            0.0 if self._requests is None else self._requests.seconds_until(1),
            0.0 if self._tokens is None else self._tokens.seconds_until(tokens),
        )
        return wait if wait > 1e-9 else 0.0

    def _take(self, requests: int, tokens: int) -> None:
        for bucket, amount in ((self._requests, requests), (self._tokens, tokens)):
            if bucket is not None:
                bucket.level = min(bucket.size, bucket.level - amount)

    def _fill(self, loop: EventLoop) -> None:
        difference = self._differences.get(loop)
        if difference is None:
            return  # a call of another loop has ended: the offset of its clock is unknown
        now = anyio.current_time() + difference
        if now < self._now - _LATE:  # a virtual clock in another thread has run ahead
            self._differences[loop] = difference + self._now - now
        self._advance(now)

    def _add_clock(self, loop: EventLoop) -> None:
        """Count the time since the last use, and register the clock of this loop."""
        if self._seen_at is None:
            self._now = anyio.current_time()
        else:
            self._advance(self._now + time.monotonic() - self._seen_at)
        self._differences[loop] = self._now - anyio.current_time()

    def _advance(self, now: float) -> None:
        if now > self._now:
            for bucket in (self._requests, self._tokens):
                if bucket is not None:
                    bucket.fill(now - self._now)
            self._now = now
        self._seen_at = time.monotonic()

    def __repr__(self) -> str:
        return (
            f"RateLimit(requests_per_minute={self.requests_per_minute}, "
            f"tokens_per_minute={self.tokens_per_minute}, burst={self.burst})"
        )


def checked_rate_limit(value: object) -> None:
    """Raise TypeError unless it is a RateLimit, a mapping from model to RateLimit, or None."""
    if value is None or isinstance(value, RateLimit):
        return
    if not isinstance(value, Mapping):
        raise TypeError(
            "rate_limit must be a RateLimit, or a mapping from model to RateLimit, not "
            f"{type(value).__qualname__}"
        )
    for model, limit in cast("Mapping[object, object]", value).items():
        if not isinstance(limit, RateLimit):
            raise TypeError(
                f"rate_limit[{model!r}] must be a RateLimit, not {type(limit).__qualname__}"
            )
