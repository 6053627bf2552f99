"""The words that controls have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[int, Any], Awaitable[Any]]
"""``async (index, item) -> value``: one call of a batch. A control makes one out of another."""


class RetryLater(Exception):  # noqa: N818 - it is no error
    """Raised by a control: the engine is to make this call again, after a time, and to use the slot
    for another one meanwhile.

    It never reaches a user: where the engine does not make the call again, ``error`` stands for it.

    Attributes:
        error: what the call has raised.
        delay: seconds until the call is to be made again, at least.
        counts: whether this was an attempt; not if the call was held back.
    """

    def __init__(self, error: Exception, delay: float, *, counts: bool = True) -> None:
        super().__init__(error, delay)
        self.error = error
        self.delay = delay
        self.counts = counts
