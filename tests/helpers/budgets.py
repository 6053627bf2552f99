"""A request with a known worst case, its answer, and what a budget holds."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel

from parallel_core import Budget, RouterParallelRequest
from parallel_core.control.metering import RouterMeter

REQUEST = RouterParallelRequest("m", [{"role": "user", "content": "x"}], {"max_tokens": 20})
WORST = RouterMeter(None).worst_case(REQUEST).total_tokens
ANSWER = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}


async def fake_router(**_: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return ANSWER


def state(budget: Budget) -> tuple[float, float, int, int]:
    return (
        budget.spent_cost,
        budget.reserved_cost,
        budget.spent_tokens,
        budget.reserved_tokens,
    )
