"""A batch whose requests wait on an agenda: for adaptive concurrency, and for fairness."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any, ClassVar

from ._agenda import Agenda, Entry, Order
from ._batch import BatchCore, describe
from ._feed import NOTHING
from ._plan import BatchPlan, ResultT
from ._slot_host import SlotHost
from ._waiting import Waiters
from .errors import add_note, cancelled_unasked

# Items of a source that are drawn ahead in one go: drawing one may take a while.
DRAWS_BETWEEN_PAUSES = 16


def new_core(plan: BatchPlan[ResultT], host: SlotHost) -> BatchCore[ResultT]:
    """The core of a batch, with an agenda where its controls need one."""
    return BatchCore(plan, host) if plan.order is None else AgendaBatchCore(plan, host, plan.order)


class AgendaBatchCore(BatchCore[ResultT]):
    """A batch that may draw requests before their turn, send them again, and hold them."""

    has_agenda: ClassVar[bool] = True

    def __init__(self, plan: BatchPlan[ResultT], host: SlotHost, order: Order) -> None:
        # In input order, what has been drawn must be able to begin, or the request whose result is
        # next might not: there the room is counted in draws.
        self._by_draws = plan.preserve_order
        super().__init__(plan, host, look_ahead=order.look_ahead if self._by_draws else 0)
        self._agenda = Agenda(order)
        self._appetite = Waiters(host.new_event)  # of the agenda, where the source is async
        self._filling = False
        self._hurrying = False

    @property
    def started(self) -> int:
        return self._agenda.begun

    # --- what controls may ask ---

    def hold(self) -> None:
        self._agenda.held = not self._hurrying

    def go_on(self) -> None:
        self._agenda.held = False
        self.look_again()

    def bring_forward(self, indexes: Collection[int]) -> None:
        self._agenda.bring_forward(indexes)
        self._room.wake_all()

    def hurry(self) -> None:
        self._hurrying = True  # from now on: a call that is just ending may be postponed still
        self._agenda.hurry()
        self._room.wake_all()

    # --- slots ---

    @property
    def _nothing_to_do(self) -> bool:
        return self._exhausted and self._agenda.empty

    def _start_slot(self) -> None:
        if self._feed is not None and not self._filling:
            assert self._slots is not None
            self._filling = True
            self._host.start(self._slots, self._fill_ahead, self._filler_ended)
        super()._start_slot()

    async def _next_entry(self) -> Entry | None:
        agenda = self._agenda
        while not self.stopping:
            if self._open_slots > self._limit:
                return None  # where too many leave, slots are started as they end
            if not agenda.held:
                entry = self._next_again() or self._next_new()
                if entry is not None:
                    self._room.wake_one()  # there may be room for more than this one
                    return entry
                if self._can_draw:  # none of those so far may begin
                    await self._host.pause()
                    continue
            if self._nothing_to_do:
                self._room.wake_all()
                return None
            await self._room.wait()
        return None

    def _next_again(self) -> Entry | None:
        if not self._has_room:
            return None
        entry = self._agenda.next_again(self._limit)
        if entry is not None:
            self._claimed += 1
        return entry

    def _next_new(self) -> Entry | None:
        if not self._has_room_for_new:
            return None
        for _ in range(DRAWS_BETWEEN_PAUSES):
            if not self._can_draw:
                break
            item = self._draw()
            if item is not NOTHING:
                self._claimed -= 1  # not before it begins
                self._add(item)
        entry = self._agenda.next_new(self._limit)
        if entry is not None:
            self._claimed += 1
            self._appetite.wake_one()
        return entry

    @property
    def _has_room(self) -> bool:
        return self._by_draws or self._claimed - self.delivered < self._window

    @property
    def _has_room_for_new(self) -> bool:
        # What is to be sent again has no place in the window, or rejected keys would fill it and
        # idle the others. Beyond the order's bound it keeps out new requests all the same.
        crowd = max(0, self._agenda.again - self._agenda.order.apart)
        return self._by_draws or self._claimed + crowd - self.delivered < self._window

    @property
    def _can_draw(self) -> bool:
        """Whether a slot may draw from a source that is not async."""
        done = self._exhausted or self.stopping
        return self._feed is None and self._has_room_for_new and self._wants_more and not done

    def _exhaust(self) -> None:
        self._agenda.order.source_ended()
        super()._exhaust()

    @property
    def _wants_more(self) -> bool:
        if self._by_draws and self._drawn - self.delivered >= self._window:
            return False
        return self._agenda.wants_more

    def handed_out(self, result: object) -> None:
        super().handed_out(result)
        if self._by_draws:
            self._appetite.wake_one()

    def _add(self, item: Any) -> None:
        index = self._drawn
        self._drawn += 1
        try:
            self._agenda.add(index, item)
        except Exception as exception:  # noqa: BLE001 - the user's key function
            add_note(exception, f"raised by fair_by for {describe(index, item)}")
            self.fail(exception)

    async def _fill_ahead(self) -> None:
        """Draw an async source for the agenda, which cannot wait for it at every slot."""
        feed = self._feed
        assert feed is not None
        while not (self.stopping or self._exhausted):
            if not self._wants_more:
                await self._appetite.wait()
                continue
            item = await feed.take()
            if item is NOTHING:
                break
            self._add(item)
            self._room.wake_one()

    def _filler_ended(self, exception: BaseException | None, *, cancelled: bool) -> None:
        if exception is not None:
            self.crash(exception)
        elif not (cancelled or self.stopping or self._exhausted or self._feed_has_ended):
            self._source_failed(cancelled_unasked("the source"))  # by somebody else
        self._exhaust()

    @property
    def _feed_has_ended(self) -> bool:
        return self._feed is not None and self._feed.ended

    def _call_ended(self, entry: Entry, began: float, started_at: float) -> tuple[float, float]:
        if entry.began is None:
            entry.began, entry.started_at = began, started_at
        try:
            self._agenda.order.ended(entry)
        except Exception as exception:  # noqa: BLE001 - of a key; what the call gave is delivered
            add_note(exception, f"found when {describe(entry.index, entry.item)} had ended")
            self.fail(exception)
        self._room.wake_one()
        return entry.began, entry.started_at

    def _postpone(self, entry: Entry, delay: float) -> None:
        self._claimed -= 1  # until it is sent again
        delay = 0.0 if self._hurrying else delay
        self._agenda.postpone(entry, self.call_later(delay, functools.partial(self._due, entry)))

    def _due(self, entry: Entry) -> None:
        self._agenda.due(entry)
        self._room.wake_one()
