"""Options of a batch, checked before anything is sent."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, get_type_hints

from parallel_core.types import Meter, StreamChunk

from .adaptive_limit import AdaptiveConcurrency
from .budget import Budget
from .checks import checked_callback, checked_count, checked_flag, checked_number
from .fairness import fair_key
from .hedge import Hedge
from .progress import Progress, checked_progress
from .rate_limit import RateLimit, checked_rate_limit
from .retry import Retry
from .stopping import Stopping

Concurrency: TypeAlias = int | Literal["auto"] | AdaptiveConcurrency
"""Highest number of calls in flight. ``"auto"`` and :class:`AdaptiveConcurrency` find it out."""


class Controls(TypedDict, total=False):
    """The controls of a batch. None (for ``progress``: False) turns one off.

    The page ``docs/controls.md`` says what each one promises.

    Attributes:
        timeout: seconds for each attempt of the batch, with the Router's own retries; then
            it is cancelled, and the request fails with :class:`RequestTimeoutError`. The
            ``timeout`` of a request takes precedence. Waits for ``rate_limit`` and ``budget`` do
            not count. The waits of a request for another attempt add up to less than this.
        attempt_timeout: seconds that litellm gives to each attempt of a call, unless a ``timeout``
            is set on the Router, on one of its deployments, or in the request's ``kwargs``. Without
            any of these, a Router gives an attempt 6,000 s. Not for callables. Such a failure has
            the kind ``timeout``.
        total_timeout: seconds that the batch may take. Then no call begins, and those in flight are
            cancelled; unfinished requests fail with :class:`BatchTimeoutError`. A fail-fast batch
            raises it.
        progress: draw a bar on stderr, if stderr is a terminal (or in Jupyter).
        on_progress: called with a :class:`Progress` at most ten times a second, and at the end.
            What it raises ends the batch.
        rate_limit: requests and tokens per minute. With a Router, also a mapping from model to
            limit. Calls wait for their turn.
        budget: a hard cap on cost or tokens.
        fair_by: ``"model"``, or a function of the item (for a Router: the request) that returns its
            key. Keys take turns.
        concurrency_per_key: highest number of calls in flight for one key of ``fair_by``. Default:
            half of the concurrency, and all of it for the last key.
        hedge: send a second attempt of a slow call.
        on_chunk: called with each piece of a streamed answer. What it raises ends the batch.
        retry: when a request is sent again. Default: ``Retry()`` for a Router and for an adaptive
            concurrency, else never. None: never.
        stall_timeout: seconds that a stream may take to its first chunk, and from one chunk to the
            next; then it is cancelled, and fails with :class:`StreamStalledError`.
        direct: send the calls of a Router directly, without litellm's completion code, wherever the
            result is the same: several times the calls per CPU second. ``"verify"``: litellm
            makes each answer too, from what the provider sent, and differences are reported. The
            page ``docs/direct.md`` says which calls these are.
        meter: reports the usage of a call, for ``budget`` and ``rate_limit``. Requests to a Router
            have one already.
    """

    timeout: float | None
    attempt_timeout: float | None
    total_timeout: float | None
    progress: bool
    on_progress: Callable[[Progress], object] | None
    rate_limit: RateLimit | Mapping[str, RateLimit] | None
    budget: Budget | None
    fair_by: Literal["model"] | Callable[[Any], Hashable] | None
    concurrency_per_key: int | None
    hedge: Hedge | None
    meter: Meter | None
    on_chunk: Callable[[StreamChunk], object] | None
    stall_timeout: float | None
    retry: Retry | None
    direct: bool | Literal["verify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """The options of a batch.

    Attributes:
        concurrency, return_exceptions, preserve_order: as in :func:`iter_parallel_map`.
        controls: the controls of the batch and of its calls.
        stop_control: stops the batch early; None if nothing will.
    """

    concurrency: Concurrency = 8
    return_exceptions: bool = True
    preserve_order: bool = False
    controls: Controls = field(default_factory=Controls)
    stop_control: Stopping | None = None

    def __post_init__(self) -> None:
        checked_flag("return_exceptions", self.return_exceptions)
        checked_flag("preserve_order", self.preserve_order)


_NAMES = frozenset(get_type_hints(Controls))
_OPTIONS = ("concurrency", "return_exceptions", "preserve_order", "router_host")


def check_controls(controls: Controls) -> None:
    """Refuse unknown controls, and values that are out of range or contradict each other.

    Raises:
        TypeError: there is no such option, or its value has the wrong type.
        ValueError: a value is out of range, or options cannot be combined.
    """
    for name in controls:
        if name == "deadline":
            raise TypeError(
                "unexpected keyword argument 'deadline': the option is called total_timeout now"
            )
        if name not in _NAMES:
            near = difflib.get_close_matches(name, (*_NAMES, *_OPTIONS), 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise TypeError(
                f"unexpected keyword argument {name!r}{meant}: the parameters of a call belong in "
                f"its request; the controls of a batch are {', '.join(sorted(_NAMES))}"
            )
    for name in ("timeout", "attempt_timeout", "total_timeout", "stall_timeout"):
        if controls.get(name) is not None:
            checked_number(name, controls.get(name))
    checked_progress(controls.get("progress", False))
    direct = controls.get("direct", False)
    if not isinstance(direct, bool) and direct != "verify":
        raise TypeError(f"direct must be True, False or 'verify', not {direct!r}")
    for name in ("on_progress", "on_chunk"):
        if controls.get(name) is not None:
            checked_callback(name, controls.get(name))
    checked_rate_limit(controls.get("rate_limit"))
    for name, kind in (("budget", Budget), ("hedge", Hedge), ("retry", Retry)):
        value = controls.get(name)
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, not {type(value).__qualname__}")
    if controls.get("hedge") is not None and controls.get("on_chunk") is not None:
        raise ValueError(
            "on_chunk cannot be combined with hedge: both attempts would deliver chunks"
        )
    _check_fairness(controls)


def _check_fairness(controls: Controls) -> None:
    fair_by, per_key = controls.get("fair_by"), controls.get("concurrency_per_key")
    if fair_by is not None:
        fair_key(fair_by)
    if per_key is not None:
        checked_count("concurrency_per_key", per_key)
        if fair_by is None:
            raise ValueError("concurrency_per_key needs fair_by, which defines the key")


def checked_concurrency(concurrency: object) -> int | AdaptiveConcurrency:
    """Return the limit of calls in flight, or the settings to find it.

    Raises:
        TypeError: it is neither an integer nor ``"auto"`` nor an AdaptiveConcurrency.
        ValueError: it is below 1, or another string.
    """
    if isinstance(concurrency, AdaptiveConcurrency):
        return concurrency
    if isinstance(concurrency, str):
        if concurrency == "auto":
            return AdaptiveConcurrency()
        raise ValueError(
            f"concurrency must be an integer, 'auto' or an AdaptiveConcurrency, not {concurrency!r}"
        )
    return checked_count("concurrency", concurrency)
