"""A second attempt of a call that takes long: the first answer wins."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from ._call import Call
from ._checks import checked_number

# Durations of which a percentile is taken, and how many there must be.
_KEPT = 1000
_NEEDED = 20


@dataclass(frozen=True)
class Hedge:
    """Send a second attempt of a call that has not ended after a time.

    The first answer wins; the other attempt is cancelled, and has ended when the call returns. If
    one fails, the other may still answer.

    Source: Dean and Barroso, "The tail at scale", Communications of the ACM 56 (2), 2013.

    Attributes:
        after: seconds, or a percentile of the durations of the last 1,000 calls of the batch that
            succeeded, for instance ``"p95"``. (Before 20 have, none is sent a second time.)
        max_extra: second attempts at most, as a share of the calls begun so far: above 0 and up
            to 1.

    Raises:
        TypeError, ValueError: a value is out of its range.
    """

    after: float | str = "p95"
    max_extra: float = 0.05

    def __post_init__(self) -> None:
        if isinstance(self.after, str):
            _percentile(self.after)
        else:
            checked_number("Hedge.after", self.after)
        checked_number("Hedge.max_extra", self.max_extra)
        if self.max_extra > 1:
            raise ValueError(
                f"Hedge.max_extra must be above 0 and at most 1, not {self.max_extra!r}"
            )


def _percentile(text: str) -> float:
    try:
        number = float(text.removeprefix("p")) if text.startswith("p") else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < 100:
        raise ValueError(
            f"Hedge.after must be a number of seconds or a percentile such as 'p95', not {text!r}"
        )
    return number


class SecondAttempt(Protocol):
    """What a second attempt must be granted (:class:`~.admission.ExtraTicket`)."""

    async def admit(self) -> None: ...

    def settle(self, loser: BaseException | None, /) -> None:
        """Both attempts have ended. ``loser``: what the one that has not won ended in, or None
        where it was cancelled."""
        ...


class Durations:
    """The durations of the last calls, in order."""

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, duration: float) -> None:
        if len(self._last) == _KEPT:
            oldest = self._last.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, oldest)]
        self._last.append(duration)
        bisect.insort(self._sorted, duration)

    def percentile(self, percent: float) -> float | None:
        """The nearest-rank percentile, in seconds; None while too few are known."""
        if len(self._sorted) < _NEEDED:
            return None
        return self._sorted[math.ceil(percent / 100 * len(self._sorted)) - 1]


class Hedging:
    """The hedge of one batch.

    Args:
        hedge: when, and how often.
        grant: called with index and item for each second attempt; None: it may not be sent.
    """

    def __init__(
        self, hedge: Hedge, grant: Callable[[int, Any], SecondAttempt | None] | None = None
    ) -> None:
        self._hedge = hedge
        self._grant = grant
        self._durations = Durations()
        self._calls = 0
        self.extra_calls = 0

    def wrap(self, call: Call) -> Call:
        async def hedged(index: int, item: Any) -> Any:
            self._calls += 1
            delay = self._delay()
            began = anyio.current_time()
            if delay is None:
                value = await call(index, item)
            else:
                value = await _Race(self, call, index, item).run(delay)
            self._durations.add(anyio.current_time() - began)
            return value

        return hedged

    def _delay(self) -> float | None:
        after = self._hedge.after
        return self._durations.percentile(_percentile(after)) if isinstance(after, str) else after

    def grant(self, index: int, item: Any) -> tuple[bool, SecondAttempt | None]:
        """Whether a second attempt may be sent now, and what comes with it."""
        if self.extra_calls + 1 > self._hedge.max_extra * self._calls:
            return False, None
        ticket = None
        if self._grant is not None:
            ticket = self._grant(index, item)
            if ticket is None:
                return False, None
        self.extra_calls += 1
        return True, ticket


class _Race:
    """One call and, if it takes long, a second attempt beside it."""

    def __init__(self, hedging: Hedging, call: Call, index: int, item: Any) -> None:
        self._hedging = hedging
        self._call = call
        self._index = index
        self._item = item
        self._first = anyio.CancelScope()
        self._first_error: Exception | None = None
        self._first_failed = anyio.Event()
        self._second_error: Exception | None = None
        self._second_runs = False
        self._answer: list[Any] = []  # of whoever is first to have one
        self._ticket: SecondAttempt | None = None

    async def run(self, delay: float) -> Any:
        try:
            async with anyio.create_task_group() as attempts:
                attempts.start_soon(self._run_second, delay)
                await self._run_first()
                if self._answer or not self._second_runs:
                    attempts.cancel_scope.cancel()
                # Else the second one may still have an answer.
        except BaseExceptionGroup as group:
            # Errors are kept, so this is an interrupt in one of the attempts.
            raise _interrupt_in(group) from None
        finally:
            if self._ticket is not None:
                self._ticket.settle(self._loser)
        if self._answer:
            return self._answer.pop()
        assert self._first_error is not None
        try:
            raise self._first_error
        finally:
            self._first_error = self._second_error = None

    @property
    def _loser(self) -> Exception | None:
        """What the attempt ended in that the ticket of the second one pays for: the one without the
        answer, and the second where there is none. None: it was cancelled."""
        if self._answer and self._first_error is not None:
            return self._first_error
        return self._second_error

    async def _run_first(self) -> None:
        with self._first:
            try:
                value = await self._call(self._index, self._item)
            except Exception as error:  # noqa: BLE001 - raised below, if the second has no answer
                self._first_error = error
            else:
                self._win(value)

    async def _run_second(self, delay: float) -> None:
        await anyio.sleep(delay)
        granted, self._ticket = self._hedging.grant(self._index, self._item)
        if not granted:
            return
        self._second_runs = True
        try:
            if self._ticket is not None:
                await self._ticket.admit()
            value = await self._call(self._index, self._item)
        except Exception as error:  # noqa: BLE001 - the first attempt counts
            self._second_error = error
        else:
            self._win(value)
            self._first.cancel()

    def _win(self, value: Any) -> None:
        if not self._answer:
            self._answer.append(value)


def _interrupt_in(group: BaseExceptionGroup[BaseException]) -> BaseException:
    for member in group.exceptions:
        if isinstance(member, BaseExceptionGroup):
            return _interrupt_in(member)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(member, KeyboardInterrupt | SystemExit):
            return member
    return group
