"""A hard cap on the cost and the tokens of calls."""

from __future__ import annotations

import contextvars
import functools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from parallel_core.errors import BudgetExceededError
from parallel_core.event_loops import EventLoop, current_event_loop
from parallel_core.types import RouterParallelRequest, Usage

from .checks import checked_count, checked_number
from .metering import BatchMeter
from .prices import UnpricedError, checked_prices
from .progress import BudgetUse
from .turns import SerialLock, Turn, WakeQueue

# Reservations of the calls that enclose the running code.
_held: contextvars.ContextVar[tuple[Reservation, ...]] = contextvars.ContextVar(
    "parallel_core_reservations", default=()
)


class Budget:
    """A cap on what calls may cost: in money, in tokens or in both.

    The worst case of a call is reserved before the call begins: its prompt, and the longest answer
    that it may get. When the call has ended, its real usage replaces the reservation. Spent and
    reserved together never exceed the cap. A call that does not fit waits, first come, first
    served, while other calls may still give room back. When none can, it is refused with
    :class:`BudgetExceededError`.

    An attempt with an unknown bill (it was cancelled, it timed out, its connection broke) counts
    with its worst case. An attempt that a provider has answered with an error costs nothing.

    One object may be used by several batches, at once or one after another, also in several
    threads. A batch inside a call of another batch with the same budget does not wait for room,
    since the call around it holds some. A copy, also one in another process, keeps its own count.

    The cap does not cover attempts that a Router makes inside one call (``num_retries``) and does
    not report. Use a Router without retries if the last cent counts.

    Attributes:
        max_cost: USD. Every model must have a price, from its deployment, litellm's map or
            ``prices``.
        max_tokens: tokens of prompts and answers.
        assume_output_tokens: length of the longest answer in tokens, used if neither the request
            (``max_tokens``) nor the data of its model has a limit.
        prices: USD per token of the prompt and per token of the answer, by model. They take
            precedence over all other prices.

    Raises:
        TypeError, ValueError: a value is out of its range, or no cap is given.
    """

    def __init__(
        self,
        *,
        max_cost: float | None = None,
        max_tokens: int | None = None,
        assume_output_tokens: int | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        if max_cost is None and max_tokens is None:
            raise ValueError("Budget needs max_cost, max_tokens or both")
        if max_cost is not None:
            checked_number("Budget.max_cost", max_cost)
        if max_tokens is not None:
            max_tokens = checked_count("Budget.max_tokens", max_tokens)
        if assume_output_tokens is not None:
            assume_output_tokens = checked_count(
                "Budget.assume_output_tokens", assume_output_tokens
            )
        self.max_cost = max_cost
        self.max_tokens = max_tokens
        self.assume_output_tokens = assume_output_tokens
        self.prices = checked_prices(prices)
        # Sums are exact: with floats, adding and subtracting the same amount leaves a remainder.
        self._cap = None if max_cost is None else _exact(max_cost)
        self._spent = _Amount()
        self._reserved = _Amount()
        self._begin()

    def _begin(self) -> None:
        self._serial = SerialLock()
        self._waiting: deque[_BudgetTurn] = deque()
        self._wake_queue = WakeQueue()

    def __getstate__(self) -> dict[str, Any]:
        state = self._serial.run(self.__dict__.copy)
        del state["_serial"], state["_waiting"], state["_wake_queue"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def spent_cost(self) -> float:
        """USD of the calls that have ended, with the worst case for each unknown bill."""
        return float(self._spent.cost)

    @property
    def spent_tokens(self) -> int:
        """Number of tokens of the calls that have ended."""
        return self._spent.tokens

    @property
    def reserved_cost(self) -> float:
        """USD that the calls in flight may cost."""
        return float(self._reserved.cost)

    @property
    def reserved_tokens(self) -> int:
        """Number of tokens that the calls in flight may use."""
        return self._reserved.tokens

    def use(self) -> BudgetUse:
        """Return the caps, and what is spent and reserved."""
        return self._serial.run(
            lambda: BudgetUse(
                max_cost=self.max_cost,
                max_tokens=self.max_tokens,
                spent_cost=self.spent_cost,
                spent_tokens=self.spent_tokens,
                reserved_cost=self.reserved_cost,
                reserved_tokens=self.reserved_tokens,
            )
        )

    def check(
        self,
        meter: BatchMeter,
        requests: Iterable[RouterParallelRequest],
    ) -> None:
        """Refuse requests with an unknown worst case, before the first of many is sent.

        Raises:
            ValueError: models have no price, or a request has no limit. The error names them.
        """
        unpriced: dict[str, None] = {}
        unlimited: ValueError | None = None
        for request in requests:
            if self._has_no_price(meter, request):
                unpriced[request.model] = None
            elif unlimited is None:
                try:
                    self.worst_case(meter, request)
                except ValueError as error:
                    unlimited = error
        if unpriced:
            raise UnpricedError(", ".join(map(repr, unpriced)))
        if unlimited is not None:
            raise unlimited

    def _has_no_price(self, meter: BatchMeter, request: RouterParallelRequest) -> bool:
        return self.max_cost is not None and meter.price_of_request(request) is None

    def worst_case(self, meter: BatchMeter, item: Any) -> Usage:
        """Return the worst case of a request.

        Raises:
            ValueError: it is unknown.
        """
        if isinstance(item, RouterParallelRequest) and self._has_no_price(meter, item):
            raise UnpricedError(repr(item.model))
        worst = meter.worst_case(item)
        if self.max_cost is not None and worst.unpriced_calls:
            raise UnpricedError("a call, or of a fallback that it names,")
        return worst

    async def reserve(self, index: int, worst: Usage) -> Reservation:
        """Reserve the worst case of a call, or wait until there is room for it.

        Raises:
            BudgetExceededError: there is no room, and there will be none.
        """
        place = self._serial.run(self._reserve_or_queue, index, _Amount.of(worst))
        if isinstance(place, Reservation):
            return place
        try:
            await place.wait()
        except BaseException:
            self._serial.run_soon(functools.partial(self._leave, place))
            raise
        self._serial.run(self._wake_queue.resumed, place)
        if place.reservation is not None:
            return place.reservation
        assert place.refused is not None
        try:
            raise place.refused
        finally:
            del place  # no reference cycle through the traceback

    def try_reserve(self, worst: Usage) -> Reservation | None:
        """Reserve the worst case of a call if there is room now and no other call waits for it."""
        return self._serial.run(self._try_reserve, _Amount.of(worst))

    # --- the methods below run inside `_serial` ---

    def _reserve_or_queue(self, index: int, amount: _Amount) -> Reservation | _BudgetTurn:
        inside = any(held.is_open_in(self) for held in _held.get())
        if inside or not self._waiting:
            reservation = self._take(amount)
            if reservation is not None:
                return reservation
        if inside or not self._may_fit(amount):
            raise self._exceeded(index, amount)
        turn = _BudgetTurn(current_event_loop(), index, amount)
        self._waiting.append(turn)
        return turn

    def _try_reserve(self, amount: _Amount) -> Reservation | None:
        return None if self._waiting else self._take(amount)

    def _take(self, amount: _Amount) -> Reservation | None:
        if self._left(amount, self._spent + self._reserved) is not None:
            return None
        self._reserved += amount
        return Reservation(self, amount)

    def _serve(self) -> None:
        """Give room to the waiting calls in their order, or refuse them.

        The code that frees room calls this. If waiting calls looked for room themselves, one in a
        blocked thread would delay those behind it.
        """
        while self._waiting:
            turn = self._waiting[0]
            reservation = self._take(turn.amount)
            if reservation is None and self._may_fit(turn.amount):
                return
            self._waiting.popleft()
            turn.reservation = reservation
            turn.refused = None if reservation else self._exceeded(turn.index, turn.amount)
            turn.is_served = self._wake_queue.wake(turn)
            if reservation is not None and not turn.is_served:  # its loop is closed
                reservation.is_open = False
                self._reserved -= turn.amount

    def _leave(self, turn: _BudgetTurn) -> None:
        """Remove a waiting call that was cancelled, possibly after it was served."""
        if turn.is_served:
            self._wake_queue.resumed(turn)
        if turn.reservation is not None:
            self._settle(turn.reservation, _Amount())
        elif turn in self._waiting:
            self._waiting.remove(turn)
            self._serve()

    def _settle(self, reservation: Reservation, spent: _Amount) -> None:
        if reservation.is_open:
            reservation.is_open = False
            self._reserved -= reservation.amount
            self._spent += spent
            self._serve()

    def _count_lost(self, reservation: Reservation, index: int) -> BudgetExceededError | None:
        """Count an attempt whose usage is unknown, if there is room for another attempt."""
        if not reservation.is_open:
            return None
        if self._left(reservation.amount, self._spent + self._reserved) is not None:
            return self._exceeded(index, reservation.amount)
        self._spent += reservation.amount
        return None

    def _may_fit(self, amount: _Amount) -> bool:
        """Return True if there would be room if the calls in flight cost nothing."""
        return self._left(amount, self._spent) is None

    def _left(self, amount: _Amount, used: _Amount) -> tuple[str, float, float] | None:
        """Return the limit that would be exceeded, the need and the rest; None if all fits."""
        if self._cap is not None and used.cost + amount.cost > self._cap:
            left = self._cap - used.cost
            return f"max_cost of {self.max_cost:g} USD", float(amount.cost), float(left)
        if self.max_tokens is not None and used.tokens + amount.tokens > self.max_tokens:
            return f"max_tokens of {self.max_tokens}", amount.tokens, self.max_tokens - used.tokens
        return None

    def _exceeded(self, index: int, amount: _Amount) -> BudgetExceededError:
        over = self._left(amount, self._spent + self._reserved)
        assert over is not None
        return BudgetExceededError(index, *over)

    def __repr__(self) -> str:
        return f"Budget(max_cost={self.max_cost}, max_tokens={self.max_tokens})"


class _BudgetTurn(Turn):
    """A call that waits for room, and the outcome."""

    __slots__ = ("amount", "index", "is_served", "refused", "reservation")

    def __init__(self, loop: EventLoop, index: int, amount: _Amount) -> None:
        super().__init__(loop)
        self.index = index
        self.amount = amount
        self.is_served = False
        self.reservation: Reservation | None = None
        self.refused: BudgetExceededError | None = None


class Reservation:
    """Room in a budget for one attempt. It is settled once; later calls change nothing.

    Its methods may be called from any thread.
    """

    def __init__(self, budget: Budget, amount: _Amount) -> None:
        self._budget = budget
        self.amount = amount
        self.is_open = True

    def is_open_in(self, budget: Budget) -> bool:
        """Return True if it holds room in that budget."""
        return self.is_open and self._budget is budget

    def settle(self, usage: Usage) -> None:
        """Replace the reservation by the usage; an unpriced call costs at least the reservation."""
        spent = _Amount.of(usage)
        if usage.unpriced_calls:
            spent = _Amount(max(spent.cost, self.amount.cost), spent.tokens)
        self._end(spent)

    def attempt_again(self, index: int) -> BudgetExceededError | None:
        """Count a lost attempt with its worst case, and keep room for another attempt.

        Returns:
            The reason why there is no room for another attempt; None if there is.
        """
        budget = self._budget
        return budget._serial.run(budget._count_lost, self, index)  # pyright: ignore[reportPrivateUsage]

    def settle_unknown(self) -> None:
        """Settle with the worst case: the attempt was sent, and its usage is unknown."""
        self._end(self.amount)

    def release(self) -> None:
        """Give the room back: nothing was used."""
        self._end(_Amount())

    def _end(self, spent: _Amount) -> None:
        budget = self._budget
        budget._serial.run_soon(functools.partial(budget._settle, self, spent))  # pyright: ignore[reportPrivateUsage]


def mark_as_held(reservation: Reservation) -> None:
    """Mark the running code, and what it starts, as inside a call that holds this reservation.

    The mark counts for as long as the reservation is open.
    """
    _held.set((*(held for held in _held.get() if held.is_open), reservation))


def held_reservation() -> Reservation | None:
    """Return the open reservation of the innermost call around the running code, if any."""
    return next((held for held in reversed(_held.get()) if held.is_open), None)


class _Amount:
    """Money and tokens."""

    __slots__ = ("cost", "tokens")

    def __init__(self, cost: Fraction | int = 0, tokens: int = 0) -> None:
        self.cost = Fraction(cost)
        self.tokens = tokens

    @staticmethod
    def of(usage: Usage) -> _Amount:
        return _Amount(_exact(usage.cost), usage.total_tokens)

    def __add__(self, other: _Amount) -> _Amount:
        return _Amount(self.cost + other.cost, self.tokens + other.tokens)

    def __sub__(self, other: _Amount) -> _Amount:
        return _Amount(self.cost - other.cost, self.tokens - other.tokens)


def _exact(cost: float) -> Fraction:
    # Round to a billionth of a cent: sums of exact binary fractions would grow without bound.
    scaled = cost * 10**11
    return Fraction(cost) if math.isinf(scaled) else Fraction(round(scaled), 10**11)
