"""A second attempt of a slow call: the first answer wins."""

from __future__ import annotations

import asyncio
import bisect
import functools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import anyio

from .call import Call
from .checks import checked_number
from .protocols import Engine

# Number of durations kept for a percentile, and the minimum that it needs.
_KEPT = 1000
_NEEDED = 20


@dataclass(frozen=True)
class Hedge:
    """Settings for a second attempt of a call that has not ended after some time.

    The first answer wins; the other attempt is cancelled, and has ended when the call returns. If
    one attempt fails, the other may still answer.

    Source: Dean and Barroso, "The tail at scale", Communications of the ACM 56 (2), 2013.

    Attributes:
        after: seconds, or a percentile, for instance ``"p95"``, of the durations of the last 1,000
            calls of the batch that succeeded. (No second attempt is sent before 20 have succeeded.)
        max_extra: highest share of the calls begun so far that get a second attempt: above 0 and
            up to 1.

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
    """The ticket that a second attempt needs (:class:`~.admission.ExtraTicket`)."""

    async def admit(self) -> None: ...

    def settle(self, loser: BaseException | None, /) -> None:
        """Settle the ticket when both attempts have ended.

        ``loser``: the exception of the attempt that did not win; None if it was cancelled.
        """
        ...


class Durations:
    """The durations of the last calls, in order and sorted."""

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
        """Return the nearest-rank percentile, in seconds; None while too few are known."""
        if len(self._sorted) < _NEEDED:
            return None
        numerator, denominator = _share(percent)
        return self._sorted[-(-numerator * len(self._sorted) // denominator) - 1]


@functools.lru_cache
def _share(percent: float) -> tuple[int, int]:
    """Return a percentage as an exact fraction: in floats, 7 % of 100 is more than 7."""
    return (Fraction(str(percent)) / 100).as_integer_ratio()


class Hedging:
    """The hedge of one batch.

    Args:
        hedge: settings: when, and how often.
        grant: called with index and item before each second attempt; returns its ticket, or None
            if it may not be sent.
    """

    def __init__(
        self, hedge: Hedge, grant: Callable[[int, Any], SecondAttempt | None] | None = None
    ) -> None:
        self._hedge = hedge
        self._grant = grant
        self._durations = Durations()
        self._calls = 0
        self._waiting: deque[anyio.Event] = deque()  # slow calls that wait for `max_extra`
        self.extra_calls = 0
        self._engine: Engine

    def begin(self, engine: Engine) -> None:
        self._engine = engine

    def end(self) -> None:
        pass

    def wrap(self, call: Call) -> Call:
        async def hedged(index: int, item: Any) -> Any:
            self._count()
            delay = self._delay()
            began = self._engine.current_time()
            if delay is None:
                value = await call(index, item)
            else:
                value = await _Race(self, self._engine, call, index, item).run(delay)
            self._durations.add(self._engine.current_time() - began)
            return value

        return hedged

    def _delay(self) -> float | None:
        after = self._hedge.after
        return self._durations.percentile(_percentile(after)) if isinstance(after, str) else after

    def _count(self) -> None:
        self._calls += 1
        if self._waiting and self._has_room():
            self._waiting.popleft().set()

    def _has_room(self) -> bool:
        return self.extra_calls + 1 <= self._hedge.max_extra * self._calls

    async def wait_for_room(self) -> None:
        """Wait until one more second attempt is allowed; the longest waiting call comes first."""
        while not self._has_room():
            turn = anyio.Event()
            self._waiting.append(turn)
            try:
                await turn.wait()
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)

    def grant(self, index: int, item: Any) -> tuple[bool, SecondAttempt | None]:
        """Return True if a second attempt may be sent now, and its ticket if it needs one.

        Call it when there is room for one more (:meth:`wait_for_room`).
        """
        ticket = None
        if self._grant is not None:
            ticket = self._grant(index, item)
            if ticket is None:
                return False, None
        self.extra_calls += 1
        return True, ticket


class _Race:
    """One call and, if it is slow, a second attempt beside it.

    Both attempts store their exception instead of raising it in the task group, and the task of the
    call raises it after the group has ended. So no exception is wrapped in a group. An interrupt of
    the second attempt would end an asyncio loop if the task of that attempt raised it.
    """

    def __init__(self, hedging: Hedging, engine: Engine, call: Call, index: int, item: Any) -> None:
        self._hedging = hedging
        self._engine = engine
        self._call = call
        self._index = index
        self._item = item
        self._first = engine.new_scope()
        self._second = engine.new_scope()
        self._first_error: BaseException | None = None
        self._second_error: BaseException | None = None
        self._second_runs = False
        self._interrupt: BaseException | None = None
        self._answer: list[Any] = []  # the first answer
        self._ticket: SecondAttempt | None = None

    async def run(self, delay: float) -> Any:
        try:
            await self._run_both(delay)
            if self._interrupt is not None:
                raise self._interrupt
            if self._answer:
                return self._answer.pop()
            if self._first_error is not None:
                raise self._first_error
            # The task of the second attempt was cancelled from outside before its first step.
            raise anyio.get_cancelled_exc_class()
        finally:
            # Their tracebacks refer to this object: avoid a reference cycle.
            self._first_error = self._second_error = self._interrupt = None

    async def _run_both(self, delay: float) -> None:
        try:
            async with self._engine.new_group() as attempts:
                attempts.start_soon(functools.partial(self._run_second, delay))
                await self._run_first()
        except BaseExceptionGroup as group:  # raised by trio if Ctrl-C comes while it waits
            self._interrupt = _interrupt_in(group)
        finally:
            if self._ticket is not None:
                self._ticket.settle(self._loser)

    @property
    def _loser(self) -> BaseException | None:
        """Return the exception of the attempt for which the second ticket pays.

        That is the attempt without the answer; the second attempt if there is no answer. Return
        None if it was cancelled.
        """
        if self._answer and self._first_error is not None:
            return self._first_error
        return self._second_error

    async def _run_first(self) -> None:
        may_wait = False
        try:
            # Leave the scope before the handler runs: a cancelled call may raise a group of its
            # cancellation and an error.
            with self._first:
                self._win(await self._call(self._index, self._item))
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - raised in `run`
            self._first_error = error
            if _is_interrupt(error):
                self._keep_interrupt(error)
            else:
                # The second attempt may still get an answer.
                may_wait = self._second_runs and not _cancelled_from_outside()
        if not may_wait:
            self._second.cancel()

    async def _run_second(self, delay: float) -> None:
        try:
            with self._second:
                await anyio.sleep(delay)
                await self._hedging.wait_for_room()
                granted, self._ticket = self._hedging.grant(self._index, self._item)
                if not granted:
                    return
                self._second_runs = True
                if self._ticket is not None:
                    await self._ticket.admit()
                self._win(await self._call(self._index, self._item))
                self._first.cancel()
        except GeneratorExit:
            raise
        except BaseException as error:
            if _is_interrupt(error):
                self._keep_interrupt(error)
                self._first.cancel()
            elif _is_cancellation(error) and _cancelled_from_outside():
                raise
            else:
                self._second_error = error

    def _keep_interrupt(self, error: BaseException) -> None:
        if self._interrupt is None:
            self._interrupt = error

    def _win(self, value: Any) -> None:
        if not self._answer:
            self._answer.append(value)


def _is_cancellation(error: BaseException) -> bool:
    return isinstance(error, anyio.get_cancelled_exc_class())


def _is_interrupt(error: BaseException) -> bool:
    """Return True if it is neither an error nor a cancellation, nor a group of these."""
    members: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    if isinstance(error, BaseExceptionGroup):
        return any(_is_interrupt(member) for member in members)
    return not (isinstance(error, Exception) or _is_cancellation(error))


def _cancelled_from_outside() -> bool:
    """Return True if a scope around the attempt, or its task itself, was cancelled.

    False if only a future that the attempt awaited was cancelled.
    """
    if anyio.current_effective_deadline() == -math.inf:
        return True
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _interrupt_in(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the interrupt itself if it is the only exception in the group, else the group."""
    members: tuple[BaseException, ...] = group.exceptions
    if len(members) == 1 and isinstance(members[0], KeyboardInterrupt | SystemExit):
        return members[0]
    return group
