"""What a file of requests will cost, about: told before the first call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from parallel_core.control import RouterMeter
from parallel_core.types import RouterParallelRequest

from .call import unwrap_router

# Tokens of an answer, where the request does not allow fewer: that of a few paragraphs.
ASSUMED_ANSWER_TOKENS = 500


class CostEstimate(msgspec.Struct, frozen=True):
    """What requests will cost, about.

    Attributes:
        requests: how many there are.
        cost: USD, of those whose price is known.
        unpriced: requests whose price is not known.
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
    """Guess what requests will cost.

    The tokens of a prompt are taken for a quarter of its bytes, and an answer for
    :data:`ASSUMED_ANSWER_TOKENS`, or for what the request allows if that is less. Of several
    deployments the dearest one counts. It is good for the order of magnitude.

    Args:
        router: its deployments tell the prices.
        requests: drawn once.
        prices: USD for each token of prompt and of answer, by model; they go before all others.
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
