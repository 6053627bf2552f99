"""The plan of a batch, the same for trio and asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from parallel_core.control import Attachment, Call, LimitChange, UsageTally
from parallel_core.router import HasDirectCounts
from parallel_core.types import Usage

from .backlog import DrawOrder, Order

ResultT = TypeVar("ResultT", covariant=True)


@dataclass(frozen=True, slots=True)
class BatchPlan(Generic[ResultT]):
    """The plan of a batch, the same for trio and asyncio.

    Attributes:
        call: ``async (index, item) -> value``, wrapped in all its controls.
        source: the items.
        result_type: makes a result from index, item, value, exception, start, duration, attempts.
        prepare: checks an item before its call, and may replace it.
        concurrency: highest value of the limit.
        limit: first limit of calls in flight.
        return_exceptions: an exception of a call becomes its result; False: it ends the batch.
        preserve_order: hand out results in input order.
        order: the order in which drawn items begin.
        attachments: controls that are called at the beginning and at the end of the batch.
        tally: adds up the usage of the calls; None if nothing reports it.
        usage, limit_changes, failed_deployments: return what the controls report about the batch.
        waiting_chunks: highest number of chunks that wait for the consumer.
        window: highest value of calls begun minus results handed out; None: as the order needs it.
        before: a blocking function that runs in a thread before the first call.
        direct_counts: counts the attempts that were sent directly; None: litellm sends them.
    """

    call: Call
    source: Iterable[Any] | AsyncIterable[Any]
    result_type: Callable[..., ResultT]
    concurrency: int
    limit: int
    return_exceptions: bool = True
    preserve_order: bool = False
    prepare: Callable[[int, Any], Any] | None = None
    order: Order = field(default_factory=DrawOrder)
    attachments: Sequence[Attachment] = ()
    tally: UsageTally | None = None
    usage: Callable[[], Usage] = Usage
    limit_changes: Callable[[], list[LimitChange]] = list
    failed_deployments: Callable[[], dict[str, str]] = dict
    waiting_chunks: int = 0
    window: int | None = None
    before: Callable[[], None] | None = None
    direct_counts: HasDirectCounts | None = None
