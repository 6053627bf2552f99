"""Admission of a call: it waits for room in the budget, and for its turn in the rate limit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

from parallel_core.errors import EmptyResponseError
from parallel_core.failures import classify
from parallel_core.types import Usage

from .budget import Budget, Reservation, mark_as_held
from .call import Call, RetryLater
from .metering import BatchMeter
from .progress import Delay, DelayReason
from .rate_limit import RateLimit


class Admission:
    """The budget and the rate limit of one batch."""

    def __init__(
        self,
        *,
        budget: Budget | None,
        rate_limit: RateLimit | Mapping[str, RateLimit] | None,
        meter: BatchMeter | None,
        model_of: Callable[[Any], str | None],
    ) -> None:
        self._budget = budget
        self._rate_limit = rate_limit
        self._meter = meter
        self._model_of = model_of
        self._in_line: dict[DelayReason, int] = {"budget": 0, "rate_limit": 0}  # calls that wait

    def delays(self, now: float) -> list[Delay]:
        """Return the calls that wait for the budget, and for the rate limit."""
        return [Delay(reason, calls) for reason, calls in self._in_line.items() if calls]

    @contextlib.contextmanager
    def _counted(self, reason: DelayReason) -> Generator[None]:
        """Count the call as one that waits, as long as the block takes."""
        self._in_line[reason] += 1
        try:
            yield
        finally:
            self._in_line[reason] -= 1

    def wrap(self, call: Call) -> Call:
        """Make a call wait before it is sent, and count what it used."""

        async def admitted(index: int, item: Any) -> Any:
            with self._counted("budget"):
                reservation = await self._reserve(index, item)
            ticket = Ticket(reservation, self._limit_of(item), self._meter)
            if reservation is not None:
                mark_as_held(reservation)
            try:
                with self._counted("rate_limit"):
                    await ticket.admit(item)
                value = await call(index, item)
            except BaseException as error:
                ticket.failed(error)
                raise
            ticket.succeeded(item, value)
            return value

        return admitted

    def try_extra(self, index: int, item: Any) -> ExtraTicket | None:
        """Return the ticket of a second attempt; None if the budget has no room for it now."""
        reservation = None
        if self._budget is not None and self._meter is not None:
            worst = self._budget.worst_case(self._meter, item)
            reservation = self._budget.try_reserve(worst)
            if reservation is None:
                return None
        return ExtraTicket(Ticket(reservation, self._limit_of(item), self._meter), item)

    async def _reserve(self, index: int, item: Any) -> Reservation | None:
        if self._budget is None or self._meter is None:
            return None
        return await self._budget.reserve(index, self._budget.worst_case(self._meter, item))

    def _limit_of(self, item: Any) -> RateLimit | None:
        if isinstance(self._rate_limit, Mapping):
            return self._rate_limit.get(self._model_of(item) or "")
        return self._rate_limit


class Ticket:
    """The reservation of one attempt, and its settlement."""

    def __init__(
        self,
        reservation: Reservation | None,
        rate_limit: RateLimit | None,
        meter: BatchMeter | None,
    ) -> None:
        self._reservation = reservation
        self._rate_limit = rate_limit
        self._meter = meter
        self._expected = 0  # tokens
        self._sent = False

    async def admit(self, item: Any) -> None:
        """Wait for the rate limit."""
        if self._rate_limit is not None:
            if self._rate_limit.tokens_per_minute is not None and self._meter is not None:
                self._expected = await self._meter.expected_tokens(item)
            await self._rate_limit.acquire(self._expected)
        self._sent = True

    def succeeded(self, item: Any, value: Any) -> None:
        try:
            usage = None if self._meter is None else self._meter.usage_of(item, value)
            if usage is not None and self._reservation is not None:
                self._reservation.settle(usage)
        except Exception:  # noqa: BLE001 - the user's meter failed; the answer is kept
            usage = None  # the tally of the batch calls the meter again and reports the error
        self._used(usage)

    def failed(self, error: BaseException | None) -> None:
        """Settle an attempt that ended without an answer: in an error, or cancelled (None)."""
        if isinstance(error, EmptyResponseError):  # it counts like an answer
            if error.usage is not None and self._reservation is not None:
                self._reservation.settle(error.usage)
            self._used(error.usage)
            return
        if self._sent and (error is None or not costs_nothing(error)):
            self._unknown()
            return
        if self._reservation is not None:
            self._reservation.release()
        if self._sent and self._rate_limit is not None:
            # The provider counts requests that it rejects, but not their tokens.
            self._rate_limit.correct(self._expected, 0)

    def _used(self, usage: Usage | None) -> None:
        self._unknown()  # does nothing if it is already settled
        if usage is not None and self._rate_limit is not None:
            self._rate_limit.correct(self._expected, usage.total_tokens)

    def _unknown(self) -> None:
        if self._reservation is not None:
            self._reservation.settle_unknown()


class ExtraTicket:
    """The ticket of the second attempt of a hedged call.

    The ticket of the first attempt pays for the answer, whichever attempt gave it; this one pays
    for the other attempt.
    """

    def __init__(self, ticket: Ticket, item: Any) -> None:
        self._ticket = ticket
        self._item = item

    async def admit(self) -> None:
        await self._ticket.admit(self._item)

    def settle(self, loser: BaseException | None) -> None:
        self._ticket.failed(loser)


def costs_nothing(error: BaseException) -> bool:
    """Return True if a call that ended in this error certainly cost nothing."""
    return classify(error.error if isinstance(error, RetryLater) else error).sent is False
