"""What a batch is to do, in either world."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from parallel_core.control import Attachment, Call, LimitChange, UsageTally
from parallel_core.types import Usage

from .backlog import InputOrder, Order

ResultT = TypeVar("ResultT", covariant=True)


@dataclass(frozen=True, slots=True)
class BatchPlan(Generic[ResultT]):
    """What a batch is to do, in either world.

    Attributes:
        call: ``async (index, item) -> value``, with all its controls around it.
        source: the items.
        result_type: makes a result of index, item, value, exception, start, duration and attempts.
        prepare: checks an item before its call, and may replace it.
        concurrency: the most that the limit can become.
        limit: calls in flight, at first.
        return_exceptions: an exception of a call becomes its result; False: it ends the batch.
        preserve_order: hand out results in input order.
        order: the order in which items that have been drawn begin.
        attachments: controls that are told of the beginning and the end of the batch.
        tally: adds up what the calls use; None if nothing can tell.
        usage, limit_changes, failed_deployments: what the controls report of the batch.
        waiting_chunks: waiting_chunks of results that may wait for the consumer.
        window: calls begun minus results handed out, at most; None: as the order needs it.
        before: blocks; runs in a thread before the first call.
    """

    call: Call
    source: Iterable[Any] | AsyncIterable[Any]
    result_type: Callable[..., ResultT]
    concurrency: int
    limit: int
    return_exceptions: bool = True
    preserve_order: bool = False
    prepare: Callable[[int, Any], Any] | None = None
    order: Order = field(default_factory=InputOrder)
    attachments: Sequence[Attachment] = ()
    tally: UsageTally | None = None
    usage: Callable[[], Usage] = Usage
    limit_changes: Callable[[], list[LimitChange]] = list
    failed_deployments: Callable[[], dict[str, str]] = dict
    waiting_chunks: int = 0
    window: int | None = None
    before: Callable[[], None] | None = None
