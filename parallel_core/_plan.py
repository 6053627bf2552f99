"""What a batch is asked to do: its arguments, checked once for both worlds."""

from __future__ import annotations

import operator
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

from ._agenda import Order
from .control._engine import Attachment
from .router_call import as_request, check_all, completion_call
from .types import (
    ItemT,
    ParallelResult,
    RouterParallelRequest,
    RouterParallelResult,
    SupportsAcompletion,
    Usage,
    ValueT,
)

ResultT = TypeVar("ResultT", covariant=True)
Source: TypeAlias = Iterable[ItemT] | AsyncIterable[ItemT]
Requests: TypeAlias = Source[RouterParallelRequest | Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class BatchPlan(Generic[ResultT]):
    """What a batch is to do, in either world."""

    call: Callable[[int, Any], Awaitable[Any]]
    source: Iterable[Any] | AsyncIterable[Any]
    result_type: Callable[..., ResultT]
    prepare: Callable[[int, Any], Any] | None
    concurrency: int
    return_exceptions: bool
    preserve_order: bool
    total: int | None = None  # requests, where their number is known
    order: Callable[[], Order] | None = None
    attachments: Sequence[Attachment] = ()
    observe: Callable[[Any, Any], None] | None = None  # item and value of a call that succeeded
    usage: Callable[[], Usage] = Usage


def map_plan(
    function: Callable[[ItemT], Awaitable[ValueT]],
    items: Source[ItemT],
    *,
    concurrency: int,
    return_exceptions: bool,
    preserve_order: bool,
) -> BatchPlan[ParallelResult[ItemT, ValueT]]:
    """Check the arguments of a ``parallel_map`` and make a plan of them."""
    if not callable(function):
        raise TypeError(f"expected an async callable, not {type(function).__qualname__}")

    def call(index: int, item: ItemT) -> Awaitable[ValueT]:
        return function(item)

    result_type: Callable[..., ParallelResult[ItemT, ValueT]] = ParallelResult
    return BatchPlan(
        call,
        _checked_source(items, "items"),
        result_type,
        None,
        _checked_concurrency(concurrency),
        return_exceptions,
        preserve_order,
    )


def completion_plan(
    router: SupportsAcompletion | Callable[..., Awaitable[Any]],
    requests: Requests,
    *,
    concurrency: int,
    return_exceptions: bool,
    preserve_order: bool,
) -> BatchPlan[RouterParallelResult]:
    """Check the arguments of a ``parallel_acompletions`` and make a plan of them."""
    call = completion_call(router)
    concurrency = _checked_concurrency(concurrency)
    check_all(requests)
    return BatchPlan(
        call,
        _checked_source(requests, "requests"),
        RouterParallelResult,
        as_request,
        concurrency,
        return_exceptions,
        preserve_order,
    )


def _checked_concurrency(concurrency: object) -> int:
    if isinstance(concurrency, bool):
        raise TypeError("concurrency must be an integer, not bool")
    try:
        number = operator.index(cast("int", concurrency))
    except TypeError:
        raise TypeError(
            f"concurrency must be an integer, not {type(concurrency).__qualname__}"
        ) from None
    if number < 1:
        raise ValueError(f"concurrency must be at least 1, not {number}")
    return number


def _checked_source(source: Source[ItemT], name: str) -> Source[ItemT]:
    if not isinstance(cast("object", source), Iterable | AsyncIterable) and not hasattr(
        source,
        "__getitem__",  # enough for iter()
    ):
        raise TypeError(
            f"{name} must be an iterable or an async iterable, not {type(source).__qualname__}"
        )
    return source
