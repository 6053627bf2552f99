"""Types that controls share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

Call: TypeAlias = Callable[[int, Any], Awaitable[Any]]
"""``async (index, item) -> value``: one call of a batch. A control wraps one in another."""


class RetryLater(Exception):  # noqa: N818 - it is not an error
    """Signal from a control to the engine: make this call again later, and free its slot meanwhile.

    It never reaches a user: if the engine does not make the call again, it uses ``error`` instead.

    Attributes:
        error: what the call raised.
        delay: minimum seconds until the call is made again.
        counts: True if this was an attempt; False if the call was held back.
    """

    def __init__(self, error: Exception, delay: float, *, counts: bool = True) -> None:
        super().__init__(error, delay)
        self.error = error
        self.delay = delay
        self.counts = counts
