"""Estimate the cost of requests before the first call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from parallel_core.config import unwrap_router
from parallel_core.control import RouterMeter
from parallel_core.types import RouterParallelRequest

# Tokens of an answer, unless the request allows fewer: the length of a few paragraphs.
ASSUMED_ANSWER_TOKENS = 500


class CostEstimate(msgspec.Struct, frozen=True):
    """Estimated cost of requests.

    Attributes:
        requests: number of requests.
        cost: USD, for the requests whose price is known.
        unpriced: number of requests whose price is not known.
    """

    requests: int
    cost: float
    unpriced: int

    @property
    def known_cost(self) -> float | None:
        """USD of the requests whose price is known; None if none of them has a price."""
        return None if self.unpriced and self.unpriced == self.requests else self.cost


def estimate_cost(
    router: object,
    requests: Iterable[RouterParallelRequest],
    prices: Mapping[str, tuple[float, float]] | None = None,
) -> CostEstimate:
    """Estimate the cost of requests. Only the order of magnitude is reliable.

    A prompt counts one token per four bytes. An answer counts :data:`ASSUMED_ANSWER_TOKENS`, or the
    request's own limit if that is lower. If a model has several deployments, the most expensive one
    counts.

    Args:
        router: Router whose deployments have the prices.
        requests: requests to price; iterated once.
        prices: USD per token of the prompt and of the answer, by model. They take precedence over
            all other prices.
    """
    meter = RouterMeter(unwrap_router(router), prices)
    number = unpriced = 0
    total = 0.0
    for request in requests:
        number += 1
        cost = meter.likely_cost(request, ASSUMED_ANSWER_TOKENS)
        if cost is None:
            unpriced += 1
        else:
            total += cost
    return CostEstimate(number, total, unpriced)
