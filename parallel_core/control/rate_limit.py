"""Requests and tokens for each minute: a call waits for its turn, and is never rejected."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, cast

import anyio
import anyio.lowlevel

from parallel_core._router_members import deployments

from ._checks import checked_count, checked_number

MINUTE = 60.0  # seconds


class _Bucket:
    """A token bucket: filled at a rate, up to its size. It may go into debt."""

    def __init__(self, per_minute: float, size: float) -> None:
        self.per_minute = per_minute
        self.size = size
        self.level = size

    def fill(self, seconds: float) -> None:
        self.level = min(self.size, self.level + seconds * self.per_minute / MINUTE)

    def seconds_until(self, amount: float) -> float:
        """What is larger than the bucket is let through when that is full."""
        missing = min(amount, self.size) - self.level
        return max(0.0, missing * MINUTE / self.per_minute)


class RateLimit:
    """A limit of requests, of tokens, or of both, for each minute.

    Calls wait for their turn, first come, first served. In no time of 60 s do more begin than the
    limit and ``burst``. Tokens are estimated before a call and corrected by what it has used.

    One object may be used by several batches of one event loop at the same time, also in a mapping
    for several models that share it. On another loop it may be used afterwards; what was used up
    counts there.

    The algorithm is the token bucket: Turner, "New directions in communications", IEEE
    Communications Magazine 24 (10), 1986; RFC 2697.

    Attributes:
        requests_per_minute: requests that may begin in 60 s; None: any number.
        tokens_per_minute: tokens of these requests and their answers; None: any number.
        burst: requests that may begin at once after a time without any; as a default what comes
            in a second, and 1 at least. Of tokens, the same share of a minute.

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
                    "RateLimit.burst is a number of requests, and needs requests_per_minute"
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
        self._queue: deque[anyio.Event] = deque()
        self._changed: anyio.Event | None = None  # for the first of the queue
        self._loop: object = None
        # When the buckets were filled last: on the clock of the loop, and on one that goes on
        # without a loop.
        self._filled_at = 0.0
        self._seen_at = 0.0

    @classmethod
    def from_router(cls, router: object) -> dict[str, RateLimit]:
        """The limits of a Router, by model: the sums of ``rpm`` and ``tpm`` of its deployments.

        A model of which one deployment has no limit has none itself, and is left out where it has
        neither.
        """
        limits: dict[str, RateLimit] = {}
        groups: dict[str, list[Any]] = {}
        router = getattr(router, "router", router)
        for deployment in deployments(router):
            groups.setdefault(deployment["model_name"], []).append(deployment)
        for model, group in groups.items():
            requests = _sum_of("rpm", group)
            tokens = _sum_of("tpm", group)
            if requests is not None or tokens is not None:
                limits[model] = cls(requests_per_minute=requests, tokens_per_minute=tokens)
        return limits

    async def acquire(self, tokens: int) -> None:
        """Wait until a request with so many tokens may begin, and count it.

        Raises:
            RuntimeError: another event loop is using this limit at the same time.
        """
        self._settle_in()
        turn = anyio.Event()
        self._queue.append(turn)
        try:
            if self._queue[0] is not turn:
                await turn.wait()
            await self._wait_as_first(tokens)
            self._take(1, tokens)
        finally:
            self._queue.remove(turn)
            if self._queue:
                self._queue[0].set()

    async def _wait_as_first(self, tokens: int) -> None:
        while True:
            self._fill()
            wait = max(
                0.0 if self._requests is None else self._requests.seconds_until(1),
                0.0 if self._tokens is None else self._tokens.seconds_until(tokens),
            )
            if wait <= 1e-9:
                return
            self._changed = anyio.Event()
            try:
                # So long that the clock moves on meanwhile, whatever it shows.
                with anyio.move_on_after(max(wait, 1e-12 * self._filled_at)):
                    await self._changed.wait()
            finally:
                self._changed = None

    def correct(self, estimated: int, actual: int) -> None:
        """A call has used another number of tokens than was estimated.

        The difference counts from now on.
        """
        self._take(0, actual - estimated)

    def release(self, tokens: int) -> None:
        """A call was not sent."""
        self._take(-1, -tokens)

    def _take(self, requests: int, tokens: int) -> None:
        self._fill()  # what is taken now is not made good by the time before
        for bucket, amount in ((self._requests, requests), (self._tokens, tokens)):
            if bucket is not None:
                bucket.level = min(bucket.size, bucket.level - amount)
        if (requests < 0 or tokens < 0) and self._changed is not None:
            self._changed.set()

    def _fill(self) -> None:
        if anyio.lowlevel.current_token() != self._loop:
            return  # a call of the last loop has ended: its time is not that of the buckets
        now = anyio.current_time()
        for bucket in (self._requests, self._tokens):
            if bucket is not None:
                bucket.fill(now - self._filled_at)
        self._filled_at = now
        self._seen_at = time.monotonic()

    def _settle_in(self) -> None:
        """Use the clock of the loop that is running, and count the time since the last one."""
        loop = anyio.lowlevel.current_token()
        if loop == self._loop:
            return
        if self._queue:
            raise RuntimeError(
                f"{self!r} is being used on another event loop: give each loop a limit of its own"
            )
        if self._loop is not None:
            for bucket in (self._requests, self._tokens):
                if bucket is not None:
                    bucket.fill(time.monotonic() - self._seen_at)
        self._loop = loop
        self._filled_at = anyio.current_time()
        self._seen_at = time.monotonic()

    def __repr__(self) -> str:
        return (
            f"RateLimit(requests_per_minute={self.requests_per_minute}, "
            f"tokens_per_minute={self.tokens_per_minute}, burst={self.burst})"
        )


def _sum_of(name: str, deployments: list[Any]) -> float | None:
    total = 0.0
    for deployment in deployments:
        number: Any = None
        # The order in which the Router looks.
        places: list[Any] = [deployment, deployment.get("litellm_params")]
        for settings in (*places, deployment.get("model_info")):
            if settings:
                number = settings.get(name) if number is None else number
        if not number:
            return None
        total += float(number)
    return total


def checked_rate_limit(value: object) -> None:
    """Raises TypeError where it is neither a RateLimit nor a mapping from model to RateLimit."""
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
